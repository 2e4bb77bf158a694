"""What a report shows: rows and arrays that the caller fills in from its tables.

A larger score is better. Rates, areas and fractions lie in [0, 1]; the page prints areas times 1000, as the paper's tables
do. Fields that a run does not have stay empty, and the page says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from fiqa_ray.datasets.results import (
    AucRow,
    ConventionRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    GroupRateRow,
    ThetaRow,
    VerificationRow,
)


@dataclass(frozen=True)
class StageRow:
    """One stage of the run.

    Attributes:
        name: Name of the stage and what it worked on.
        n_rows: Rows in.
        n_failed: Rows that failed.
        reasons: Failed rows by reason.
        duration_s: Sum of the parts' wall times in seconds.
    """

    name: str
    n_rows: int
    n_failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    duration_s: float = float("nan")


@dataclass(frozen=True)
class ModelRow:
    """One network that took part.

    Attributes:
        name: Its name.
        file: Name of the checkpoint.
        sha256: SHA-256 of the checkpoint in hex.
        licence: Licence as published.
    """

    name: str
    file: str = ""
    sha256: str = ""
    licence: str = ""


@dataclass(frozen=True)
class LabelSummary:
    """Label optimization of one FIQA method at one theta.

    Attributes:
        method: FIQA method of the prior scores.
        theta: Weight of the update.
        theta_effective: What theta amounts to on the index scale in use.
        prior_score: `(S,)` prior scores of a sample of some 20,000 images at most.
        optimized_score: `(S,)` their optimized scores.
        histogram_counts: `(B,)` images by prior score, of the whole database.
        histogram_edges: `(B + 1,)` edges of the bins.
        n_images: Images in the database.
        n_without_pairs: Images that own no pair and keep their index.
        mean_move: By how many ranks an image moved on average, as a share of all ranks.
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
    mean_move: float


@dataclass(frozen=True)
class EdiffSummary:
    """Labels of one FIQA method by eDifFIQA's rule.

    Attributes:
        method: FIQA method of the prior scores.
        threshold: Prior score from which an image counts as good.
        n_images: Images in the database.
        n_good: Good images.
        n_labelled: Images with a label: those of people with enough good images.
        mean_label: Mean of the labels.
    """

    method: str
    threshold: float
    n_images: int
    n_good: int
    n_labelled: int
    mean_label: float


@dataclass(frozen=True)
class SimilarityHistogram:
    """Similarities of a benchmark's mated and non-mated pairs under one recogniser.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Name of the recogniser.
        threshold: Similarity threshold in use.
        edges: `(B + 1,)` edges of the bins.
        mated_counts: `(B,)` mated pairs.
        nonmated_counts: `(B,)` non-mated pairs.
    """

    benchmark: str
    recognizer: str
    threshold: float
    edges: ArrayLike
    mated_counts: ArrayLike
    nonmated_counts: ArrayLike


@dataclass(frozen=True)
class Face:
    """One picture: PNG or JPEG bytes, its score and a caption."""

    image: bytes
    score: float
    caption: str = ""


@dataclass(frozen=True)
class FaceRow:
    """Some faces side by side, such as the worst by a scorer."""

    name: str
    faces: Sequence[Face]


@dataclass(frozen=True)
class FaceStrip:
    """Rows of faces under one title, such as those of one scorer."""

    title: str
    rows: Sequence[FaceRow]


@dataclass(frozen=True)
class ReportData:
    """Everything that `render_report` prints.

    Attributes:
        title: Heading of the page.
        code_version: Version of the code that made the results, with its commit where known.
        created: Date and time as text; empty leaves it out, so that equal data give equal pages.
        settings: What ran, in reading order. Nested mappings are shown with dotted names.
        stages: Stages of the run in their order.
        models: Networks that took part.
        labels: Label optimization, per method and theta.
        ediff: Labels by eDifFIQA's rule, per method, where the job makes them.
        thetas: What each candidate theta is worth on held-out people, where theta was chosen so.
        signs: Sentences on methods whose scores may have the wrong sign.
        edc: Error-versus-discard curves.
        conventions: What the conventions of the curves mean.
        auc: Areas under them.
        differences: Paired differences of areas.
        verification: What the recogniser is worth, per benchmark and false match rate.
        similarities: Histograms of the pairs' similarities.
        correlations: Correlations with the recorded true quality.
        group_rates: Error rates of groups of people at one threshold.
        group_auc: Areas of groups, whose benchmarks are named such as "lfw: asian".
        group_differences: Differences of areas of groups.
        faces: Faces by decile of each score, and those that label optimization moved most.
        notes: Sentences about limits and oddities of this run.
    """

    title: str
    code_version: str
    created: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageRow] = ()
    models: Sequence[ModelRow] = ()
    labels: Sequence[LabelSummary] = ()
    ediff: Sequence[EdiffSummary] = ()
    thetas: Sequence[ThetaRow] = ()
    signs: Sequence[str] = ()
    edc: Sequence[EdcLine] = ()
    conventions: Sequence[ConventionRow] = ()
    auc: Sequence[AucRow] = ()
    differences: Sequence[DifferenceRow] = ()
    verification: Sequence[VerificationRow] = ()
    similarities: Sequence[SimilarityHistogram] = ()
    correlations: Sequence[CorrelationRow] = ()
    group_rates: Sequence[GroupRateRow] = ()
    group_auc: Sequence[AucRow] = ()
    group_differences: Sequence[DifferenceRow] = ()
    faces: Sequence[FaceStrip] = ()
    notes: Sequence[str] = ()
