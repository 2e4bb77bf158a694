"""Global place of every pair's similarity (paper equation 2, id^Xs): pure steps of the two ranking engines.

Places count from 0 for the least similar of the L pairs of a repeat; tied pairs share their mean place. A place is held
doubled (``rank2``), so that means of ties stay whole numbers. Similarities are multiples of 2^-23 (`similarity_key`), so a
repeat has at most 2^24 + 1 distinct ones, and its ranking follows from their histogram, which both engines make: `counting`
adds up the histograms of many shards, `sort` cuts sorted runs of keys into ranges that are merged one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fiqa_ray.core.clustering import SIMILARITY_STEPS
from fiqa_ray.core.compiled import compiled, prefetch

BLOCK_KEYS = 64
"""Neighbouring keys that a row of a histogram counts: block b holds the keys from 64 b on."""
_FIRST_BLOCK = -SIMILARITY_STEPS // BLOCK_KEYS
_N_BLOCKS = 2 * SIMILARITY_STEPS // BLOCK_KEYS + 1
_FEW_PAIRS = 1 << 17
_FEW_VALUES = 1 << 14
_STEPS = np.float32(SIMILARITY_STEPS)
_AHEAD = 64
_CHUNK_PAIRS = 4096
_BLOCK_BITS = 6


def similarity_key(similarity: np.ndarray) -> np.ndarray:
    """(n_pairs,) float32 similarities -> int32 keys in [-2^23, 2^23]; anything between two steps is an error."""
    key = np.empty(len(similarity), np.int32)
    _require_steps(_to_keys(np.asarray(similarity, np.float64), key))
    return key


def _require_steps(ok: bool) -> None:
    if not ok:
        raise ValueError("similarities must be multiples of 2^-23 in [-1, 1]; pass them through round_similarity first")


@compiled
def _to_keys(similarity: np.ndarray, key: np.ndarray) -> bool:
    ok = True
    for p in range(len(similarity)):
        scaled = similarity[p] * _STEPS  # a power of two: exact
        key[p] = np.int32(scaled) if abs(scaled) <= _STEPS else 0
        ok &= np.float64(key[p]) == scaled
    return ok


@dataclass(frozen=True)
class Histogram:
    """How many pairs have each similarity key.

    ``block`` (n_blocks,) int32, ascending: the blocks of `BLOCK_KEYS` neighbouring keys that have pairs; ``count``
    (n_blocks, 64) uint8, uint16, uint32 or int64: the narrowest that holds them, so that equal histograms are equal bytes.
    """

    block: np.ndarray
    count: np.ndarray

    @staticmethod
    def of(key: np.ndarray, count: np.ndarray) -> Histogram:
        """From ascending distinct int32 keys and their counts."""
        of_key = key >> _BLOCK_BITS
        is_first = np.append(True, of_key[1:] != of_key[:-1])[: len(key)]
        block = of_key[is_first]
        counts = np.zeros((len(block), BLOCK_KEYS), _narrowest(count))
        counts[np.cumsum(is_first) - 1, key & (BLOCK_KEYS - 1)] = count
        return Histogram(block, counts)

    @staticmethod
    def of_all(counts: np.ndarray) -> Histogram:
        """From the counts of all keys there may be, (2^24 + 64,) whole numbers."""
        rows = counts.reshape(_N_BLOCKS, BLOCK_KEYS)
        filled = np.flatnonzero(_row_sums(rows))
        return Histogram((filled + _FIRST_BLOCK).astype(np.int32), rows.astype(_narrowest(rows), copy=False)[filled])

    @cached_property
    def n_pairs(self) -> np.ndarray:
        """(n_blocks,) int64 pairs of each block."""
        return _row_sums(self.count)

    @property
    def n_before(self) -> np.ndarray:
        """(n_blocks,) int64: pairs whose similarity is below the block's."""
        return np.cumsum(self.n_pairs) - self.n_pairs


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


def _narrowest(counts: np.ndarray) -> np.dtype[Any]:
    most = int(counts.max()) if counts.size else 0
    return np.min_scalar_type(most) if most < 2**32 else np.dtype(np.int64)


