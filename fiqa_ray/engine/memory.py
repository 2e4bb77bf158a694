"""Makes glibc keep the memory of freed arrays for the next ones, or give it back."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


@lru_cache(maxsize=1)
def reuse_memory() -> None:
    """Make this process use the memory of freed arrays for the next ones.

    By default glibc returns large blocks to the kernel at once, and the kernel clears each page before its next use, which
    takes the label stages up to a fifth of their time (`perf stat -e page-faults`: 5,920 a shard by default, 802 with these
    settings).
    glibc's environment variables do the same, but only where they are set before a worker starts; on a running cluster Ray
    starts the workers, not this program. Other C libraries have no such setting, and nothing changes. Arrow's pool returns
    memory 10 ms later, or after MIMALLOC_PURGE_DELAY ms where that was in the environment when Arrow was loaded.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, 1 << 30)
    mallopt(_TOP_PAD, 1 << 26)


def give_back_memory() -> None:
    """Return the memory of freed arrays to the system, after work that took much more than what comes next."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
