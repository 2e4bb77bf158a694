"""Compiled loops of the counting sort: similarities to keys, keys to counts, counts to ranks.

A similarity is a multiple of 2^-23 (`gram.SIMILARITY_STEPS`), so it is a whole number, its key, times the step. 64
neighbouring keys form a block, the row of a histogram.
"""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.jit import compiled, prefetch

BLOCK_KEYS = 64
"""Neighbouring keys that a row of a histogram counts: block b holds the keys from 64 b on."""
BLOCK_BITS = 6
"""log2 of `BLOCK_KEYS`."""

_STEPS = np.float32(SIMILARITY_STEPS)
_CHUNK_PAIRS = 4096
"""Pairs whose offsets are computed together: 16 kB, half of a processor's first cache."""
_AHEAD = 64
"""Pairs by which `prefetch` runs ahead."""


@compiled
def to_keys(similarity: np.ndarray, key: np.ndarray) -> bool:
    """Fill `key` `(L,) int32` with `similarity * 2**23`; return False unless all are whole numbers in [-2^23, 2^23]."""
    is_exact = True
    for p in range(len(similarity)):
        scaled = similarity[p] * _STEPS  # a power of two: exact
        key[p] = np.int32(scaled) if abs(scaled) <= _STEPS else 0
        is_exact &= np.float64(key[p]) == scaled
    return is_exact


@compiled
def row_sums(count: np.ndarray) -> np.ndarray:
    """Return `count.sum(axis=1, dtype=np.int64)`: for single bytes five times as fast as numpy."""
    sums = np.zeros(len(count), np.int64)
    for b in range(len(count)):
        total = np.int64(0)
        for k in range(BLOCK_KEYS):
            total += np.int64(count[b, k])
        sums[b] = total
    return sums


@compiled
def _to_offsets(similarity: np.ndarray, first_key: int, n_keys: int, offset: np.ndarray) -> bool:
    """Fill `offset` with `key - first_key`, 0 for a key outside the table; return False if there is one.

    The loop uses narrow types and no branches, so that the compiler makes it vector operations.
    """
    low, end, n_bad = np.int32(first_key), np.uint32(n_keys), np.uint32(0)
    for p in range(len(similarity)):
        scaled = similarity[p] * _STEPS  # a power of two: exact
        is_within = abs(scaled) <= _STEPS
        key = np.int32(scaled if is_within else np.float32(0.0))
        at = np.uint32(np.int32(key - low))  # a negative number becomes one far beyond the end
        is_good = is_within and np.float32(key) == scaled and at < end
        offset[p] = at if is_good else np.uint32(0)
        n_bad = np.uint32(n_bad + np.uint32(not is_good))
    return bool(n_bad == 0)


@compiled
def count_in_bytes(similarity: np.ndarray, counts: np.ndarray, overflowed: np.ndarray) -> int:
    """Count keys in single bytes, modulo 256; return how often a byte overflowed, or -1 for a similarity without a key.

    In numpy: `np.add.at(counts, key + 2**23, 1)`, with the key of each overflow noted in `overflowed`.
    """
    n, is_exact = 0, True
    offset = np.zeros(_CHUNK_PAIRS + _AHEAD, np.uint32)
    for first in range(0, len(similarity), _CHUNK_PAIRS):
        # 1. offsets of a chunk's keys
        chunk = similarity[first : first + _CHUNK_PAIRS]
        is_exact &= _to_offsets(chunk, -SIMILARITY_STEPS, 2 * SIMILARITY_STEPS + 1, offset)
        # 2. count each
        for p in range(len(chunk)):
            prefetch(counts, np.int64(offset[np.uint64(p) + np.uint64(_AHEAD)]))
            at = np.uint64(offset[np.uint64(p)])
            count = np.uint8(counts[at] + np.uint8(1))
            counts[at] = count
            if count == 0:
                overflowed[n] = at
                n += 1
    return n if is_exact else -1


@compiled
def fill_ranks(block: np.ndarray, count: np.ndarray, key_rank: np.ndarray) -> None:
    """Fill the doubled ranks of keys within their block, plus 1; keys without pairs keep 0.

    In numpy, for a row of counts: `np.where(count > 0, 2 * (np.cumsum(count) - count) + count, 0)`. The mean rank of n
    ties that follow b lower pairs is b + (n - 1) / 2; doubled and plus 1 that is 2 b + n.

    Args:
        block: `(B,)` rows of the table, one per row of `count`.
        count: `(B, 64)` pairs of each key.
        key_rank: `(64 * rows of the table,)`, zeros before.
    """
    for b in range(len(block)):
        first, n_lower = np.int64(block[b]) * BLOCK_KEYS, np.int64(0)
        for k in range(BLOCK_KEYS):
            n = np.int64(count[b, k])
            key_rank[first + k] = 2 * n_lower + n if n > 0 else 0
            n_lower += n


@compiled
def ranks_of_similarities(
    similarity: np.ndarray, first_key: int, block_rank: np.ndarray, key_rank: np.ndarray, doubled_rank: np.ndarray
) -> bool:
    """Look the doubled ranks up; return False if a similarity is not in the table.

    In numpy, with `i = key - first_key`: `doubled_rank[:] = block_rank[i // 64] + key_rank[i] - 1`.
    """
    is_complete = True
    offset = np.zeros(_CHUNK_PAIRS + _AHEAD, np.uint32)
    for low in range(0, len(similarity), _CHUNK_PAIRS):
        # 1. offsets of a chunk's keys
        chunk, ranks = similarity[low : low + _CHUNK_PAIRS], doubled_rank[low : low + _CHUNK_PAIRS]
        is_complete &= _to_offsets(chunk, first_key, len(key_rank), offset)
        # 2. look each up in both tables; 0 in the second means that no pair was counted there
        n_missing = 0
        for p in range(len(chunk)):
            ahead = np.int64(offset[np.uint64(p) + np.uint64(_AHEAD)])
            prefetch(key_rank, ahead)
            prefetch(block_rank, ahead >> BLOCK_BITS)
            at = np.uint64(offset[np.uint64(p)])
            within_block = np.int64(key_rank[at])
            n_missing += int(within_block == 0)
            ranks[np.uint64(p)] = np.int64(block_rank[at >> np.uint64(BLOCK_BITS)]) + within_block - 1
        is_complete &= n_missing == 0
    return is_complete
