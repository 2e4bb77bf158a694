"""rank: the global place of every prior score, and of every pair's similarity per repeat (paper equation 2).

The scores of a method are sorted by one task. Pairs are ranked by one of two engines, which both begin with runs of many
parts of pairs. ``counting``: each run's histogram of similarity keys; the histograms of a repeat are added and summed
along, pairs never move. ``sort``: a range-partitioned sample sort: each run's keys are sorted, cuts are taken from samples
of all runs, each key range is merged by a task of its own, and the ranges' counts give the offsets. Both end in the same
table similarity -> rank, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fiqa_ray.core.labels import quality_index
from fiqa_ray.core.ranking import Histogram, KeyCounter, add_histograms, merge_range, range_cuts, similarity_key
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, Part, part_name
from fiqa_ray.datasets.pairs import PairReader, StoredPairs
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job

RUN_PAIRS = 1 << 26
"""Pairs per run and repeat: so many that a histogram, of at most 2^24 + 1 keys, is small against them."""
RUN_PAIRS_NOT_KEPT = 1 << 24
"""The same where pairs are made anew: a run then holds all repeats."""
_SAMPLES_PER_RUN = 1024
_PACKED = {"block": "NONE", "n_pairs": "zstd"}
"""Of histograms: between tasks bytes count for more than the 40 ms; in a table of ranks only where it is mostly empty."""
INDEX_BYTES = 120
"""Memory per image, as measured, of the places of a method's scores, which are sorted all at once."""


def rank_steps(job: Job) -> Iterator[list[Step]]:
    """counting: histograms, ranks (at once where each repeat is one run); sort: runs, merged ranges, ranks.

    Beside the ranks: quality_index per method.
    """
    ranks = job.similarity_ranks()
    reader = job.pair_reader()
    stored = reader.stored()
    places = _index_steps(job)  # before long work: it asks for the prior scores
    n_repeats = job.settings.pair.n_repeats
    n_pairs = sum(s.n_pairs(r) for s in stored for r in range(n_repeats))
    runs = plan_runs(stored, n_repeats, job.settings.pair.keep)
    if job.settings.rank.engine == "counting" and [r.repeats for r in runs] == [(r,) for r in range(n_repeats)]:
        yield [*places, Step("rank", ranks, runs, stateless_worker(rank_run, ranks, reader), n_pairs, unit="pairs")]
        return
    if len(ranks.finished_parts(verify=True)) < n_repeats:  # ranks that are there need no histograms
        if job.settings.rank.engine == "counting":
            counts = job.key_counts()
            yield [Step("rank", counts, runs, stateless_worker(count_run, counts, reader), n_pairs, unit="pairs")]
        else:
            yield from _sort_steps(job, reader, runs, n_pairs)
    shards = [RankShard(r, job.key_counts()) for r in range(n_repeats)]
    yield [*places, Step("rank", ranks, shards, stateless_worker(rank_shard, ranks), n_pairs, unit="pairs")]


def _index_steps(job: Job) -> list[Step]:
    """quality_index, a step per method: to be first in their group, for their tasks are the longest."""
    n_images = job.faces("train").require().n_rows
    steps = []
    for method in job.settings.methods:
        dataset, priors = job.quality_index(method), job.prior_scores("train", method)
        priors.require()
        worker, memory = stateless_worker(index_shard, dataset), INDEX_BYTES * n_images
        steps.append(Step("rank", dataset, [priors], worker, n_images, unit="images", memory_bytes=memory))
    return steps


def _sort_steps(job: Job, reader: PairReader, runs: list[PairRun], n_pairs: int) -> Iterator[list[Step]]:
    keys, counts, n_ranges = job.sorted_keys(), job.key_counts(), job.settings.rank.n_ranges
    yield [Step("rank", keys, runs, stateless_worker(sort_run, keys, reader), n_pairs, unit="pairs")]
    samples = keys.read_all(suffix=".samples.parquet")
    sampled_repeat, sampled_key = samples["repeat"].to_numpy(), samples["similarity_key"].to_numpy()
    shards = []
    for r in range(job.settings.pair.n_repeats):
        cuts = range_cuts(sampled_key[sampled_repeat == r], n_ranges)
        # fewer cuts than asked for (ties): the ranges above them stay empty
        bounds = [None, *cuts.tolist(), *[None] * (n_ranges - len(cuts))]
        for j in range(n_ranges):
            live = j <= len(cuts)
            shards.append(RangeShard(r * n_ranges + j, r, bounds[j], bounds[j + 1], live))
    memory = 12 * n_pairs // len(shards)
    merge = stateless_worker(merge_shard, counts, keys)
    yield [Step("rank", counts, shards, merge, n_pairs, unit="pairs", memory_bytes=memory)]


