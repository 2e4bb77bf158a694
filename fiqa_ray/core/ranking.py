"""Global place of every pair's similarity (paper equation 2, id^Xs): pure steps of the two ranking engines.

Places count from 0 for the least similar of the L pairs of a repeat; tied pairs share their mean place. A place is held
doubled (``rank2``), so that means of ties stay whole numbers. Similarities are multiples of 2^-23 (`similarity_key`), so a
repeat has at most 2^24 + 1 distinct ones, and its ranking is the table (key, count) -> rank2 that both engines make:
`counting` adds the shards' histograms, `sort` cuts the shards' sorted keys into ranges that are merged one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fiqa_ray.core.clustering import SIMILARITY_STEPS


def similarity_key(similarity: np.ndarray) -> np.ndarray:
    """(n_pairs,) float32 similarities -> int32 keys in [-2^23, 2^23]; anything between two steps is an error."""
    key = np.asarray(similarity, dtype=np.float64) * SIMILARITY_STEPS
    whole = np.rint(key)
    if not np.array_equal(key, whole) or (len(key) and np.abs(key).max() > SIMILARITY_STEPS):
        raise ValueError("similarities must be multiples of 2^-23 in [-1, 1]; pass them through round_similarity first")
    return whole.astype(np.int32)


def count_keys(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A shard's histogram: its distinct keys, ascending int32, and their counts int64."""
    distinct, count = np.unique(key, return_counts=True)
    return distinct.astype(np.int32), count.astype(np.int64)


def add_counts(histograms: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of histograms, as `count_keys` gives them. Memory: 134 MB for all possible keys, and one histogram at a time."""
    total = np.zeros(2 * SIMILARITY_STEPS + 1, np.int64)
    for keys, counts in histograms:
        total[keys + SIMILARITY_STEPS] += counts  # keys of one histogram are distinct
    found = np.flatnonzero(total)
    return (found - SIMILARITY_STEPS).astype(np.int32), total[found]


def range_cuts(samples: np.ndarray, n_ranges: int) -> np.ndarray:
    """Upper bounds (exclusive) of the first n_ranges - 1 key ranges, from sampled keys; equal keys share a range."""
    if len(samples) == 0 or n_ranges <= 1:
        return np.empty(0, np.int32)
    ordered = np.sort(samples)
    at = (np.arange(1, n_ranges) * len(ordered)) // n_ranges
    return np.unique(ordered[at]).astype(np.int32)


def merge_range(runs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Merges the sorted runs of one key range into its histogram. Memory: 8 bytes per key of the range."""
    return count_keys(np.sort(np.concatenate(runs), kind="stable")) if runs else count_keys(np.empty(0, np.int32))


def mean_ranks(count: np.ndarray) -> np.ndarray:
    """Doubled mean place (int64) of each distinct key: twice the pairs before it, plus count - 1."""
    return 2 * (np.cumsum(count) - count) + count - 1


def look_up(key: np.ndarray, table_key: np.ndarray, table_rank2: np.ndarray) -> np.ndarray:
    """rank2 (int64) of every pair's key; every key must stand in the table."""
    at = np.searchsorted(table_key, key)
    if len(key) and (len(table_key) == 0 or at.max() >= len(table_key) or not np.array_equal(table_key[at], key)):
        raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")
    return table_rank2[at]
