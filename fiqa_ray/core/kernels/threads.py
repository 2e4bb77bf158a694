"""One thread of torch and BLAS for a stretch of code: where work is shared out by identity or shard, more threads per
worker only wait for one another, and the last bits of a product may depend on their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import scipy.linalg.cython_blas  # noqa: F401  # loads SciPy's BLAS, so that it is among those limited
import torch
from threadpoolctl import ThreadpoolController


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through the loaded libraries, which takes a while


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch, BLAS and OpenMP to one thread, as in Ray's workers; restores what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(before)
