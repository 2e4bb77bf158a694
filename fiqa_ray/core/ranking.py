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

from fiqa_ray.core.clustering import SIMILARITY_STEPS
from fiqa_ray.core.compiled import compiled

N_KEYS = 2 * SIMILARITY_STEPS + 1
_FEW_PAIRS = 1 << 17
_STRETCH_PAIRS = 1 << 22
_STEPS = np.float32(SIMILARITY_STEPS)
_BUCKET_BITS = 15
_BUCKET_KEYS = 1 << _BUCKET_BITS
_N_BUCKETS = (N_KEYS >> _BUCKET_BITS) + 1
_UPPER, _LOWER = np.uint32(_BUCKET_BITS), np.uint32(_BUCKET_KEYS - 1)
_OWNER, _PACKED_LOWER = np.uint64(_BUCKET_BITS), np.uint64(_BUCKET_KEYS - 1)


def similarity_key(similarity: np.ndarray) -> np.ndarray:
    """(n_pairs,) float32 similarities -> int32 keys in [-2^23, 2^23]; anything between two steps is an error."""
    key = np.empty(len(similarity), np.int32)
    _require_steps(_to_keys(np.asarray(similarity, np.float64), key))
    return key


def _require_owners(similarity: np.ndarray, owner: np.ndarray, total: np.ndarray) -> None:
    if len(owner) != len(similarity) or (len(owner) and owner.max() >= len(total)):
        raise ValueError(f"{len(similarity)} similarities need as many owners, each below {len(total)}")


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


# A table of all keys is far larger than a core's cache, and each look-up in it waits for memory. So pairs are first dealt
# out by the upper bits of their keys: those of one bucket meet only that bucket's 32,768 keys.


def bucket_starts(similarity: np.ndarray) -> np.ndarray:
    """(n_buckets + 1,) int64: where each bucket of (n_pairs,) float32 similarities begins; errors as `similarity_key`."""
    start = np.zeros(_N_BUCKETS + 1, np.int64)
    _require_steps(_count_buckets(similarity, start))
    return start


@compiled
def _count_buckets(similarity: np.ndarray, start: np.ndarray) -> bool:
    """Fills ``start``; False if something is no multiple of 2^-23 in [-1, 1]."""
    ok = True
    for p in range(len(similarity)):
        scaled = similarity[p] * _STEPS
        key = np.int32(scaled) if abs(scaled) <= _STEPS else np.int32(0)
        ok &= np.float32(key) == scaled
        start[(np.uint32(key + SIMILARITY_STEPS) >> _UPPER) + np.uint32(1)] += 1
    for b in range(len(start) - 1):
        start[b + 1] += start[b]
    return ok


def add_own_ranks(similarity: np.ndarray, owner: np.ndarray, total: np.ndarray) -> None:
    """Adds each pair's rank2 among these pairs to ``total`` (n,) int64 at its (n_pairs,) uint32 owner.

    Memory: 8 bytes per pair.
    """
    _require_owners(similarity, owner, total)
    start = bucket_starts(similarity)
    dealt = np.empty(len(similarity), np.uint64)
    _deal_pairs(similarity, owner, start[:-1].astype(np.uint64), dealt)
    _add_own_ranks(start, dealt, total)


@compiled
def _deal_pairs(similarity: np.ndarray, owner: np.ndarray, place: np.ndarray, dealt: np.ndarray) -> None:
    """Into ``dealt``: the lower bits of the key, and the owner above them."""
    for p in range(len(similarity)):
        key = np.uint32(np.int32(similarity[p] * _STEPS) + SIMILARITY_STEPS)
        at = place[key >> _UPPER]
        place[key >> _UPPER] = at + np.uint64(1)
        dealt[at] = (np.uint64(owner[p]) << _OWNER) | np.uint64(key & _LOWER)


@compiled
def _add_own_ranks(start: np.ndarray, dealt: np.ndarray, total: np.ndarray) -> None:
    rank2 = np.empty(_BUCKET_KEYS, np.int64)
    before = np.int64(0)
    for b in range(len(start) - 1):
        if start[b] == start[b + 1]:
            continue
        rank2[:] = 0
        for p in range(start[b], start[b + 1]):
            rank2[dealt[p] & _PACKED_LOWER] += 1
        for key in range(_BUCKET_KEYS):
            count = rank2[key]
            rank2[key] = 2 * before + count - 1
            before += count
        for p in range(start[b], start[b + 1]):
            total[dealt[p] >> _OWNER] += rank2[dealt[p] & _PACKED_LOWER]


