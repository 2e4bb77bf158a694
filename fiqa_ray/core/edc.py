"""Error versus discard characteristic (EDC; the paper's ERC, section IV) and the area under it.

A pair is as good as its worse image, Q = min(q_a, q_b). Pairs are discarded from the lowest Q upwards; FNMR(r) is the
share of the mated pairs left at discard fraction r that are not accepted, acceptance being `similarity > threshold`
at a target false match rate (FMR). AUC = integral of FNMR(r) dr; lower is better. Three conventions are in use:

    paper    Discards from all pairs, levels r = 0, 0.05, ..., 0.95 (floor(k*n/20) pairs go). At every level the
             threshold is set again: the (m+1)-th largest similarity of the non-mated pairs left, with
             m = max(0, ceil(fmr * n_nonmated) - 1), so the FMR stays below the target. Trapezoid over [0, 0.95].
             Equals IrvingMeng/MagFace eval/eval_quality/eval_quality.py wherever that gives a value.
    nearest  As `paper`, but the threshold is the lowest of the similarities left whose FMR, counted with >=, is
             nearest to the target (fdbtrs/CR-FIQA ERC/erc.py, ERC/roc.py). It is often a mated similarity, and
             that pair then counts as an error.
    dasec    Discards from the mated pairs only; one threshold from all pairs (`threshold_at_fmr`); equal qualities go
             together; a step curve closed at (1, 0) (dasec/quality-assessment-evaluation edc.py).

Values of different conventions must not be compared.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fiqa_ray.core.kernels.discard import N_LEVELS, number_copies, recomputed_levels
from fiqa_ray.core.verification import (
    BoolArray,
    FloatArray,
    IntArray,
    allowed_false_matches,
    check_finite,
    check_pairs,
    exact_fmr,
)
from fiqa_ray.errors import FiqaRayError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Convention:
    """What a reader of a curve must know of its convention.

    Attributes:
        summary: The convention in a sentence.
        end: Discard fraction at which the curve ends.
        is_stepped: Whether the curve is drawn in steps that hold the left value, not in straight lines between levels.
        discards: What is discarded.
    """

    summary: str
    end: float
    is_stepped: bool
    discards: str


_LAST_LEVEL = (N_LEVELS - 1) / N_LEVELS

CONVENTIONS: dict[str, Convention] = {
    "paper": Convention(
        "“paper” discards from all pairs in steps of 5 % and sets a new threshold at every step, so that the FMR "
        "stays below its target; straight lines, area over [0, 0.95].",
        end=_LAST_LEVEL,
        is_stepped=False,
        discards="pairs",
    ),
    "dasec": Convention(
        "“dasec” discards from the mated pairs only, keeps one threshold and lets equal qualities go together; "
        "steps, area over [0, 1] unless a limit is given.",
        end=1.0,
        is_stepped=True,
        discards="mated pairs",
    ),
    "nearest": Convention(
        "“nearest” discards as “paper” does, but takes the threshold whose FMR is nearest to the target (CR-FIQA); "
        "straight lines, area over [0, 0.95].",
        end=_LAST_LEVEL,
        is_stepped=False,
        discards="pairs",
    ),
}
"""The conventions above by name; `config.EvaluateSettings` lists the names that a job may ask for."""


@dataclass(frozen=True, repr=False)
class EDC:
    """One curve; all arrays are (n_levels,), one entry per discard level, in rising order of `discard_fraction`.

    Attributes:
        convention: "paper", "dasec" or "nearest".
        fmr: target false match rate.
        discard_fraction: float64 in [0, 1]; of all pairs (paper, nearest) or of the mated pairs (dasec).
        fnmr: float64 in [0, 1]; NaN where no mated or no non-mated pair is left.
        threshold: float64 in use at the level (dasec: the same everywhere); NaN where FNMR is.
        n_mated, n_nonmated: int64, pairs left.
        n_false_nonmatches, n_false_matches: int64, wrong decisions among the pairs left; 0 where FNMR is NaN.
        n_tied: pairs whose quality some other pair shares; where the grid cuts through them, input order decides.
    """

    convention: str
    fmr: float
    discard_fraction: FloatArray
    fnmr: FloatArray
    threshold: FloatArray
    n_mated: IntArray
    n_nonmated: IntArray
    n_false_nonmatches: IntArray
    n_false_matches: IntArray
    n_tied: int

    def __repr__(self) -> str:
        limit = self.defined_limit
        area = f"area {self.auc(limit):.4g} up to {limit:g}" if limit > 0 else "no area"
        return (
            f"<EDC {self.convention}, FMR {self.fmr:g}: {area}, FNMR {self.fnmr[0]:.4g} before anything is discarded, "
            f"{int(self.n_mated[0]):,} mated and {int(self.n_nonmated[0]):,} non-mated pairs>"
        )

    def plot(self, axes: Axes | None = None, *, label: str | None = None) -> Axes:
        """Draw the curve.

        Args:
            axes: matplotlib's, to draw several curves together; default: new ones.
            label: name of the score in the legend; its area is added.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        if axes is None:
            axes = plt.subplots(figsize=(5, 3.5), layout="constrained")[1]
        area = 1000 * self.auc(self.defined_limit) if self.defined_limit > 0 else float("nan")
        style = "steps-post" if CONVENTIONS[self.convention].is_stepped else "default"
        text = f"{label}: {area:.1f}" if label else f"area x 1000: {area:.1f}"
        axes.plot(self.discard_fraction, self.fnmr, drawstyle=style, label=text)
        discards = CONVENTIONS[self.convention].discards
        axes.set(xlabel=f"share of {discards} discarded", ylabel=f"false non-match rate at FMR {self.fmr:g}")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return axes

    @property
    def fmr_achieved(self) -> float:
        """Return the false match rate before anything is discarded, in [0, 1]; 0 where the target is below one pair."""
        return float(self.n_false_matches[0] / self.n_nonmated[0])

    @property
    def end(self) -> float:
        """Return the discard fraction at which the curve ends: 0.95 (paper, nearest) or 1 (dasec)."""
        return float(self.discard_fraction[-1])

    @property
    def defined_limit(self) -> float:
        """Return the largest discard fraction up to which FNMR is defined everywhere: `auc(defined_limit)` is not NaN."""
        undefined = np.flatnonzero(np.isnan(self.fnmr))
        return float(self.discard_fraction[max(0, undefined[0] - 1)]) if undefined.size else self.end

    def auc(self, limit: float | None = None) -> float:
        """Area below the curve over [0, limit], in [0, 1]; the paper's tables print 1000 times this value.

        Straight lines between the levels (paper, nearest) or steps that hold the left value (dasec). NaN if FNMR is
        undefined within the range; see `defined_limit`. A limit below `end` gives the partial area (pAUC).

        Raises:
            UsageError: `limit` is not inside (0, end].
        """
        limit = self.end if limit is None else limit
        check_limit(self.convention, limit)
        x, y = self.discard_fraction, self.fnmr
        if self.convention == "dasec":
            inside = x < limit
            return float(np.sum(np.diff(np.append(x[inside], limit)) * y[inside]))
        weights = level_weights(limit)
        return float(weights @ y[: weights.size])

    def best_auc(self, limit: float | None = None) -> float:
        """`theoretical_best` for this curve: the area that no scorer undercuts under fixed errors."""
        return theoretical_best(float(self.fnmr[0]), self.end if limit is None else limit)


