"""pair: K-Means of each identity and the mated pairs of all repeats (paper III-C; Ray tasks, one per shard).

An identity never crosses a shard, so nothing is shuffled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from fiqa_ray.config import PairSettings
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.pairs import PairShard, make_pairs, pair_files, pair_part_sizes, pair_shards
from fiqa_ray.engine.cost import START_S, Cost, Scale, Units, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job


def pair_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step: a part of pairs per shard of embedding parts; none where nothing needs pairs."""
    if not job.settings.needs_pairs:
        return
    embeddings = job.embeddings("train")
    manifest = embeddings.require()
    dataset = job.pairs()
    worker = stateless_worker(run_shard, dataset, embeddings, job.settings.pair, job.settings.seed)
    on_gpu = job.settings.pair.device == "cuda"
    yield [Step("pair", dataset, pair_shards(manifest), worker, manifest.n_rows, unit="images", needs_gpu=on_gpu)]


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of the step."""
    if job.settings.needs_pairs:
        yield replace(step_cost(workload.scale, workload.units), datasets=(job.pairs(),))


def step_cost(s: Scale, units: Units) -> Cost:
    """Return the cost of the step at a scale."""
    n_parts, part_rows = pair_part_sizes(s.n_images, s.rows_per_part)
    stored = (4.0 * s.n_pairs * s.n_repeats if s.keep else 0.0) + 3 * s.n_images  # clusters compress to some 3 bytes
    return Cost(
        "pair",
        "mated pairs",
        s.n_images,
        n_parts,
        work_s=s.n_images * units.pair_image + units.storage(s.embedding_bytes, stored),
        memory_bytes=8 * part_rows * s.pairs_per_image * s.n_repeats + 8 * s.rows_per_part * s.dim,
        read_bytes=s.embedding_bytes,
        written_bytes=stored,
        start_s=START_S,
    )


def run_shard(dataset: Dataset, embeddings: Dataset, settings: PairSettings, seed: int, shard: PairShard) -> Part:
    """Write the pairs of one shard. Memory: 8 bytes per pair of all repeats (1.5 kB per image at the defaults)."""
    started = time.monotonic()
    files, stats = pair_files(shard, make_pairs(shard, embeddings, settings, seed), settings)
    return dataset.write_part(
        shard.index,
        files,
        n_rows=shard.n_rows,
        stats=stats,
        duration_s=time.monotonic() - started,
    )