@dataclass(frozen=True)
class PairRun:
    """Neighbouring parts of pairs and the repeats of them that one task takes."""

    index: int
    repeats: tuple[int, ...]
    stored: tuple[StoredPairs, ...]


def plan_runs(stored: list[StoredPairs], n_repeats: int, keep: bool) -> list[PairRun]:
    """One repeat per run; all of them where each part's pairs are made anew. Depends on the pairs alone."""
    limit = RUN_PAIRS if keep else RUN_PAIRS_NOT_KEPT
    groups: list[list[StoredPairs]] = [[]]
    n = 0
    for s in stored:
        if groups[-1] and n + s.n_pairs(0) > limit:
            groups.append([])
            n = 0
        groups[-1].append(s)
        n += s.n_pairs(0)
    repeats = [(r,) for r in range(n_repeats)] if keep else [tuple(range(n_repeats))]
    return [PairRun(i, r, tuple(g)) for i, (r, g) in enumerate((r, g) for r in repeats for g in groups)]


@dataclass(frozen=True)
class RankShard:
    """One repeat, and where its counts lie."""

    repeat: int
    counts: Dataset


@dataclass(frozen=True)
class RangeShard:
    """One key range [low, high) of one repeat; None is open; a range that is not live holds nothing."""

    index: int
    repeat: int
    low: int | None
    high: int | None
    live: bool


def index_shard(dataset: Dataset, priors: Dataset) -> Part:
    """Place of every prior score of one method. Memory: up to `INDEX_BYTES` per image."""
    started = time.monotonic()
    column = priors.read_all(["score"])["score"]
    if column.null_count == len(column):
        raise FiqaRayError(f"{priors.uri} holds no score at all; see its column 'error'")
    score, valid = column.to_numpy(), np.flatnonzero(column.is_valid().to_numpy())
    del column
    index = np.full(len(score), -1, np.int64)
    index[valid] = quality_index(score[valid])
    scores = pa.array(score, from_pandas=True)  # NaN stands for null
    out = pa.table([np.arange(len(score)), index, scores], schema=schemas.QUALITY_INDEX)
    return dataset.write_part(
        0,
        {".parquet": out},
        n_rows=len(out),
        stats={"n_scored": len(valid)},
        duration_s=time.monotonic() - started,
        row_group_rows=1 << 16,  # parts of pairs read their own rows
    )


def _counts_table(histogram: Histogram) -> pa.Table:
    values = {"block": histogram.block, "n_pairs": columns.counts_column(histogram.count)}
    return pa.table(values, schema=schemas.key_counts(histogram.count.itemsize))


def count_run(dataset: Dataset, reader: PairReader, run: PairRun) -> Part:
    """Histograms of a run. Memory: a part's similarities as read, and a `KeyCounter` per repeat."""
    started = time.monotonic()
    counters = _count(reader, run)
    files = {schemas.repeat_suffix(r): _counts_table(c.histogram()) for r, c in counters.items()}
    n_pairs = sum(c.n_pairs for c in counters.values())
    duration_s = time.monotonic() - started
    return dataset.write_part(run.index, files, n_rows=n_pairs, duration_s=duration_s, compression=_PACKED)


def rank_run(dataset: Dataset, reader: PairReader, run: PairRun) -> Part:
    """The table similarity -> rank of a run that holds a whole repeat. Memory: as `count_run`."""
    started = time.monotonic()
    (repeat,) = run.repeats
    return _write_ranks(dataset, repeat, _count(reader, run)[repeat].histogram(), started)


