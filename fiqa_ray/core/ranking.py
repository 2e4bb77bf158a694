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


def count_keys(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histogram of int32 keys: the distinct ones, ascending int32, and their counts int64.

    Many keys are counted in a table of all possible ones, few are sorted. Memory: 134 MB, or about 16 bytes per key.
    """
    if len(key) < N_KEYS >> 4:
        distinct, count = np.unique(key, return_counts=True)
        return distinct.astype(np.int32), count.astype(np.int64)
    at = as_tensor(key) + SIMILARITY_STEPS
    table = torch.zeros(N_KEYS, dtype=torch.int64)
    table.scatter_add_(0, at.long(), torch.ones(1, dtype=torch.int64).expand(len(key)))
    count = table.numpy()
    found = np.flatnonzero(count)
    return (found - SIMILARITY_STEPS).astype(np.int32), count[found]


def add_counts(histograms: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of histograms, as `count_keys` gives them. Memory: 134 MB for all possible keys, and one histogram at a time."""
    total = np.zeros(N_KEYS, np.int64)
    low, high = N_KEYS, -1
    for keys, counts in histograms:
        if len(keys):
            at = keys + np.int32(SIMILARITY_STEPS)
            low, high = min(low, int(at[0])), max(high, int(at[-1]))
            total[at] += counts  # keys of one histogram are distinct
    found = np.flatnonzero(total[low : high + 1]) + low if high >= low else np.empty(0, np.int64)
    return (found - SIMILARITY_STEPS).astype(np.int32), total[found]


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

    def look_up(self, key: np.ndarray) -> np.ndarray:
        """rank2 (int32 or int64) of every pair's int32 key; every key must stand in the table."""
        if len(key) == 0:
            return np.empty(0, np.int64)
        at = as_tensor(key) - self.first
        found = None
        if len(self.rank2) and int(at.min()) >= 0 and int(at.max()) < len(self.rank2):
            found = self.rank2.index_select(0, at)
        if found is None or int(found.min()) < 0:
            raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")
        return found.numpy()
