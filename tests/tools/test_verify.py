"""fiqa-ray verify: names what is damaged and what was made from it, and removes just that."""

import shutil
from pathlib import Path

import pytest

import smoke
from fiqa_ray.cli import main
from fiqa_ray.config import load_settings
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.tools.run_job import run_job

STAGES = ["pack", "embed", "score", "pair", "rank", "optimize"]


@pytest.fixture
def finished(tmp_path):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=5, benchmark=False)
    methods, compute = [{"name": "embedding_norm"}], {"engine": "local", "rows_per_part": 5, "train_workers": 0}
    job = smoke.write_job(
        tmp_path / "job.yaml", faces, str(tmp_path / "run"), methods=methods, benchmarks=[], compute=compute
    )
    run_job(load_settings(job), STAGES)
    return job, tmp_path / "run"


def verify(capsys, *argv):
    """Exit code and output of the command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["verify", *map(str, argv)])
    return end.value.code, capsys.readouterr().out


def test_damage_is_named_with_what_follows_and_repaired(finished, capsys):
    job, run = finished
    assert verify(capsys, run)[0] == 0
    before = {p: p.read_bytes() for p in run.rglob("*.parquet")}
    (pairs,) = (run / "pairs").rglob("part-00000.repeat-01.parquet")
    pairs.write_bytes(before[pairs][:-20] + bytes(20))
    (scores,) = (run / "quality_scores").rglob("_manifest.json")
    scores.write_text(scores.read_text().replace('"index": 1', '"index": 0'))
    code, out = verify(capsys, run)
    assert code == 1
    assert "2 damaged or lost" in out
    lines = out.splitlines()
    (at,) = (i for i, line in enumerate(lines) if str(pairs) in line)
    made_from_pairs = {name.split("/")[0] for name in lines[at + 1].split(": ", 1)[1].split(", ")}
    assert made_from_pairs == {"similarity_ranks", "optimized_index", "optimized_labels"}
    (at,) = (i for i, line in enumerate(lines) if str(scores) in line)
    made_from_scores = {name.split("/")[0] for name in lines[at + 1].split(": ", 1)[1].split(", ")}
    assert made_from_scores == {"quality_index", "optimized_index", "optimized_labels"}
    assert pairs.exists()
    assert scores.exists()

    code, out = verify(capsys, run, "--repair")
    assert code == 3
    assert not pairs.exists()
    assert not scores.exists()
    assert {p for p in before if p.exists()} == before.keys() - {pairs}
    run_job(load_settings(job), STAGES)
    assert {p: p.read_bytes() for p in run.rglob("*.parquet")} == before
    assert verify(capsys, run)[0] == 0


def test_lost_histograms_are_made_again_though_the_ranks_are_finished(finished, capsys):
    job, run = finished
    options = ["rank.engine=sort", "rank.n_ranges=2", f"run_uri={run.parent / 'sorted'}"]
    run_job(load_settings(job, options), STAGES)
    run = run.parent / "sorted"
    before = {p: p.read_bytes() for p in run.rglob("*.parquet")}
    (counts,) = (run / "key_counts").rglob("part-00003*.parquet")
    (keys,) = (run / "sorted_keys").rglob("part-00000.repeat-00.parquet")
    (plan,) = (run / "key_counts").rglob("_plan.json")
    for path in (counts, keys, plan):
        path.unlink()
    code, out = verify(capsys, run)
    assert code == 1
    assert f"{counts} is damaged: it is missing" in out
    assert verify(capsys, run, "--repair")[0] == 3
    run_job(load_settings(job, options), STAGES)
    assert {p: p.read_bytes() for p in run.rglob("*.parquet")} == before
    plan.unlink()  # alone
    run_job(load_settings(job, options), STAGES)
    assert verify(capsys, run)[0] == 0


def test_what_verify_refuses(finished, capsys):
    _, run = finished
    with RunLock(str(run)), pytest.raises(SystemExit):
        main(["verify", str(run), "--repair"])
    assert "another run is at work" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["verify", str(run / "nowhere")])
    assert "holds no run" in capsys.readouterr().err


def test_a_moved_run_is_whole_and_an_exchanged_document_is_not(finished, capsys, tmp_path):
    _, run = finished
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere"))
    assert verify(capsys, moved)[0] == 0
    first, second = sorted((moved / "faces").rglob("_part-0000[01].json"))
    second.write_bytes(first.read_bytes())
    code, out = verify(capsys, moved)
    assert code == 1
    assert f"{second} is damaged: its content does not fit its sum, or it belongs elsewhere" in out


def test_a_folder_of_a_run_is_no_run(finished, capsys, monkeypatch):
    """Its datasets would stand in another place than their documents say, and all would count as damaged."""
    _, run = finished
    before = sorted(run.rglob("*.parquet"))
    for folder in (run / "faces", run.parent):
        code, _ = verify(capsys, folder)
        assert code == 1
        code, _ = verify(capsys, folder, "--repair")
        assert code == 1
    monkeypatch.chdir(run)
    assert verify(capsys, "")[0] == 2
    assert sorted(run.rglob("*.parquet")) == before
