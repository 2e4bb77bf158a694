"""Tries storage again while what stops it may pass: one layer for every file system that is not this machine's disk.

s3fs and botocore try a single request a few times within seconds. This layer outlasts a store that is away: it tries the
whole operation again, with growing random pauses, for up to `compute.storage_patience_s`. An address that has never
answered in this process is given up sooner, since it is most likely misspelt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import fsspec
import tenacity

from fiqa_ray.public_uri import public_text
from fiqa_ray.storage.faults import answer_code, is_expired, may_pass

DEFAULT_PATIENCE_S = 600.0
FIRST_ANSWER_S = 15.0
"""Seconds for which an address that has never answered is tried."""
LOG_EVERY_S = 30.0
SHOWN_S = 5.0
"""Seconds for which a file is awaited that was written or listed a moment ago."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_TRIED_AGAIN = frozenset(
    {"cat_file", "pipe_file", "exists", "find", "isdir", "isfile", "ls", "info", "rm_file", "glob", "size"}
)
T = TypeVar("T")


class _State(threading.local):
    """What a thread has set for itself."""

    is_patient = True


_thread = _State()
_lock = threading.Lock()
_patience_s = DEFAULT_PATIENCE_S
_has_answered = False
_answered: set[str] = set()
"""The servers, or buckets, that have answered in this process."""
_n_retries = 0
_n_taken = 0
_last_line = 0.0


def set_patience(seconds: float, *, has_answered: bool = False) -> None:
    """Set for how long this process tries storage again.

    Args:
        seconds: As `compute.storage_patience_s`.
        has_answered: Whether another process of this run has reached the storage already, as for a worker.
    """
    global _patience_s, _has_answered
    _patience_s, _has_answered = seconds, has_answered


def patience_s() -> float:
    """Return the seconds for which this process tries storage again."""
    return _patience_s


def n_retries() -> int:
    """Return how often this process has tried storage again."""
    return _n_retries


def take_retries() -> int:
    """Return how often this process has tried storage again since the last call."""
    global _n_taken
    with _lock:
        n_new, _n_taken = _n_retries - _n_taken, _n_retries
    return n_new


@contextmanager
def one_try() -> Iterator[None]:
    """Let storage fail at once in this thread, in what is tried again anyway, such as a lock's beat."""
    before, _thread.is_patient = _thread.is_patient, False
    try:
        yield
    finally:
        _thread.is_patient = before


def patiently(call: Callable[[], T], fs: Any, name: str) -> T:
    """Return what a call returns; try again while what it raises may pass.

    Args:
        call: The operation; to do it twice must be harmless.
        fs: Its file system, whose credentials are read again if they have expired.
        name: Path or address, for the log.
    """
    server = _server(fs, name)
    is_known = _has_answered or server in _answered
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda exc: _thread.is_patient and may_pass(exc)),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        stop=tenacity.stop_after_delay(_patience_s if is_known else min(_patience_s, FIRST_ANSWER_S)),
        before_sleep=lambda state: _before_pause(state, fs, name),
        reraise=True,
    )
    result = retrying(call)
    _answered.add(server)
    return result


def _server(fs: Any, name: str) -> str:
    """Return the server of an address, such as `https://host` or `s3://bucket`.

    A file-system object says less: threads have several for one server, and one of HTTP serves every host.
    """
    protocols = getattr(fs, "protocol", "")
    head, _, rest = name.rpartition("://")
    protocol = head.rpartition("::")[2] or (protocols if isinstance(protocols, str) else protocols[0])
    return f"{protocol}://{getattr(fs, 'host', '')}{rest.partition('/')[0]}"


def _before_pause(state: tenacity.RetryCallState, fs: Any, name: str) -> None:
    """Count a try that failed and is made again; say so every 30 s; renew expired credentials."""
    global _n_retries, _last_line
    exc = state.outcome.exception() if state.outcome else None
    now = time.monotonic()
    with _lock:
        _n_retries += 1
        is_due = now - _last_line >= LOG_EVERY_S
        _last_line = now if is_due else _last_line
    if is_due and exc is not None:
        logging.getLogger("fiqa_ray").warning(
            "storage does not answer for %s (%s); trying again, %d times so far",
            public_text(name),
            answer_code(exc) or public_text(f"{type(exc).__name__}: {' '.join(str(exc).split())[:160]}"),
            _n_retries,
        )
    if exc is not None and is_expired(exc) and hasattr(fs, "connect"):
        fs.connect(refresh=True)


def shown(call: Callable[[], T], fs: Any) -> T:
    """Return what a call returns; wait some seconds for a file of a store that shows what is written late."""
    if not isinstance(fs, PatientFileSystem):
        return call()
    until = time.monotonic() + SHOWN_S
    while True:
        is_last = time.monotonic() > until  # a try may take long, and say what was so when it began
        try:
            return call()
        except FileNotFoundError:
            if is_last:
                raise
        time.sleep(0.25)


class PatientFileSystem:
    """A file system whose calls, and whose open files' reads, are tried again while what stops them may pass."""

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_fs":
            raise AttributeError(name)
        value = getattr(self._fs, name)
        return partial(self._patiently, value) if name in _TRIED_AGAIN else value

    def _patiently(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return patiently(lambda: call(*args, **kwargs), self._fs, str(args[0]) if args else "")

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file."""
        file = self._patiently(self._fs.open, path, mode, **kwargs)
        cache = getattr(file, "cache", None)
        if "r" in mode and cache is not None and hasattr(cache, "fetcher"):
            cache.fetcher = partial(self._patiently, cache.fetcher)
        return file
