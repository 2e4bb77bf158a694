"""What a report shows: plain rows and arrays, filled by the caller from its tables.

Scores are larger-is-better; rates, areas and fractions lie in [0, 1]; the page prints areas times 1000, as the paper's
tables do. Fields that a run does not have stay empty, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.errors import FiqaRayError

Row = TypeVar("Row")


@dataclass(frozen=True)
class StageRow:
    """One stage of the run: rows in, rows that failed with the number per reason, wall time in seconds."""

    name: str
    n_rows: int
    n_failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    duration_s: float = float("nan")


@dataclass(frozen=True)
class ModelRow:
    """One network that took part: its name, checkpoint file, SHA-256 of the file in hex, licence as published."""

    name: str
    file: str = ""
    sha256: str = ""
    licence: str = ""


@dataclass(frozen=True)
class LabelSummary:
    """Label optimization of one FIQA method at one theta.

    Attributes:
        method: FIQA method of the prior scores.
        theta: weight of the update; ``theta_effective`` is what it amounts to on the index scale in use.
        prior_score, optimized_score: (n_sample,) float, the same images in both; at most some 20 000, drawn by the
            caller.
        histogram_counts, histogram_edges: (n_bins,) and (n_bins + 1,), prior scores of all images.
        n_images: images in the database; ``n_without_pairs`` of them own no pair and keep their index.
        mean_index_move: mean absolute change of the quality index as a fraction of n_images.
    """

    method: str
    theta: float
    theta_effective: float
    prior_score: ArrayLike
    optimized_score: ArrayLike
    histogram_counts: ArrayLike
    histogram_edges: ArrayLike
    n_images: int
    n_without_pairs: int
    mean_index_move: float


@dataclass(frozen=True)
class EdcLine:
    """One curve: a scorer on a benchmark with one recogniser; arrays (n_levels,), NaN where FNMR is undefined.

    ``convention`` is "paper", "nearest" or "dasec" (see fiqa_ray.core.edc); ``threshold`` is not drawn.
    """

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
    """Area under one curve up to ``discard_limit`` with its bootstrap interval; NaN where undefined or not made."""

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


@dataclass(frozen=True)
class DifferenceRow:
    """AUC of ``scorer_a`` minus AUC of ``scorer_b`` on the same draws, with its interval; below zero: a is better.

    By custom a is the regressor trained on optimized labels and b the one trained on prior labels.
    """

    benchmark: str
    convention: str
    scorer_a: str
    scorer_b: str
    difference: float
    low: float
    high: float
    fr: str = ""


@dataclass(frozen=True)
class VerificationRow:
    """Sanity of one recogniser on one benchmark, independent of quality.

    ``tar_at_fmr`` is the true accept rate at the false match rate ``fmr``; ``threshold`` the similarity in use there.
    Histogram: ``edges`` (n_bins + 1,), ``mated_counts`` and ``nonmated_counts`` (n_bins,), pairs by similarity.
    """

    benchmark: str
    fr: str
    accuracy_mean: float
    accuracy_std: float
    tar_at_fmr: float
    fmr: float
    eer: float
    threshold: float = float("nan")
    edges: ArrayLike = ()
    mated_counts: ArrayLike = ()
    nonmated_counts: ArrayLike = ()


@dataclass(frozen=True)
class CorrelationRow:
    """Spearman correlation of a score with the recorded true quality, over ``n`` images.

    ``kind`` is one kind of degradation or "all". A score that follows the true quality perfectly has 1.
    """

    scorer: str
    kind: str
    spearman: float
    n: int


@dataclass(frozen=True)
class Face:
    """One picture: PNG or JPEG bytes, its score, a few words."""

    image: bytes
    score: float
    caption: str = ""


@dataclass(frozen=True)
class FaceStrip:
    """The best and the worst faces by one scorer, best or worst first."""

    scorer: str
    best: Sequence[Face]
    worst: Sequence[Face]


@dataclass(frozen=True)
class ReportData:
    """Everything that `render_report` prints.

    Attributes:
        title: heading of the page.
        code_version: version of the code that made the results, with its commit where known.
        created: date and time as text; empty leaves it out, so that equal data give equal pages.
        settings: what ran, in reading order: data set, recogniser, methods, theta, C, R, seed, ... Nested mappings
            are shown with dotted names.
        stages, models, labels, edc, auc, differences, verification, correlations, faces: see the row classes.
        notes: sentences about limits and oddities of this run.
    """

    title: str
    code_version: str
    created: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageRow] = ()
    models: Sequence[ModelRow] = ()
    labels: Sequence[LabelSummary] = ()
    edc: Sequence[EdcLine] = ()
    auc: Sequence[AucRow] = ()
    differences: Sequence[DifferenceRow] = ()
    verification: Sequence[VerificationRow] = ()
    correlations: Sequence[CorrelationRow] = ()
    faces: Sequence[FaceStrip] = ()
    notes: Sequence[str] = ()


def rows_from(row_class: type[Row], table: Any) -> list[Row]:
    """Rows of ``row_class`` from a pyarrow table or any iterable of mappings; further columns are ignored.

    Raises:
        FiqaRayError: a column that the class needs is missing.
    """
    records: Iterable[Mapping[str, Any]] = table.to_pylist() if hasattr(table, "to_pylist") else table
    known = {f.name: f for f in fields(row_class)}  # type: ignore[arg-type]
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    rows = []
    for i, record in enumerate(records):
        missing = sorted(needed - record.keys())
        if missing:
            raise FiqaRayError(f"report: row {i} for {row_class.__name__} lacks {', '.join(missing)}")
        rows.append(row_class(**{name: value for name, value in record.items() if name in known}))
    return rows


def edc_lines(table: Any) -> list[EdcLine]:
    """Curves from a pyarrow table or a mapping of columns with one row per level, in order of first appearance.

    Columns: benchmark, fr, scorer, convention, fmr_target, discard_fraction, fnmr, threshold. Rows of one curve may
    lie anywhere; they are sorted by discard fraction.

    Raises:
        FiqaRayError: a column is missing.
    """
    columns: Mapping[str, Sequence[Any]] = table.to_pydict() if hasattr(table, "to_pydict") else table
    names = [f.name for f in fields(EdcLine)]
    missing = [name for name in names if name not in columns]
    if missing:
        raise FiqaRayError(f"report: the table of curves lacks {', '.join(missing)}")
    rows_of: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(zip(*(columns[name] for name in names[:5]), strict=True)):
        rows_of.setdefault(key, []).append(i)
    values = [np.array([np.nan if v is None else v for v in columns[name]], dtype=np.float64) for name in names[5:]]
    lines = []
    for key, rows in rows_of.items():
        order = np.array(rows)[np.argsort(values[0][rows], kind="stable")]
        lines.append(EdcLine(*key, *(column[order] for column in values)))
    return lines
