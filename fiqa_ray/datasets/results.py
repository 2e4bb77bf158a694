"""Results of an evaluation, each kind declared once: the row classes here are also the schemas of the stored tables.

A result has the key (benchmark, recognizer, scorer, convention, fmr): a cell. An undefined number is NaN in memory and null
in Parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.datasets.band_row import BandRow as BandRow
from fiqa_ray.datasets.cell_key import CellKey as CellKey
from fiqa_ray.datasets.cell_key import ScorerKey as ScorerKey
from fiqa_ray.datasets.group_row import GroupRateRow as GroupRateRow
from fiqa_ray.datasets.theta_row import ThetaRow as ThetaRow
from fiqa_ray.errors import FiqaRayError

BASELINE, UNOPTIMIZED, OPTIMIZED, GIVEN = "baseline", "unoptimized", "optimized", "given"
"""Variants of scores: a method's own, a regressor's on prior and on optimized labels, and further ones of the user."""
EDIFF = "ediff"
"""Variant of a regressor's scores on labels by eDifFIQA's rule, and the family that compares optimized labels with these."""
VARIANT_OF_LABELS = {"prior": UNOPTIMIZED, "optimized": OPTIMIZED, "ediff": EDIFF}
"""Variant of a regressor's scores, by what its labels are."""
RANDOM, ORACLE = "random", "oracle"
"""References, which never compete for the best: random numbers, and the recorded truth."""
GROUPED = ("edc", "bands", "auc", "differences", "verification")
"""Tables that there are of groups of people too: `group_auc` and so on, whose benchmarks are named "lfw: asian"."""
VARIANTS = (BASELINE, GIVEN, UNOPTIMIZED, OPTIMIZED, EDIFF, ORACLE, RANDOM)
"""All variants, in the order of a table's rows."""


@dataclass(frozen=True)
class EdcLine(CellKey):
    """One error-versus-discard curve, stored as one row per level.

    Attributes:
        discard_fraction: `(L,)` discarded share, rising; the convention says of what.
        fnmr: `(L,)` false non-match rate of the pairs left (FMR-EDC: false match rate); NaN where undefined.
        threshold: `(L,)` similarity threshold; NaN where undefined.
        n_mated: `(L,)` mated pairs left.
        n_nonmated: `(L,)` non-mated pairs left.
        n_false_nonmatches: `(L,)` mated pairs left that are rejected.
        n_allowed: `(L,)` false matches that the operating point allows among the pairs that set the threshold.
        n_false_matches: `(L,)` false matches among them that the threshold makes.
    """

    TABLE: ClassVar = "edc"
    LEVELS: ClassVar = (
        "discard_fraction",
        "fnmr",
        "threshold",
        "n_mated",
        "n_nonmated",
        "n_false_nonmatches",
        "n_allowed",
        "n_false_matches",
    )

    discard_fraction: NDArray[np.float64]
    fnmr: NDArray[np.float64]
    threshold: NDArray[np.float64]
    n_mated: NDArray[np.int64]
    n_nonmated: NDArray[np.int64]
    n_false_nonmatches: NDArray[np.int64]
    n_allowed: NDArray[np.int64]
    n_false_matches: NDArray[np.int64]


@dataclass(frozen=True)
class AucRow(CellKey):
    """Area under one curve up to a discard limit, with its bootstrap interval.

    The limits are those of the partial areas, and each curve's own: its end, or less where its pairs run out before.

    Attributes:
        fmr_achieved: False match rate before anything is discarded.
        fnmr_0: The rate that the curve shows, before anything is discarded.
        discard_limit: End of the area, a discarded share.
        is_own_limit: The limit is the curve's own.
        auc: The area; smaller is better.
        auc_low: Lower end of the interval; NaN where there is none.
        auc_high: Upper end.
        auc_normalized: The area divided by `fnmr_0` times the limit: 1 for a score that is worth nothing.
        auc_above_best: The area minus the smallest that these errors allow under a fixed threshold.
        fnmr_at_limit: The rate at the last level up to the limit.
        n_mated: Mated pairs.
        n_nonmated: Non-mated pairs.
        n_unscored: Images without a score, which count as the worst.
        interval: "interval", "upper limit" or "none", see `fiqa_ray.core.intervals`.
        reason: Why it is no interval; empty where it is one.
        level: Confidence of the interval.
        unit: What was resampled: "pairs" or "identities".
        n_draws: Bootstrap draws.
        draws_seed: Seed of the draws.
        n_undefined: Draws without a value, left out.
        is_leading: The area is the smallest of its column, or cannot be told apart from it.
    """

    TABLE: ClassVar = "auc"

    fmr_achieved: float
    fnmr_0: float
    discard_limit: float
    is_own_limit: bool
    auc: float
    auc_low: float
    auc_high: float
    auc_normalized: float
    auc_above_best: float
    fnmr_at_limit: float
    n_mated: int
    n_nonmated: int
    n_unscored: int = 0
    interval: str = "none"
    reason: str = ""
    level: float = 0.95
    unit: str = "pairs"
    n_draws: int = 0
    draws_seed: int = 0
    n_undefined: int = 0
    is_leading: bool = False


