"""Global place of every pair's similarity (paper equation 2, id^Xs): pure steps of the two ranking engines.

Places count from 0 for the least similar of the L pairs of a repeat; tied pairs share their mean place. A place is held
doubled (``rank2``), so that means of ties stay whole numbers. Similarities are multiples of 2^-23 (`similarity_key`), so a
repeat has at most 2^24 + 1 distinct ones, and its ranking is the table (key, count) -> rank2 that both engines make:
`counting` adds up the histograms of many shards, `sort` cuts sorted runs of keys into ranges that are merged one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fiqa_ray.core.clustering import SIMILARITY_STEPS

N_KEYS = 2 * SIMILARITY_STEPS + 1
_STRETCH_PAIRS = 1 << 24
_CACHED = 1 << 16
_FEW_PAIRS = 1 << 17


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor on the array's own memory; on a copy of it where the array is read-only, which torch does not know."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def similarity_key(similarity: np.ndarray) -> np.ndarray:
    """(n_pairs,) float32 similarities -> int32 keys in [-2^23, 2^23]; anything between two steps is an error."""
    scaled = np.asarray(similarity) * np.float32(SIMILARITY_STEPS)  # a power of two: exact
    key = scaled.astype(np.int32)
    exact = (key.astype(np.float32) == scaled).all()
    if len(key) and not (exact and scaled.min() >= -SIMILARITY_STEPS and scaled.max() <= SIMILARITY_STEPS):
        raise ValueError("similarities must be multiples of 2^-23 in [-1, 1]; pass them through round_similarity first")
    return key


class KeyCounter:
    """Histogram of similarity keys, fed bit by bit.

    Few keys are kept and sorted at the end; many are counted in a table of all possible ones. That table is far larger than
    a processor's cache, and most keys of a stretch of pairs occur once or twice: so stretches are counted in single bytes
    first, and again in the table itself where a byte overflowed (many pairs of copies of one image). Memory: 17 MB for the
    bytes, 67 MB for the stretch at hand; 67 MB for the table after the first stretch, 134 MB beyond 2^31 pairs.
    """

    def __init__(self) -> None:
        self.n_pairs = 0
        self._pending: list[np.ndarray] = []
        self._n_pending = 0
        self._bytes: torch.Tensor | None = None
        self._table: torch.Tensor | None = None

    def add(self, key: np.ndarray) -> None:
        """Takes (n,) int32 keys."""
        self.n_pairs += len(key)
        self._pending.append(key)
        self._n_pending += len(key)
        if self._n_pending >= _STRETCH_PAIRS:
            self._add_to_table()

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct keys, ascending int32, and their counts int64."""
        if self._table is None and self._n_pending <= _FEW_PAIRS:
            key = np.concatenate([np.empty(0, np.int32), *self._pending])
            distinct, count = np.unique(key, return_counts=True)
            return distinct, count.astype(np.int64)
        if self._table is None:
            key, count = _distinct(self._count_bytes())
            if count.sum() == self._n_pending:
                return key, count
        return _distinct(self._add_to_table())

    def _count_bytes(self) -> torch.Tensor:
        """Counts modulo 256 of what is pending."""
        if self._bytes is None:
            self._bytes = torch.empty(N_KEYS, dtype=torch.uint8)
        self._bytes.zero_()
        for key in self._pending:
            _count_in_bytes(self._bytes, key, -SIMILARITY_STEPS)
        return self._bytes

    def _add_to_table(self) -> torch.Tensor:
        if self._table is None:
            self._table = torch.zeros(N_KEYS, dtype=torch.int32)
        if self.n_pairs >= 2**31 and self._table.dtype == torch.int32:
            self._table = self._table.long()
        some = self._count_bytes()
        if int(some.numpy().sum(dtype=np.int64)) == self._n_pending:
            self._table += some
        else:
            for key in self._pending:
                one = torch.ones(1, dtype=self._table.dtype)
                self._table.index_add_(0, as_tensor(key) + SIMILARITY_STEPS, one.expand(len(key)))
        self._pending, self._n_pending = [], 0
        return self._table


