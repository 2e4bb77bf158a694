from __future__ import annotations

import subprocess
import sys

import pytest

from fiqa_ray.errors import UsageError
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.reference import ModelRef


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("arcface_r100", "table"),
        ("faceqan", "table"),
        ("magface_r100", "table"),  # a recogniser and a method
        ("net.onnx", "onnx"),
        ("s3://bucket/Net.ONNX", "onnx"),
        ("package.module:build", "function"),
        ("module:build", "function"),
        ("runs/a/regressor", "folder"),
        ("regressor", "folder"),
        ("faceqam", "folder"),  # nothing tells a misspelled name from a folder's
        ("s3://bucket/regressor", "folder"),
        ("C:build", "function"),
        ("module:", "folder"),
        ("", "folder"),
    ],
)
def test_kinds(name, kind):
    assert ModelRef.parse(name) == ModelRef(name, kind)


def test_only_methods_of_the_table_without_a_network_need_a_recogniser():
    names = ["faceqan", "serfiq", "pcnet", "embedding_norm", "crfiqa_l", "arcface_r100", "m:f", "x.onnx", "folder"]
    assert [n for n in names if ModelRef.parse(n).needs_recognizer] == ["faceqan", "serfiq", "pcnet", "embedding_norm"]


def test_only_a_regressors_folder_has_a_card():
    assert ModelRef.parse("s3://b/r").card_uri == "s3://b/r/card.json"
    assert [ModelRef.parse(n).card_uri for n in ("faceqan", "x.onnx", "m:f")] == [None, None, None]


def test_a_recognizers_name_is_no_method():
    with pytest.raises(
        UsageError, match="'arcface_r50' is a recogniser, not a FIQA method: use --recognizer arcface_r50"
    ):
        load_scorer("arcface_r50")


@pytest.mark.slow
def test_names_and_tables_are_read_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from fiqa_ray.models.reference import ModelRef; "
        "import fiqa_ray.job; assert ModelRef.parse('serfiq').needs_recognizer"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
