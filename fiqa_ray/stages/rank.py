"""rank: the global place of every pair's similarity, per repeat (paper equation 2), by one of two engines.

``counting``: each shard's histogram of similarity keys; the histograms of a repeat are added and summed along. Pairs never
move. ``sort``: a range-partitioned sample sort: each shard's keys are sorted (a run), cuts are taken from samples of all
runs, each key range is merged by a task of its own, and the ranges' counts give the offsets. Both end in the same table
similarity -> rank, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from fiqa_ray import schemas
from fiqa_ray.core.ranking import add_counts, count_keys, mean_ranks, merge_range, range_cuts, similarity_key
from fiqa_ray.lineage import Job
from fiqa_ray.stages import Step, Worker
from fiqa_ray.storage import Dataset, Manifest, Part

_SAMPLES_PER_RUN = 1024


def rank_steps(job: Job) -> Iterator[list[Step]]:
    """counting: histograms, ranks; sort: runs, merged ranges, ranks."""
    pairs = job.pairs()
    manifest = pairs.require()
    n_repeats = job.settings.pair.n_repeats
    ranks = job.similarity_ranks()
    if ranks.manifest() is None:  # finished ranks need no histograms
        if job.settings.rank.engine == "counting":
            yield from _counting_steps(job, pairs, manifest, n_repeats)
        else:
            yield from _sort_steps(job, pairs, manifest, n_repeats)
    shards = [
        RankShard(r, job.key_counts(), job.settings.rank.engine, job.settings.rank.n_ranges) for r in range(n_repeats)
    ]
    n_pairs = sum(manifest.stats["n_pairs"].values())
    yield [Step("rank", ranks, shards, partial(_make_rank_worker, ranks), n_pairs, unit="pairs")]


def _counting_steps(job: Job, pairs: Dataset, manifest: Manifest, n_repeats: int) -> Iterator[list[Step]]:
    counts = job.key_counts()
    worker = partial(_make_count_worker, counts, pairs, n_repeats)
    yield [Step("rank", counts, manifest.parts, worker, sum(manifest.stats["n_pairs"].values()), unit="pairs")]


def _sort_steps(job: Job, pairs: Dataset, manifest: Manifest, n_repeats: int) -> Iterator[list[Step]]:
    n_pairs = sum(manifest.stats["n_pairs"].values())
    runs, counts, n_ranges = job.sorted_keys(), job.key_counts(), job.settings.rank.n_ranges
    yield [Step("rank", runs, manifest.parts, partial(_make_run_worker, runs, pairs, n_repeats), n_pairs, unit="pairs")]
    shards = []
    for r in range(n_repeats):
        samples = [runs.read(p, suffix=".samples" + schemas.repeat_suffix(r)) for p in runs.require().parts]
        cuts = range_cuts(np.concatenate([s["similarity_key"].to_numpy() for s in samples]), n_ranges)
        # fewer cuts than asked for (ties): the ranges above them stay empty
        bounds = [None, *cuts.tolist(), *[None] * (n_ranges - len(cuts))]
        for j in range(n_ranges):
            live = j <= len(cuts)
            shards.append(RangeShard(r * n_ranges + j, r, bounds[j], bounds[j + 1], live))
    yield [Step("rank", counts, shards, partial(_make_range_worker, counts, runs), n_pairs, unit="pairs")]


@dataclass(frozen=True)
class RankShard:
    """One repeat, and where its counts lie."""

    repeat: int
    counts: Dataset
    engine: str
    n_ranges: int


@dataclass(frozen=True)
class RangeShard:
    """One key range [low, high) of one repeat; None is open; a range that is not live holds nothing."""

    index: int
    repeat: int
    low: int | None
    high: int | None
    live: bool


def _keys(pairs: Dataset, part: Part, repeat: int) -> np.ndarray:
    return similarity_key(pairs.read(part, ["similarity"], schemas.repeat_suffix(repeat))["similarity"].to_numpy())


def _counts_table(key: np.ndarray, count: np.ndarray) -> pa.Table:
    return pa.table({"similarity_key": key, "n_pairs": count}, schema=schemas.KEY_COUNTS)


def _make_count_worker(dataset: Dataset, pairs: Dataset, n_repeats: int) -> Worker:
    return partial(count_shard, dataset, pairs, n_repeats)


def count_shard(dataset: Dataset, pairs: Dataset, n_repeats: int, shard: Part) -> Part:
    """A shard's histograms, one per repeat. Memory: one repeat's pairs of the shard."""
    started = time.monotonic()
    files, n_pairs = {}, 0
    for r in range(n_repeats):
        key, count = count_keys(_keys(pairs, shard, r))
        files[schemas.repeat_suffix(r)] = _counts_table(key, count)
        n_pairs += int(count.sum())
    return dataset.write_part(shard.index, files, n_rows=n_pairs, duration_s=time.monotonic() - started)


def _make_run_worker(dataset: Dataset, pairs: Dataset, n_repeats: int) -> Worker:
    return partial(run_of_shard, dataset, pairs, n_repeats)


def run_of_shard(dataset: Dataset, pairs: Dataset, n_repeats: int, shard: Part) -> Part:
    """A shard's sorted keys and evenly spaced samples of them, per repeat. Memory: one repeat's keys of the shard."""
    started = time.monotonic()
    files, n_pairs = {}, 0
    for r in range(n_repeats):
        key = np.sort(_keys(pairs, shard, r), kind="stable")
        files[schemas.repeat_suffix(r)] = pa.table({"similarity_key": key}, schema=schemas.SORTED_KEYS)
        samples = key[:: max(1, len(key) // _SAMPLES_PER_RUN)]
        files[".samples" + schemas.repeat_suffix(r)] = pa.table({"similarity_key": samples}, schema=schemas.SORTED_KEYS)
        n_pairs += len(key)
    return dataset.write_part(
        shard.index,
        files,
        n_rows=n_pairs,
        duration_s=time.monotonic() - started,
        use_dictionary=False,
        column_encoding={"similarity_key": "DELTA_BINARY_PACKED"},
    )


def _make_range_worker(dataset: Dataset, runs: Dataset) -> Worker:
    return partial(merge_shard, dataset, runs)


def merge_shard(dataset: Dataset, runs: Dataset, shard: RangeShard) -> Part:
    """Merges one key range of one repeat from all runs. Memory: the range's keys, and one run at a time."""
    started = time.monotonic()
    pieces = []
    for part in runs.require().parts if shard.live else []:
        key = runs.read(part, suffix=schemas.repeat_suffix(shard.repeat))["similarity_key"].to_numpy()
        low = 0 if shard.low is None else np.searchsorted(key, shard.low)
        high = len(key) if shard.high is None else np.searchsorted(key, shard.high)
        pieces.append(key[low:high].copy())
    key, count = merge_range(pieces)
    return dataset.write_part(
        shard.index,
        {".parquet": _counts_table(key, count)},
        n_rows=int(count.sum()),
        duration_s=time.monotonic() - started,
    )


