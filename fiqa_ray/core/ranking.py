"""Global place of every pair's similarity (paper equation 2, id^Xs): pure steps of the two ranking engines.

Places count from 0 for the least similar of the L pairs of a repeat; tied pairs share their mean place. A place is held
doubled (``rank2``), so that means of ties stay whole numbers. Similarities are multiples of 2^-23 (`similarity_key`), so a
repeat has at most 2^24 + 1 distinct ones, and its ranking is the table (key, count) -> rank2 that both engines make:
`counting` adds up the histograms of many shards, `sort` cuts sorted runs of keys into ranges that are merged one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fiqa_ray.core.clustering import SIMILARITY_STEPS

N_KEYS = 2 * SIMILARITY_STEPS + 1


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor on the array's own memory; on a copy of it where the array is read-only, which torch does not know."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def similarity_key(similarity: np.ndarray) -> np.ndarray:
    """(n_pairs,) float32 similarities -> int32 keys in [-2^23, 2^23]; anything between two steps is an error."""
    scaled = np.asarray(similarity) * np.float32(SIMILARITY_STEPS)  # a power of two: exact
    key = scaled.astype(np.int32)
    if len(key) and not (np.array_equal(key, scaled) and np.abs(scaled).max() <= SIMILARITY_STEPS):
        raise ValueError("similarities must be multiples of 2^-23 in [-1, 1]; pass them through round_similarity first")
    return key


class KeyCounter:
    """Histogram of similarity keys, fed bit by bit.

    Few keys are kept and sorted at the end, many are counted in a table of all possible ones. Memory: 67 MB (the pages of
    it that are touched), 134 MB where histograms of more than 2^31 pairs are added up.
    """

    def __init__(self) -> None:
        self.n_pairs = 0
        self._few: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._n_few = 0
        self._table: np.ndarray | None = None
        self._low, self._high = N_KEYS, -1

    def add(self, key: np.ndarray, count: np.ndarray | None = None) -> None:
        """Takes (n,) int32 keys, each counted once, or ``count`` (n,) int64 times."""
        if len(key) == 0:
            return
        self.n_pairs += len(key) if count is None else int(count.sum())
        if self._table is None and self._n_few + len(key) <= N_KEYS >> 5:
            self._few.append((key, count))
            self._n_few += len(key)
            return
        for few in self._few:
            self._count(*few)
        self._few = []
        self._count(key, count)

    def _count(self, key: np.ndarray, count: np.ndarray | None) -> None:
        if self._table is None:
            self._table = np.zeros(N_KEYS, np.int32)
        if self.n_pairs >= 2**31 and self._table.dtype == np.int32:
            self._table = self._table.astype(np.int64)
        at = as_tensor(key) + SIMILARITY_STEPS
        low, high = torch.aminmax(at)
        self._low, self._high = min(self._low, int(low)), max(self._high, int(high))
        table = torch.from_numpy(self._table)
        times = torch.ones(1, dtype=table.dtype).expand(len(at)) if count is None else as_tensor(count).to(table.dtype)
        table.index_add_(0, at, times)

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct keys, ascending int32, and their counts int64."""
        if self._table is None:
            keys = [k for k, _ in self._few]
            counts = [np.ones(len(k), np.int64) if c is None else c for k, c in self._few]
            distinct, at = np.unique(np.concatenate([np.empty(0, np.int32), *keys]), return_inverse=True)
            # float64 sums of whole numbers below 2^53 are exact
            total = np.bincount(at, weights=np.concatenate([np.empty(0), *counts]), minlength=len(distinct))
            return distinct.astype(np.int32), total.astype(np.int64)
        touched = self._table[self._low : self._high + 1]
        found = np.flatnonzero(touched)
        return (found + (self._low - SIMILARITY_STEPS)).astype(np.int32), touched[found].astype(np.int64)


def range_cuts(samples: np.ndarray, n_ranges: int) -> np.ndarray:
    """Upper bounds (exclusive) of the first n_ranges - 1 key ranges, from sampled keys; equal keys share a range."""
    if len(samples) == 0 or n_ranges <= 1:
        return np.empty(0, np.int32)
    ordered = np.sort(samples)
    at = (np.arange(1, n_ranges) * len(ordered)) // n_ranges
    return np.unique(ordered[at]).astype(np.int32)


def merge_range(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merges the sorted runs of one key range into its histogram. Memory: about 16 bytes per key of the range."""
    key = np.sort(np.concatenate([np.empty(0, np.int32), *runs]))
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    return key[first], np.diff(first, append=len(key))


def mean_ranks(count: np.ndarray) -> np.ndarray:
    """Doubled mean place (int64) of each distinct key: twice the pairs before it, plus count - 1."""
    return 2 * (np.cumsum(count) - count) + count - 1


@dataclass(frozen=True)
class RankTable:
    """rank2 by key, for look-up: a plain array over the keys that occur, from ``first`` on; -1 where none does.

    Memory: 4 bytes for each step between the least and the greatest similarity, at most 67 MB; 8 where ranks need int64.
    """

    first: int
    rank2: torch.Tensor

    @staticmethod
    def of(key: np.ndarray, rank2: np.ndarray) -> RankTable:
        """From the ascending distinct keys and their rank2."""
        if len(key) == 0:
            return RankTable(0, torch.empty(0, dtype=torch.int32))
        kind = np.int32 if rank2[-1] < 2**31 else np.int64
        table = np.full(int(key[-1]) - int(key[0]) + 1, -1, kind)
        table[key - key[0]] = rank2
        return RankTable(int(key[0]), torch.from_numpy(table))

    def look_up(self, key: np.ndarray) -> torch.Tensor:
        """rank2 (int32 or int64) of every pair's int32 key; every key must stand in the table."""
        at = as_tensor(key) - self.first
        if len(key) == 0:
            return at
        low, high = torch.aminmax(at)
        found = self.rank2.index_select(0, at) if low >= 0 and high < len(self.rank2) else None
        if found is None or found.min() < 0:
            raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")
        return found