@dataclass(frozen=True)
class DifferenceRow:
    """Area of one scorer minus that of another on the same bootstrap draws; below 0 the first is better.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Recogniser whose errors are counted.
        convention: Convention of both curves.
        scorer_a: The first scorer, such as the regressor trained on optimized labels.
        scorer_b: The second, such as the regressor trained on prior labels.
        difference: The difference.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        fmr: False match rate that sets the threshold; null where a starting FNMR sets it.
        discard_limit: End of both areas: the largest that both curves have.
        method: FIQA method of the first scorer.
        theta: Step size of the first scorer's label optimization, or null.
        seed: Seed of the first scorer's training, or null.
        family: Name of the comparisons that are corrected together: one of `evaluate.compare`, "ediff" or "scorers".
        n_family: Comparisons with an interval in the family, over all benchmarks of the recogniser at this operating point.
        p_value: Two-sided bootstrap p-value of no difference; NaN without an interval.
        p_holm: The same after Holm's correction within the family.
        reason: Why there is no interval; empty where there is one.
        level: Confidence of the interval.
        unit: What was resampled: "pairs" or "identities".
        n_draws: Bootstrap draws.
        draws_seed: Seed of the draws.
        n_undefined: Draws without a value, left out.
        n_seeds: Trainings of each regressor that the row is the mean of; 0 where no training took part.
        pairs_sd: Standard deviation of the difference over the bootstrap draws, of the mean over the seeds.
        training_sd: Standard deviation of the difference over the seeds; NaN with fewer than two.
        p_training: Two-sided p-value of Student's t over the seeds; NaN with fewer than two.
    """

    TABLE: ClassVar = "differences"

    benchmark: str
    recognizer: str
    convention: str
    scorer_a: str
    scorer_b: str
    difference: float
    low: float
    high: float
    fmr: float = np.nan
    discard_limit: float = np.nan
    method: str = ""
    theta: float = np.nan
    seed: int | None = None
    family: str = "scorers"
    n_family: int = 0
    p_value: float = np.nan
    p_holm: float = np.nan
    reason: str = ""
    level: float = 0.95
    unit: str = "pairs"
    n_draws: int = 0
    draws_seed: int = 0
    n_undefined: int = 0
    n_seeds: int = 0
    pairs_sd: float = np.nan
    training_sd: float = np.nan
    p_training: float = np.nan


@dataclass(frozen=True)
class ConventionRow:
    """What a convention of the curves means, in the terms of `evaluate.conventions`.

    Attributes:
        convention: Its name.
        pool: What is discarded: "all" pairs, "mated" or "nonmated" pairs alone, or "images".
        threshold: "fixed", "recomputed" at each level, or "nearest_left": the similarity left nearest to the fixed one.
        count: Number of false matches: "below" the rate, "at_most" the rate, or "nearest" to it.
        accept: Whether a pair is accepted "above" the threshold, or also "at" it.
        step: Discarded share from level to level; null: each distinct quality is a level.
        ties: How equal qualities go: "cut" where the level falls, or "together".
        curve: "line" between levels, or "step": the left value is held.
        end: Discarded share at which the curve ends.
        starting_fnmr: FNMR before any discard that sets the threshold in place of an FMR, or null.
        error: Rate that is drawn: "fnmr", or "fmr" (FMR-EDC).
        summary: The convention in a sentence.
    """

    TABLE: ClassVar = "conventions"

    convention: str
    pool: str
    threshold: str
    count: str
    accept: str
    step: float
    ties: str
    curve: str
    end: float
    starting_fnmr: float
    error: str
    summary: str