def end_of(convention: str) -> float:
    """Return the discard fraction at which a convention's curve ends."""
    return CONVENTIONS[convention].end


def check_limit(convention: str, limit: float) -> None:
    """Raise UsageError unless `limit` lies inside the range of the convention's curve."""
    if not 0 < limit <= end_of(convention):
        raise UsageError(
            f"limit={limit} is outside (0, {end_of(convention):g}], the range of the {convention!r} curve: "
            "give a discard fraction inside it, or none for the whole curve"
        )


def level_weights(limit: float) -> FloatArray:
    """Return the weights of FNMR at the first levels whose sum is the area up to `limit` below straight lines."""
    x = np.arange(N_LEVELS) / N_LEVELS
    beyond = int((x < limit).sum())
    edges = np.append(x[:beyond], limit)
    weights = np.zeros(beyond + 1)
    weights[:-1] += np.diff(edges) / 2
    weights[1:] += np.diff(edges) / 2
    share = (limit - x[beyond - 1]) * N_LEVELS  # FNMR at the limit lies so far between its neighbours
    weights[beyond - 1] += weights[beyond] * (1 - share)
    weights[beyond] *= share
    return weights


def theoretical_best(fnmr_0: float, limit: float) -> float:
    """Area below max(0, fnmr_0 - r) over r in [0, limit]: every discarded pair was an error, until none is left."""
    return (fnmr_0**2 - max(0.0, fnmr_0 - limit) ** 2) / 2


