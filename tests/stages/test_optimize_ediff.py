"""Labels by eDifFIQA's rule as a job, against the in-memory function on all images at once."""

from dataclasses import fields

import numpy as np
import pytest

from fiqa_ray.core.ediff import ediff_labels
from fiqa_ray.datasets import image_rows
from fiqa_ray.engine.cost import Scale, Units, Workload
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.stages import stage_costs
from fiqa_ray.tools.open_run import open_run
from fiqa_ray.tools.results_record import record_results
from label_inputs import SHARDS, SIZES, data, run_stages, settings, write_inputs

RULE = {"epsilon": 0.7, "best": 0.4, "least": 3}


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [SHARDS, [0, 34, sum(SIZES)]], ids=["a part per person", "two parts"])
def test_labels_are_those_of_the_function_bit_by_bit(tmp_path, monkeypatch, bounds):
    """Scores with ties at the threshold and without; people of 1 and 2 images never have 3 good ones."""
    if bounds[1] == 34:  # the scores are sorted in ranges too
        monkeypatch.setattr(image_rows, "IMAGES_PER_RANGE", 40)
    identity, embeddings, scores = data(4)
    job = Job(settings(str(tmp_path), optimize={"mode": ["rank", "ediff"], "theta": 0.2, "ediff": RULE}))
    write_inputs(job, identity, embeddings, scores, bounds)
    run_stages(job)
    record_results(job)
    exported = open_run(str(tmp_path)).labels().to_pandas()
    for method in job.settings.methods:
        expected = ediff_labels(embeddings, identity, scores[method.label], **RULE).astype(np.float32)
        assert 0 < np.isnan(expected).sum() < len(expected)
        dataset = job.ediff("ediff_labels", method)
        assert len(dataset.require().parts) == len(bounds) - 1
        got = dataset.read_all()
        np.testing.assert_array_equal(got["label"].to_numpy(), expected)
        assert got["label"].null_count == np.isnan(expected).sum()
        assert got["prior_score"].to_pylist() == scores[method.label].tolist()
        threshold = np.sort(scores[method.label])[-1 - int(0.4 * len(identity))]
        wanted = {
            "threshold": threshold,
            "n_good": (scores[method.label] >= threshold).sum(),
            "n_scored": len(identity),
            "n_labelled": np.isfinite(expected).sum(),
        }
        assert dataset.require().stats == wanted
        rows = exported[(exported["method"] == method.label) & (exported["variant"] == "ediff")]
        assert rows["theta"].isna().all()
        np.testing.assert_array_equal(rows["label"].to_numpy(np.float32), expected)
        optimized = exported[(exported["method"] == method.label) & (exported["variant"] == "optimized")]
        assert set(optimized["theta"]) == {0.2}


def test_mode_ediff_alone_draws_no_pairs(tmp_path):
    """Images without an embedding or a score have no label; the others' labels are as if they were not there."""
    identity, embeddings, scores = data(5)
    bad = {0, 7, 50}
    job = Job(settings(str(tmp_path), optimize={"mode": "ediff", "ediff": RULE}))
    write_inputs(job, identity, embeddings, scores, SHARDS, bad)
    run_stages(job)
    kept = np.array([i for i in range(len(identity)) if i not in bad])
    for method in job.settings.methods:
        expected = np.full(len(identity), np.nan, np.float32)
        expected[kept] = ediff_labels(embeddings[kept], identity[kept], scores[method.label][kept], **RULE)
        got = job.ediff("ediff_labels", method).read_all()["label"]
        np.testing.assert_array_equal(got.to_numpy(), expected)
    made = {path.name for path in tmp_path.iterdir()}
    assert not made & {"pairs", "similarity_ranks", "optimized_index", "theta_choice", "optimized_labels"}
    assert made >= {"quality_index", "ediff_threshold", "ediff_distances", "ediff_labels"}
    record_results(job)
    run = open_run(str(tmp_path))
    assert run.has_labels
    assert set(run.labels()["variant"].to_pylist()) == {"ediff"}
    assert [s.key for s in job.label_sets()] == ["prior", "ediff"] * 2
    assert job.labels(job.label_sets()[0]) == job.ediff("ediff_labels", job.settings.methods[0])


def test_a_rule_that_nobody_meets_is_refused(tmp_path):
    identity, embeddings, scores = data(6)
    job = Job(settings(str(tmp_path), optimize={"mode": "ediff", "ediff": {"least": 30}}, methods=[{"name": "two"}]))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    most = np.bincount(identity[np.argsort(scores["two"])[-1 - int(0.2 * len(identity)) :]]).max()
    run_stages(job, stages=("pair", "rank"))
    with pytest.raises(FiqaRayError, match=rf"nobody has 30 images among the best 20% by two \(the most are {most}\)"):
        run_stages(job, stages=("optimize",))


def test_the_plan_of_mode_ediff_counts_its_own_steps(tmp_path):
    job = Job(settings(str(tmp_path), optimize={"mode": "ediff"}))
    units = Units(**{f.name: 1e-6 for f in fields(Units)})
    workload = Workload(Scale(9000, 90, n_methods=2, n_thetas=0), units, {"train": 9000}, {}, {})
    costs = [c for stage in ("pair", "rank", "optimize") for c in stage_costs(stage, job, workload)]
    assert [(c.what, c.n_rows, c.n_shards, len(c.datasets)) for c in costs] == [
        ("quality index", 9000, 2, 2),
        ("eDifFIQA thresholds", 1, 2, 2),
        ("eDifFIQA distances", 9000, 6, 2),
        ("eDifFIQA labels", 9000, 6, 2),
    ]
    assert min(min(c.work_s, c.memory_bytes, c.read_bytes) for c in costs) > 0
