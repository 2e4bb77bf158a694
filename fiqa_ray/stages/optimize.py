"""optimize: equation 3 for all FIQA methods and thetas in one pass over the pairs, then the scores dealt out anew.

Three steps: the place of every prior score (one task per method), the optimized index of every image (one task per part of
pairs; a pair's owner is always in its own part), the final sort and labels (one task per method and theta).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from fiqa_ray import schemas
from fiqa_ray.core.labels import IndexUpdate, quality_index, rank_scale, reassign_scores, sum_owned_ranks
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.lineage import Job
from fiqa_ray.pair_parts import PairReader, StoredPairs
from fiqa_ray.stages import Step, ready
from fiqa_ray.storage import Dataset, Part


def optimize_steps(job: Job) -> Iterator[list[Step]]:
    """quality_index per method, optimized_index over the pairs, optimized_labels per method and theta."""
    settings = job.settings
    n_images = job.faces("train").require().n_rows
    indices = {m.label: job.quality_index(m) for m in settings.methods}
    steps = []
    for method in settings.methods:
        priors = job.prior_scores("train", method)
        priors.require()
        dataset = indices[method.label]
        steps.append(Step("optimize", dataset, [priors], ready(index_shard, dataset), n_images, unit="images"))
    yield steps

    ranks, dataset, reader = job.similarity_ranks(), job.optimized_index(), PairReader.of(job)
    ranks.require()
    thetas = settings.optimize.theta
    worker = ready(update_shard, dataset, reader, ranks, indices, thetas, settings.optimize.index_scale)
    yield [Step("optimize", dataset, reader.stored(), worker, n_images, unit="images")]

    steps = []
    for method in settings.methods:
        for theta in thetas:
            labels = job.optimized_labels(method, theta)
            label_worker = ready(label_shard, labels, dataset, theta, settings.optimize.index_scale, ranks)
            shard = LabelShard(method.label, indices[method.label])
            steps.append(Step("optimize", labels, [shard], label_worker, n_images, unit="images"))
    yield steps


@dataclass(frozen=True)
class LabelShard:
    """One method's final sort."""

    method: str
    quality_index: Dataset


def index_suffix(method: str, theta: float) -> str:
    """Suffix of the file with one method's and theta's optimized indices."""
    return f".{method}.theta-{theta!r}.parquet"


def index_shard(dataset: Dataset, priors: Dataset) -> Part:
    """Place of every prior score of one method. Memory: about 40 bytes per image."""
    started = time.monotonic()
    table = priors.read_all(["image_row", "score"]).combine_chunks()
    valid = table["score"].is_valid().to_numpy()
    score = table["score"].to_numpy()
    index = np.full(len(score), -1, np.int64)
    index[valid] = quality_index(score[valid])
    if not valid.any():
        raise FiqaRayError(f"{priors.uri} holds no score at all; see its column 'error'")
    out = pa.table(
        {"image_row": table["image_row"], "quality_index": index, "prior_score": pa.array(score, mask=~valid)},
        schema=schemas.QUALITY_INDEX,
    )
    return dataset.write_part(
        0,
        {".parquet": out},
        n_rows=len(out),
        stats={"n_scored": int(valid.sum())},
        duration_s=time.monotonic() - started,
        row_group_rows=1 << 16,  # parts of pairs read their own rows
    )


@lru_cache(maxsize=10)
def _rank_table(ranks: Dataset, repeat: int) -> RankTable:
    """A repeat's table, kept for the worker's next shards: the paper's ten repeats take 360 MB at most, twice that with many
    near-copies."""
    table = ranks.read(ranks.require().parts[repeat])
    return RankTable.of(table["similarity_key"].to_numpy(), table["rank2"].to_numpy())


