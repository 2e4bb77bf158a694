"""A cell of the matrix on storage: the curve of one score under one convention and rate, and its bootstrap draws.

A cell holds no names: a job says what its score is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fiqa_ray.core.bootstrap import AreaDraws
from fiqa_ray.core.conventions import Cell, Convention
from fiqa_ray.core.edc import EDC
from fiqa_ray.core.intervals import MIN_UNITS, Errors
from fiqa_ray.core.verification import FloatArray
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.results import EdcLine


@dataclass(frozen=True)
class StoredCell:
    """A cell as it was read.

    Attributes:
        curve: The curve.
        draws: Limit -> `(n_draws,) float64` areas, NaN where undefined.
        errors: What the curve stands on.
        n_units: What the pairs were drawn from whose errors it counts.
        n_nonmated: Non-mated pairs.
        n_unscored: Images without a score.
        unit: What was drawn: "pairs" or "identities".
        seed_areas: Limit -> `(S,)` areas of the single trainings of a regressor; empty without training.
    """

    curve: EDC
    draws: dict[float, FloatArray]
    errors: Errors
    n_units: int
    n_nonmated: int
    n_unscored: int
    unit: str
    seed_areas: dict[float, FloatArray]


def write_cell(
    dataset: Dataset,
    areas: AreaDraws,
    scorer: str,
    cell: Cell,
    limits: Sequence[float],
    by_seed: Sequence[EDC],
    n_unscored: int,
    duration_s: float,
) -> Part:
    """Write one cell: its curve, its draws (a column per limit), and what intervals need beside them.

    `by_seed` holds the curves of the single trainings of a regressor, whose mean score is judged.
    """
    draws = {repr(limit): areas.draws[scorer, cell, limit] for limit in limits}
    curve = areas.curves[scorer, cell]
    files = {
        ".parquet": pa.table({name: pa.array(getattr(curve, name), from_pandas=True) for name in EdcLine.LEVELS}),
        ".draws.parquet": pa.table({k: pa.array(v.astype(np.float32), from_pandas=True) for k, v in draws.items()}),
    }
    if by_seed:
        areas_by_seed = {repr(limit): [curve_of_seed.auc(limit) for curve_of_seed in by_seed] for limit in limits}
        files[".seeds.parquet"] = pa.table(
            {k: pa.array(v, pa.float64(), from_pandas=True) for k, v in areas_by_seed.items()}
        )
    facts = {
        "n_tied": curve.n_tied,
        "n_wrong": areas.errors[cell].n_wrong,
        "n_units": areas.n_units[cell],
        "n_nonmated": areas.settings.n_nonmated,
        "n_unscored": n_unscored,
        "is_by_identity": int(areas.settings.unit == "identities"),
    }
    return dataset.write_part(0, files, n_rows=1, stats=facts, duration_s=duration_s)


def write_empty_cell(dataset: Dataset) -> Part:
    """Write a cell of a recorded truth that does not cover the images of the benchmark's pairs."""
    return dataset.write_part(0, {".parquet": pa.table({})}, n_rows=1)


def read_cell(dataset: Dataset, cell: Cell, convention: Convention) -> StoredCell | None:
    """Return a cell that `write_cell` wrote; None for an empty one."""
    (part,) = dataset.require().parts
    if not part.stats:
        return None
    table = dataset.read(part)
    levels = {name: table[name].to_numpy() for name in EdcLine.LEVELS}
    fmr, facts = cell[1], part.stats
    draws = _by_limit(dataset.read(part, suffix=".draws.parquet"))
    if facts["n_units"] < MIN_UNITS:  # no interval: other cells may hold no draws, and all must have as many
        draws = {limit: np.empty(0) for limit in draws}
    has_seeds = any(name.endswith(".seeds.parquet") for name in part.files)
    return StoredCell(
        curve=EDC(convention=convention, fmr=fmr, n_tied=facts["n_tied"], **levels),
        draws=draws,
        errors=Errors(fmr, facts["n_wrong"]),
        n_units=facts["n_units"],
        n_nonmated=facts["n_nonmated"],
        n_unscored=facts["n_unscored"],
        unit="identities" if facts["is_by_identity"] else "pairs",
        seed_areas=_by_limit(dataset.read(part, suffix=".seeds.parquet")) if has_seeds else {},
    )


def _by_limit(table: pa.Table) -> dict[float, FloatArray]:
    """Return the columns of a table by the limits that are their names."""
    columns = zip(table.column_names, table.columns, strict=True)
    return {float(name): column.to_numpy().astype(np.float64) for name, column in columns}
