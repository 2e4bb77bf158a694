"""What label optimization costs: time, memory and bytes of each step, from counts and from unit costs measured here.

Unit costs come from running the steps' own functions on a small made-up sample (`measure_units`, a few seconds). A step's
work is shared out by shards, so its time is that of the busiest worker; steps follow one another. On a cluster each worker
also waits for its share of the bytes. benchmarks/cost_model.py checks the predictions against runs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from fiqa_ray.core.kernels.counting import BLOCK_KEYS
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.labels import quality_index as place_scores
from fiqa_ray.core.labels import reassign_scores, sum_owned_ranks
from fiqa_ray.core.pairs import Pairs, mated_pairs, redraw_mates, round_similarity
from fiqa_ray.core.ranking import KeyCounter, RankTable, merge_range, similarity_key
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.pairs import part_images
from fiqa_ray.datasets.parquet import plain_bytes
from fiqa_ray.engine.memory import reuse_memory
from fiqa_ray.stages.optimize import LABEL_BYTES
from fiqa_ray.stages.rank import GROUP_PAIRS, GROUP_PAIRS_NOT_KEPT, INDEX_BYTES

PROCESS_BYTES = 400e6
"""A worker before its first shard: Python, torch, Arrow, numba."""
RECORD_BYTES = 4000
"""What a shard sends through Ray and its object store: its part's record. Data go between tasks by storage alone."""
START_S = 5.0
"""Before a worker's first shard: its imports, and the loading of compiled code."""
CONTENTION = 1.25
"""How much slower a core works when the others, with whom it shares memory and cache, work too (benchmarks/full_size.py)."""
TABLE_S = 0.05
"""To make or to load one table of ranks, or one histogram, of a repeat; of little more than `_KEY_SPAN` bytes."""
PACKED = 0.4
"""What zstd leaves of a histogram on its way from task to task."""
_KEY_SPAN = 1.2e7  # steps of 2^-23 between the least and the greatest mated similarity of a real database
_SAMPLE_IMAGES = 2048
_FILE_PAIRS = 1 << 20
_N_WRITES = 4
_SAMPLE_KEYS = 1 << 21


@dataclass(frozen=True)
class Scale:
    """The size of a task. ``n_pairs``: per repeat; ``n_methods`` priors, each with ``n_thetas`` label sets."""

    n_images: int
    n_identities: int
    dim: int = 512
    n_clusters: int = 20
    n_repeats: int = 10
    n_methods: int = 1
    n_thetas: int = 1
    engine: str = "counting"
    n_ranges: int = 8
    keep: bool = True
    rows_per_part: int = 4096
    size_spread: float = 1.2
    """Images of the identity that an image belongs to, on average over images, against the mean over identities: 1 where all
    are of one size, 1.2 in VGGFace2's shape. The work per image grows with its identity's size."""

    @property
    def mean_images(self) -> float:
        """Images per identity."""
        return self.n_images / max(self.n_identities, 1)

    @property
    def n_pairs(self) -> float:
        """Pairs per repeat, as if all identities were of the mean size."""
        return self.n_images * max(0.0, min(self.n_clusters, self.mean_images) - 1)


@dataclass(frozen=True)
class Units:
    """Seconds of one core: per image, pair or byte as named."""

    pair_image: float
    count_pair: float
    sort_pair: float
    merge_pair: float
    sum_pair: float
    sum_pair_method: float
    index_image: float
    label_image: float
    read_byte: float
    write_byte: float


@dataclass(frozen=True)
class StepCost:
    """One step: seconds of work and of the clock, bytes of a worker's memory, bytes read from and written to storage."""

    stage: str
    what: str
    n_shards: int
    work_s: float
    wall_s: float
    memory_bytes: float
    read_bytes: float
    written_bytes: float


