"""Memory of worker processes: arrays that come and go."""

from __future__ import annotations

import ctypes
from functools import lru_cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


@lru_cache(maxsize=1)
def reuse_memory() -> None:
    """Makes this process keep the memory of freed arrays for the next ones.

    By default glibc hands large blocks back to the kernel at once, which clears each page anew at the next use: for the
    label stages up to a fifth of their time. Where the C library has no such setting nothing changes. Arrow's own pool
    does the same 10 ms later, unless MIMALLOC_PURGE_DELAY=-1 stands in the environment when it is loaded (`ray_session`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, 1 << 30)
    mallopt(_TOP_PAD, 1 << 26)
