"""Compiled loops of the counting sort: similarities to keys, keys to counts, counts to ranks."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.jit import compiled, prefetch

BLOCK_KEYS = 64
"""Neighbouring keys that a row of a histogram counts: block b holds the keys from 64 b on."""


_STEPS = np.float32(SIMILARITY_STEPS)


_AHEAD = 64


_CHUNK_PAIRS = 4096


_BLOCK_BITS = 6


@compiled
def _to_keys(similarity: np.ndarray, key: np.ndarray) -> bool:
    ok = True
    for p in range(len(similarity)):
        scaled = similarity[p] * _STEPS  # a power of two: exact
        key[p] = np.int32(scaled) if abs(scaled) <= _STEPS else 0
        ok &= np.float64(key[p]) == scaled
    return ok


@compiled
def _row_sums(count: np.ndarray) -> np.ndarray:
    """Sums along the rows, int64: by numpy, single bytes take five times as long."""
    sums = np.zeros(len(count), np.int64)
    for b in range(len(count)):
        total = np.int64(0)
        for k in range(BLOCK_KEYS):
            total += np.int64(count[b, k])
        sums[b] = total
    return sums


@compiled
def _to_places(similarity: np.ndarray, first: int, n_places: int, place: np.ndarray) -> bool:
    """Similarities to places in a table of ``n_places`` keys from ``first`` on: place 0 and False for what is not in it."""
    low, end, n_bad = np.int32(first), np.uint32(n_places), np.uint32(0)
    for p in range(len(similarity)):  # in narrow types and without branches: vector operations
        scaled = similarity[p] * _STEPS  # a power of two: exact
        within = abs(scaled) <= _STEPS
        key = np.int32(scaled if within else np.float32(0.0))
        at = np.uint32(np.int32(key - low))  # below 0: far beyond the end
        good = within and np.float32(key) == scaled and at < end
        place[p] = at if good else np.uint32(0)
        n_bad = np.uint32(n_bad + np.uint32(not good))
    return bool(n_bad == 0)


@compiled
def _count_bytes(similarity: np.ndarray, counts: np.ndarray, ran_over: np.ndarray) -> int:
    """Adds to ``counts``, modulo 256; notes in ``ran_over`` the places that ran over, and returns how often one did.

    -1 if something is no multiple of 2^-23 in [-1, 1].
    """
    n, ok = 0, True
    place = np.zeros(_CHUNK_PAIRS + _AHEAD, np.uint32)
    for first in range(0, len(similarity), _CHUNK_PAIRS):
        some = similarity[first : first + _CHUNK_PAIRS]
        ok &= _to_places(some, -SIMILARITY_STEPS, 2 * SIMILARITY_STEPS + 1, place)
        for p in range(len(some)):
            prefetch(counts, np.int64(place[np.uint64(p) + np.uint64(_AHEAD)]))
            at = np.uint64(place[np.uint64(p)])
            count = np.uint8(counts[at] + 1)
            counts[at] = count
            if count == 0:
                ran_over[n] = at
                n += 1
    return n if ok else -1


@compiled
def _fill(row: np.ndarray, count: np.ndarray, step: np.ndarray) -> None:
    """Fills ``step``, zeros before: twice the block's pairs before a key, plus the mean place among its own."""
    for b in range(len(row)):
        first, before = np.int64(row[b]) * BLOCK_KEYS, np.int64(0)
        for k in range(BLOCK_KEYS):
            n = np.int64(count[b, k])
            step[first + k] = 2 * before + n if n > 0 else 0
            before += n


@compiled
def _look_up(similarity: np.ndarray, first: int, base: np.ndarray, step: np.ndarray, rank2: np.ndarray) -> bool:
    """Fills ``rank2``; False if a similarity is not in the table."""
    found = True
    place = np.zeros(_CHUNK_PAIRS + _AHEAD, np.uint32)
    for low in range(0, len(similarity), _CHUNK_PAIRS):
        some, ranks = similarity[low : low + _CHUNK_PAIRS], rank2[low : low + _CHUNK_PAIRS]
        found &= _to_places(some, first, len(step), place)
        n_missing = 0
        for p in range(len(some)):
            ahead = np.int64(place[np.uint64(p) + np.uint64(_AHEAD)])
            prefetch(step, ahead)
            prefetch(base, ahead >> _BLOCK_BITS)
            at = np.uint64(place[np.uint64(p)])
            above = np.int64(step[at])
            n_missing += int(above == 0)
            ranks[np.uint64(p)] = np.int64(base[at >> np.uint64(_BLOCK_BITS)]) + above - 1
        found &= n_missing == 0
    return found