@dataclass(frozen=True)
class RankingRow:
    """How far two conventions, or two rates of one, agree on which scores are better.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Recogniser whose errors are counted.
        convention_a: The first convention.
        fmr_a: Its false match rate, or null.
        convention_b: The second convention.
        fmr_b: Its false match rate, or null.
        tau: Kendall's tau-b of the areas up to the curves' own ends; 1: the same order, -1: the reverse.
        n_scorers: Scores that have both areas; random numbers and recorded truth are not among them.
        same_best: Whether the same score has the smallest area.
    """

    TABLE: ClassVar = "rankings"

    benchmark: str
    recognizer: str
    convention_a: str
    fmr_a: float
    convention_b: str
    fmr_b: float
    tau: float
    n_scorers: int
    same_best: bool


@dataclass(frozen=True)
class ExclusionRow:
    """A score that a benchmark leaves out on purpose; tables print "/".

    Attributes:
        benchmark: Name of the benchmark.
        method: Label of the method, or name of the score.
        reason: Why, in the user's words.
    """

    TABLE: ClassVar = "exclusions"

    benchmark: str
    method: str
    reason: str


@dataclass(frozen=True)
class VerificationRow:
    """What the recogniser is worth on a benchmark without any quality score, at one false match rate.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Name of the recogniser.
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
    recognizer: str
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


Row = TypeVar(
    "Row",
    AucRow,
    BandRow,
    DifferenceRow,
    GroupRateRow,
    ConventionRow,
    RankingRow,
    ExclusionRow,
    VerificationRow,
    CorrelationRow,
    ThetaRow,
)

_INTEGER = int | None
_ARROW = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    _INTEGER: pa.int64(),
    float: pa.float64(),
    NDArray[np.float64]: pa.float64(),
    NDArray[np.int64]: pa.int64(),
}


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
    columns = _columns(row_class, table)
    floats = [f.name for f in columns.schema if f.type == pa.float64()]
    rows = []
    for record in columns.to_pylist():
        rows.append(row_class(**record | {name: np.nan for name in floats if record[name] is None}))
    return rows


def edc_table(lines: Sequence[EdcLine]) -> pa.Table:
    """Return curves as a table with one row per level, with NaN as null."""
    schema = schema_of(EdcLine)
    if not lines:
        return schema.empty_table()
    n_levels = np.array([len(line.fnmr) for line in lines])
    columns = []
    for field in schema:
        values: list[Any] = [getattr(line, field.name) for line in lines]
        if field.name in EdcLine.LEVELS:
            columns.append(pa.array(np.concatenate(values), field.type, from_pandas=True))
        else:
            rows = pa.array(np.repeat(np.arange(len(lines)), n_levels))
            columns.append(pa.array(values, field.type, from_pandas=True).take(rows))
    return pa.table(columns, schema)


def edc_lines(table: pa.Table) -> list[EdcLine]:
    """Return the curves of a table with one row per level, in order of first appearance.

    The rows of a curve may lie anywhere; they are sorted by discard fraction.

    Raises:
        FiqaRayError: The table lacks a column.
    """
    columns = _columns(EdcLine, table)
    keys = [name for name in columns.column_names if name not in EdcLine.LEVELS]
    numbered = columns.select(keys).append_column("row", pa.array(np.arange(len(columns))))
    groups = numbered.group_by(keys, use_threads=False).aggregate([("row", "list")])
    values = [columns[name].to_numpy() for name in EdcLine.LEVELS]
    lines = []
    for key in groups.to_pylist():
        rows = np.array(key.pop("row_list"))
        order = rows[np.argsort(values[0][rows], kind="stable")]
        key |= {name: np.nan for name in ("theta", "fmr") if key[name] is None}
        lines.append(EdcLine(**key, **{n: v[order] for n, v in zip(EdcLine.LEVELS, values, strict=True)}))
    return lines


def _columns(row_class: type, table: pa.Table) -> pa.Table:
    names = schema_of(row_class).names
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise FiqaRayError(f"results ({row_class.TABLE}): the table lacks {', '.join(missing)}")  # type: ignore[attr-defined]
    return table.select(names)
