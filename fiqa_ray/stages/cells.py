"""evaluate, second part: each score's curve and bootstrap draws on each benchmark, under each recogniser.

A cell is a dataset of its own, named by what decides it. So a further score, rate, convention or recogniser makes its own
cells and no others, and a run that was stopped goes on with those that lack. The draws of all scores are the same samples:
they depend on the pairs and the seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings
from fiqa_ray.core.all_pairs import all_pairs_areas, all_pairs_curves, n_all_pairs
from fiqa_ray.core.bootstrap import AreaDraws, bootstrap_cells, curves_of
from fiqa_ray.core.conventions import Cell, Convention, stored_limits
from fiqa_ray.core.edc import EDC
from fiqa_ray.core.floor import n_random_orders, random_qualities
from fiqa_ray.core.intervals import MIN_UNITS
from fiqa_ray.core.verification import FloatArray, IntArray
from fiqa_ray.datasets import columns
from fiqa_ray.datasets.cells import write_cell, write_empty_cell
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.results import ORACLE, RANDOM
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.sources.comparisons import MAX_LISTED_PAIRS, Comparisons, match_pairs
from fiqa_ray.sources.judged_score import JudgedScore


@dataclass(frozen=True)
class CellShard:
    """Some cells of one score on one benchmark under one recogniser.

    Attributes:
        cells: Convention, rate and dataset of each.
        embeddings: Of the benchmark under the recogniser.
        group: The group of people whose pairs count; "": all pairs.
    """

    benchmark: BenchmarkSettings
    scorer: JudgedScore
    settings: EvaluateSettings
    seed: int
    faces: Dataset
    comparisons: Dataset
    cells: Sequence[tuple[Cell, Convention, Dataset]]
    embeddings: Dataset
    group: str = ""


def cell_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that make cells: one for those of a score that lack, and one for those that are there already."""
    steps, n_missing, n_cells = [], 0, 0
    for benchmark in job.settings.benchmarks:
        for recognizer in job.judges:
            for scorer, group in product(job.scorers(benchmark), ["", *job.groups(benchmark, recognizer)]):
                cells = [(k, c, d) for k, (c, d) in job.cells(benchmark, recognizer, scorer, group).items()]
                missing = [cell for cell in cells if not cell[2].finished_parts()]
                finished = [cell for cell in cells if cell not in missing]  # are verified again
                n_missing, n_cells = n_missing + len(missing), n_cells + len(cells)
                for chosen in filter(None, (missing, finished)):
                    shard = CellShard(
                        benchmark=benchmark,
                        scorer=scorer,
                        settings=job.settings.evaluate,
                        seed=job.settings.seed,
                        faces=job.faces(benchmark.name),
                        comparisons=job.comparisons(benchmark, recognizer),
                        cells=chosen,
                        embeddings=job.embeddings(benchmark.name, recognizer),
                        group=group,
                    )
                    steps.append(_step(shard))
    if n_missing:
        n_scores = sum(not step.dataset.finished_parts() for step in steps)
        note(f"evaluate: {n_missing:,} of {n_cells:,} cells to make, those of a score together: {n_scores:,} scores")
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
    units, pairs = Units.of(shard), _Pairs.of(shard)
    judged = _judged(shard, units, pairs)
    if judged is None:
        parts = [write_empty_cell(dataset) for _, _, dataset in shard.cells]
        return parts[0]
    name, cells = shard.scorer.key.scorer, {cell: convention for cell, convention, _ in shard.cells}
    identities = _identities(shard, units, pairs)
    areas = bootstrap_cells(
        pairs.similarity,
        pairs.mated,
        {} if judged.orders else {name: judged.qualities},
        cells,
        random_orders=judged.orders,
        limits=sorted({limit for c in cells.values() for limit in stored_limits(c, shard.settings.limits)}),
        identities=identities,
        images=(pairs.row_a, pairs.row_b),
        n_draws=shard.settings.draws if _has_intervals(cells.values(), pairs, identities) else 0,
        seed=shard.seed,
    )
    images = pairs.row_a, pairs.row_b
    by_seed = curves_of(pairs.similarity, pairs.mated, judged.by_seed, cells, images=images)
    return _write(shard, areas, by_seed, judged.n_unscored, started)