def _make_rank_worker(dataset: Dataset) -> Worker:
    return partial(rank_shard, dataset)


def rank_shard(dataset: Dataset, shard: RankShard) -> Part:
    """The table similarity -> rank of one repeat. Memory: 134 MB, and one histogram at a time."""
    started = time.monotonic()
    parts = shard.counts.require().parts
    suffix = schemas.repeat_suffix(shard.repeat)
    if shard.engine == "sort":
        parts, suffix = parts[shard.repeat * shard.n_ranges : (shard.repeat + 1) * shard.n_ranges], ".parquet"
    tables = (shard.counts.read(p, suffix=suffix) for p in parts)
    key, count = add_counts((t["similarity_key"].to_numpy(), t["n_pairs"].to_numpy()) for t in tables)
    table = pa.table({"similarity_key": key, "rank2": mean_ranks(count)}, schema=schemas.SIMILARITY_RANKS)
    n_pairs = int(count.sum())
    return dataset.write_part(
        shard.repeat,
        {".parquet": table},
        n_rows=n_pairs,
        stats={"n_pairs": {str(shard.repeat): n_pairs}, "n_distinct": {str(shard.repeat): len(key)}},
        duration_s=time.monotonic() - started,
        use_dictionary=False,
        column_encoding={"similarity_key": "DELTA_BINARY_PACKED", "rank2": "DELTA_BINARY_PACKED"},
    )
