"""rank: the global rank of every pair's similarity per repeat (id^Xs of equation 2), and of every prior score.

The default engine, `counting`, is a distributed counting sort. Pairs never move; only histograms do:

    1. `count_group`: the histogram of a group of parts of pairs (Ray tasks),
    2. `add_counts`: the sum of a repeat's histograms, which is its ranking (a task per repeat).

Where one group holds a whole repeat, `rank_group` does both at once. The engine `sort` (`rank_sort.py`) makes the same
histograms by a distributed sample sort, byte for byte. The prior scores are sorted meanwhile (`rank_scores.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import assert_never

import numpy as np

from fiqa_ray.core.ranking import Histogram, KeyCounter, add_histograms
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.histograms import (
    HISTOGRAM_S,
    PACKED,
    histogram_bytes,
    histogram_table,
    parts_of_repeat,
    read_histogram,
)
from fiqa_ray.datasets.pairs import PairGroup, PairReader, StoredPairs, neighbours, pair_groups, pair_part_sizes
from fiqa_ray.engine.cost import Cost, Scale, Units, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job
from fiqa_ray.stages.rank_scores import index_costs, index_steps
from fiqa_ray.stages.rank_sort import sort_costs, sort_steps

GROUP_PAIRS = 1 << 26
"""A group has up to this many pairs of a repeat, so that its histogram, of at most 2^24 + 1 keys, is small beside them."""
GROUP_PAIRS_NOT_KEPT = 1 << 24
"""The same where pairs are not kept: a group then holds all repeats."""
COUNTER_BYTES = 60e6
"""Memory of a `KeyCounter` of a real database's mated similarities."""
ADD_BYTES = 2.7e8
"""Memory, as measured, of `add_counts`: the sums of all repeats' histograms, and one histogram at a time."""
PACKED_SHARE = 0.4
"""What zstd leaves of a histogram on its way from task to task, as measured at VGGFace2's size."""


def rank_steps(job: Job) -> Iterator[list[Step]]:
    """Plan histograms and ranks of the similarities, and side by side with them the quality index of each method."""
    if "rank" not in job.settings.optimize.mode:
        yield from index_steps(job)
        return
    stored = job.pair_reader().stored()
    # the prior scores come first: one that is missing ends the stage before long work, and their tasks are the longest
    for indices, similarities in zip_longest(index_steps(job), _similarity_steps(job, stored)):
        yield [*(indices or []), *(similarities or [])]


def _similarity_steps(job: Job, stored: list[StoredPairs]) -> Iterator[list[Step]]:
    """Plan histograms and ranks of the similarities."""
    ranks, reader, n_repeats = job.similarity_ranks(), job.pair_reader(), job.settings.pair.n_repeats
    n_pairs = sum(s.n_pairs(r) for s in stored for r in range(n_repeats))
    groups = similarity_groups(job)
    rank_step = partial(Step, "rank", n_rows=n_pairs, unit="pairs")
    engine = job.settings.rank.engine
    if engine == "counting" and [g.repeats for g in groups] == [(r,) for r in range(n_repeats)]:
        worker = stateless_worker(rank_group, ranks, reader)
        yield [rank_step(ranks, groups, worker, needs_gpu=reader.needs_gpu)]
        return
    counts = job.key_counts()
    is_partial = counts.is_incomplete() or (engine == "sort" and job.sorted_keys().is_incomplete())
    if is_partial or len(ranks.finished_parts(verify=True)) < n_repeats:  # finished ranks need no histograms
        if engine == "counting":
            worker = stateless_worker(count_group, counts, reader)
            yield [rank_step(counts, groups, worker, needs_gpu=reader.needs_gpu)]
        elif engine == "sort":
            yield from sort_steps(job, groups, n_pairs)
        else:
            assert_never(engine)
    yield [rank_step(ranks, range(n_repeats), stateless_worker(add_counts, ranks, counts))]


