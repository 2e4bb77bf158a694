"""Results of an evaluation, each kind declared once: the row classes here are also the schemas of the stored tables.

An undefined number is NaN in memory and null in Parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError


@dataclass(frozen=True)
class EdcLine:
    """One error-versus-discard curve, stored as one row per level.

    Attributes:
        benchmark: Name of the benchmark.
        fr: Name of the recogniser.
        scorer: Name of the quality score.
        convention: "paper", "nearest" or "dasec", see `fiqa_ray.core.edc`.
        fmr_target: False match rate that sets the threshold.
        discard_fraction: `(L,)` discarded share of the pairs, rising.
        fnmr: `(L,)` false non-match rate of the pairs left; NaN where undefined.
        threshold: `(L,)` similarity threshold; NaN where undefined.
    """

    TABLE: ClassVar = "edc"
    LEVELS: ClassVar = ("discard_fraction", "fnmr", "threshold")

    benchmark: str
    fr: str
    scorer: str
    convention: str
    fmr_target: float
    discard_fraction: NDArray[np.float64]
    fnmr: NDArray[np.float64]
    threshold: NDArray[np.float64]


@dataclass(frozen=True)
class AucRow:
    """Area under one curve up to a discard limit, with its bootstrap interval.

    The limits are those of the partial areas, and each curve's own: 0.95 or 1, or less where its pairs run out before.

    Attributes:
        benchmark: Name of the benchmark.
        fr: Name of the recogniser.
        scorer: Name of the quality score.
        convention: Convention of the curve.
        fmr_target: False match rate that sets the threshold.
        fmr_achieved: False match rate before anything is discarded.
        discard_limit: End of the area, a share of the pairs.
        auc: The area; smaller is better.
        auc_low: Lower end of the interval; NaN where there is none.
        auc_high: Upper end.
        n_mated: Mated pairs.
        n_nonmated: Non-mated pairs.
        interval: "interval", "upper limit" or "none", see `fiqa_ray.core.intervals`.
        reason: Why it is no interval; empty where it is one.
        level: Confidence of the interval.
        unit: What was resampled: "pairs" or "identities".
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
        n_undefined: Draws without a value, left out.
        is_leading: The area is the smallest of its column, or cannot be told apart from it.
    """

    TABLE: ClassVar = "auc"

    benchmark: str
    fr: str
    scorer: str
    convention: str
    fmr_target: float
    fmr_achieved: float
    discard_limit: float
    auc: float
    auc_low: float
    auc_high: float
    n_mated: int
    n_nonmated: int
    interval: str = "none"
    reason: str = ""
    level: float = 0.95
    unit: str = "pairs"
    n_draws: int = 0
    seed: int = 0
    n_undefined: int = 0
    is_leading: bool = False


@dataclass(frozen=True)
class DifferenceRow:
    """Area of one scorer minus that of another on the same bootstrap draws; below 0 the first is better.

    Attributes:
        benchmark: Name of the benchmark.
        fr: Name of the recogniser.
        convention: Convention of both curves.
        scorer_a: The first scorer, such as the regressor trained on optimized labels.
        scorer_b: The second, such as the regressor trained on prior labels.
        difference: The difference.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        fmr_target: False match rate that sets the threshold.
        discard_limit: End of both areas: the largest that both curves have.
        family: Name of the comparisons that are corrected together: "baseline", "unoptimized", "random" or "scorers".
        p_value: Two-sided bootstrap p-value of no difference; NaN without an interval.
        p_holm: The same after Holm's correction within the family on this benchmark.
        reason: Why there is no interval; empty where there is one.
        level: Confidence of the interval.
        unit: What was resampled: "pairs" or "identities".
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
        n_undefined: Draws without a value, left out.
    """

    TABLE: ClassVar = "differences"

    benchmark: str
    fr: str
    convention: str
    scorer_a: str
    scorer_b: str
    difference: float
    low: float
    high: float
    fmr_target: float = np.nan
    discard_limit: float = np.nan
    family: str = "scorers"
    p_value: float = np.nan
    p_holm: float = np.nan
    reason: str = ""
    level: float = 0.95
    unit: str = "pairs"
    n_draws: int = 0
    seed: int = 0
    n_undefined: int = 0


@dataclass(frozen=True)
class VerificationRow:
    """What the recogniser is worth on a benchmark without any quality score, at one false match rate.

    Attributes:
        benchmark: Name of the benchmark.
        fr: Name of the recogniser.
        accuracy_mean: Mean accuracy over the folds; NaN where the protocol has none.
        accuracy_std: Standard deviation over the folds.
        tar_at_fmr: True accept rate at `fmr`.
        fmr: The false match rate.
        threshold: Similarity threshold at `fmr`.
        eer: Equal error rate.
        n_mated: Mated pairs.
        n_nonmated: Non-mated pairs.
    """

    TABLE: ClassVar = "verification"

    benchmark: str
    fr: str
    accuracy_mean: float
    accuracy_std: float
    tar_at_fmr: float
    fmr: float
    threshold: float
    eer: float
    n_mated: int
    n_nonmated: int


@dataclass(frozen=True)
class CorrelationRow:
    """Spearman's rho between a score and the recorded true quality; 1 where the score follows it perfectly.

    Attributes:
        benchmark: Name of the benchmark.
        scorer: Name of the quality score.
        kind: One kind of degradation, or "all".
        spearman: The correlation.
        n: Images.
    """

    TABLE: ClassVar = "correlations"

    benchmark: str
    scorer: str
    kind: str
    spearman: float
    n: int


Row = TypeVar("Row", AucRow, DifferenceRow, VerificationRow, CorrelationRow)

_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), NDArray[np.float64]: pa.float64()}


def schema_of(row_class: type) -> pa.Schema:
    """Return the Parquet schema of a class of rows, or of curves with one row per level."""
    types = get_type_hints(row_class)
    return pa.schema([(f.name, _ARROW[types[f.name]]) for f in fields(row_class)])


def table_of(row_class: type[Row], rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table of `schema_of(row_class)`, with NaN as null."""
    schema = schema_of(row_class)
    columns = [[getattr(row, f.name) for row in rows] for f in schema]
    return pa.table([pa.array(c, f.type, from_pandas=True) for c, f in zip(columns, schema, strict=True)], schema)