def _distinct(table: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    counts = table.numpy()
    found = np.flatnonzero(counts != 0)
    return (found - SIMILARITY_STEPS).astype(np.int32), counts[found].astype(np.int64)


def add_histograms(histograms: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of histograms (distinct ascending int32 keys, int64 counts). Memory: 134 MB where there are several."""
    alone: tuple[np.ndarray, np.ndarray] | None = None
    total: np.ndarray | None = None
    for key, count in histograms:
        if alone is None:
            alone = key, count
            continue
        if total is None:
            total = np.zeros(N_KEYS, np.int64)
            total[alone[0] + np.int32(SIMILARITY_STEPS)] = alone[1]
        total[key + np.int32(SIMILARITY_STEPS)] += count  # the keys of one histogram are distinct
    if total is None:
        return alone or (np.empty(0, np.int32), np.empty(0, np.int64))
    return _distinct(torch.from_numpy(total))


def range_cuts(samples: np.ndarray, n_ranges: int) -> np.ndarray:
    """Upper bounds (exclusive) of the first n_ranges - 1 key ranges, from sampled keys; equal keys share a range."""
    if len(samples) == 0 or n_ranges <= 1:
        return np.empty(0, np.int32)
    ordered = np.sort(samples)
    at = (np.arange(1, n_ranges) * len(ordered)) // n_ranges
    return np.unique(ordered[at]).astype(np.int32)


def merge_range(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merges the sorted runs of one key range into its histogram. Memory: about 16 bytes per key of the range."""
    key = np.concatenate([np.empty(0, np.int32), *runs])
    if len(runs) > 1:
        key.sort(kind="stable")  # which finds the runs and merges them
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    return key[first], np.diff(first, append=len(key))


def mean_ranks(count: np.ndarray) -> np.ndarray:
    """Doubled mean place (int64) of each distinct key: twice the pairs before it, plus count - 1."""
    return 2 * (np.cumsum(count) - count) + count - 1


@dataclass(frozen=True)
class RunRanks:
    """rank2 by key for pairs that all lie in memory: no table of distinct keys is made.

    The keys from ``first`` on are counted in single bytes, and eight neighbouring keys make one 64-bit word. A word times
    0x0101010101010101 holds in each byte the sum of the bytes up to it, so ``up_to`` (8 n_words,) uint8 counts the pairs of
    the key's word up to and with the key, and ``before`` (n_words,) int32 or int64 those of all words before. Memory: 4
    bytes for each step between the least and the greatest similarity.
    """

    first: int
    count: torch.Tensor
    up_to: torch.Tensor
    before: torch.Tensor

    @staticmethod
    def of(key: np.ndarray) -> RunRanks | RankTable:
        """From (n_pairs,) int32 keys; where a word holds more than 255 pairs, their `RankTable`."""
        if len(key) == 0:
            return RankTable.of(key, np.empty(0, np.int64))
        first, last = int(key.min()), int(key.max())
        count = torch.zeros(((last - first) // 8 + 1) * 8, dtype=torch.uint8)
        _count_in_bytes(count, key, first)
        up_to = count.numpy().view("<u8") * np.uint64(0x0101010101010101)
        total = (up_to >> np.uint64(56)).astype(np.int64 if 2 * len(key) >= 2**31 else np.int32)
        before = np.cumsum(total, dtype=total.dtype)
        if before[-1] != len(key):  # what overflowed is missing from the sum
            distinct, occurrences = np.unique(key, return_counts=True)
            return RankTable.of(distinct, mean_ranks(occurrences))
        before -= total
        return RunRanks(first, count, torch.from_numpy(up_to.view(np.uint8)), torch.from_numpy(before))

    def look_up(self, key: np.ndarray) -> torch.Tensor:
        """rank2 (int32 or int64) of (n,) int32 keys, all of them among those that were counted."""
        at = as_tensor(key) - self.first
        rank2 = self.before.index_select(0, at >> 3)
        rank2 += self.up_to.index_select(0, at)
        return rank2.mul_(2).sub_(self.count.index_select(0, at)).sub_(1)


def _count_in_bytes(counts: torch.Tensor, key: np.ndarray, first: int) -> None:
    """Adds int32 keys to counts modulo 256 of the keys from ``first`` on."""
    one = torch.ones(1, dtype=torch.uint8)
    for place in (as_tensor(key) - first).split(_CACHED):
        counts.scatter_add_(0, place.long(), one.expand(len(place)))


@dataclass(frozen=True)
class RankTable:
    """rank2 by key, for look-up: a plain array over the keys that occur, from ``first`` on, of rank2 + 1; 0 where none does.

    Memory: 4 bytes for each step between the least and the greatest similarity, at most 67 MB; 8 where ranks need int64.
    """

    first: int
    rank2_plus_1: torch.Tensor

    @staticmethod
    def of(key: np.ndarray, rank2: np.ndarray) -> RankTable:
        """From the ascending distinct keys and their rank2."""
        if len(key) == 0:
            return RankTable(0, torch.empty(0, dtype=torch.int32))
        kind = torch.int32 if rank2[-1] < 2**31 - 1 else torch.int64
        table = torch.zeros(int(key[-1]) - int(key[0]) + 1, dtype=kind)
        for at in range(0, len(key), _CACHED):
            place = as_tensor(key[at : at + _CACHED]) - int(key[0])
            table.scatter_(0, place.long(), as_tensor(rank2[at : at + _CACHED]).to(kind) + 1)
        return RankTable(int(key[0]), table)

    def look_up(self, key: np.ndarray) -> torch.Tensor:
        """rank2 (int32 or int64) of every pair's int32 key; every key must stand in the table."""
        at = as_tensor(key) - self.first
        if len(key) == 0:
            return at
        low, high = torch.aminmax(at)
        found = self.rank2_plus_1.index_select(0, at) if low >= 0 and high < len(self.rank2_plus_1) else None
        if found is None or found.min() < 1:
            raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")
        return found.sub_(1)