def update_shard(
    dataset: Dataset,
    reader: PairReader,
    ranks: Dataset,
    indices: dict[str, Dataset],
    thetas: tuple[float, ...],
    index_scale: str,
    stored: StoredPairs,
) -> Part:
    """Optimized indices of the part's images: all methods, all thetas.

    Memory: one repeat's pairs as read, 60 bytes per image and method, and up to ten rank tables.
    """
    started = time.monotonic()
    first, n_images = stored.shard.first, stored.shard.n_rows
    n_pairs = [p.n_rows for p in ranks.require().parts]
    updates, n_scored = {}, {}
    for method, source in indices.items():
        manifest = source.require()
        table = source.read_rows(manifest.parts[0], first, first + n_images, ["quality_index"])
        updates[method] = IndexUpdate(table["quality_index"].to_numpy())
        n_scored[method] = manifest.stats["n_scored"]
    places = {method: update.index for method, update in updates.items()}
    for p in reader.read(stored, range(len(n_pairs))):
        owned = sum_owned_ranks(places, p.n_opened, p.mate, p.similarity, _rank_table(ranks, p.repeat))
        for method, update in updates.items():
            update.add(*owned[method], rank_scale(index_scale, n_scored[method], n_pairs[p.repeat]))
    files, without = {}, {}
    for method, update in updates.items():
        scored = update.index >= 0
        rows = np.flatnonzero(scored)
        mean = update.mean_similarity_rank[rows]
        without[method] = int((update.n_owned_pairs[rows] == 0).sum())
        for theta in thetas:
            files[index_suffix(method, theta)] = pa.table(
                {
                    "image_row": rows + first,
                    "optimized_index": update.optimized_index(theta)[rows],
                    "mean_similarity_rank": pa.array(mean, mask=np.isnan(mean)),
                    "n_owned_pairs": update.n_owned_pairs[rows],
                },
                schema=schemas.OPTIMIZED_INDEX,
            )
    return dataset.write_part(
        stored.shard.index,
        files,
        n_rows=n_images,
        stats={"n_without_pairs": without},
        duration_s=time.monotonic() - started,
    )


def label_shard(
    dataset: Dataset, updates: Dataset, theta: float, index_scale: str, ranks: Dataset, shard: LabelShard
) -> Part:
    """The final sort of one method and theta, over all images. Memory: about 120 bytes per image."""
    started = time.monotonic()
    source = shard.quality_index.read_all()
    found = updates.read_all(suffix=index_suffix(shard.method, theta))
    rows = found["image_row"].to_numpy()
    index = source["quality_index"].to_numpy()
    prior = source["prior_score"].to_numpy()
    optimized = found["optimized_index"].to_numpy()
    score, label, place = reassign_scores(prior[rows], index[rows], optimized)

    at = np.full(len(index), -1, np.int64)
    at[rows] = np.arange(len(rows))
    place_of = pa.array(at, mask=at < 0)

    def spread(values: np.ndarray | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Values of the scored rows, null elsewhere."""
        return values if len(rows) == len(index) else pa.table([values], names=[""]).take(place_of).column(0)

    columns = {
        "image_row": source["image_row"],
        "prior_score": source["prior_score"],
        "quality_index": pa.array(index, mask=index < 0),
        "n_owned_pairs": spread(found["n_owned_pairs"]),
        "mean_similarity_rank": spread(found["mean_similarity_rank"]),
        "optimized_index": spread(optimized),
        "optimized_score": spread(score),
        "label": spread(label),
    }
    n_pairs = ranks.require().parts[0].n_rows
    raw = index_scale == "raw"
    summary = {
        "n_scored": len(rows),
        "n_without_pairs": int((found["n_owned_pairs"].to_numpy() == 0).sum()),
        "n_pairs_per_repeat": n_pairs,
        "theta_effective": theta * (n_pairs / len(rows) if raw and len(rows) else 1.0),
        "mean_move_fraction": float(np.abs(place - index[rows]).mean() / len(rows)) if len(rows) else 0.0,
    }
    return dataset.write_part(
        0,
        {".parquet": pa.table(columns, schema=schemas.OPTIMIZED_LABELS)},
        n_rows=len(index),
        stats=summary,
        duration_s=time.monotonic() - started,
    )
