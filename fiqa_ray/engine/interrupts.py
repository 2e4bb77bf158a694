"""SIGTERM, which `ray job stop`, Kubernetes and Slurm send, ends a run as Ctrl-C does: with its lock released."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LOOK_AGAIN_S = 0.1
"""Seconds after which a signal that came during an import is sent again."""


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the main thread on SIGTERM within the context."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    catch_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def catch_sigterm() -> None:
    """Set the handler of SIGTERM; Ray sets one of its own when it starts, which knows no exit code 3."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`; during an import, once it has ended: C++ that is loaded, as torch's, would abort."""
    if not _imports(frame):
        raise KeyboardInterrupt
    timer = threading.Timer(LOOK_AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _imports(frame: FrameType | None) -> bool:
    """Return whether the innermost function of this package, or of a program without one, imports a module."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        if frame.f_globals.get("__name__", "").startswith("fiqa_ray.") and frame.f_code.co_name != "<module>":
            return False
        frame = frame.f_back
    return False


def interrupt_main_thread() -> None:
    """End what the main thread does, also where it waits for a lock; SIGINT may be ignored, as in `command &`."""
    is_caught = signal.getsignal(signal.SIGTERM) is _interrupt
    os.kill(os.getpid(), signal.SIGTERM if is_caught else signal.SIGINT)