def _count(reader: PairReader, run: PairRun) -> dict[int, KeyCounter]:
    counters = {r: KeyCounter() for r in run.repeats}
    for stored in run.stored:
        for r, similarity in reader.similarities(stored, run.repeats):
            counters[r].add(similarity)
    return counters


def sort_run(dataset: Dataset, reader: PairReader, run: PairRun) -> Part:
    """Sorted keys of a run and evenly spaced samples of them. Memory: 12 bytes per pair of the run, and a part as read."""
    started = time.monotonic()
    keys: dict[int, list[np.ndarray]] = {r: [] for r in run.repeats}
    for stored in run.stored:
        for r, similarity in reader.similarities(stored, run.repeats):
            keys[r].append(similarity_key(similarity))
    files, samples, n_pairs = {}, [], 0
    for r in run.repeats:
        key = np.concatenate(keys.pop(r))
        key.sort()
        files[schemas.repeat_suffix(r)] = pa.table({"similarity_key": key}, schema=schemas.SORTED_KEYS)
        chosen = key[:: max(1, len(key) // _SAMPLES_PER_RUN)]
        samples.append(
            pa.table({"repeat": np.full(len(chosen), r), "similarity_key": chosen}, schema=schemas.KEY_SAMPLES)
        )
        n_pairs += len(key)
    files[".samples.parquet"] = pa.concat_tables(samples)
    return dataset.write_part(run.index, files, n_rows=n_pairs, duration_s=time.monotonic() - started)


def merge_shard(dataset: Dataset, keys: Dataset, shard: RangeShard) -> Part:
    """Merges one key range of one repeat from all runs. Memory: 12 bytes per key of the range."""
    started = time.monotonic()
    pieces = []
    for part in _parts_of(keys, shard.repeat) if shard.live else []:
        table = keys.read_range(part, shard.low, shard.high, schemas.repeat_suffix(shard.repeat))
        key = table["similarity_key"].to_numpy()
        low = 0 if shard.low is None else np.searchsorted(key, shard.low)
        high = len(key) if shard.high is None else np.searchsorted(key, shard.high)
        pieces.append(key[low:high])
    table = _counts_table(merge_range(pieces))
    n_pairs = sum(len(p) for p in pieces)
    return dataset.write_part(
        shard.index,
        {schemas.repeat_suffix(shard.repeat): table},
        n_rows=n_pairs,
        duration_s=time.monotonic() - started,
        compression=_PACKED,
    )


def _parts_of(dataset: Dataset, repeat: int) -> list[Part]:
    """The parts that hold something of a repeat."""
    suffix = schemas.repeat_suffix(repeat)
    return [p for p in dataset.require().parts if part_name(p.index) + suffix in p.files]


def rank_shard(dataset: Dataset, shard: RankShard) -> Part:
    """The table similarity -> rank of one repeat. Memory: 200 MB, and one histogram at a time."""
    started = time.monotonic()
    suffix = schemas.repeat_suffix(shard.repeat)
    tables = (shard.counts.read(p, suffix=suffix) for p in _parts_of(shard.counts, shard.repeat))
    counts = add_histograms(Histogram(*columns.histogram_values(t)) for t in tables)
    return _write_ranks(dataset, shard.repeat, counts, started)


def _write_ranks(dataset: Dataset, repeat: int, histogram: Histogram, started: float) -> Part:
    counts = columns.counts_column(histogram.count)
    values = {"block": histogram.block, "n_pairs": counts}
    table = pa.table(values, schema=schemas.similarity_ranks(histogram.count.itemsize))
    n_pairs, n_distinct = int(histogram.n_pairs.sum()), int(np.count_nonzero(histogram.count))
    packing = {"compression": _PACKED} if 4 * n_distinct < histogram.count.size else {}
    return dataset.write_part(
        repeat,
        {".parquet": table},
        n_rows=n_pairs,
        stats={"n_pairs": {str(repeat): n_pairs}, "n_distinct": {str(repeat): n_distinct}},
        duration_s=time.monotonic() - started,
        write_statistics=False,  # always read as a whole
        **packing,
    )
