"""A stable argsort of floats."""

from __future__ import annotations

import numpy as np

_FEW_VALUES = 1 << 14


def stable_order(values: np.ndarray, ties: np.ndarray | None = None, *, in_runs: bool = False) -> np.ndarray:
    """Return the rows `(n,) int64` of `(n,)` finite floats by ascending value; equal values stand by `ties`, else by row.

    In numpy: `np.argsort(values, kind="stable")`, or `np.lexsort((ties, values))`. This takes a third of the time of the
    first and a fifth of the second, for 3.3 million scores: `benchmarks/ranking.py`. The leading bits of a value and its
    row share one 64-bit word, so that numpy's vectorised sort applies; values that agree in those bits are sorted after.

    Args:
        values: The floats.
        ties: `(n,)` what decides between equal values.
        in_runs: Whether the values are a few sorted runs, one after another. The order is the same; the runs are then
            merged, which takes less time than a sort.

    Memory: 32 bytes per value, 75 where all of them agree in their leading bits.
    """
    n = len(values)
    if n < _FEW_VALUES:
        return np.argsort(values, kind="stable") if ties is None else np.lexsort((ties, values))
    # 1. bits that ascend like the values: those of negative values inverted, the others above them
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)  # -0 becomes 0
    bits ^= (bits.view(np.int64) >> 63).view(np.uint64) | np.uint64(1 << 63)
    # 2. as many leading bits as a word holds beside the row
    bits -= bits.min()
    row_bits = np.uint64((n - 1).bit_length())
    bits <<= np.uint64(64 - int(bits.max()).bit_length())
    rows = np.uint64((1 << int(row_bits)) - 1)
    packed = bits & ~rows
    packed |= np.arange(n, dtype=np.uint64)
    # 3. sort the words; their lower bits are the rows in order
    packed.sort(kind="stable" if in_runs else None)  # a stable sort finds the runs and merges them
    order = (packed & rows).view(np.int64)
    # 4. sort again where ties, or bits that did not fit, decide
    if ties is not None or (bits & rows).any():
        packed >>= row_bits
        alike = packed[1:] == packed[:-1]
        unsure = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
        unsure_rows = order[unsure]
        by_bits = (
            np.argsort(bits[unsure_rows], kind="stable")
            if ties is None
            else np.lexsort((ties[unsure_rows], bits[unsure_rows]))
        )
        order[unsure] = unsure_rows[by_bits]
    return order
