"""All pairs of a set in a job: those of a large set are counted, those of a small one listed, with the same areas."""

import itertools

import numpy as np
import pytest

import smoke
from fiqa_ray.core.edc import edc_curve
from fiqa_ray.core.intervals import NOT_RESAMPLED
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.sources import comparisons
from fiqa_ray.stages import cells
from fiqa_ray.tools.run_job import run_job


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10_000, 100])
def test_all_pairs_of_a_folder(tmp_path, monkeypatch, limit) -> None:
    for module in (comparisons, cells):
        monkeypatch.setattr(module, "MAX_LISTED_PAIRS", limit)
    faces = smoke.make_faces(tmp_path / "faces", n_identities=3, per_identity=4)
    folder = f"{faces}/bench"
    bench = {
        "name": "adience",
        "source": {"kind": "folder", "uri": folder},
        "pairs": {"kind": "all_pairs", "uri": folder},
    }
    settings = smoke.settings(
        tmp_path, faces, str(tmp_path / "run"), benchmarks=[bench], methods=[{"name": "embedding_norm"}],
        evaluate={"fmr": 0.1, "draws": 20, "conventions": ["paper", "dasec"]}, train={"n_epochs": 1},
    )  # fmt: skip
    job = run_job(settings)
    table = job.faces("adience").read_all(["identity"])
    person = table["identity"].to_pylist()
    values, _ = embedding_values(job.embeddings("adience").read_all(["embedding"]))
    score = job.prior_scores("adience", settings.methods[0]).read_all(["score"])["score"].to_numpy()
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    pairs = np.array(list(itertools.combinations(range(len(person)), 2))).T
    n_pairs = len(person) * (len(person) - 1) // 2
    assert n_pairs > 100
    similarity = (unit[pairs[0]] * unit[pairs[1]]).sum(axis=1)
    mated = [person[a] == person[b] for a, b in pairs.T]
    dataset = job.evaluation(settings.benchmarks[0])
    rows = dataset.read(dataset.require().parts[0], suffix=".auc.parquet").to_pylist()
    for convention in ("paper", "dasec"):
        expected = edc_curve(similarity, mated, score[pairs[0]], score[pairs[1]], fmr=0.1, convention=convention)
        (row,) = [
            r for r in rows if (r["scorer"], r["convention"], r["is_own_limit"]) == ("embedding_norm", convention, True)
        ]
        assert row["auc"] == pytest.approx(expected.auc(row["discard_limit"]), abs=1e-9)
        assert row["n_mated"] == sum(mated)
        assert row["n_mated"] + row["n_nonmated"] == n_pairs
        assert (row["reason"] == NOT_RESAMPLED) == (limit == 100)
