"""pair: K-Means of each identity and the mated pairs of all repeats (paper III-C; Ray tasks, one per shard).

An identity never crosses a shard, so nothing is shuffled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from fiqa_ray.config import PairSettings
from fiqa_ray.lineage import Job
from fiqa_ray.pair_parts import PairShard, make_pairs, pair_files, pair_shards
from fiqa_ray.stages import Step, ready
from fiqa_ray.storage import Dataset, Part


def pair_steps(job: Job) -> Iterator[list[Step]]:
    """One step: a part of pairs per shard of embedding parts."""
    embeddings = job.embeddings("train")
    manifest = embeddings.require()
    dataset = job.pairs()
    worker = ready(run_shard, dataset, embeddings, job.settings.pair, job.settings.seed)
    yield [Step("pair", dataset, pair_shards(manifest), worker, manifest.n_rows, unit="images")]


def run_shard(dataset: Dataset, embeddings: Dataset, settings: PairSettings, seed: int, shard: PairShard) -> Part:
    """Pairs of one shard. Memory: 16 bytes per pair of all repeats (3 kB per image at the defaults)."""
    started = time.monotonic()
    made = make_pairs(shard, embeddings, settings, seed)
    sizes = np.unique(made.identity_row[made.has_embedding], return_counts=True)[1]
    stats = {
        "n_pairs": {str(r): sum(len(p[r].mate) for _, p in made.pieces) for r in range(settings.n_repeats)},
        "n_identities": len(sizes),
        "n_identities_of_one_image": int((sizes == 1).sum()),
        "n_identities_below_n_clusters": int((sizes < settings.n_clusters).sum()),
        "n_images_without_embedding": int((~made.has_embedding).sum()),
    }
    return dataset.write_part(
        shard.index,
        pair_files(made, settings),
        n_rows=shard.n_rows,
        stats=stats,
        duration_s=time.monotonic() - started,
    )
