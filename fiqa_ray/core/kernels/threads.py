"""One thread for numerics: workers already run in parallel, and the thread count can change the last bits of a product."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import scipy.linalg.cython_blas  # noqa: F401  # loads SciPy's BLAS, so that it is among those limited
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch, BLAS and OpenMP to one thread inside a `with` block, and restore them after it."""
    torch = sys.modules.get("torch")  # one that nobody has imported computes nothing
    n_torch_threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1):
            yield
    finally:
        if torch:
            torch.set_num_threads(n_torch_threads)


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # searches the loaded libraries, which takes a while


def available_threads() -> int:
    """Return how many threads numerics may use in this process: as many as BLAS (OMP_NUM_THREADS limits it)."""
    return max((int(library["num_threads"]) for library in _libraries().info()), default=1)
