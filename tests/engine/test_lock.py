"""The run's lock where hosts cannot be told by name, where folders cannot be written, and where files lie in it."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from fiqa_ray.engine import lock
from fiqa_ray.engine.lock import RunLock, holder_lives
from fiqa_ray.errors import FiqaRayError

HOLD = """
import time
from fiqa_ray.engine.interrupts import sigterm_as_ctrl_c
from fiqa_ray.engine.lock import RunLock
with sigterm_as_ctrl_c(), RunLock({run!r}):
    print("in", flush=True)
    time.sleep(60)
"""


def hold(run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(run=str(run))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "in\n"
    return holder


@pytest.mark.parametrize("key", ["boot_id", "pid_namespace"])
def test_a_container_of_the_same_name_holds_the_lock(tmp_path, monkeypatch, key):
    """Its process number means nothing here: its beats tell whether it lives."""
    monkeypatch.setattr(RunLock, "beat_s", 0.02)
    here, pause = lock._this_process(), threading.Event()

    def until_it_beats(_):
        before = beat.read_bytes() if beat.exists() else b""
        while not beat.exists() or beat.read_bytes() == before:
            pause.wait(0.01)

    with RunLock(str(tmp_path)):
        beat = tmp_path / "_lock" / "000001.beat"
        monkeypatch.setattr(lock.time, "sleep", until_it_beats)
        monkeypatch.setattr(lock, "_this_process", lambda: {**here, key: "another"})
        with pytest.raises(FiqaRayError, match="another run is at work"):
            RunLock(str(tmp_path)).__enter__()


def test_a_process_that_cannot_be_seen_is_not_called_dead():
    here = lock._this_process()
    assert holder_lives({**here, "pid": 1 << 30, "start": "1"}) is False
    assert holder_lives({**here, "pid": 1 << 30, "start": "1", "boot_id": "another"}) is None
    assert (
        holder_lives({"host": here["host"], "pid": os.getpid(), "start": here["start"]}) is None
    )  # as by a version before


def test_sigterm_releases_the_lock(tmp_path):
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGTERM)
    assert "KeyboardInterrupt" in holder.communicate(timeout=300)[1]
    assert (tmp_path / "_lock" / "000001.released").exists()
    with RunLock(str(tmp_path)):
        assert (tmp_path / "_lock" / "000002.json").exists()


IMPORT = """
import sys, time
from fiqa_ray.engine.interrupts import sigterm_as_ctrl_c
with sigterm_as_ctrl_c():
    try:
        import long_import
        time.sleep(60)
    except KeyboardInterrupt:
        print("long_import" in sys.modules)
"""
LONG_IMPORT = """
import os, signal, time
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.05)
"""


def test_sigterm_waits_for_the_end_of_an_import(tmp_path):
    """An exception in the middle of torch's import ends the process with SIGABRT, which leaves the lock."""
    (tmp_path / "long_import.py").write_text(LONG_IMPORT)
    run = subprocess.run(
        [sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True, timeout=50,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert run.stdout == "True\n"


def test_a_stray_file_is_named_and_leftovers_are_removed(tmp_path):
    folder = tmp_path / "_lock"
    folder.mkdir()
    leftover = folder / f"000001.beat.{'0a' * 16}.tmp"
    leftover.write_text("")
    (folder / "notes.json").write_text("{}")
    with pytest.raises(FiqaRayError, match=r"_lock/notes\.json is no file of the run's lock; remove it and run again"):
        RunLock(str(tmp_path)).__enter__()
    (folder / "notes.json").unlink()
    with RunLock(str(tmp_path)):
        assert not leftover.exists()


def test_the_beat_carries_the_state(tmp_path):
    with RunLock(str(tmp_path), lambda: {"machine_s": 7.5}):
        pass
    beat = json.loads((tmp_path / "_lock" / "000001.beat").read_text())
    assert beat["state"] == {"machine_s": 7.5}


def test_a_run_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    """The system refuses each write, as on a read-only disk."""

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    with RunLock(str(tmp_path)):
        pass
    monkeypatch.setattr("fiqa_ray.storage.files._fill", refuse)
    with pytest.raises(FiqaRayError, match="is read-only"):
        RunLock(str(tmp_path / "new")).__enter__()
    with RunLock(str(tmp_path)) as held:
        assert held.is_read_only
    assert not (tmp_path / "_lock" / "000002.json").exists()