def rows_of(row_class: type[Row], table: pa.Table) -> list[Row]:
    """Return the rows of a table that `table_of` made, with null as NaN.

    Raises:
        FiqaRayError: The table lacks a column.
    """
    rows = []
    for record in _columns(row_class, table).to_pylist():
        values: dict[str, Any] = {k: np.nan if v is None else v for k, v in record.items()}
        rows.append(row_class(**values))
    return rows


def edc_table(lines: Sequence[EdcLine]) -> pa.Table:
    """Return curves as a table with one row per level, with NaN as null."""
    schema = schema_of(EdcLine)
    if not lines:
        return schema.empty_table()
    n_levels = [len(line.fnmr) for line in lines]
    columns = []
    for field in schema:
        values: list[Any] = [getattr(line, field.name) for line in lines]
        if field.name in EdcLine.LEVELS:
            column = np.concatenate(values)
        else:
            column = np.repeat(np.array(values, dtype=object), n_levels)
        columns.append(pa.array(column, field.type, from_pandas=True))
    return pa.table(columns, schema)


def edc_lines(table: pa.Table) -> list[EdcLine]:
    """Return the curves of a table with one row per level, in order of first appearance.

    The rows of a curve may lie anywhere; they are sorted by discard fraction.

    Raises:
        FiqaRayError: The table lacks a column.
    """
    columns = _columns(EdcLine, table)
    keys = columns.select([n for n in columns.column_names if n not in EdcLine.LEVELS])
    values = [columns[n].to_numpy() for n in EdcLine.LEVELS]
    rows_of_curve: dict[tuple[Any, ...], list[int]] = {}
    for i, record in enumerate(keys.to_pylist()):
        rows_of_curve.setdefault(tuple(record.values()), []).append(i)
    lines = []
    for key, rows in rows_of_curve.items():
        order = np.array(rows)[np.argsort(values[0][rows], kind="stable")]
        lines.append(EdcLine(*key, *(v[order] for v in values)))
    return lines


def _columns(row_class: type, table: pa.Table) -> pa.Table:
    names = schema_of(row_class).names
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise FiqaRayError(f"results ({row_class.TABLE}): the table lacks {', '.join(missing)}")  # type: ignore[attr-defined]
    return table.select(names)
