"""The run's lock: one run at a time writes to a run folder."""

from __future__ import annotations

import _thread
import logging
import os
import socket
import threading
import time
import uuid

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import (
    exists,
    join,
    json_bytes,
    list_files,
    public_uri,
    put_if_absent,
    read_json,
    storage_quiet,
    write_atomic,
)


class RunLock:
    """Lets one run at a time write to a run folder, on any storage.

    The highest `_lock/NNNNNN.json` holds; taking over means creating the next number, which only one can do. The
    holder renews `NNNNNN.beat`; a holder on this machine whose process is gone, or one without a new beat for `stale_s`,
    is dead. The beats are the only objects that a run writes more than once.
    """

    beat_s = 5.0
    stale_s = 20.0

    def __init__(self, run_uri: str) -> None:
        self.uri = join(run_uri, "_lock")
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._number = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        while True:
            names = list_files(self.uri)
            numbers = [int(n[:6]) for n in names if n.endswith(".json")]
            newest = max(numbers, default=0)
            if newest and f"{newest:06d}.released" not in names:
                self._refuse_unless_dead(newest)
            self._number = newest + 1
            content = {"host": socket.gethostname(), "pid": os.getpid(), "start": _process_start(os.getpid())}
            if put_if_absent(self._at("json"), json_bytes({**content, "token": self._token})) or self._is_mine():
                break
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        with storage_quiet():  # must not stand in for the run's own error
            put_if_absent(self._at("released"), b"")

    def _is_mine(self) -> bool:
        """Whether the number is ours after all: the answer to a first try may have been lost."""
        holder = read_json(self._at("json"))
        return isinstance(holder, dict) and holder.get("token") == self._token

    def _at(self, suffix: str, number: int | None = None) -> str:
        return join(self.uri, f"{number or self._number:06d}.{suffix}")

    def _beat(self) -> None:
        n = 0
        while not self._stop.wait(self.beat_s if n else 0):
            n += 1
            with storage_quiet():
                write_atomic(self._at("beat"), json_bytes({"token": self._token, "beat": n}))
                if exists(self._at("json", self._number + 1)):
                    logging.getLogger("fiqa_ray").error(
                        "another run took over %s; this one stops", public_uri(self.uri)
                    )
                    _thread.interrupt_main()
                    return

    def _refuse_unless_dead(self, number: int) -> None:
        holder = read_json(self._at("json", number)) or {}
        if not isinstance(holder, dict) or not isinstance(holder.get("pid"), int):
            raise FiqaRayError(
                f"{self._at('json', number)} is damaged: it names no process; if no other run is at work, remove this file "
                "and run again"
            )
        here = holder.get("host") == socket.gethostname()
        if here and _process_start(holder["pid"]) != holder.get("start"):
            return  # its process is gone
        before = read_json(self._at("beat", number))
        if not here:
            time.sleep(self.stale_s)
            if read_json(self._at("beat", number)) == before:
                return
        raise FiqaRayError(
            f"another run is at work in {self.uri.removesuffix('/_lock')} (process {holder.get('pid')} on "
            f"{holder.get('host')}); wait for it, stop it, or choose another run_uri"
        )


def _process_start(pid: int) -> str | None:
    """Start time of a process in ticks: tells a process from a later one of the same number. None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
            return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "running"
