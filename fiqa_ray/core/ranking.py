"""Global rank of every pair's similarity (id^Xs of equation 2): what both ranking engines use, free of storage.

Ranks count from 0 for the least similar of the L pairs of a repeat; tied pairs share their mean rank. A rank is stored
doubled, so that means of ties stay whole numbers. Similarities are multiples of 2^-23 (their keys are whole numbers), so a
repeat has at most 2^24 + 1 distinct ones, and its ranking follows from their histogram. Both engines make that:

    counting    count the keys of each group of parts (`KeyCounter`), and add up the histograms (`add_histograms`);
    sort        cut the groups' sorted keys into ranges (`sample_sort.choose_cuts`), and merge each range (`merge_range`).

`core.paper.similarity_rank` is the specification; the loops are `kernels.counting`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.kernels.counting import (
    BLOCK_BITS,
    BLOCK_KEYS,
    count_in_bytes,
    fill_ranks,
    ranks_of_similarities,
    row_sums,
    to_keys,
)
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS

_FIRST_BLOCK = -SIMILARITY_STEPS // BLOCK_KEYS
_N_BLOCKS = 2 * SIMILARITY_STEPS // BLOCK_KEYS + 1
_FEW_PAIRS = 1 << 17


@dataclass(frozen=True)
class RankTable:
    """Doubled rank by similarity, small enough for a processor's cache.

    The doubled rank of a key is twice the number of pairs before its block of 64 keys, plus twice its mean rank within the
    block: block_rank[i // 64] + (key_rank[i] - 1), where i = key - first_key. The second term is stored plus 1, because 0
    marks a key that no pair has. The table is split in two so that the large array fits the cache as uint16.

    Attributes:
        first_key: the lowest key of the first block.
        block_rank: `(B,) uint32`, or int64 for ranks beyond it: twice the pairs before each block of 64 keys.
        key_rank: `(64 B,)`, the key's doubled rank within its block, plus 1.

    Memory: 2 bytes for each key between the lowest and the highest, at most 36 MB. It is twice as much if a block of 64 keys
    holds more than 32,000 pairs, as with many near-copies of images, and four times as much if one holds more than 2^31.
    """

    first_key: int
    block_rank: NDArray[Any]
    key_rank: NDArray[Any]

    @staticmethod
    def among(similarity: NDArray[np.float32]) -> RankTable:
        """Rank similarities `(L,)`, multiples of 2^-23, among themselves. Memory: as `KeyCounter`."""
        counter = KeyCounter()
        counter.add(similarity)
        return RankTable.of(counter.histogram())

    @staticmethod
    def of(histogram: Histogram) -> RankTable:
        """Rank the pairs of a histogram."""
        block, count = histogram.block, histogram.count
        if len(block) == 0:
            return RankTable(0, np.zeros(1, np.uint32), np.zeros(BLOCK_KEYS, np.uint16))
        row, max_rank = block - block[0], 2 * int(histogram.n_pairs.max())  # (B,)
        block_rank = np.zeros(row[-1] + 1, np.uint32 if 2 * int(histogram.n_pairs.sum()) <= 2**32 else np.int64)
        block_rank[row] = 2 * histogram.n_before
        key_rank = np.zeros(BLOCK_KEYS * len(block_rank), np.min_scalar_type(max(max_rank, 2**16 - 1)))
        fill_ranks(row, count, key_rank)
        return RankTable(BLOCK_KEYS * int(block[0]), block_rank, key_rank)

    def doubled_ranks(self, similarity: NDArray[np.float32]) -> NDArray[Any]:
        """Return the doubled ranks `(L,)`, uint32 or int64, of similarities `(L,)`.

        Raises:
            ValueError: a similarity is not in the table.
        """
        ranks = np.empty(len(similarity), self.block_rank.dtype)
        if not ranks_of_similarities(similarity, self.first_key, self.block_rank, self.key_rank, ranks):
            similarity_key(similarity)  # raises for what is no key at all
            raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")
        return ranks


@dataclass(frozen=True)
class Histogram:
    """Sparse histogram of similarity keys.

    Attributes:
        block: `(B,) int32`, ascending: the blocks of `BLOCK_KEYS` neighbouring keys that have pairs.
        count: `(B, 64)` pairs of each key, in the narrowest of uint8, uint16, uint32 and int64 that holds them, so that
            equal histograms are equal bytes.
    """

    block: NDArray[np.int32]
    count: NDArray[Any]

    @staticmethod
    def of(key: NDArray[np.int32], count: NDArray[np.int64]) -> Histogram:
        """Build it from ascending distinct keys and their counts."""
        of_key = key >> BLOCK_BITS
        is_first = np.append(True, of_key[1:] != of_key[:-1])[: len(key)]
        block = of_key[is_first]
        counts = np.zeros((len(block), BLOCK_KEYS), _narrowest(count))
        counts[np.cumsum(is_first) - 1, key & (BLOCK_KEYS - 1)] = count
        return Histogram(block, counts)

    @staticmethod
    def of_all(counts: NDArray[Any]) -> Histogram:
        """Build it from the counts `(2^24 + 64,)` of all keys there may be."""
        rows = counts.reshape(_N_BLOCKS, BLOCK_KEYS)
        used = np.flatnonzero(row_sums(rows))
        return Histogram((used + _FIRST_BLOCK).astype(np.int32), rows.astype(_narrowest(rows), copy=False)[used])

    @cached_property
    def n_pairs(self) -> NDArray[np.int64]:
        """Pairs `(B,)` of each block."""
        return row_sums(self.count)

    @property
    def n_before(self) -> NDArray[np.int64]:
        """Pairs `(B,)` whose similarity is below the block's."""
        return np.cumsum(self.n_pairs) - self.n_pairs


class KeyCounter:
    """Builds the histogram of similarity keys from successive batches (`add`), without keeping them.

    Few pairs are collected and sorted at the end. Many are counted in single bytes, because bytes fit a processor's cache
    where words do not, and few keys occur more than 255 times. Keys whose byte overflows (many pairs of copies of one
    image) are noted.

    Memory: 17 MB for the bytes and 4 bytes per pair of a batch; `histogram` takes 37 MB more, or 155 MB if a byte
    overflowed.
    """

    def __init__(self) -> None:
        self.n_pairs = 0
        self._batches: list[NDArray[np.float32]] = []
        self._bytes: NDArray[np.uint8] | None = None
        self._overflows: list[NDArray[np.uint32]] = []

    def add(self, similarity: NDArray[np.float32]) -> None:
        """Count similarities `(n,)`, multiples of 2^-23."""
        self.n_pairs += len(similarity)
        if self.n_pairs <= _FEW_PAIRS:
            self._batches.append(similarity)
            return
        if self._bytes is None:
            self._bytes = np.zeros(_N_BLOCKS * BLOCK_KEYS, np.uint8)
        for batch in (*self._batches, similarity):
            overflowed = np.empty(len(batch), np.uint32)
            n = count_in_bytes(batch, self._bytes, overflowed)
            _require_steps(n >= 0)
            self._overflows.append(overflowed[:n].copy())
        self._batches = []

    def histogram(self) -> Histogram:
        """Return the histogram of all batches."""
        if self._bytes is None:
            key = similarity_key(np.concatenate([np.empty(0, np.float32), *self._batches]))
            return Histogram.of(*np.unique(key, return_counts=True))
        overflows = np.concatenate(self._overflows)
        if not len(overflows):
            return Histogram.of_all(self._bytes)
        counts = self._bytes.astype(np.min_scalar_type(256 * (len(overflows) + 1)))
        np.add.at(counts, overflows, 256)
        return Histogram.of_all(counts)


def add_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms. Memory: if there are several, 134 MB and twice the sum."""
    first: Histogram | None = None
    total: NDArray[np.int64] | None = None
    for histogram in histograms:
        if first is None:
            first = histogram
            continue
        if total is None:
            total = np.zeros((_N_BLOCKS, BLOCK_KEYS), np.int64)
            total[first.block - _FIRST_BLOCK] = first.count
        total[histogram.block - _FIRST_BLOCK] += histogram.count  # the blocks of one histogram are distinct
    if total is None:
        return first or Histogram.of(np.empty(0, np.int32), np.empty(0, np.int64))
    return Histogram.of_all(total.reshape(-1))


def merge_range(sorted_keys: NDArray[np.int32]) -> Histogram:
    """Return the histogram of the keys of a range: several sorted runs, one after the other.

    Memory: 8 bytes per key beside the input's 4 where ten pairs share a key, 45 where few do.
    """
    key = np.sort(sorted_keys, kind="stable")  # which finds the sorted stretches and merges them
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    return Histogram.of(key[first], np.diff(first, append=len(key)))


def similarity_key(similarity: NDArray[Any]) -> NDArray[np.int32]:
    """Return the keys `(L,)`, in [-2^23, 2^23], of similarities `(L,)`; ValueError for a number between two of them."""
    key = np.empty(len(similarity), np.int32)
    _require_steps(to_keys(np.asarray(similarity, np.float64), key))
    return key


def _require_steps(is_exact: bool) -> None:
    if not is_exact:
        raise ValueError("similarities must be multiples of 2^-23 in [-1, 1]; pass them through round_similarity first")


def _narrowest(counts: NDArray[Any]) -> np.dtype[Any]:
    highest = int(counts.max()) if counts.size else 0
    return np.min_scalar_type(highest) if highest < 2**32 else np.dtype(np.int64)
