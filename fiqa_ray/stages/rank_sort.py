"""The `sort` engine of stage rank: a range-partitioned sample sort of all similarity keys over Ray tasks.

    1. `sort_group`: the sorted keys of a group of parts of pairs, and evenly spaced samples of them,
    2. `merge_range_of_groups`: a key range of a repeat, merged from all groups, as its histogram.

`datasets.sorted_runs` is the sort. Equal keys share a range, because a histogram needs no order among them. `rank.py` adds
up the histograms of the ranges, as it does for the engine `counting`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from fiqa_ray.core.ranking import merge_range, similarity_key
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, FileContent, Part
from fiqa_ray.datasets.histograms import KEY_SPAN, PACKED, histogram_bytes, histogram_table, parts_of_repeat
from fiqa_ray.datasets.pairs import PairGroup, PairReader
from fiqa_ray.datasets.sorted_runs import SortedRuns, SortRange
from fiqa_ray.engine.cost import Cost, Scale, Units
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job

SAMPLES_PER_GROUP = 1024
"""Sampled keys of a group and repeat; ranges then differ in size by a few per cent."""


@dataclass(frozen=True)
class KeyRange:
    """A range of the keys of one repeat."""

    repeat: int
    keys: SortRange

    @property
    def index(self) -> int:
        """Return the number of the part that it makes."""
        return self.keys.index


def _runs(keys: Dataset, repeat: int) -> SortedRuns:
    return SortedRuns(keys, "similarity_key", suffix=schemas.repeat_suffix(repeat))


def sort_steps(job: Job, groups: list[PairGroup], n_pairs: int) -> Iterator[list[Step]]:
    """Plan sorted keys of the groups, then the histograms of key ranges."""
    keys, counts, reader = job.sorted_keys(), job.key_counts(), job.pair_reader()
    worker = stateless_worker(sort_group, keys, reader)
    yield [Step("rank", keys, groups, worker, n_pairs, unit="pairs", needs_gpu=reader.needs_gpu)]
    ranges = _key_ranges(keys, job.settings.pair.n_repeats, job.settings.rank.n_ranges)
    worker, memory = stateless_worker(merge_range_of_groups, counts, keys), 12 * n_pairs // len(ranges)
    yield [Step("rank", counts, ranges, worker, n_pairs, unit="pairs", memory_bytes=memory)]


def sort_costs(s: Scale, units: Units, first: Cost, group_pairs: float) -> list[Cost]:
    """Return the costs of both steps, from that of reading groups of `group_pairs` pairs, `first`."""
    n_pairs = s.n_pairs * s.n_repeats
    keys = n_pairs * _sorted_key_bytes(group_pairs)
    histograms = histogram_bytes(s.n_pairs) * s.n_repeats
    sorting = replace(
        first,
        what="sorted keys",
        work_s=first.work_s + n_pairs * units.sort_pair + units.storage(0, keys),
        memory_bytes=(12 * group_pairs + first.memory_bytes) * (1 if s.keep else s.n_repeats),
        written_bytes=keys,
    )
    merging = replace(
        first,
        what="merged key ranges",
        n_shards=s.n_ranges * s.n_repeats,
        work_s=n_pairs * units.merge_pair + units.storage(keys, histograms),
        memory_bytes=12 * s.n_pairs / s.n_ranges,
        read_bytes=keys,
        written_bytes=histograms,
    )
    return [sorting, merging]


def _sorted_key_bytes(n_pairs: float) -> float:
    """Return bytes per key of a sorted group: differences of neighbours, packed in as many bits as they need."""
    return max(0.12, math.log2(1 + 4 * KEY_SPAN / max(n_pairs, 1)) / 8)


def _key_ranges(keys: Dataset, n_repeats: int, n_ranges: int) -> list[KeyRange]:
    ranges = []
    for r in range(n_repeats):
        planned = _runs(keys, r).ranges(parts_of_repeat(keys, r), n_ranges, first_index=r * n_ranges)
        ranges += [KeyRange(r, sort_range) for sort_range in planned]
    return ranges


def sort_group(dataset: Dataset, reader: PairReader, group: PairGroup) -> Part:
    """Write a group's keys, sorted, and samples of them. Memory: 12 bytes per pair of the group, and a part as read."""
    started = time.monotonic()
    keys: dict[int, list[np.ndarray]] = {r: [] for r in group.repeats}
    for stored in group.stored:
        for r, similarity in reader.similarities(stored, group.repeats):
            keys[r].append(similarity_key(similarity))
    files: dict[str, FileContent] = {}
    n_pairs = 0
    for r in group.repeats:
        key = np.concatenate(keys.pop(r))
        key.sort()
        n_pairs += len(key)
        run = pa.table({"similarity_key": key}, schema=schemas.SORTED_KEYS)
        files |= _runs(dataset, r).files(run, max(1, len(key) // SAMPLES_PER_GROUP))
    return dataset.write_part(group.index, files, n_rows=n_pairs, duration_s=time.monotonic() - started)


def merge_range_of_groups(dataset: Dataset, keys: Dataset, key_range: KeyRange) -> Part:
    """Write the histogram of one key range, merged from all groups. Memory: that of `merge_range`, some 12 bytes per key."""
    started = time.monotonic()
    _, (key,) = _runs(keys, key_range.repeat).read(key_range.keys, ["similarity_key"])
    return dataset.write_part(
        key_range.index,
        {schemas.repeat_suffix(key_range.repeat): histogram_table(merge_range(key))},
        n_rows=len(key),
        duration_s=time.monotonic() - started,
        compression=PACKED,
    )