def edc_curve(
    similarity: ArrayLike,
    mated: ArrayLike,
    quality_a: ArrayLike,
    quality_b: ArrayLike,
    *,
    fmr: float = 1e-3,
    convention: str = "paper",
) -> EDC:
    """Error versus discard curve of one scorer on one benchmark.

    Args:
        similarity: (n_pairs,) float, larger is more alike. Only its order matters.
        mated: (n_pairs,) bool or 0/1, whether the pair shows one person.
        quality_a: (n_pairs,) float, quality of the pair's first image, larger is better. Only the order matters.
        quality_b: (n_pairs,) float, the same for the second image.
        fmr: target false match rate, inside (0, 1).
        convention: "paper", "dasec" or "nearest", see the module's head.

    Raises:
        UsageError: unknown convention, or `fmr` outside (0, 1).
        FiqaRayError: arrays of different lengths, values that are not finite, or no pair of one kind.
    """
    if convention not in CONVENTIONS:
        raise UsageError(f"convention={convention!r} is unknown: choose one of {', '.join(CONVENTIONS)}")
    exact_fmr(fmr)
    pairs = PairOrder.of(similarity, mated)
    scorer = QualityOrder.of(pairs, quality_a, quality_b)
    quality = scorer.quality
    if quality[0] == quality[-1]:
        warnings.warn(
            f"all {quality.size} pairs have quality {quality[0]:g}: their input order decides the curve", stacklevel=2
        )
    return pair_curve(pairs, scorer, fmr, convention)


@dataclass(frozen=True)
class PairOrder:
    """The comparisons of a benchmark by similarity: what all scorers have in common.

    Attributes:
        similarity: (n_pairs,) float64, in input order.
        mated: (n_pairs,) bool, in input order.
        mated_rows: (n_mated,) int64, input rows of the mated pairs by rising similarity.
        nonmated_rows: (n_nonmated,) int64, input rows of the non-mated pairs by falling similarity.
    """

    similarity: FloatArray
    mated: BoolArray
    mated_rows: IntArray
    nonmated_rows: IntArray

    @classmethod
    def of(cls, similarity: ArrayLike, mated: ArrayLike) -> PairOrder:
        """Check and sort; arguments and errors as in `edc_curve`."""
        scores, kinds = check_pairs(similarity, mated)
        by_similarity = np.argsort(scores, kind="stable")
        is_mated = kinds[by_similarity]
        return cls(scores, kinds, by_similarity[is_mated], by_similarity[~is_mated][::-1].copy())


@dataclass(frozen=True)
class QualityOrder:
    """The comparisons of a benchmark by the quality that one scorer gives them.

    Attributes:
        order: (n_pairs,) int64, input rows by rising pair quality; equal qualities keep their input order.
        quality: (n_pairs,) float64, in that order.
        mated: (n_pairs,) bool, in that order.
        n_tied: pairs whose quality some other pair shares.
    """

    order: IntArray
    quality: FloatArray
    mated: BoolArray
    n_tied: int

    @classmethod
    def of(cls, pairs: PairOrder, quality_a: ArrayLike, quality_b: ArrayLike) -> QualityOrder:
        """Check and sort; arguments and errors as in `edc_curve`."""
        qualities = [check_finite("quality_a", quality_a), check_finite("quality_b", quality_b)]
        for name, values in zip(("quality_a", "quality_b"), qualities, strict=True):
            if values.shape != pairs.mated.shape:
                raise FiqaRayError(f"{name} has {values.size} values for {pairs.mated.size} pairs: give one per pair")
        quality = np.minimum(*qualities)
        order = np.argsort(quality, kind="stable")
        quality = quality[order]
        same = quality[1:] == quality[:-1]
        n_tied = int((np.append(same, False) | np.append(False, same)).sum())
        return cls(order, quality, pairs.mated[order], n_tied)