def label_costs(scale: Scale, units: Units, n_workers: int, bandwidth: float | None = None) -> list[StepCost]:
    """Predicts pair, rank and optimize. ``bandwidth``: bytes/s between each worker and storage that is not a local disk."""
    s, n, r = scale, scale.n_images, scale.n_repeats
    pairs = s.n_pairs * r
    images_of_part = max(min(n, part_images(n)), min(n, s.rows_per_part))
    n_parts = math.ceil(n / images_of_part)
    pairs_per_image = s.n_pairs / max(n, 1)
    part_pairs = images_of_part * pairs_per_image
    embeddings = n * (4.0 * s.dim + 8)
    again = 0.0 if s.keep else n * units.pair_image  # pairs are made once more by who needs them
    reread = 4 * pairs if s.keep else embeddings
    steps: list[StepCost] = []

    def add(
        stage: str, what: str, shards: int, work: float, read: float, written: float, memory: float, io: bool = True
    ) -> None:
        work += (read * units.read_byte + written * units.write_byte) if io else 0.0
        turns = math.ceil(shards / n_workers) / shards  # the share of the busiest worker
        slow = CONTENTION if n_workers > 1 else 1.0
        wall = slow * work * turns + ((read + written) * turns / bandwidth if bandwidth else 0.0)
        steps.append(StepCost(stage, what, shards, work, wall, memory + PROCESS_BYTES, read, written))

    part_memory = 8 * part_pairs * r + s.rows_per_part * s.dim * 8
    kept = 4 * pairs if s.keep else 0.0
    add("pair", "mated pairs", n_parts, n * units.pair_image, embeddings, kept + 3 * n, part_memory)

    run_pairs = min(s.n_pairs, GROUP_PAIRS if s.keep else GROUP_PAIRS_NOT_KEPT)
    n_runs = max(1, math.ceil(s.n_pairs / max(run_pairs, 1)))
    run_shards = n_runs * r if s.keep else n_runs
    similarities = 4 * pairs if s.keep else embeddings
    at_once = 1 if s.keep else r
    table = _histogram_bytes(s.n_pairs) * r
    if s.engine == "counting":
        memory = 60e6 * at_once + 8 * part_pairs
        histograms = PACKED * _histogram_bytes(run_pairs) * n_runs * r
        work = pairs * units.count_pair + again + n_runs * r * TABLE_S
        if n_runs == 1 and s.keep:
            add("rank", "counting", run_shards, work, similarities, table, memory)
        else:
            add("rank", "counting: histograms", run_shards, work, similarities, histograms, memory)
            add("rank", "ranks", r, n_runs * r * TABLE_S, histograms, table, 2.7e8)
    else:
        runs = pairs * _sorted_key_bytes(run_pairs)
        work = pairs * units.sort_pair + again
        add("rank", "sort: runs", run_shards, work, similarities, runs, (12 * run_pairs + 8 * part_pairs) * at_once)
        ranges = s.n_ranges * r
        add("rank", "sort: ranges", ranges, pairs * units.merge_pair, runs, PACKED * table, 12 * s.n_pairs / s.n_ranges)
        add("rank", "ranks", r, s.n_ranges * r * TABLE_S, PACKED * table, table, 2.7e8)

    add(
        "rank",
        "places of prior scores",
        s.n_methods,
        n * s.n_methods * units.index_image,
        9 * n,
        13 * n,
        INDEX_BYTES * n,
        io=False,
    )
    work = pairs * (units.sum_pair + s.n_methods * units.sum_pair_method) + again
    tables = (2.2 if s.n_pairs < 2e9 else 4.2) * _KEY_SPAN * min(r, 10)
    n_sets = s.n_methods * s.n_thetas
    add(
        "optimize",
        "optimized indices",
        n_parts,
        work + min(n_workers, n_parts) * r * TABLE_S,
        reread + min(n_workers, n_parts) * table,
        17 * n * n_sets,
        tables + (20 * part_pairs if s.keep else 12 * part_pairs * r) + 60 * images_of_part * s.n_methods,
    )
    add(
        "optimize",
        "labels",
        n_sets,
        n * n_sets * units.label_image,
        30 * n * n_sets,
        40 * n * n_sets,
        LABEL_BYTES * n,
        io=False,
    )
    steps[0] = replace(steps[0], wall_s=steps[0].wall_s + START_S)
    return steps


def _histogram_bytes(n_pairs: float) -> float:
    """A histogram of so many pairs: its blocks of 64 keys that have one, with counts as wide as the largest needs."""
    n_blocks = _KEY_SPAN / BLOCK_KEYS
    width = 1 if 3 * n_pairs / _KEY_SPAN < 2**8 else 2 if 3 * n_pairs / _KEY_SPAN < 2**16 else 4
    return (BLOCK_KEYS * width + 2) * n_blocks * -math.expm1(-n_pairs / n_blocks)


def _sorted_key_bytes(n_pairs: float) -> float:
    """Bytes per key of a sorted run: the differences of neighbours, packed in as many bits as they need."""
    return max(0.12, math.log2(1 + 4 * _KEY_SPAN / max(n_pairs, 1)) / 8)


