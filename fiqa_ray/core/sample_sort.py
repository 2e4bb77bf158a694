"""A range-partitioned sample sort: the numerics that the sorts of scores, optimized indices and similarities share.

Rows stand in the order of (key, tie): a whole number that ascends like the value, and one that decides between equal values.
Sorted runs give evenly spaced samples; `choose_cuts` takes the cuts between ranges from the samples of all runs, so they
depend on the data alone; `n_below` finds a cut in a run. A cut is a (key, tie) pair: with ties equal
values may lie on both sides of it, so ranges stay of one size even where all values are equal. Without ties equal values
share a range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cut(NamedTuple):
    """The bound between two ranges: the first (key, tie) of the upper one."""

    key: int
    tie: int


def float_key(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole numbers `(n,) int64` in the order of finite floats `(n,)`; both zeros have one key."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.int64)  # -0 becomes 0
    return bits ^ ((bits >> 63) & np.int64(2**63 - 1))  # the bits of negative floats ascend with their size


def choose_cuts(key: NDArray[np.int64], tie: NDArray[np.int64], n_ranges: int) -> list[Cut]:
    """Return the `n_ranges - 1` ascending cuts that share sampled rows out evenly.

    Args:
        key: `(n,)` keys of the samples of all runs.
        tie: `(n,)` their ties.
        n_ranges: Ranges; with fewer samples than ranges, some are empty.
    """
    if len(key) == 0:
        return [Cut(0, 0)] * (n_ranges - 1)
    order = np.lexsort((tie, key))
    at = order[(np.arange(1, n_ranges) * len(order)) // n_ranges]
    return [Cut(k, t) for k, t in zip(key[at].tolist(), tie[at].tolist(), strict=True)]


def n_below(key: NDArray[np.int64], tie: NDArray[np.int64] | None, cut: Cut) -> int:
    """Return how many rows of a sorted run lie below a cut.

    Args:
        key: `(n,)` ascending keys.
        tie: `(n,)` ties, ascending among equal keys; None where all are 0.
        cut: The cut.
    """
    first = int(np.searchsorted(key, cut.key))
    if tie is None:
        return first
    last = int(np.searchsorted(key, cut.key, side="right"))
    return first + int(np.searchsorted(tie[first:last], cut.tie))
