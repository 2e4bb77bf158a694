"""Loops over images and pairs that numba compiles to machine code: one pass where array operations take ten.

A compiled function calls compiled functions of its own module only: numba keeps the code on disk and looks at that module's
file alone to see whether it is still valid. Constants are compiled in: whoever changes one that another module imports
(`SIMILARITY_STEPS`) removes the __pycache__ folders. Nothing checks bounds there: the Python functions around do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compiles ``function`` at its first call and lets threads run it side by side.

    That takes a second or two; later processes load the code. Sums are taken in the order as written and products are not
    fused: the same bits on every processor.
    """
    try:
        return cast(F, njit(function, cache=True, nogil=True, error_model="numpy"))
    except RuntimeError:  # no place to keep code: a read-only installation without a home folder
        return cast(F, njit(function, nogil=True, error_model="numpy"))
