"""The examples run as their users run them, and give values that are known from elsewhere."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fiqa_ray.core import paper

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_arrays_to_labels_gives_the_papers_labels(tmp_path):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(60, 8)).astype(np.float32)
    scores = rng.normal(size=60)
    people = np.repeat(np.arange(6), 10)
    for name, array in (("e", embeddings), ("p", people), ("s", scores)):
        np.save(tmp_path / f"{name}.npy", array)
    files = [tmp_path / name for name in ("e.npy", "p.npy", "s.npy", "labels.csv")]
    text = run("arrays_to_labels.py", *files, 0.3)

    with open(tmp_path / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # ten images per person: five clusters
    expected = paper.optimize_labels(embeddings, people, scores, n_clusters=5, theta=0.3, index_scale="normalized")
    np.testing.assert_allclose([float(r["optimized_score"]) for r in rows], expected)
    assert [int(r["person"]) for r in rows] == people.tolist()
    labels = (expected - scores.min()) / (scores.max() - scores.min())
    np.testing.assert_allclose([float(r["label"]) for r in rows], labels, atol=1e-6)
    assert text.startswith("60 images, 5 clusters per person: mean move ")


def test_edc_from_csv_gives_an_area_worked_by_hand(tmp_path):
    # 20 mated and 20 non-mated pairs; five mated ones fail, and `good` gives these the lowest quality. Two pairs go per
    # level, so 5 of 20, 3 of 18, 1 of 16 and then no mated pairs fail: 0.05 * (0.25 / 2 + 3 / 18 + 1 / 16).
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["similarity", "mated", "good_a", "good_b", "bad_a", "bad_b"])
        for i in range(20):
            fails = i < 5
            good = i / 100 if fails else i
            writer.writerow([0.4 if fails else 0.9, 1, good, 100, 20 - i, 100])
            writer.writerow([0.5, 0, 100, i + 0.5, 100, 20.5 - i])
    text = run("edc_from_csv.py", tmp_path / "pairs.csv", tmp_path / "curves.png", 0.05)
    areas = {line.split(":")[0]: float(line.split()[2]) for line in text.splitlines()}
    assert areas["good"] == pytest.approx(0.05 * (0.125 + 3 / 18 + 1 / 16), abs=1e-5)
    assert areas["bad"] > areas["good"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_an_example_without_arguments_says_how_it_is_used(name):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"python examples/{name}" in done.stderr


@pytest.mark.slow
def test_the_notebook_shows_a_weak_score_gain(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((EXAMPLES / "weak_score.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport json\nprint(json.dumps(areas))"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    areas = json.loads(done.stdout.splitlines()[-1])
    assert areas["truth"] < areas["theta 0.6"] < areas["theta 0.3"] < areas["theta 0.0"] < areas["random"]