def _write(
    shard: CellShard, areas: AreaDraws, by_seed: Mapping[Cell, Sequence[EDC]], n_unscored: int, started: float
) -> Part:
    """Write all cells; `by_seed` are the curves of single trainings."""
    duration_s, name = (time.monotonic() - started) / len(shard.cells), shard.scorer.key.scorer
    parts = []
    for cell, convention, dataset in shard.cells:
        limits = stored_limits(convention, shard.settings.limits)
        parts.append(write_cell(dataset, areas, name, cell, limits, by_seed[cell], n_unscored, duration_s))
    return parts[0]


def _run_all_pairs(shard: CellShard, started: float) -> Part:
    """Make cells of all pairs of a large set, which are not listed. Memory: its embeddings and some 0.3 GB."""
    units, name = Units.of(shard), shard.scorer.key.scorer
    values, rows = columns.embedding_values(shard.embeddings.read_all(["image_row", "embedding"]))
    person = np.unique(units.persons(shard.faces), return_inverse=True)[1][rows]
    is_used = np.zeros(len(units.names), bool)
    is_used[rows] = True
    cells = {cell: convention for cell, convention, _ in shard.cells}
    qualities: dict[str, FloatArray] = {}
    orders, seeds, n_unscored = np.empty((0, 0)), np.empty((0, 0)), 0
    if shard.scorer.key.variant == RANDOM:
        names = units.names.filter(pa.array(is_used)).to_pylist()
        orders = random_qualities(names, shard.seed, n_random_orders(n_all_pairs(len(rows))))
    else:
        score, seeds = units.qualities(shard.scorer)
        if shard.scorer.key.variant == ORACLE and not np.isfinite(score[rows]).all():
            parts = [write_empty_cell(dataset) for _, _, dataset in shard.cells]
            return parts[0]
        score, n_unscored = _ranked_last(score, is_used, name)
        qualities[name] = score[rows]
    areas = all_pairs_areas(
        values,
        person,
        qualities,
        cells,
        random_orders=list(orders),
        limits=sorted({limit for _, c, _ in shard.cells for limit in stored_limits(c, shard.settings.limits)}),
        n_draws=shard.settings.draws,
    )
    of_seeds = [_ranked_last(column, is_used, name)[0][rows] for column in seeds.T]
    by_seed = [all_pairs_curves(values, person, quality, cells) for quality in of_seeds]
    return _write(shard, areas, {cell: [c[cell] for c in by_seed] for cell in cells}, n_unscored, started)


