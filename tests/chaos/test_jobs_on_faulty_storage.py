"""Whole jobs on a bucket that fails: exit code 0 in one run, and the bytes of an undisturbed one."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from storage_faults import SINGLE

import smoke
from fiqa_ray.datasets.folders import find_folders
from fiqa_ray.storage import list_files, patience, read_bytes

FAULT_NAMES = {"unavailable", "reset", "stall", "cut_body", "lost_answer", "doubled", "late"}
MIXED = {"unavailable": 0.05, "reset": 0.02, "cut_body": 0.03, "lost_answer": 0.03, "doubled": 0.05, "late_s": 0.1}
AT_ONCE = {name: value for wanted in SINGLE for name, value in wanted.items()} | {"away_s": 10}
"""Every fault of the list with its own share, and a store that is away in the middle: one PUT in four passes at once."""
ALL = [*SINGLE, {"away_s": 10}, {"away_s": 60}, {"away_s": 300}, MIXED, AT_ONCE]
IS_FULL = "FIQA_RAY_CHAOS" in os.environ
STAGES = () if IS_FULL else ("--stages", "pack,embed,score,pair,rank,optimize")
"""The whole job with regressors, benchmark and report, or a part of it."""


def digest(run_uri):
    """SHA-256 of each file of labels and weights; a regressor's card names the place of the faces, so it stays out."""
    names = [n for n in list_files(run_uri) if n.startswith(("optimized_labels", "regressor"))]
    names = [n.split("/v=")[0] + "|" + n for n in names if n.endswith((".parquet", ".pt"))]
    return {n.split("|")[0]: hashlib.sha256(read_bytes(f"{run_uri}/{n.split('|')[1]}")).hexdigest() for n in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Faces, and the digest of a run on a disk."""
    folder = tmp_path_factory.mktemp("chaos")
    faces = smoke.make_faces(folder / "faces", n_identities=4, per_identity=6, benchmark=IS_FULL)
    return faces, run(folder, faces, str(folder / "run"))


def run(folder, faces, run_uri):
    """Run the job in this process; return its digest."""
    from fiqa_ray.cli import main

    changes = {
        "methods": [{"name": "embedding_norm"}],
        "train": {"mode": "head", "n_epochs": 2},
        "compute": {"engine": "local", "rows_per_part": 6 if IS_FULL else 12, "train_workers": 0},
    }
    job = smoke.write_job(folder / "job.yaml", faces, run_uri, **changes, **({} if IS_FULL else {"benchmarks": []}))
    with pytest.raises(SystemExit) as end:
        main(["run", job, *STAGES])
    assert end.value.code == 0
    return digest(run_uri)


@pytest.mark.parametrize("wanted", ALL if IS_FULL else [MIXED], ids=str)
def test_a_job_ends_with_the_undisturbed_bytes_in_one_run(faulty, undisturbed, tmp_path, wanted):
    faces, expected = undisturbed
    wanted, n_retries = dict(wanted), patience.n_retries()
    away_s = wanted.pop("away_s", 0)
    if away_s:
        threading.Timer(3.0, faulty.set, kwargs={"away": True}).start()
        threading.Timer(3.0 + away_s, faulty.set, kwargs=wanted).start()
    faulty.set(**wanted)
    assert run(tmp_path, faces, f"{faulty.uri}/run") == expected
    if away_s:
        assert patience.n_retries() > n_retries
    if wanted and IS_FULL:  # to wait for the counts takes a second
        assert counted(faulty)["spoilt"]
    faulty.set()
    before = counted(faulty)["requests"]
    assert run(tmp_path, faces, f"{faulty.uri}/run") == expected
    n_requests = counted(faulty)["requests"] - before
    n_datasets = len(find_folders(f"{faulty.uri}/run"))
    n_others = n_requests - n_datasets  # each dataset is listed once
    assert n_others <= 10 * n_datasets + 20, (n_others, n_datasets)  # 20: the lock, settings, results


def counted(faulty):
    """The requests so far, and those spoilt; counts are written each second, so the second time from now holds them all."""
    path = Path(faulty.counts_path)
    for _ in range(2):
        stamp = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == stamp:
            time.sleep(0.05)
    counts = faulty.counts()
    spoilt = {name: n for name, n in counts.items() if name in FAULT_NAMES and n}
    print(counts["requests"], spoilt)
    return {"requests": counts["requests"], "spoilt": spoilt}
