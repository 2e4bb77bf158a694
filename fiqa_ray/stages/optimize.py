"""optimize: equations 2 and 3 for all FIQA methods and thetas in one pass over the pairs, then the prior scores reassigned.

Two steps: the optimized index of every image (one task per part of pairs; a pair's owner is always in its own part), the
final sort and labels (one task per method and theta).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.core.labels import IndexUpdate, rank_scale, reassign_scores, sum_owned_ranks
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.histograms import HISTOGRAM_S, KEY_SPAN, histogram_bytes, read_histogram
from fiqa_ray.datasets.pairs import PairReader, StoredPairs, pair_part_sizes
from fiqa_ray.engine.cost import Cost, Scale, Units, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job

N_TABLES = 10
"""Repeats whose ranks a worker keeps for its next shards."""
NAME_BYTES = 12
"""Stored bytes of an image's name: compressed, neighbours share most of theirs."""
LABEL_BYTES = 260
"""Memory per image, as measured, of the final sort, which takes a method's images all at once."""


def optimize_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the step of the optimized indices, then the steps of the labels, one per method and theta."""
    settings = job.settings
    faces = job.faces("train")
    n_images = faces.require().n_rows
    indices = {m.label: job.quality_index(m) for m in settings.methods}
    ranks, dataset, reader = job.similarity_ranks(), job.optimized_index(), job.pair_reader()
    for needed in (ranks, *indices.values()):
        needed.require()
    thetas = settings.optimize.theta
    worker = stateless_worker(update_shard, dataset, reader, ranks, indices, thetas, settings.optimize.index_scale)
    step = Step("optimize", dataset, reader.stored(), worker, n_images, unit="images", needs_gpu=reader.needs_gpu)
    yield [step]

    steps = []
    for method in settings.methods:
        for theta in thetas:
            labels = job.optimized_labels(method, theta)
            scale = settings.optimize.index_scale
            label_worker = stateless_worker(label_shard, labels, dataset, faces, theta, scale, ranks)
            shard = LabelShard(method.label, indices[method.label])
            memory = LABEL_BYTES * n_images
            steps.append(Step("optimize", labels, [shard], label_worker, n_images, unit="images", memory_bytes=memory))
    yield steps


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of each step."""
    settings = job.settings
    indices, labels = step_costs(workload.scale, workload.units)
    yield replace(indices, datasets=(job.optimized_index(),))
    thetas = settings.optimize.theta
    yield replace(labels, datasets=tuple(job.optimized_labels(m, t) for m in settings.methods for t in thetas))


def step_costs(s: Scale, units: Units) -> tuple[Cost, Cost]:
    """Return the costs of both steps at a scale: the optimized indices, and the labels."""
    n, n_pairs, n_sets = s.n_images, s.n_pairs * s.n_repeats, s.n_methods * s.n_thetas
    n_parts, part_rows = pair_part_sizes(n, s.rows_per_part)
    part_pairs = part_rows * s.pairs_per_image
    read = (4 * n_pairs if s.keep else s.embedding_bytes) + histogram_bytes(s.n_pairs) * s.n_repeats
    again = 0.0 if s.keep else n * units.pair_image
    tables = (
        (2.2 if s.n_pairs < 2e9 else 4.2) * KEY_SPAN * min(s.n_repeats, N_TABLES)
    )  # 2 or 4 bytes a key, and an index
    indices = Cost(
        "optimize",
        "optimized indices",
        n,
        n_parts,
        work_s=n_pairs * (units.sum_pair + s.n_methods * units.sum_pair_method)
        + again
        + units.storage(read, 17 * n * n_sets),
        memory_bytes=tables
        + (20 * part_pairs if s.keep else 12 * part_pairs * s.n_repeats)
        + 60 * part_rows * s.n_methods,
        read_bytes=read,
        written_bytes=17.0 * n * n_sets,
        start_s=s.n_repeats * HISTOGRAM_S,
    )
    labels = Cost(
        "optimize",
        "labels",
        n,
        n_sets,
        work_s=n * n_sets * units.label_image,
        memory_bytes=LABEL_BYTES * n,
        read_bytes=(30.0 + NAME_BYTES) * n * n_sets,
        written_bytes=(40.0 + NAME_BYTES) * n * n_sets,
    )
    return indices, labels


@dataclass(frozen=True)
class LabelShard:
    """The final sort of one method."""

    method: str
    quality_index: Dataset


def index_suffix(method: str, theta: float) -> str:
    """Return the suffix of the file with one method's and theta's optimized indices."""
    return f".{method}.theta-{theta!r}.parquet"