@lru_cache(maxsize=8)
def measure_units(scale: Scale) -> Units:
    """Measures this machine on a sample of the given shape: one core, two or three seconds."""
    reuse_memory()
    rng = np.random.default_rng(0)
    size = max(2, round(scale.mean_images * scale.size_spread))
    n_identities = max(1, _SAMPLE_IMAGES // size)
    n = n_identities * size
    centres = rng.standard_normal((n_identities, scale.dim), np.float32)
    x = np.repeat(centres, size, axis=0) + 0.7 * rng.standard_normal((n, scale.dim), np.float32)
    similarity = round_similarity(0.45 + 0.15 * rng.standard_normal(_SAMPLE_KEYS))
    image = np.sort(rng.integers(0, n, _SAMPLE_KEYS)).astype(np.int32)
    mate = ((image // size) * size + rng.integers(0, size, _SAMPLE_KEYS)).astype(np.int32)
    n_opened = np.bincount(image, minlength=n)
    bounds, rows = np.arange(n_identities + 1) * size, np.arange(n_identities)
    prior = rng.standard_normal(1 << 20)

    def make() -> list[Pairs]:
        return mated_pairs(x, bounds, rows, n_clusters=scale.n_clusters, n_repeats=scale.n_repeats)

    with one_thread():
        made = make()[0]  # the first calls load libraries and compiled code
        pair_s = _seconds(make, 2)
        repeats = range(scale.n_repeats)
        redraw_mates(made.cluster, bounds, rows, repeats, seed=0)
        draw_s = _seconds(lambda: redraw_mates(made.cluster, bounds, rows, repeats, seed=0), 2)
        key = similarity_key(similarity)
        counter = KeyCounter()
        counter.add(similarity)
        counter.histogram()
        count_s = _seconds(lambda: counter.add(similarity), 4)
        ranks = RankTable.of(counter.histogram())
        sort_s = _seconds(lambda: np.sort(key), 2) * math.log2(GROUP_PAIRS) / math.log2(len(key))
        runs = [np.sort(k) for k in np.array_split(key, 4)]
        merge_s = _seconds(lambda: merge_range(runs), 2)
        places = {str(i): rng.permutation(n) for i in range(3)}
        sum_owned_ranks({"0": places["0"]}, n_opened, mate, similarity, ranks)
        one_s = _seconds(lambda: sum_owned_ranks({"0": places["0"]}, n_opened, mate, similarity, ranks), 2)
        three_s = _seconds(lambda: sum_owned_ranks(places, n_opened, mate, similarity, ranks), 2)
        method_s = max(0.0, three_s - one_s) / 2
        index_s = _seconds(lambda: place_scores(prior), 1)
        places_1m = place_scores(prior)
        label_s = _seconds(lambda: reassign_scores(prior, places_1m, places_1m + prior), 1)
        read_s, write_s, row_s = _measure_storage(similarity)
    keys, million = float(_SAMPLE_KEYS), float(1 << 20)
    return Units(
        pair_image=pair_s / n,
        count_pair=count_s / keys,
        sort_pair=sort_s / keys,
        merge_pair=merge_s / keys,
        sum_pair=draw_s / max(len(made.mate) * scale.n_repeats, 1) + max(0.0, one_s - method_s) / keys,
        sum_pair_method=method_s / keys,
        index_image=index_s / million + row_s,
        label_image=label_s / million + 4 * row_s,
        read_byte=read_s,
        write_byte=write_s,
    )


def _seconds(call: Callable[[], object], n_calls: int) -> float:
    started = time.perf_counter()
    for _ in range(n_calls):
        call()
    return (time.perf_counter() - started) / n_calls


def _measure_storage(similarity: np.ndarray) -> tuple[float, float, float]:
    """Seconds per byte read and written as pairs are, and per row and column as labels are, on the local disk."""
    # in files of the size that a part's have
    cuts = range(0, len(similarity), _FILE_PAIRS)
    pairs = [pa.table({"similarity": similarity[c : c + _FILE_PAIRS]}, schema=schemas.PAIRS) for c in cuts] * _N_WRITES
    rows = pa.table({"score": np.random.default_rng(0).random(1 << 20)})
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(f"{folder}/v=0", "pairs")
        started = time.perf_counter()
        parts = [dataset.write_part(i, {".parquet": plain_bytes(p)}, n_rows=len(p)) for i, p in enumerate(pairs)]
        write_s = time.perf_counter() - started
        read_s = _seconds(lambda: [dataset.read(part) for part in parts], 2)
        started = time.perf_counter()
        dataset.write_part(len(parts), {".parquet": rows}, n_rows=len(rows))
        row_s = time.perf_counter() - started
    n_bytes = _N_WRITES * similarity.nbytes
    return read_s / n_bytes, write_s / n_bytes, row_s / len(rows)