@dataclass(frozen=True)
class _Pairs:
    """The comparisons of a benchmark: `(L,)` rows of both units, kinds and similarities."""

    row_a: IntArray
    row_b: IntArray
    mated: np.ndarray
    similarity: FloatArray

    @classmethod
    def of(cls, shard: CellShard) -> _Pairs:
        """Read them."""
        names = ["image_row_a", "image_row_b", "mated", "similarity"]
        table = shard.comparisons.read_all([*names, "group"] if shard.group else names)
        if shard.group:
            table = table.filter(pc.equal(table["group"], shard.group)).select(names).combine_chunks()
        return cls(*(table[name].to_numpy() for name in table.column_names))

    def of_units(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the values of both units of each pair, from those of the units."""
        return values[self.row_a], values[self.row_b]


@dataclass(frozen=True)
class _Judged:
    """What is judged: qualities of both units of each pair, those of single trainings, or random orders.

    Attributes:
        qualities: Of the score; two empty arrays for random numbers.
        by_seed: Of each training of a regressor.
        orders: Random ones; empty for a score.
        n_unscored: Units without a score, which have got the lowest.
    """

    qualities: tuple[FloatArray, FloatArray]
    by_seed: list[tuple[FloatArray, FloatArray]]
    orders: list[tuple[FloatArray, FloatArray]]
    n_unscored: int


def _judged(shard: CellShard, units: Units, pairs: _Pairs) -> _Judged | None:
    """Read what is judged; None for a recorded truth that does not cover the units of the pairs."""
    is_used = np.zeros(len(units.names), bool)
    is_used[pairs.row_a] = is_used[pairs.row_b] = True
    key, nothing = shard.scorer.key, np.empty(0)
    if key.variant == RANDOM:
        names = units.names.filter(pa.array(is_used)).to_pylist()
        random = np.zeros((n_random_orders(len(pairs.mated)), len(is_used)))
        random[:, is_used] = random_qualities(names, shard.seed, len(random))
        return _Judged((nothing, nothing), [], [pairs.of_units(quality) for quality in random], 0)
    score, seeds = units.qualities(shard.scorer)
    if key.variant == ORACLE and not np.isfinite(score[is_used]).all():
        return None
    score, n_unscored = _ranked_last(score, is_used, key.scorer)
    by_seed = [pairs.of_units(_ranked_last(column, is_used, key.scorer)[0]) for column in seeds.T]
    return _Judged(pairs.of_units(score), by_seed, [], n_unscored)


@dataclass(frozen=True)
class Units:
    """What a benchmark compares: images, or templates of several.

    Attributes:
        names: Their names.
        image_id: The images.
        templates: The comparisons of templates, or None.
    """

    names: pa.Array
    image_id: pa.Array
    templates: Comparisons | None

    @classmethod
    def of(cls, shard: CellShard) -> Units:
        """Read the names of images, and of templates their list."""
        image_id = shard.faces.read_all(["image_id"])["image_id"].combine_chunks()
        if shard.benchmark.pairs.kind != "ijb":
            return cls(image_id, image_id, None)
        templates = match_pairs(shard.benchmark, image_id)
        return cls(templates.names(image_id), image_id, templates)

    def qualities(self, scorer: JudgedScore) -> tuple[FloatArray, FloatArray]:
        """Return the qualities `(U,)` of units, and those by each training seed, `(U, S)`; S is 0 without training."""
        score, seeds = scorer.scores(self.image_id), scorer.seed_scores()
        if self.templates is None:
            return score, seeds
        columns = [self.templates.qualities(column) for column in seeds.T]
        return self.templates.qualities(score), np.stack(columns, axis=1) if columns else seeds

    def persons(self, faces: Dataset) -> np.ndarray:
        """Return the person of each unit."""
        if self.templates is not None:
            return self.templates.subjects()
        return np.asarray(faces.read_all(["identity"])["identity"].to_numpy(zero_copy_only=False))


def _ranked_last(score: FloatArray, is_used: np.ndarray, name: str) -> tuple[FloatArray, int]:
    """Return scores with those that lack below all others, and the number of used images without one.

    An image that a method cannot score is the first to go.
    """
    is_scored = np.isfinite(score)
    if not is_scored[is_used].any():
        raise FiqaRayError(f"{name}: none of the images in the pairs has a score")
    return np.where(is_scored, score, score[is_scored].min() - 1), int((~is_scored[is_used]).sum())


def _has_intervals(
    conventions: Collection[Convention], pairs: _Pairs, identities: tuple[np.ndarray, np.ndarray] | None
) -> bool:
    """Return whether there are enough pairs, or persons of pairs, for any interval: draws for none would be in vain."""
    units = np.arange(len(pairs.mated)) if identities is None else identities[0]
    counted = [~pairs.mated if error == "fmr" else pairs.mated for error in {c.error for c in conventions}]
    return any(len(np.unique(units[rows])) >= MIN_UNITS for rows in counted)


def _identities(shard: CellShard, units: Units, pairs: _Pairs) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the persons of both units where persons are to be resampled, else None."""
    if shard.settings.resample == "pairs":
        return None
    names = units.persons(shard.faces)
    identities = names[pairs.row_a], names[pairs.row_b]
    # auto: a flat folder names no persons, and its identities contradict the pairs; so may a wrong label
    is_named = np.array_equal(identities[0] == identities[1], pairs.mated)
    return identities if is_named or shard.settings.resample == "identities" else None