@lru_cache(maxsize=N_TABLES)
def _rank_table(ranks: Dataset, repeat: int) -> RankTable:
    """Return a repeat's ranks, and keep them for the worker's next shards.

    Memory: 360 MB at most for the paper's ten repeats, twice that where many images are near-copies.
    """
    table = ranks.read(ranks.require().parts[repeat])
    return RankTable.of(read_histogram(table))


def update_shard(
    dataset: Dataset,
    reader: PairReader,
    ranks: Dataset,
    indices: dict[str, Dataset],
    thetas: tuple[float, ...],
    index_scale: str,
    stored: StoredPairs,
) -> Part:
    """Write the optimized indices of the part's images for all methods and thetas.

    Memory: one repeat's pairs as read, 60 bytes per image and method, and up to ten rank tables.
    """
    started = time.monotonic()
    first, n_images = stored.shard.first, stored.shard.n_rows
    n_pairs = [p.n_rows for p in ranks.require().parts]
    updates, n_scored = {}, {}
    for method, quality_index in indices.items():
        manifest = quality_index.require()
        table = quality_index.read_rows(manifest.parts[0], first, first + n_images, ["quality_index"])
        updates[method] = IndexUpdate(table["quality_index"].to_numpy())
        n_scored[method] = manifest.stats["n_scored"]
    index_of = {method: update.index for method, update in updates.items()}
    for p in reader.read(stored, range(len(n_pairs))):
        owned = sum_owned_ranks(index_of, p.n_opened, p.mate, p.similarity, _rank_table(ranks, p.repeat))
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
    dataset: Dataset,
    optimized_index: Dataset,
    faces: Dataset,
    theta: float,
    index_scale: str,
    ranks: Dataset,
    shard: LabelShard,
) -> Part:
    """Write the labels of one method and theta, which sorts all images at once. Memory: up to `LABEL_BYTES` per image."""
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # the names are read while the images are sorted
        names = pool.submit(_image_ids, faces)
        columns, n_scored, mean_ranks_moved = _label_columns(optimized_index, theta, shard)
        columns["image_id"] = names.result()
    table = pa.table(columns, schema=schemas.OPTIMIZED_LABELS)
    n_pairs = ranks.require().parts[0].n_rows
    raw = index_scale == "raw"
    summary = {
        "n_scored": n_scored,
        "n_without_pairs": pc.sum(pc.equal(table["n_owned_pairs"], 0)).as_py() or 0,
        "n_pairs_per_repeat": n_pairs,
        "theta_effective": theta * (n_pairs / n_scored if raw and n_scored else 1.0),
        "mean_move_fraction": mean_ranks_moved / max(n_scored, 1),
    }
    return dataset.write_part(
        0, {".parquet": table}, n_rows=len(table), stats=summary, duration_s=time.monotonic() - started
    )


def _label_columns(optimized_index: Dataset, theta: float, shard: LabelShard) -> tuple[dict[str, Any], int, float]:
    """Return the columns of the labels but the names, the number of images with a score, and the mean ranks moved."""
    source = shard.quality_index.read_all(["quality_index", "prior_score"])
    index, prior = source["quality_index"].to_numpy(), source["prior_score"].to_numpy()
    del source
    table = optimized_index.read_all(suffix=index_suffix(shard.method, theta))
    rows, optimized = table["image_row"].to_numpy(), table["optimized_index"].to_numpy()
    table = table.select(["n_owned_pairs", "mean_similarity_rank"])
    n_images, n_scored = len(index), len(rows)
    scored_prior, scored_index = (prior, index) if n_scored == n_images else (prior[rows], index[rows])
    score, label, mean_ranks_moved = reassign_scores(scored_prior, scored_index, optimized)
    del scored_prior, scored_index

    def spread(values: np.ndarray | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Return values of the scored rows as a column of all rows, null elsewhere."""
        if n_scored == n_images:
            return values
        row_of_image = np.full(n_images, -1)
        row_of_image[rows] = np.arange(n_scored)
        return pa.table([values], names=[""]).take(pa.array(row_of_image, mask=row_of_image < 0)).column(0)

    columns = {
        "image_row": np.arange(n_images),
        "prior_score": pa.array(prior, from_pandas=True),  # NaN stands for null
        "quality_index": pa.array(index, mask=index < 0),
        "n_owned_pairs": spread(table["n_owned_pairs"]),
        "mean_similarity_rank": spread(table["mean_similarity_rank"]),
        "optimized_index": spread(optimized),
        "optimized_score": spread(score),
        "label": spread(label),
    }
    return columns, n_scored, mean_ranks_moved


def _image_ids(faces: Dataset) -> pa.ChunkedArray:
    """Return the names of all images; of each part of faces only that column is read, also from a bucket."""
    parts = faces.require().parts
    return pa.chunked_array(
        [chunk for p in parts for chunk in faces.read_rows(p, 0, p.n_rows, ["image_id"])["image_id"].chunks],
        pa.string(),
    )
