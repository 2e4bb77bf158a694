"""Scores as OFIQ's CSV: written, and read by this package and by pandas."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from fiqa_ray.errors import UsageError
from fiqa_ray.models.quality_scale import OFIQ_SIGMOID
from fiqa_ray.sources.command_line import list_images
from fiqa_ray.sources.scores import read_scores
from fiqa_ray.tools.score import check_output, score_images, write_scores


@pytest.fixture
def table(tmp_path):
    """Two faces with scores of OFIQ's own table, and a file that is no image."""
    for name, grey in (("a", 0), ("b", 255)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((112, 112, 3), grey, np.uint8))
    (tmp_path / "c.png").write_bytes(b"no image")

    def scorer(faces, rows):
        return np.where(faces[:, 0, 0, 0].numpy() > 0, 24.329985, 16.142765)

    return score_images(list_images([str(tmp_path)]), scorer, scale=OFIQ_SIGMOID)


def test_quality_stands_beside_the_score(table):
    assert table["quality"].to_pylist() == [7, 63, -1]  # OFIQ's own results for these raw values
    assert table["score"].to_pylist() == pytest.approx([16.142765, 24.329985, None])


def test_ofiqs_form(table, tmp_path):
    path = str(tmp_path / "ofiq.csv")
    write_scores(table, path, "ofiq")
    lines = (tmp_path / "ofiq.csv").read_text().splitlines()
    assert lines[0] == "Filename;UnifiedQualityScore;UnifiedQualityScore.scalar;"
    assert [line.split(";")[1:] for line in lines[1:]] == [["16.1428", "7"], ["24.33", "63"], ["-1", "-1"]]
    read = pd.read_csv(path, sep=";", index_col=False)
    assert read["UnifiedQualityScore.scalar"].tolist() == [7, 63, -1]
    own = read_scores(path, score_column="UnifiedQualityScore.scalar", id_column="Filename")
    assert own["score"].to_pylist() == [7, 63, -1]
    assert read_scores(path)["score"].to_pylist() == [16.1428, 24.33, -1]


def test_mistakes_are_named():
    for arguments, message in (
        (("s.csv", "iso"), "format 'iso' is unknown; there is ofiq"),
        (("s.parquet", "ofiq", OFIQ_SIGMOID), r"OFIQ's format is a \.csv"),
        (("s.csv", "ofiq", None, "faceqan"), "faceqan: nothing says how its scores become a quality"),
    ):
        with pytest.raises(UsageError, match=message):
            check_output(*arguments)
