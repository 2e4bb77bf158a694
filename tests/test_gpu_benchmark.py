"""The smallest parts of benchmarks/gpu.py, so that it runs where there is a card."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    tiny = {"batch": 2, "part_rows": 4, "n_parts": 2, "seconds": 0.0, "matrix": 32, "people": 0.0002}
    monkeypatch.setattr(gpu, "PROCESSOR", dataclasses.replace(gpu.PROCESSOR, **tiny))
    return gpu


@pytest.mark.slow
def test_the_dry_run_prints_a_table_and_writes_json(gpu, monkeypatch, capsys, tmp_path):
    """FaceQAN and SER-FIQ stand aside: one image takes seconds without a card, and benchmarks/inference.py has them too."""
    times = {"recognizer": "net", "ours_s_per_image": 0.5, "alone_s_per_image": 2.0}
    monkeypatch.setattr(gpu, "single_image_ratios", lambda faces, share, device: {"faceqan": times})
    monkeypatch.setattr(gpu, "make_faces", lambda: np.zeros((3, 112, 112, 3), np.uint8))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu", "--json", str(tmp_path / "gpu.json")])
    gpu.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(lines) == len(rows) + 2
    network = "arcface_torch_mobilefacenet"
    assert [r["what"].split(",")[0] for r in rows[:5]] == [f"{w} {network}" for w in ("embed", "bare loop") * 2] + [
        "decode"
    ]
    assert (rows[5]["measured"], rows[5]["reference"], rows[5]["ratio"]) == (0.5, 2.0, 4.0)
    assert all(np.isfinite(r["ratio"]) and r["ratio"] > 0 for r in rows)
    assert rows[-1]["what"].endswith("exact products")
    assert rows[-1]["measured"] == 100


def test_without_a_card_one_sentence_says_what_to_do(gpu, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="torch sees no CUDA device; install a torch build with CUDA"):
        gpu.main()