def pair_curve(pairs: PairOrder, scorer: QualityOrder, fmr: float, convention: str) -> EDC:
    """Return the curve of pairs that are sorted already; arguments as in `edc_curve`, and checked."""
    return _step_curve(pairs, scorer, fmr) if convention == "dasec" else _level_curve(pairs, scorer, fmr, convention)


def _level_curve(pairs: PairOrder, scorer: QualityOrder, fmr: float, convention: str) -> EDC:
    """Return the curve in the conventions `paper` and `nearest`: 20 levels over all pairs, a threshold for each."""
    n_pairs = pairs.mated.size
    counts, last = np.ones(n_pairs, dtype=np.int64), np.empty(n_pairs, dtype=np.int64)
    n_mated, n_nonmated, n_false_nonmatches, n_false_matches = np.empty((4, N_LEVELS), dtype=np.int64)
    number_copies(scorer.order, scorer.mated, counts, last, n_mated, n_nonmated)
    units, mated_pairs = (
        (last[rows], counts[rows], pairs.similarity[rows]) for rows in (pairs.nonmated_rows, pairs.mated_rows)
    )
    threshold = np.empty(N_LEVELS)
    target = exact_fmr(fmr)
    recomputed_levels(
        units,
        units,
        mated_pairs,
        n_pairs,
        n_mated,
        n_nonmated,
        (target.numerator, target.denominator),
        convention == "nearest",
        threshold,
        n_false_nonmatches,
        n_false_matches,
    )
    fnmr = np.where(np.isnan(threshold), np.nan, n_false_nonmatches / np.maximum(n_mated, 1))
    return EDC(
        convention=convention,
        fmr=fmr,
        discard_fraction=np.arange(N_LEVELS) / N_LEVELS,
        fnmr=fnmr,
        threshold=threshold,
        n_mated=n_mated,
        n_nonmated=n_nonmated,
        n_false_nonmatches=n_false_nonmatches,
        n_false_matches=n_false_matches,
        n_tied=scorer.n_tied,
    )


def _step_curve(pairs: PairOrder, scorer: QualityOrder, fmr: float) -> EDC:
    """Return the curve in the convention `dasec`.

    One threshold, mated pairs only, one level per distinct quality, and the closing point (1, 0).
    """
    n_nonmated = pairs.nonmated_rows.size
    nonmated = pairs.similarity[pairs.nonmated_rows]  # falling
    threshold = nonmated[allowed_false_matches(fmr, n_nonmated)]
    quality, rows = scorer.quality[scorer.mated], scorer.order[scorer.mated]
    is_wrong = pairs.similarity[rows] <= threshold
    n_discarded = np.append(np.flatnonzero(np.append(True, quality[1:] != quality[:-1])), rows.size)
    n_mated = rows.size - n_discarded
    n_errors = is_wrong.sum() - np.append(0, np.cumsum(is_wrong))[n_discarded]
    return EDC(
        convention="dasec",
        fmr=fmr,
        discard_fraction=n_discarded / rows.size,
        fnmr=n_errors / np.maximum(n_mated, 1),
        threshold=np.full(n_mated.size, threshold),
        n_mated=n_mated,
        n_nonmated=np.full(n_mated.size, n_nonmated),
        n_false_nonmatches=n_errors,
        n_false_matches=np.full(n_mated.size, int((nonmated > threshold).sum())),
        n_tied=scorer.n_tied,
    )
