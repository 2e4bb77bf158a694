"""`fiqa-ray evaluate` after `fiqa-ray run`: the regressors of the run stay among the results, and none is trained."""

import shutil
from pathlib import Path

import pytest

import smoke
from fiqa_ray import open_run


def state(run: Path):
    """When each part of the run was written, its areas, and its answer."""
    times = {p: p.stat().st_mtime_ns for p in run.rglob("_part-*.json")}
    opened = open_run(str(run))
    return times, opened.areas().to_pylist(), opened.answer(), opened.report


@pytest.mark.slow
def test_evaluate_gives_what_run_gave(tmp_path, cli):
    run, faces = tmp_path / "run", smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=5)
    job = smoke.write_job(
        tmp_path / "job.yaml", faces, str(run), methods=[{"name": "embedding_norm"}], evaluate={"fmr": 0.1, "draws": 0}
    )
    assert cli("run", job)[0] == 0
    before = state(run)
    assert before[2][0].startswith("Do optimized labels help? Cannot be told for embedding_norm")

    code, out, _ = cli("evaluate", job)
    assert (code, "left out" in out, "\n".join(before[2]) in out) == (0, False, True)
    assert state(run) == before

    # a further theta and rate, and pairs that were removed: what is trained is judged, and nothing else is made
    shutil.rmtree(run / "pairs")
    changes = ["optimize.theta=[0.05, 0.2]", "evaluate.fmr=[0.1, 0.2]", "--new-settings"]
    code, out, _ = cli("evaluate", job, *changes)
    assert code == 0
    assert (
        "left out, for this run has not trained them: embedding_norm, regressor on optimized labels (theta 0.2)." in out
    )
    rows = state(run)[1]
    regressors = {
        "embedding_norm, regressor on prior labels",
        "embedding_norm, regressor on optimized labels (theta 0.05)",
    }
    assert {row["scorer"] for row in rows} == {"embedding_norm", *regressors, "random", "oracle"}
    assert {row["fmr"] for row in rows} == {0.1, 0.2}
    assert len(list(run.rglob("regressor/**/_part-*.json"))) == 2
    assert not (run / "pairs").exists()

    # a fused method needs the ranks of the training faces
    fused = {"name": "both", "fuse": {"of": ["embedding_norm", "norm"]}}
    methods = [{"name": "embedding_norm"}, {"name": "embedding_norm", "label": "norm"}, fused]
    code, _, err = cli("evaluate", job, f"methods={methods}", "--new-settings")
    assert (code, "both is fused by ranks among training faces, which this run has not finished" in err) == (2, True)


@pytest.mark.slow
def test_evaluate_gives_what_a_run_by_ediffiqas_rule_alone_gave(tmp_path, cli):
    run, faces = tmp_path / "run", smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=5)
    job = smoke.write_job(
        tmp_path / "job.yaml",
        faces,
        str(run),
        methods=[{"name": "embedding_norm"}],
        optimize={"mode": "ediff", "ediff": {"best": 0.8, "least": 2}},
        evaluate={"fmr": 0.1, "draws": 0},
    )
    assert cli("run", job)[0] == 0
    before = state(run)
    assert not (run / "pairs").exists()
    labels = open_run(str(run)).labels().to_pylist()
    code, out, err = cli("evaluate", job)
    assert (code, "left out" in out) == (0, False), err
    assert state(run) == before
    assert open_run(str(run)).labels().to_pylist() == labels
