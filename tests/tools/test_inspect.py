"""`fiqa-ray explain` and `fiqa-ray time`."""

import json

import cv2
import numpy as np
import pytest

import smoke
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.job import Job
from fiqa_ray.tools.explain import explain_image
from fiqa_ray.tools.run_job import run_job

STAGES = ["pack", "embed", "score", "pair", "rank", "optimize"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    faces = smoke.make_faces(folder / "faces", n_identities=4, per_identity=5)
    settings = smoke.settings(
        folder, faces, str(folder / "run"), methods=[{"name": "embedding_norm"}], benchmarks=[],
        optimize={"theta": [0.05, 0.2], "index_scale": "normalized"},
    )  # fmt: skip
    run_job(settings, STAGES)
    return Job(settings), folder


def test_an_image_and_its_pairs(job, cli) -> None:
    job, folder = job
    names = job.faces("train").read_all(["image_id"])["image_id"].to_pylist()
    values, _ = embedding_values(job.embeddings("train").read_all(["embedding"]))
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    prior = job.prior_scores("train", job.settings.methods[0]).read_all(["score"])["score"].to_numpy()
    index = np.argsort(np.argsort(prior, kind="stable"), kind="stable")
    for name in (names[0], names[7]):
        explained = explain_image(job, name, theta="0.2")
        row = names.index(name)
        moves = []
        for repeat, pairs in enumerate(explained.repeats):
            assert pairs
            for p in pairs:
                assert p.mate != name
                assert p.mate.split("/")[0] == name.split("/")[0]
                assert p.similarity == pytest.approx(unit[row] @ unit[names.index(p.mate)], abs=3e-7)
                assert p.is_owned == (prior[row] < prior[names.index(p.mate)])
            owned = [p.rank for p in pairs if p.is_owned]
            scale = len(names) / explained.n_pairs[repeat]
            moves.append(0.2 * (scale * np.mean(owned) - index[row]) if owned else 0.0)
        assert explained.quality_index == index[row]
        assert explained.optimized_index == pytest.approx(index[row] + np.mean(moves), abs=1e-9)
    code, out, _ = cli("explain", folder / "job.yaml", names[7], "--theta", 0.2, "-o", folder / "mates.png")
    assert code == 0
    assert f"index {index[7]} -> " in out
    assert out.count("repeat ") >= len(explained.repeats)
    picture = cv2.imread(str(folder / "mates.png"))
    assert picture.shape[0] == 130 * len(explained.repeats)
    assert picture.shape[1] == 112 * (1 + max(map(len, explained.repeats)))


def test_unknown_names_are_said(job, cli) -> None:
    _, folder = job
    code, _, err = cli("explain", folder / "job.yaml", "nobody.jpg")
    assert (code, "'nobody.jpg' is no training face of the job" in err) == (2, True)
    code, _, err = cli("explain", folder / "job.yaml", "p00/000.jpg", "--theta", 0.3)
    assert (code, "the job has embedding_norm and theta 0.05, 0.2" in err) == (2, True)


@pytest.mark.slow
def test_times_of_methods(cli) -> None:
    code, out, _ = cli(
        "time", "embedding_norm", "embedding_norm", "--recognizer", "smoke:tiny", "--batch-size", 16, "--json"
    )
    assert code == 0
    timing = json.loads(out)
    assert [m["method"] for m in timing["methods"]] == ["embedding_norm"] * 2
    assert timing["n_images"] == 100
    assert set(timing["versions"]) == {"python", "torch", "fiqa_ray"}
    for m in timing["methods"]:
        assert m["best_batch"] in (1, 16)
        assert 0 < m["best_mean"] <= m["mean"]
        assert m["sd"] > 0
    assert timing["decode_mean"] > 0
    assert [m["variant"] for m in timing["methods"]] == ["", ""]
    code, out, _ = cli("time", "embedding_norm", "--recognizer", "smoke:tiny", "--batch-size", 16)
    assert code == 0
    assert "Milliseconds per image" in out
    assert cli("time", "embedding_norm", "--recognizer", "smoke:tiny", "--n-images", 9)[0] == 2


def test_the_methods_of_a_job_are_timed(job, cli) -> None:
    _, folder = job
    code, out, err = cli("time", folder / "job.yaml", "--batch-size", 16, "--json")
    assert code == 0, err
    # the regressors of this job are not trained yet
    assert [(m["method"], m["variant"]) for m in json.loads(out)["methods"]] == [("embedding_norm", "baseline")]


def test_a_sleeping_method_takes_its_time() -> None:
    import time

    import torch

    from fiqa_ray.tools import time_methods

    calls = []

    def sleeping(batch, rows):
        calls.append(len(batch))
        time.sleep(0.002)
        return torch.zeros(len(batch))

    faces = np.zeros((7, 3, 112, 112), np.uint8)
    times = time_methods._batch_times(sleeping, faces, 10, 100, 3)
    assert calls == [10] * 13
    assert 0.2 <= times.min() < 2  # the others may have waited for a processor
