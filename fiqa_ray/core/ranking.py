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

from fiqa_ray.core.kernels.counting import _BLOCK_BITS, BLOCK_KEYS, _count_bytes, _fill, _look_up, _row_sums, _to_keys
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS

_FIRST_BLOCK = -SIMILARITY_STEPS // BLOCK_KEYS


_N_BLOCKS = 2 * SIMILARITY_STEPS // BLOCK_KEYS + 1


_FEW_PAIRS = 1 << 17


def similarity_key(similarity: np.ndarray) -> np.ndarray:
    """(n_pairs,) float32 similarities -> int32 keys in [-2^23, 2^23]; anything between two steps is an error."""
    key = np.empty(len(similarity), np.int32)
    _require_steps(_to_keys(np.asarray(similarity, np.float64), key))
    return key


def _require_steps(ok: bool) -> None:
    if not ok:
        raise ValueError("similarities must be multiples of 2^-23 in [-1, 1]; pass them through round_similarity first")


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
