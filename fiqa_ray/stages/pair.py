"""pair: K-Means of each identity and the mated pairs of all repeats (paper III-C; Ray tasks, one per shard).

An identity never crosses a shard, so nothing is shuffled. A part has one file per repeat.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa

from fiqa_ray import schemas
from fiqa_ray.config import PairSettings
from fiqa_ray.core.pairs import mated_pairs
from fiqa_ray.lineage import Job
from fiqa_ray.stages import Step, Worker
from fiqa_ray.storage import Dataset, Part


def pair_steps(job: Job) -> Iterator[list[Step]]:
    """One step: a part of pairs per part of embeddings."""
    embeddings = job.embeddings("train")
    manifest = embeddings.require()
    dataset = job.pairs()
    worker = partial(_make_worker, dataset, embeddings, job.settings.pair, job.settings.seed)
    yield [Step("pair", dataset, manifest.parts, worker, manifest.n_rows, unit="images")]


def _make_worker(dataset: Dataset, embeddings: Dataset, settings: PairSettings, seed: int) -> Worker:
    return partial(run_shard, dataset, embeddings, settings, seed)


def run_shard(dataset: Dataset, embeddings: Dataset, settings: PairSettings, seed: int, shard: Part) -> Part:
    """Pairs of one part. Memory: the part's embeddings, Gram matrices and one repeat's pairs."""
    started = time.monotonic()
    table = embeddings.read(shard, ["image_row", "identity_row", "embedding"])
    values, good = schemas.embedding_values(table)
    image_row = table["image_row"].to_numpy()[good]
    identity_row = table["identity_row"].to_numpy()[good].astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(identity_row)) + 1]) if len(good) else np.empty(0, np.int64)
    bounds = np.concatenate([starts, [len(good)]]).astype(np.int64)
    files, n_pairs = {}, {}
    for pairs in mated_pairs(
        values,
        bounds,
        identity_row[starts],
        n_clusters=settings.n_clusters,
        n_repeats=settings.n_repeats,
        seed=seed,
        recluster=settings.recluster,
        clustering=settings.clustering,
    ):
        columns = {
            "image_row": image_row[pairs.image],
            "mate_row": image_row[pairs.mate],
            "similarity": pairs.similarity,
        }
        files[schemas.repeat_suffix(pairs.repeat)] = pa.table(columns, schema=schemas.PAIRS)
        n_pairs[str(pairs.repeat)] = len(pairs.image)
    sizes = np.diff(bounds)
    stats = {
        "n_pairs": n_pairs,
        "n_identities": len(sizes),
        "n_identities_of_one_image": int((sizes == 1).sum()),
        "n_identities_below_n_clusters": int((sizes < settings.n_clusters).sum()),
        "n_images_without_embedding": len(table) - len(good),
    }
    return dataset.write_part(
        shard.index,
        files,
        n_rows=len(table),
        stats=stats,
        duration_s=time.monotonic() - started,
        use_dictionary=False,
        column_encoding={
            "image_row": "DELTA_BINARY_PACKED",
            "mate_row": "DELTA_BINARY_PACKED",
            "similarity": "BYTE_STREAM_SPLIT",
        },
    )