def similarity_groups(job: Job) -> list[PairGroup]:
    """Return the groups of parts of pairs that the engines begin with."""
    keep = job.settings.pair.keep
    max_pairs = GROUP_PAIRS if keep else GROUP_PAIRS_NOT_KEPT
    return pair_groups(job.pair_reader().stored(), job.settings.pair.n_repeats, keep, max_pairs)


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of each step."""
    for cost in similarity_costs(workload.scale, workload.units) if "rank" in job.settings.optimize.mode else []:
        yield replace(cost, datasets=(job.similarity_ranks(),))
    results = (job.score_runs, job.sorted_scores, job.quality_index)
    costs = index_costs(workload.scale, workload.units)
    for cost, dataset in zip(costs, results[-len(costs) :], strict=True):
        yield replace(cost, datasets=tuple(dataset(m) for m in job.settings.methods))


def step_costs(s: Scale, units: Units) -> list[Cost]:
    """Return the cost of each step at a scale."""
    return [*similarity_costs(s, units), *index_costs(s, units)]


def similarity_costs(s: Scale, units: Units) -> list[Cost]:
    """Return the cost of each step of the ranking of similarities."""
    n_parts, part_rows = pair_part_sizes(s.n_images, s.rows_per_part)
    part_pairs = s.n_pairs / n_parts
    runs = neighbours([round(part_pairs)] * n_parts, GROUP_PAIRS if s.keep else GROUP_PAIRS_NOT_KEPT)
    n_groups, group_pairs = len(runs), min(s.n_pairs, part_pairs * max(r.stop - r.start for r in runs))
    read = 4.0 * s.n_pairs * s.n_repeats if s.keep else s.embedding_bytes
    first = Cost(  # what both engines begin with: the similarities of each group, read or made again
        "rank",
        "similarities",
        round(s.n_pairs * s.n_repeats),
        n_groups * (s.n_repeats if s.keep else 1),
        work_s=(0.0 if s.keep else s.n_images * units.pair_image) + units.storage(read, 0),
        memory_bytes=8 * part_rows * s.pairs_per_image,
        read_bytes=read,
        written_bytes=0.0,
    )
    if s.engine == "counting":
        return _counting_costs(s, units, first, n_groups, group_pairs)
    if s.engine == "sort":
        return [*sort_costs(s, units, first, group_pairs), _add_cost(s, units, s.n_ranges)]
    assert_never(s.engine)


def _counting_costs(s: Scale, units: Units, first: Cost, n_groups: int, group_pairs: float) -> list[Cost]:
    n_histograms = n_groups * s.n_repeats
    is_one_step = n_groups == 1 and s.keep
    packed = 1.0 if is_one_step else PACKED_SHARE
    written = packed * histogram_bytes(group_pairs) * n_histograms
    counting = replace(
        first,
        what="ranks" if is_one_step else "histograms",
        work_s=first.work_s
        + s.n_pairs * s.n_repeats * units.count_pair
        + n_histograms * HISTOGRAM_S
        + units.storage(0, written),
        memory_bytes=first.memory_bytes + COUNTER_BYTES * (1 if s.keep else s.n_repeats),
        written_bytes=written,
    )
    return [counting] if is_one_step else [counting, _add_cost(s, units, n_groups)]


def _add_cost(s: Scale, units: Units, n_histograms: int) -> Cost:
    """Return the cost of adding up so many histograms of each repeat."""
    table = histogram_bytes(s.n_pairs) * s.n_repeats
    read = PACKED_SHARE * table * (n_histograms if s.engine == "counting" else 1)  # ranges share the keys out
    return Cost(
        "rank",
        "ranks",
        round(s.n_pairs * s.n_repeats),
        s.n_repeats,
        work_s=n_histograms * s.n_repeats * HISTOGRAM_S + units.storage(read, table),
        memory_bytes=ADD_BYTES,
        read_bytes=read,
        written_bytes=table,
    )


def count_group(dataset: Dataset, reader: PairReader, group: PairGroup) -> Part:
    """Write the histograms of a group. Memory: a part's similarities as read, and a `KeyCounter` per repeat."""
    started = time.monotonic()
    counters = _count(reader, group)
    return dataset.write_part(
        group.index,
        {schemas.repeat_suffix(r): histogram_table(c.histogram()) for r, c in counters.items()},
        n_rows=sum(c.n_pairs for c in counters.values()),
        duration_s=time.monotonic() - started,
        compression=PACKED,
    )


def add_counts(dataset: Dataset, counts: Dataset, repeat: int) -> Part:
    """Write the ranking of one repeat: the sum of its histograms. Memory: `ADD_BYTES`."""
    started = time.monotonic()
    suffix = schemas.repeat_suffix(repeat)
    tables = (counts.read(part, suffix=suffix) for part in parts_of_repeat(counts, repeat))
    return _write_ranks(dataset, repeat, add_histograms(map(read_histogram, tables)), started)


def rank_group(dataset: Dataset, reader: PairReader, group: PairGroup) -> Part:
    """Write the ranking of a group that holds a whole repeat. Memory: as `count_group`."""
    started = time.monotonic()
    (repeat,) = group.repeats
    return _write_ranks(dataset, repeat, _count(reader, group)[repeat].histogram(), started)


def _count(reader: PairReader, group: PairGroup) -> dict[int, KeyCounter]:
    counters = {r: KeyCounter() for r in group.repeats}
    for stored in group.stored:
        for r, similarity in reader.similarities(stored, group.repeats):
            counters[r].add(similarity)
    return counters


def _write_ranks(dataset: Dataset, repeat: int, histogram: Histogram, started: float) -> Part:
    n_pairs, n_distinct = int(histogram.n_pairs.sum()), int(np.count_nonzero(histogram.count))
    compression = {"compression": PACKED} if 4 * n_distinct < histogram.count.size else {}  # where most counts are 0
    return dataset.write_part(
        repeat,
        {".parquet": histogram_table(histogram)},
        n_rows=n_pairs,
        stats={"n_pairs": {str(repeat): n_pairs}, "n_distinct": {str(repeat): n_distinct}},
        duration_s=time.monotonic() - started,
        write_statistics=False,  # always read as a whole
        **compression,
    )
