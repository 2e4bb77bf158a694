"""What a run does now, told from storage alone: alive, ended or dead, its step, its failures, its machines' time."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

import smoke
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.folders import record_names
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.engine.run_state import RunState
from fiqa_ray.sources.command_line import ImageFile
from fiqa_ray.storage import join, list_files, write_atomic
from fiqa_ray.tools import status
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.tools.score import score_images
from fiqa_ray.tools.show import run_lines, stages_table
from fiqa_ray.tools.status import rejected_images, run_now, run_status
from fiqa_ray.tools.verify import verify_run


class Step:
    name, unit, total, done, rate = "embed: embeddings", "images", 300, 100, 50.0


def state_of_a_run():
    state = RunState()
    state.count_machines(4)
    state.show(Step())
    state.add_failure("embeddings train", "part-00003", "system", "StorageError: away", 2)
    return state.as_dict()


HOLDER = """
import sys, time
sys.path.insert(0, {folder!r})
from fiqa_ray.engine.lock import RunLock
from test_status import state_of_a_run
RunLock({run!r}, state_of_a_run).__enter__()
while True: time.sleep(1)
"""


@pytest.mark.slow
def test_a_run_is_seen_at_work_and_seen_dead(tmp_path):
    """By its process, at once."""
    code = HOLDER.format(folder=__file__.rsplit("/", 1)[0], run=str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 300
        while not (tmp_path / "_lock" / "000001.beat").exists() and time.monotonic() < until:
            time.sleep(0.1)
        now = run_now(str(tmp_path))
        assert now["is_at_work"]
        assert now["holder"]["pid"] == holder.pid
        assert now["step"] == {
            "name": "embed: embeddings", "unit": "images", "done": 100, "total": 300, "rows_per_s": 50.0, "left_s": 4.0,
        }  # fmt: skip
        text = "\n".join(run_lines(now))
        assert f"a run is at work: process {holder.pid}" in text
        assert "4 machine(s)" in text
        assert "100 of 300 images, 50 images/s, 4.0 s left" in text
        assert "part-00003 of embeddings train, try 2 (system): StorageError: away" in text
    finally:
        holder.kill()
        holder.wait()
    now = run_now(str(tmp_path))
    assert (now["is_at_work"], now["has_died"]) == (False, True)
    assert "has died: run the same command again" in "\n".join(run_lines(now))


@pytest.mark.parametrize(
    ("age_s", "beats", "is_alive"), [(1.0, False, True), (3600.0, False, False), (3600.0, True, True)]
)
def test_a_run_elsewhere_is_judged_by_its_beats(tmp_path, monkeypatch, age_s, beats, is_alive):
    """Its clock may differ by an hour: then a second look tells."""
    uri = join(str(tmp_path), "_lock")

    def beat(_=0.0):
        content = {"token": "t", "beat": time.monotonic(), "beat_s": time.time() - age_s}
        write_atomic(join(uri, "000001.beat"), json.dumps(content).encode())

    write_atomic(join(uri, "000001.json"), json.dumps({"host": "elsewhere", "pid": 1, "start": "1"}).encode())
    beat()
    monkeypatch.setattr(status.time, "sleep", beat if beats else lambda _: None)
    now = run_now(str(tmp_path))
    assert (now["is_at_work"], now["has_died"]) == (is_alive, not is_alive)


def test_machine_time_adds_up_over_runs(tmp_path):
    for seconds in (30.0, 12.5):
        with RunLock(str(tmp_path), lambda s=seconds: {"machine_s": s}):
            pass
    now = run_now(str(tmp_path))
    assert not now["is_at_work"]
    assert not now["has_died"]
    assert now["machine_s"] == 42.5


def test_the_last_verification_is_shown(tmp_path):
    dataset = Dataset(join(str(tmp_path), "embeddings", "v=0123456789abcdef"), "embeddings")
    dataset.write_plan({"stage": "embed", "n_parts": 1, "n_rows": 3})
    dataset.write_part(0, {".parquet": pa.table({"x": range(3)})}, n_rows=3)
    dataset.commit(1)
    assert run_now(str(tmp_path))["verified"] is None
    for n_damaged in (0, 1):
        verify_run(str(tmp_path))
        now = run_now(str(tmp_path))
        assert now["verified"]["n_damaged"] == n_damaged
        assert f"{n_damaged or 'no'} damaged file(s)" in "\n".join(run_lines(now))
        write_atomic(dataset.at("part-00000.parquet"), b"damaged")


def test_what_earlier_settings_left_unfinished_does_not_count_and_what_is_lost_does(tmp_path, cli):
    faces, run = smoke.make_faces(tmp_path / "faces", n_identities=2, per_identity=2, benchmark=False), tmp_path / "run"
    first, second = (
        smoke.settings(
            tmp_path, faces, str(run), benchmarks=[], source={"kind": "folder", "uri": str(faces / "train"), **x}
        )
        for x in ({}, {"exif": "ignore"})
    )
    run_job(first, ["pack"])
    (old,) = run.glob("faces/*/v=*")
    (old / "_manifest.json").rename(tmp_path / "manifest")  # as if Ctrl-C had stopped it
    assert cli("status", run)[0] == 3
    run_job(second, ["pack"], new_settings=True)
    (new,) = set(run.glob("faces/*/v=*")) - {old}
    code, shown, _ = cli("status", run)
    assert code == 0
    assert "1 dataset(s) of earlier settings are unfinished" in shown
    assert "all 1" in shown
    for damage in (lambda: (new / "_manifest.json").unlink(), lambda: shutil.rmtree(new)):
        damage()
        assert cli("status", run)[0] == 3
    text = cli("status", run)[1]
    assert "0 of 1" in text  # datasets; nobody knows its parts
    assert "0 of 0" not in text
    lost = next(r for r in run_status(str(run)) if r["dataset"] == str(new.relative_to(run)))
    assert (lost["finished"], lost["n_parts"], lost["is_earlier"]) == (False, 0, False)
    run_job(first, ["pack"])  # back: now the second ones are the earlier settings
    assert cli("status", run)[0] == 0
    run_job(second, ["pack"], new_settings=True)
    code, shown, _ = cli("status", run)
    assert "1 finished dataset(s) of earlier settings (" in shown
    assert "all 4 images" in shown  # of the last settings alone; with those of the earlier ones they would be 8
    run_job(first, ["pack"])
    (run / "_results.json").unlink()  # nothing says which settings were the last: everything counts
    shutil.rmtree(run / "_asked")
    (old / "_manifest.json").unlink()
    assert cli("status", run)[0] == 3


def test_many_records_are_not_read(root, monkeypatch):
    """Of an unfinished dataset with many parts the rows are estimated; of a finished one they come from the manifest."""
    monkeypatch.setattr(status, "MAX_RECORDS_READ", 2)
    dataset = Dataset(join(root, "embeddings", "set=train", "v=0123456789abcdef"), "embeddings")
    dataset.write_plan({"stage": "embed", "n_parts": 4, "n_rows": 40})
    for i in range(4):
        if i == 3:
            (record,) = run_status(root)
            assert (record["n_parts_done"], record["n_rows_done"], record["is_estimate"]) == (3, 30, True)
            files = {n: size for n, size in list_files(dataset.uri).items() if n.endswith(".parquet")}
            assert record["n_bytes"] == sum(files.values())  # the parts are of one size
        stats = {"status": {"ok": 9, "bad": 1}}
        dataset.write_part(i, {".parquet": pa.table({"x": range(10)})}, n_rows=10, stats=stats, duration_s=1.5)
    dataset.commit(4)
    (record,) = run_status(root)
    assert (record["dataset"], record["finished"]) == ("embeddings/set=train/v=0123456789abcdef", True)
    assert (record["n_rows_done"], record["failed"], record["work_s"]) == (40, {"bad": 4}, 6.0)


def test_records_of_many_parts_are_listed_by_ranges(root):
    dataset = Dataset(join(root, "embeddings", "v=0123456789abcdef"), "embeddings")
    numbers = [0, 7, 999, 1000, 10_000, 10_999, 12_345, 100_000, 109_999]
    for i in numbers:
        dataset.write_part(i, {".parquet": pa.table({"x": [i]})}, n_rows=1)
    names = record_names(dataset.uri, 110_000)
    assert sorted(dataset.recorded_parts(names)) == numbers
    assert len(names) == len(numbers)


def test_an_image_that_libjpeg_complains_of_is_used_and_named(tmp_path, capfd):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=2, per_identity=3)
    settings = smoke.settings(tmp_path, faces, str(tmp_path / "run"), benchmarks=[])
    crop = faces / "train" / "p01" / "002.jpg"
    crop.write_bytes(crop.read_bytes()[:-2] + b"needless" + b"\xff\xd9")
    run_job(settings, ["pack"])
    printed = capfd.readouterr().err
    assert "source: libjpeg complains of 1 image(s), which are used nevertheless" in printed
    assert "Corrupt" not in printed
    (row,) = rejected_images(settings.run_uri).to_pylist()
    assert (row["image_id"], row["status"]) == ("p01/002.jpg", "ok")
    assert row["error"].startswith("Corrupt JPEG data: ")
    crops = [ImageFile(str(crop))]
    assert score_images(crops, lambda faces, rows: np.ones(len(faces)))["status"].to_pylist() == ["ok"]
    assert f"{crop}: scored, though libjpeg says: Corrupt JPEG data" in capfd.readouterr().err


def test_the_parts_of_a_dataset_that_is_not_begun_are_not_known():
    done = {"stage": "pack", "finished": True, "is_earlier": False, "unit": "images", "failed": {}, "work_s": 1.0,
            "n_parts_done": 2, "n_parts": 2, "n_rows_done": 910, "n_rows": 910, "n_bytes": 5}  # fmt: skip
    missing = (
        done
        | {"finished": False, "unit": "rows", "work_s": None}
        | dict.fromkeys(("n_parts_done", "n_parts", "n_rows_done", "n_rows", "n_bytes"), 0)
    )
    cells = [list(column.cells) for column in stages_table([done, missing]).columns]
    assert cells[1:4] == [["1 of 2"], ["2 of 2 so far"], ["910 of 910 images so far"]]