class KeyCounter:
    """Histogram of similarity keys, fed bit by bit.

    Few pairs are kept and sorted at the end; many are counted in single bytes, of which more find room in a processor's
    cache: most keys occur a few times. Keys whose byte runs over (many pairs of copies of one image) are noted.
    Memory: 17 MB for the bytes and 4 bytes per pair that is added at once; at the end 37 MB, 155 MB if a byte ran over.
    """

    def __init__(self) -> None:
        self.n_pairs = 0
        self._few: list[np.ndarray] = []
        self._bytes: np.ndarray | None = None
        self._ran_over: list[np.ndarray] = []

    def add(self, similarity: np.ndarray) -> None:
        """Takes (n,) float32 similarities, multiples of 2^-23."""
        self.n_pairs += len(similarity)
        if self.n_pairs <= _FEW_PAIRS:
            self._few.append(similarity)
            return
        if self._bytes is None:
            self._bytes = np.zeros(_N_BLOCKS * BLOCK_KEYS, np.uint8)
        for some in (*self._few, similarity):
            ran_over = np.empty(len(some), np.uint32)
            n = _count_bytes(some, self._bytes, ran_over)
            _require_steps(n >= 0)
            self._ran_over.append(ran_over[:n].copy())
        self._few = []

    def histogram(self) -> Histogram:
        """What was counted."""
        if self._bytes is None:
            key = similarity_key(np.concatenate([np.empty(0, np.float32), *self._few]))
            return Histogram.of(*np.unique(key, return_counts=True))
        ran_over = np.concatenate(self._ran_over)
        if not len(ran_over):
            return Histogram.of_all(self._bytes)
        counts = self._bytes.astype(np.min_scalar_type(256 * (len(ran_over) + 1)))
        np.add.at(counts, ran_over, 256)
        return Histogram.of_all(counts)


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


def add_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Their sum. Memory: if there are several, 134 MB and twice the sum."""
    alone: Histogram | None = None
    total: np.ndarray | None = None
    for histogram in histograms:
        if alone is None:
            alone = histogram
            continue
        if total is None:
            total = np.zeros((_N_BLOCKS, BLOCK_KEYS), np.int64)
            total[alone.block - _FIRST_BLOCK] = alone.count
        total[histogram.block - _FIRST_BLOCK] += histogram.count  # the blocks of one histogram are distinct
    if total is None:
        return alone or Histogram.of(np.empty(0, np.int32), np.empty(0, np.int64))
    return Histogram.of_all(total.reshape(-1))


def range_cuts(samples: np.ndarray, n_ranges: int) -> np.ndarray:
    """Upper bounds (exclusive) of the first n_ranges - 1 key ranges, from sampled keys; equal keys share a range."""
    if len(samples) == 0 or n_ranges <= 1:
        return np.empty(0, np.int32)
    ordered = np.sort(samples)
    at = (np.arange(1, n_ranges) * len(ordered)) // n_ranges
    return np.unique(ordered[at]).astype(np.int32)


def merge_range(runs: Sequence[np.ndarray]) -> Histogram:
    """Merges the sorted runs of one key range into its histogram. Memory: about 16 bytes per key of the range."""
    key = np.concatenate([np.empty(0, np.int32), *runs])
    if len(runs) > 1:
        key.sort(kind="stable")  # which finds the runs and merges them
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    return Histogram.of(key[first], np.diff(first, append=len(key)))


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


@dataclass(frozen=True)
class RankTable:
    """rank2 by similarity, small for the sake of the processor's cache.

    ``base`` (n_blocks,) uint32, int64 for ranks beyond it: twice the pairs before each block of 64 keys, from the key
    ``first`` on; ``step`` (64 * n_blocks,): what each key's own rank2 is above that, plus 1; 0 where no pair has it.
    Memory: 2 bytes for each key between the least and the greatest, at most 36 MB; twice that where 64 neighbouring keys
    hold more than 32,000 pairs (many near-copies of images do that), four times beyond 2^31.
    """

    first: int
    base: np.ndarray
    step: np.ndarray

    @staticmethod
    def of(histogram: Histogram) -> RankTable:
        """The ranks of the pairs that were counted."""
        block, count = histogram.block, histogram.count
        if len(block) == 0:
            return RankTable(0, np.zeros(1, np.uint32), np.zeros(BLOCK_KEYS, np.uint16))
        own, most = block - block[0], 2 * int(histogram.n_pairs.max())
        base = np.zeros(own[-1] + 1, np.uint32 if 2 * int(histogram.n_pairs.sum()) <= 2**32 else np.int64)
        base[own] = 2 * histogram.n_before
        step = np.zeros(BLOCK_KEYS * len(base), np.min_scalar_type(max(most, 2**16 - 1)))
        _fill(own, count, step)
        return RankTable(BLOCK_KEYS * int(block[0]), base, step)

    @staticmethod
    def among(similarity: np.ndarray) -> RankTable:
        """The ranks of (n_pairs,) float32 similarities, multiples of 2^-23, among themselves. Memory: as `KeyCounter`."""
        counter = KeyCounter()
        counter.add(similarity)
        return RankTable.of(counter.histogram())

    def rank2(self, similarity: np.ndarray) -> np.ndarray:
        """(n_pairs,) uint32 or int64 of (n_pairs,) float32 similarities; `ValueError` for one that is not in the table."""
        found = np.empty(len(similarity), self.base.dtype)
        if not _look_up(similarity, self.first, self.base, self.step, found):
            similarity_key(similarity)  # which has its own complaint
            raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")
        return found


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
