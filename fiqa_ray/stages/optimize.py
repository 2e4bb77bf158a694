"""optimize: equations 2 and 3 for all FIQA methods and thetas in one pass over the pairs, then the prior scores reassigned.

This file makes the optimized index of every image: one task per part of pairs, since a part holds both images of each of its
pairs. The choice of theta, where it is not given, follows in `optimize_theta.py`; the final sort and the labels in
`optimize_labels.py`. Labels by another rule, without pairs, are made in `optimize_ediff.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from fiqa_ray.config import EDIFF
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.core.labels import IndexUpdate, rank_scale, sum_owned_ranks
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.histograms import HISTOGRAM_S, KEY_SPAN, histogram_bytes, read_histogram
from fiqa_ray.datasets.image_rows import PartRange, read_image_rows
from fiqa_ray.datasets.pairs import PairReader, StoredPairs, pair_part_sizes
from fiqa_ray.engine.cost import Cost, Scale, Units, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job
from fiqa_ray.stages.optimize_ediff import ediff_costs
from fiqa_ray.stages.optimize_labels import label_costs
from fiqa_ray.stages.optimize_theta import theta_cost

N_KEPT_TABLES = 10
"""First repeats whose ranks a worker keeps for its next shards; those of further repeats are read for every shard."""


@dataclass(frozen=True)
class StoredIndex:
    """The quality indices of a method, and what their manifest says: workers need not read it for each shard."""

    dataset: Dataset
    parts: PartRange
    n_scored: int

    @staticmethod
    def of(dataset: Dataset) -> StoredIndex:
        """Read the manifest."""
        manifest = dataset.require()
        return StoredIndex(dataset, PartRange.of(manifest), manifest.stats["n_scored"])


@dataclass(frozen=True)
class StoredRanks:
    """The similarity ranks, a part per repeat."""

    dataset: Dataset
    parts: tuple[Part, ...] = field(compare=False)  # the dataset decides them

    @staticmethod
    def of(dataset: Dataset) -> StoredRanks:
        """Read the manifest."""
        return StoredRanks(dataset, tuple(dataset.require().parts))


def index_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the step of the optimized indices; none without mode rank."""
    settings = job.settings
    if not settings.optimize.thetas:
        return
    n_images = job.faces("train").require().n_rows
    indices = {m.label: StoredIndex.of(job.quality_index(m)) for m in settings.methods}
    dataset, reader = job.optimized_index(), job.pair_reader()
    ranks = StoredRanks.of(job.similarity_ranks())
    thetas = job.index_thetas()
    worker = stateless_worker(update_shard, dataset, reader, ranks, indices, thetas, settings.optimize.index_scale)
    step = Step("optimize", dataset, reader.stored(), worker, n_images, unit="images", needs_gpu=reader.needs_gpu)
    yield [step]


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of each step of the stage."""
    settings = job.settings
    if EDIFF in settings.optimize.mode:
        yield from ediff_costs(job, workload)
    if not settings.optimize.thetas:
        return
    indices, *labels = step_costs(workload.scale, workload.units)
    yield replace(indices, datasets=(job.optimized_index(),))
    if HELDOUT in settings.optimize.thetas:
        yield theta_cost(job, workload)
    sets = [(m, t) for m in settings.methods for t in settings.optimize.thetas]
    # with `heldout`, indices are made for all candidates and labels for one
    share = len(settings.optimize.thetas) / workload.scale.n_thetas
    results = (job.index_runs, job.sorted_indices, job.optimized_labels)
    for cost, dataset in zip(labels, results[-len(labels) :], strict=True):
        yield replace(
            cost,
            n_shards=round(share * cost.n_shards),
            work_s=share * cost.work_s,
            read_bytes=share * cost.read_bytes,
            written_bytes=share * cost.written_bytes,
            datasets=tuple(dataset(m, t) for m, t in sets),
        )


def step_costs(s: Scale, units: Units) -> list[Cost]:
    """Return the costs of the steps at a scale: the optimized indices, then the labels."""
    n, n_pairs, n_sets = s.n_images, s.n_pairs * s.n_repeats, s.n_methods * s.n_thetas
    n_parts, part_rows = pair_part_sizes(n, s.rows_per_part)
    part_pairs = part_rows * s.pairs_per_image
    n_kept = min(s.n_repeats, N_KEPT_TABLES)
    n_read_again = n_parts * (s.n_repeats - n_kept)
    read = (4 * n_pairs if s.keep else s.embedding_bytes) + histogram_bytes(s.n_pairs) * (n_kept + n_read_again)
    again = 0.0 if s.keep else n * units.pair_image
    table_bytes = (2.2 if s.n_pairs < 2e9 else 4.2) * KEY_SPAN  # 2 or 4 bytes for each key, 0.2 for the block ranks
    indices = Cost(
        "optimize",
        "optimized indices",
        n,
        n_parts,
        work_s=n_pairs * (units.sum_pair + s.n_methods * units.sum_pair_method)
        + again
        + n_read_again * HISTOGRAM_S
        + units.storage(read, 17 * n * n_sets),
        memory_bytes=table_bytes * (n_kept + (n_read_again > 0))
        + (20 * part_pairs if s.keep else 12 * part_pairs * s.n_repeats)
        + 60 * part_rows * s.n_methods,
        read_bytes=read,
        written_bytes=17.0 * n * n_sets,
        start_s=n_kept * HISTOGRAM_S,
    )
    return [indices, *label_costs(s, units)]


def _rank_table(ranks: StoredRanks, repeat: int) -> RankTable:
    """Return a repeat's ranks; those of the first ten repeats are kept for the worker's next shards.

    Memory: 36 MB for each repeat that is kept and for one more, up to four times as much where many images are near-copies.
    """
    return _kept_rank_table(ranks, repeat) if repeat < N_KEPT_TABLES else _read_rank_table(ranks, repeat)


def _read_rank_table(ranks: StoredRanks, repeat: int) -> RankTable:
    return RankTable.of(read_histogram(ranks.dataset.read(ranks.parts[repeat])))


_kept_rank_table = lru_cache(maxsize=N_KEPT_TABLES)(_read_rank_table)


def update_shard(
    dataset: Dataset,
    reader: PairReader,
    ranks: StoredRanks,
    indices: dict[str, StoredIndex],
    thetas: tuple[float, ...],
    index_scale: str,
    stored: StoredPairs,
) -> Part:
    """Write the optimized indices of the part's images for all methods and thetas.

    Memory: the pairs as `PairReader.read` holds them, 60 bytes per image and method, and the rank tables.
    """
    started = time.monotonic()
    first, n_images = stored.shard.first, stored.shard.n_rows
    n_pairs = [p.n_rows for p in ranks.parts]
    updates = {}
    for method, stored_index in indices.items():
        neighbours = stored_index.parts.between(first, first + n_images)
        table = read_image_rows(stored_index.dataset, neighbours.parts, first, first + n_images, ["quality_index"])
        updates[method] = IndexUpdate(table["quality_index"].to_numpy())
    index_of = {method: update.index for method, update in updates.items()}
    for p in reader.read(stored, range(len(n_pairs))):
        owned = sum_owned_ranks(index_of, p.n_opened, p.mate, p.similarity, _rank_table(ranks, p.repeat))
        for method, update in updates.items():
            update.add(*owned[method], rank_scale(index_scale, indices[method].n_scored, n_pairs[p.repeat]))
    files, without = {}, {}
    for method, update in updates.items():
        scored = update.index >= 0
        rows = np.flatnonzero(scored)
        mean = update.mean_similarity_rank[rows]
        without[method] = int((update.n_owned_pairs[rows] == 0).sum())
        for theta in thetas:
            files[schemas.index_suffix(method, theta)] = pa.table(
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
