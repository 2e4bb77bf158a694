"""How many processor cores a worker may use beside the thread of its model."""

from __future__ import annotations

import os

_n_cores: int | None = None


def set_cores(n: int) -> None:
    """Set the cores of the workers in this process."""
    global _n_cores
    _n_cores = n


def cores() -> int:
    """Return the cores of a worker in this process: those that were set, else all that the system grants."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return granted if _n_cores is None else max(1, min(_n_cores, granted))
