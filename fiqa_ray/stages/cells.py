"""evaluate, second part: each score's curve and bootstrap draws on each benchmark, under each recogniser.

A cell is a dataset of its own, named by what decides it. So a further score, rate, convention or recogniser makes its own
cells and no others, and a run that was stopped goes on with those that lack. The draws of all scores are the same samples:
they depend on the pairs and the seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings
from fiqa_ray.core.all_pairs import all_pairs_areas, n_all_pairs
from fiqa_ray.core.bootstrap import AreaDraws, bootstrap_cells
from fiqa_ray.core.conventions import Cell, Convention, stored_limits
from fiqa_ray.core.floor import n_random_orders, random_qualities
from fiqa_ray.core.verification import FloatArray, IntArray
from fiqa_ray.datasets import columns
from fiqa_ray.datasets.cells import write_cell, write_empty_cell
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.results import ORACLE, RANDOM
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job, Scorer
from fiqa_ray.sources.comparisons import MAX_LISTED_PAIRS, match_pairs, person_rows


@dataclass(frozen=True)
class CellShard:
    """Some cells of one score on one benchmark under one recogniser.

    Attributes:
        cells: Convention, rate and dataset of each.
        embeddings: Of the benchmark under the recogniser.
    """

    benchmark: BenchmarkSettings
    scorer: Scorer
    settings: EvaluateSettings
    seed: int
    faces: Dataset
    comparisons: Dataset
    cells: Sequence[tuple[Cell, Convention, Dataset]]
    embeddings: Dataset


def cell_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that make cells: one for those of a score that lack, and one for those that are there already."""
    steps, n_missing, n_cells = [], 0, 0
    for benchmark in job.settings.benchmarks:
        for recognizer in job.judges:
            for scorer in job.scorers(benchmark):
                cells = [(k, c, d) for k, (c, d) in job.cells(benchmark, recognizer, scorer).items()]
                missing = [cell for cell in cells if not cell[2].finished_parts()]
                finished = [cell for cell in cells if cell not in missing]  # are verified again
                n_missing, n_cells = n_missing + len(missing), n_cells + len(cells)
                for group in filter(None, (missing, finished)):
                    shard = CellShard(
                        benchmark=benchmark,
                        scorer=scorer,
                        settings=job.settings.evaluate,
                        seed=job.settings.seed,
                        faces=job.faces(benchmark.name),
                        comparisons=job.comparisons(benchmark, recognizer),
                        cells=group,
                        embeddings=job.embeddings(benchmark.name, recognizer),
                    )
                    steps.append(_step(shard))
    if n_missing:
        note(f"evaluate: {n_missing:,} of {n_cells:,} cells to make")
    if steps:
        yield steps


def _step(shard: CellShard) -> Step:
    datasets = [dataset for _, _, dataset in shard.cells]
    return Step(
        stage="evaluate",
        dataset=datasets[0],
        extra_datasets=tuple(datasets[1:]),
        shards=[shard],
        make_worker=stateless_worker(run_shard),
        n_rows=1,
        unit="scores",
    )


def run_shard(shard: CellShard) -> Part:
    """Make cells in one pass over the draws. Memory: the benchmark's pairs, the score, and the draws of the cells."""
    started = time.monotonic()
    if shard.benchmark.pairs.kind == "all_pairs" and n_all_pairs(shard.faces.require().n_rows) > MAX_LISTED_PAIRS:
        return _run_all_pairs(shard, started)
    pairs = shard.comparisons.read_all(["image_row_a", "image_row_b", "mated", "similarity"])
    row_a, row_b = (pairs[name].to_numpy() for name in ("image_row_a", "image_row_b"))
    image_id = shard.faces.read_all(["image_id"])["image_id"].combine_chunks()
    # rows of pairs are those of images, or of templates, which only their list names
    templates = match_pairs(shard.benchmark, image_id) if shard.benchmark.pairs.kind == "ijb" else None
    names = image_id if templates is None else templates.names(image_id)
    used, rows = np.unique(np.concatenate([row_a, row_b]), return_inverse=True)
    name = shard.scorer.key.scorer
    scores: dict[str, tuple[FloatArray, FloatArray]] = {}
    n_unscored = 0
    orders: list[tuple[FloatArray, FloatArray]] = []
    if shard.scorer.key.variant == RANDOM:
        rows_a, rows_b = rows.reshape(2, -1)
        random = random_qualities(names.take(pa.array(used)).to_pylist(), shard.seed, n_random_orders(len(rows_a)))
        orders = [(quality[rows_a], quality[rows_b]) for quality in random]
    else:
        score = shard.scorer.scores(image_id)
        if templates is not None:
            score = templates.qualities(score)
        if shard.scorer.key.variant == ORACLE and not np.isfinite(score[used]).all():
            parts = [write_empty_cell(dataset) for _, _, dataset in shard.cells]
            return parts[0]
        score, n_unscored = _ranked_last(score, used, name)
        scores[name] = score[row_a], score[row_b]
    mated = pairs["mated"].to_numpy(zero_copy_only=False)
    limits = sorted({limit for _, c, _ in shard.cells for limit in stored_limits(c, shard.settings.limits)})
    areas = bootstrap_cells(
        pairs["similarity"].to_numpy(),
        mated,
        scores,
        {cell: convention for cell, convention, _ in shard.cells},
        random_orders=orders,
        limits=limits,
        identities=_identities(shard, None if templates is None else templates.subjects(), row_a, row_b, mated),
        images=(row_a, row_b),
        n_draws=shard.settings.draws,
        seed=shard.seed,
    )
    return _write(shard, areas, name, n_unscored, started)