class KeyCounter:
    """Histogram of similarity keys, fed bit by bit.

    Few pairs are kept and sorted at the end; many are dealt out into buckets and counted in single bytes: most keys occur a
    few times. Keys whose byte runs over (many pairs of copies of one image) are noted. Memory: 17 MB for the bytes, and 10
    bytes per pair at hand, up to 4 million more than one call adds; 150 MB at the end if a byte ran over.
    """

    def __init__(self) -> None:
        self.n_pairs = 0
        self._pending: list[np.ndarray] = []
        self._n_pending = 0
        self._bytes: np.ndarray | None = None
        self._ran_over: list[np.ndarray] = []

    def add(self, similarity: np.ndarray) -> None:
        """Takes (n,) float32 similarities, multiples of 2^-23."""
        self.n_pairs += len(similarity)
        self._pending.append(similarity)
        self._n_pending += len(similarity)
        if self._n_pending >= _STRETCH_PAIRS:
            self._count()

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct keys, ascending int32, and their counts int64."""
        if self.n_pairs <= _FEW_PAIRS:
            key = similarity_key(np.concatenate([np.empty(0, np.float32), *self._pending]))
            distinct, count = np.unique(key, return_counts=True)
            return distinct, count.astype(np.int64)
        counts = self._count()
        ran_over = np.concatenate([np.empty(0, np.uint32), *self._ran_over])
        if len(ran_over):
            counts = counts.astype(np.int64)
            np.add.at(counts, ran_over, 256)
        return _distinct(counts)

    def _count(self) -> np.ndarray:
        if self._bytes is None:
            self._bytes = np.zeros(N_KEYS, np.uint8)
        similarity = np.concatenate([np.empty(0, np.float32), *self._pending])
        self._pending, self._n_pending = [], 0
        start = bucket_starts(similarity)
        low = np.empty(len(similarity), np.uint16)
        _deal_keys(similarity, start[:-1].astype(np.uint64), low)
        ran_over = np.empty(len(low), np.uint32)
        self._ran_over.append(ran_over[: _count_bytes(start, low, self._bytes, ran_over)].copy())
        return self._bytes


@compiled
def _deal_keys(similarity: np.ndarray, place: np.ndarray, low: np.ndarray) -> None:
    """Into ``low``: the lower bits of the keys."""
    for p in range(len(similarity)):
        key = np.uint32(np.int32(similarity[p] * _STEPS) + SIMILARITY_STEPS)
        at = place[key >> _UPPER]
        place[key >> _UPPER] = at + np.uint64(1)
        low[at] = key & _LOWER


@compiled
def _count_bytes(start: np.ndarray, low: np.ndarray, counts: np.ndarray, ran_over: np.ndarray) -> int:
    """Adds to ``counts``, modulo 256; notes in ``ran_over`` the places that ran over, and returns how often one did."""
    n = 0
    for b in range(len(start) - 1):
        first = b * _BUCKET_KEYS
        for p in range(start[b], start[b + 1]):
            at = np.uint32(first + low[p])
            count = np.uint8(counts[at] + 1)
            counts[at] = count
            if count == 0:
                ran_over[n] = at
                n += 1
    return n


def _distinct(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = np.count_nonzero(counts)
    key, count = np.empty(n, np.int32), np.empty(n, np.int64)
    _gather_counted(counts, key, count)
    return key, count


@compiled
def _gather_counted(counts: np.ndarray, key: np.ndarray, count: np.ndarray) -> None:
    n = 0
    for at in range(len(counts)):
        if counts[at] != 0:
            key[n] = at - SIMILARITY_STEPS
            count[n] = counts[at]
            n += 1


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
    return _distinct(total)


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
class RankTable:
    """rank2 by similarity: a plain array over the keys that occur, from ``first`` on, of rank2 + 1; 0 where none does.

    Memory: 4 bytes for each step between the least and the greatest similarity, at most 67 MB; 8 where ranks need int64.
    """

    first: int
    rank2_plus_1: np.ndarray

    @staticmethod
    def of(key: np.ndarray, rank2: np.ndarray) -> RankTable:
        """From the ascending distinct keys and their rank2."""
        if len(key) == 0:
            return RankTable(0, np.empty(0, np.uint32))
        kind = np.uint32 if rank2[-1] < 2**32 - 1 else np.int64
        table = np.zeros(int(key[-1]) - int(key[0]) + 1, kind)
        _fill(key, rank2, table)
        return RankTable(int(key[0]), table)

    def add_ranks(self, similarity: np.ndarray, owner: np.ndarray, total: np.ndarray) -> None:
        """Adds each pair's rank2 to ``total`` (n,) int64 at its (n_pairs,) uint32 owner.

        `ValueError` for a similarity that is not in the table. Memory: 8 bytes per pair.
        """
        _require_owners(similarity, owner, total)
        start = bucket_starts(similarity)
        dealt = np.empty(len(similarity), np.uint64)
        _deal_pairs(similarity, owner, start[:-1].astype(np.uint64), dealt)
        if not _add_ranks(start, dealt, self.first, self.rank2_plus_1, total):
            raise ValueError("a pair's similarity is missing from the ranking: pairs and ranks are of different runs")


@compiled
def _fill(key: np.ndarray, rank2: np.ndarray, table: np.ndarray) -> None:
    for n in range(len(key)):
        table[np.int64(key[n]) - np.int64(key[0])] = rank2[n] + 1


@compiled
def _add_ranks(start: np.ndarray, dealt: np.ndarray, first: int, table: np.ndarray, total: np.ndarray) -> bool:
    found = True
    for b in range(len(start) - 1):
        offset = b * _BUCKET_KEYS - SIMILARITY_STEPS - first
        for p in range(start[b], start[b + 1]):
            at = np.uint64(offset + np.int64(dealt[p] & _PACKED_LOWER))  # below 0: far beyond the end
            rank2_plus_1 = np.int64(table[at]) if at < np.uint64(len(table)) else np.int64(0)
            found = bool(found and rank2_plus_1 > 0)
            total[dealt[p] >> _OWNER] += rank2_plus_1 - 1
    return found
