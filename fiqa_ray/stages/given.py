"""embed, where the source holds embeddings and no images: they are copied into the run's own layout."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.columns import NO_DIRECTION, embedding_column
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.source_list import read_list
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job
from fiqa_ray.sources.stored_embeddings import read_stored_embeddings


@dataclass(frozen=True)
class GivenShard:
    """A part of a face set, and where its embeddings lie: rows of the source's list."""

    index: int
    faces: Part
    listed: pa.Table


def given_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that copy given embeddings, one per face set; none where a recogniser makes them."""
    if not job.settings.has_given_embeddings:
        return
    steps = []
    for face_set, source in job.face_sets.items():
        faces, dataset = job.faces(face_set), job.embeddings(face_set)
        manifest = faces.require()
        listed = read_list(faces, ["uri", "offset"])
        rows = zip(manifest.parts, manifest.first_rows[:-1], strict=True)
        shards = [GivenShard(i, part, listed.slice(first, part.n_rows)) for i, (part, first) in enumerate(rows)]
        worker = stateless_worker(copy_shard, dataset, faces, source.uri)
        steps.append(Step("embed", dataset, shards, worker, manifest.n_rows, unit="images"))
    yield steps


def copy_shard(dataset: Dataset, faces: Dataset, source_uri: str, shard: GivenShard) -> Part:
    """Write a part of embeddings; one that is missing, NaN or infinite, or zeros alone, has a status that says so.

    Memory: the part's embeddings, and the row groups that hold them.
    """
    started = time.monotonic()
    names = faces.read(shard.faces, ["image_row", "identity_row"])
    values = read_stored_embeddings(source_uri, shard.listed)
    n = len(names)
    is_finite = np.asarray(np.isfinite(values).all(axis=1))
    has_direction = is_finite & np.asarray(values.any(axis=1))
    status = np.where(has_direction, "ok", np.where(is_finite, "no_direction", "non_finite")).tolist()
    reasons = {"non_finite": "the embedding is missing, NaN or infinite", "no_direction": NO_DIRECTION}
    table = pa.table(
        {
            "image_row": names["image_row"],
            "identity_row": names["identity_row"],
            "embedding": embedding_column(values[has_direction], np.flatnonzero(has_direction), n),
            "status": status,
            "error": [reasons.get(s) for s in status],
        },
        schema=schemas.embeddings(values.shape[1]),
    )
    return dataset.write_part(
        shard.index,
        {".parquet": table},
        n_rows=n,
        stats={"status": dict(Counter(status))},
        duration_s=time.monotonic() - started,
    )