def _write(shard: CellShard, areas: AreaDraws, name: str, n_unscored: int, started: float) -> Part:
    duration_s = (time.monotonic() - started) / len(shard.cells)
    parts = [
        write_cell(dataset, areas, name, cell, stored_limits(convention, shard.settings.limits), n_unscored, duration_s)
        for cell, convention, dataset in shard.cells
    ]
    return parts[0]


def _run_all_pairs(shard: CellShard, started: float) -> Part:
    """Make cells of all pairs of a large set, which are not listed. Memory: its embeddings and some 0.3 GB."""
    faces = shard.faces.read_all(["image_id", "identity"])
    image_id, name = faces["image_id"].combine_chunks(), shard.scorer.key.scorer
    values, rows = columns.embedding_values(shard.embeddings.read_all(["image_row", "embedding"]))
    person = person_rows(faces["identity"].combine_chunks())[rows]
    qualities: dict[str, FloatArray] = {}
    orders, n_unscored = np.empty((0, len(rows))), 0
    if shard.scorer.key.variant == RANDOM:
        n_orders = n_random_orders(n_all_pairs(len(rows)))
        orders = random_qualities(image_id.take(pa.array(rows)).to_pylist(), shard.seed, n_orders)
    else:
        score = shard.scorer.scores(image_id)
        if shard.scorer.key.variant == ORACLE and not np.isfinite(score[rows]).all():
            parts = [write_empty_cell(dataset) for _, _, dataset in shard.cells]
            return parts[0]
        score, n_unscored = _ranked_last(score, rows, name)
        qualities[name] = score[rows]
    areas = all_pairs_areas(
        values,
        person,
        qualities,
        {cell: convention for cell, convention, _ in shard.cells},
        random_orders=orders,
        limits=sorted({limit for _, c, _ in shard.cells for limit in stored_limits(c, shard.settings.limits)}),
        n_draws=shard.settings.draws,
    )
    return _write(shard, areas, name, n_unscored, started)


def _ranked_last(score: FloatArray, used: IntArray, name: str) -> tuple[FloatArray, int]:
    """Return scores with those that lack below all others, and the number of images in use without one.

    An image that a method cannot score is the first to go.
    """
    is_scored = np.isfinite(score)
    if not is_scored[used].any():
        raise FiqaRayError(f"{name}: none of the images in the pairs has a score")
    return np.where(is_scored, score, score[is_scored].min() - 1), int((~is_scored[used]).sum())


def _identities(
    shard: CellShard, subjects: IntArray | None, row_a: IntArray, row_b: IntArray, mated: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the persons of both units where persons are to be resampled, else None; `subjects` are those of templates."""
    if shard.settings.resample == "pairs":
        return None
    names = subjects
    if names is None:
        names = shard.faces.read_all(["identity"])["identity"].to_numpy(zero_copy_only=False)
    identities = names[row_a], names[row_b]
    # auto: a flat folder names no persons, and its identities contradict the pairs
    is_named = np.array_equal(identities[0] == identities[1], mated)
    return identities if is_named or shard.settings.resample == "identities" else None
