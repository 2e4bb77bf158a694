"""SIGTERM, which `ray job stop`, Kubernetes and Slurm send, ends a run as Ctrl-C does: with its lock released."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def interrupt_main_thread() -> None:
    """End what the main thread does, also where it waits for a lock; SIGINT may be ignored, as in `command &`."""
    is_caught = signal.getsignal(signal.SIGTERM) is _interrupt
    os.kill(os.getpid(), signal.SIGTERM if is_caught else signal.SIGINT)
