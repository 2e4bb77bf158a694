"""The run's lock: one run at a time writes to a run folder.

The highest `_lock/NNNNNN.json` holds; taking over means creating the next number, which only one can do. The holder renews
`NNNNNN.beat` and writes `NNNNNN.released` at its end. The beats also carry the state of the run, for `fiqa-ray status`.
Beside these, only the state of a training, `_results.json` and the records of `_asked/` are written more than once.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fiqa_ray.engine.interrupts import interrupt_main_thread
from fiqa_ray.errors import FiqaRayError, StorageError
from fiqa_ray.storage import (
    exists,
    filesystem,
    is_local,
    join,
    json_bytes,
    list_files,
    public_uri,
    put_if_absent,
    read_json,
    remove_file,
    storage_quiet,
    write_atomic,
)

BEAT_S = 5.0
STALE_S = 20.0
"""A holder that cannot be looked at is dead when its beat has not changed for so long."""
_NAME = re.compile(r"\d{6}\.(json|beat|released)$")
_LEFTOVER = re.compile(r"\d{6}\.\w+\.[0-9a-f]{32}\.tmp$")
_held: set[str] = set()
"""Tokens of the locks that this process holds. One that it gave up without a `released` file is not here, so it is dead."""


class RunLock:
    """Lets one run at a time write to a run folder, on any storage.

    A holder is looked at if it runs on this machine and in this process namespace (another container cannot be seen);
    any other is dead once its beat stops for `stale_s`.

    Attributes:
        is_read_only: Whether the folder cannot be written, so that no lock was taken and nothing may be written.
    """

    beat_s = BEAT_S
    stale_s = STALE_S

    def __init__(self, run_uri: str, state: Callable[[], dict[str, Any]] = dict) -> None:
        self.uri = join(run_uri, "_lock")
        self.is_read_only = False
        self._state = state
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._number = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        while True:
            newest, is_released = newest_lock(self.uri)
            if newest and not is_released:
                self._refuse_unless_dead(newest)
            self._number = newest + 1
            try:
                if put_if_absent(self._at("json"), json_bytes({**_this_process(), "token": self._token})):
                    break
            except StorageError as exc:
                if not (
                    exc.is_refused and list_files(self.uri)
                ):  # a folder that nobody may write is fine if a run lies there to read
                    raise
                self.is_read_only = True
                return self
        _held.add(self._token)
        self._remove_leftovers()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        for write in (lambda: self._write_beat(-1), lambda: put_if_absent(self._at("released"), b"")):
            with storage_quiet():  # must not stand in for the run's own error
                write()
        _held.discard(self._token)

    def _at(self, suffix: str, number: int | None = None) -> str:
        return join(self.uri, f"{number or self._number:06d}.{suffix}")

    def _beat(self) -> None:
        n = 0
        while not self._stop.wait(self.beat_s if n else 0):
            n += 1
            with storage_quiet():
                self._write_beat(n)
                if exists(self._at("json", self._number + 1)):
                    logging.getLogger("fiqa_ray").error(
                        "another run took over %s; this one stops", public_uri(self.uri)
                    )
                    interrupt_main_thread()
                    return

    def _write_beat(self, n: int) -> None:
        beat = {"token": self._token, "beat": n, "beat_s": time.time()}
        write_atomic(self._at("beat"), json_bytes({**beat, "state": self._state()}))

    def _remove_leftovers(self) -> None:
        """Remove files under temporary names, which a killed holder leaves on a disk."""
        if is_local(filesystem(self.uri)[0]):
            for name in list_files(self.uri):
                if _LEFTOVER.match(name):
                    with suppress(FiqaRayError):
                        remove_file(join(self.uri, name))

    def _refuse_unless_dead(self, number: int) -> None:
        holder = read_holder(self.uri, number)
        before = read_json(self._at("beat", number))
        is_alive = holder_lives(holder)
        if is_alive is None:
            time.sleep(self.stale_s)
            is_alive = read_json(self._at("beat", number)) != before
        if is_alive:
            raise FiqaRayError(
                f"another run is at work in {self.uri.removesuffix('/_lock')} (process {holder.get('pid')} on "
                f"{holder.get('host')}); wait for it, stop it, or choose another run_uri"
            )


def newest_lock(uri: str) -> tuple[int, bool]:
    """Return the highest number of a lock folder, 0 where it is empty, and whether its holder released it.

    Raises:
        FiqaRayError: The folder holds a file that is none of a lock's.
    """
    names = list_files(uri)
    strays = [name for name in names if not _NAME.match(name) and not _LEFTOVER.match(name)]
    if strays:
        raise FiqaRayError(f"{join(uri, strays[0])} is no file of the run's lock; remove it and run again")
    newest = max((int(name[:6]) for name in names if name.endswith(".json")), default=0)
    return newest, f"{newest:06d}.released" in names


def read_holder(uri: str, number: int) -> dict[str, Any]:
    """Return what a lock says about its holder; raise `FiqaRayError` if it is damaged."""
    lock = join(uri, f"{number:06d}.json")
    holder = read_json(lock) or {}
    if not isinstance(holder, dict) or not isinstance(holder.get("pid"), int):
        raise FiqaRayError(
            f"{lock} is damaged: it names no process; if no other run is at work, remove this file and run again"
        )
    return holder


def holder_lives(holder: dict[str, Any]) -> bool | None:
    """Return whether the process of a holder lives; None where it cannot be seen from here."""
    here = _this_process()
    if any(holder.get(key) != here[key] for key in ("host", "boot_id", "pid_namespace")):
        return None
    if holder["pid"] == here["pid"] and holder.get("start") == here["start"]:
        return holder.get("token") in _held
    return _process_start(holder["pid"]) == holder.get("start")


def _this_process() -> dict[str, Any]:
    """Return what tells this process from any other: host, boot, process namespace, number and start."""
    boot_id = namespace = None
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id,
        "pid_namespace": namespace,
        "pid": os.getpid(),
        "start": _process_start(os.getpid()),
    }


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
