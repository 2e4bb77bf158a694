"""pair: K-Means of each identity and the mated pairs of all repeats (paper III-C; Ray tasks, one per shard).

An identity never crosses a shard, so nothing is shuffled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from fiqa_ray.config import PairSettings
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.pairs import PairShard, make_pairs, pair_files, pair_shards
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job


def pair_steps(job: Job) -> Iterator[list[Step]]:
    """One step: a part of pairs per shard of embedding parts."""
    embeddings = job.embeddings("train")
    manifest = embeddings.require()
    dataset = job.pairs()
    worker = stateless_worker(run_shard, dataset, embeddings, job.settings.pair, job.settings.seed)
    on_gpu = job.settings.pair.device == "cuda"
    yield [Step("pair", dataset, pair_shards(manifest), worker, manifest.n_rows, unit="images", needs_gpu=on_gpu)]


def run_shard(dataset: Dataset, embeddings: Dataset, settings: PairSettings, seed: int, shard: PairShard) -> Part:
    """Pairs of one shard. Memory: 8 bytes per pair of all repeats (1.5 kB per image at the defaults)."""
    started = time.monotonic()
    files, counts = pair_files(shard, make_pairs(shard, embeddings, settings, seed), settings)
    stats = {
        "n_pairs": {str(r): n for r, n in enumerate(counts.n_pairs)},
        "n_identities": len(counts.sizes),
        "n_identities_of_one_image": int((counts.sizes == 1).sum()),
        "n_identities_below_n_clusters": int((counts.sizes < settings.n_clusters).sum()),
        "n_images_without_embedding": counts.n_without,
    }
    return dataset.write_part(
        shard.index,
        files,
        n_rows=shard.n_rows,
        stats=stats,
        duration_s=time.monotonic() - started,
    )
