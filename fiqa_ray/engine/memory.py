"""Memory of worker processes: arrays that come and go."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


@lru_cache(maxsize=1)
def reuse_memory() -> None:
    """Makes this process keep the memory of freed arrays for the next ones.

    By default glibc hands large blocks back to the kernel at once, which clears each page anew at the next use: for the
    label stages up to a fifth of their time. Where the C library has no such setting nothing changes. Arrow's own pool
    does the same 10 ms later, or after MIMALLOC_PURGE_DELAY ms where that stood in the environment when it was loaded.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, 1 << 30)
    mallopt(_TOP_PAD, 1 << 26)


def give_back_memory() -> None:
    """Hands the memory of freed arrays back to the system, after work that took much more than what comes next."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
