"""Error versus discard characteristic (EDC; the paper's ERC, section IV) and the area under it.

A pair is as good as its worse image, Q = min(q_a, q_b). Pairs are discarded from the lowest Q upwards; FNMR(r) is the
share of the mated pairs left at discard fraction r that are not accepted, acceptance being `similarity > threshold`
at a target false match rate (FMR). AUC = integral of FNMR(r) dr; lower is better. `conventions.py` says what these words
leave open. Of its presets

    paper    equals IrvingMeng/MagFace eval/eval_quality/eval_quality.py wherever that gives a value. At level k
             floor(k*n/20) pairs go, and the threshold is the (m+1)-th largest similarity of the non-mated pairs left, with
             m = max(0, ceil(fmr * n_nonmated) - 1).
    nearest  equals fdbtrs/CR-FIQA ERC/erc.py, ERC/roc.py: the lowest of the similarities left whose FMR, counted with >=, is
             nearest to the target. It is often a mated similarity, and that pair then counts as an error.
    dasec    equals dasec/quality-assessment-evaluation edc.py with its threshold set by `threshold_at_fmr`.
    pmf      equals KaenChan/face-uncertainty-pytorch evaluation/verification_risk_fnmr.py.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fiqa_ray.core.conventions import Convention, convention_of
from fiqa_ray.core.levels import allowed_at_start, fixed_levels, fixed_threshold, moving_levels, upper_wrong
from fiqa_ray.core.orders import PairOrder, Qualities
from fiqa_ray.core.samples import Copies, NonmatedUnits, Sample
from fiqa_ray.core.verification import FloatArray, IntArray, allowed_false_matches, exact_fmr
from fiqa_ray.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class EDC:
    """One curve; all arrays are (n_levels,), one entry per discard level, in rising order of `discard_fraction`.

    Attributes:
        convention: what the curve means.
        fmr: target false match rate; None where a starting FNMR sets the threshold.
        discard_fraction: float64 in [0, 1]; of what the convention discards.
        fnmr: float64 in [0, 1]; NaN where no mated or no non-mated pair is left. Of a convention with the pool "nonmated" it
            is the FMR.
        threshold: float64 in use at the level; NaN where FNMR is.
        n_mated, n_nonmated: int64, pairs left.
        n_false_nonmatches, n_false_matches: int64, wrong decisions among the pairs left; 0 where FNMR is NaN.
        n_allowed: int64, false matches that the rate allows among the pairs that set the threshold; without a rate the
            number that is made before anything is discarded.
        n_tied: pairs whose quality some other pair shares; where the grid cuts through them, input order decides.
    """

    convention: Convention
    fmr: float | None
    discard_fraction: FloatArray
    fnmr: FloatArray
    threshold: FloatArray
    n_mated: IntArray
    n_nonmated: IntArray
    n_false_nonmatches: IntArray
    n_false_matches: IntArray
    n_allowed: IntArray
    n_tied: int

    def __repr__(self) -> str:
        limit = self.defined_limit
        area = f"area {self.auc(limit):.4g} up to {limit:g}" if limit > 0 else "no area"
        rate = f", FMR {self.fmr:g}" if self.fmr is not None else ""
        return (
            f"<EDC {self.convention.name}{rate}: {area}, {self.fnmr[0]:.4g} before anything is discarded, "
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
        style = "steps-post" if self.convention.is_stepped else "default"
        text = f"{label}: {area:.1f}" if label else f"area x 1000: {area:.1f}"
        axes.plot(self.discard_fraction, self.fnmr, drawstyle=style, label=text)
        error = "false match rate" if self.convention.pool == "nonmated" else "false non-match rate"
        rate = f" at FMR {self.fmr:g}" if self.fmr is not None else ""
        axes.set(xlabel=f"share of {self.convention.discards} discarded", ylabel=f"{error}{rate}")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return axes

    @property
    def fmr_achieved(self) -> float:
        """Return the false match rate before anything is discarded, in [0, 1]; 0 where the target is below one pair."""
        return float(self.n_false_matches[0] / self.n_nonmated[0])

    @property
    def end(self) -> float:
        """Return the discard fraction at which the curve ends."""
        return float(self.discard_fraction[-1])

    @property
    def defined_limit(self) -> float:
        """Return the largest discard fraction up to which FNMR is defined everywhere: `auc(defined_limit)` is not NaN."""
        undefined = np.flatnonzero(np.isnan(self.fnmr))
        return float(self.discard_fraction[max(0, undefined[0] - 1)]) if undefined.size else self.end

    def at(self, limit: float) -> float:
        """Return FNMR at a discard fraction: that of the last level up to it."""
        return float(self.fnmr[np.searchsorted(self.discard_fraction, limit + 1e-12, side="right") - 1])

    def auc(self, limit: float | None = None) -> float:
        """Area below the curve over [0, limit], in [0, 1]; the paper's tables print 1000 times this value.

        Straight lines between the levels or steps that hold the left value, as the convention says. NaN if FNMR is
        undefined within the range; see `defined_limit`. A limit below `end` gives the partial area (pAUC).

        Raises:
            UsageError: `limit` is not inside (0, end].
        """
        limit = self.end if limit is None else limit
        check_limit(self.convention, limit)
        x, y = self.discard_fraction, self.fnmr
        if self.convention.is_stepped:
            inside = x < limit
            return float(np.sum(np.diff(np.append(x[inside], limit)) * y[inside]))
        weights = line_weights(limit, self.convention.n_levels)
        return float(weights @ y[: weights.size])

    def best_auc(self, limit: float | None = None) -> float:
        """`theoretical_best` for this curve: the area that no scorer undercuts under fixed errors."""
        return theoretical_best(float(self.fnmr[0]), self.end if limit is None else limit)


def check_limit(convention: str | Convention, limit: float) -> None:
    """Raise UsageError unless `limit` lies inside the range of the convention's curve."""
    curve = convention_of(convention)
    if not 0 < limit <= curve.end:
        raise UsageError(
            f"limit={limit} is outside (0, {curve.end:g}], the range of the {curve.name!r} curve: "
            "give a discard fraction inside it, or none for the whole curve"
        )


def line_weights(limit: float, n_levels: int) -> FloatArray:
    """Return the weights of FNMR at the first levels whose sum is the area up to `limit` below straight lines."""
    x = np.arange(n_levels) / n_levels
    beyond = int((x < limit).sum())
    edges = np.append(x[:beyond], limit)
    weights = np.zeros(beyond + 1)
    weights[:-1] += np.diff(edges) / 2
    weights[1:] += np.diff(edges) / 2
    share = (limit - x[beyond - 1]) * n_levels  # FNMR at the limit lies so far between its neighbours
    weights[beyond - 1] += weights[beyond] * (1 - share)
    weights[beyond] *= share
    return weights


def step_weights(limit: float, n_levels: int) -> FloatArray:
    """Return the weights of FNMR at the first levels whose sum is the area up to `limit` below steps."""
    x = np.arange(n_levels) / n_levels
    return np.diff(np.append(x[x < limit], limit))


def theoretical_best(fnmr_0: float, limit: float) -> float:
    """Area below max(0, fnmr_0 - r) over r in [0, limit]: every discarded pair was an error, until none is left."""
    return (fnmr_0**2 - max(0.0, fnmr_0 - limit) ** 2) / 2


def edc_curve(
    similarity: ArrayLike,
    mated: ArrayLike,
    quality_a: ArrayLike,
    quality_b: ArrayLike,
    *,
    fmr: float | None = 1e-3,
    convention: str | Convention = "paper",
    images: tuple[ArrayLike, ArrayLike] | None = None,
) -> EDC:
    """Error versus discard curve of one scorer on one benchmark.

    Args:
        similarity: (n_pairs,) float, larger is more alike. Only its order matters.
        mated: (n_pairs,) bool or 0/1, whether the pair shows one person.
        quality_a: (n_pairs,) float, quality of the pair's first image, larger is better. Only the order matters.
        quality_b: (n_pairs,) float, the same for the second image.
        fmr: target false match rate, inside (0, 1). Conventions with a starting FNMR do not use it.
        convention: a name of `fiqa_ray.core.conventions`, or a convention of your own.
        images: names or numbers of the first and of the second images, each (n_pairs,), for conventions that discard
            images.

    Raises:
        UsageError: unknown convention, `fmr` outside (0, 1), masked or complex arrays, or no images where they are needed.
        FiqaRayError: arrays of different lengths, values that are not finite, or no pair of one kind.

    Warns:
        UserWarning: all qualities are equal, or the rate allows no false match among so few non-mated pairs.
    """
    choice = convention_of(convention)
    if choice.starting_fnmr is None:
        exact_fmr(1e-3 if fmr is None else fmr)
    pairs = PairOrder.of(similarity, mated)
    n_others = int((~pairs.mated).sum())
    if choice.starting_fnmr is None and allowed_false_matches(1e-3 if fmr is None else fmr, n_others) == 0:
        warnings.warn(
            f"fmr={fmr} allows none of the {n_others:,} non-mated pairs: the largest of them alone sets the threshold",
            stacklevel=2,
        )
    scorer = Qualities.of(pairs, quality_a, quality_b, images)
    quality = scorer.order("all").quality
    if quality[0] == quality[-1]:
        warnings.warn(
            f"all {quality.size} pairs have quality {quality[0]:g}: their input order decides the curve", stacklevel=2
        )
    sample = Sample.whole(pairs)
    return pair_curve(Copies(sample, scorer.order(choice.pool)), NonmatedUnits(sample), fmr, choice)


def pair_curve(copies: Copies, units: NonmatedUnits, fmr: float | None, convention: Convention) -> EDC:
    """Return the curve of pairs that are sorted already.

    Args:
        copies: one copy of each pair, in the order of a score's pool.
        units: the non-mated ones.
        fmr: as in `edc_curve`, and checked.
        convention: as in `edc_curve`.
    """
    if convention.step is None:
        return _step_curve(copies, units, fmr, convention)
    if convention.threshold == "fixed":
        levels = fixed_levels(copies, fmr, convention, units)
    else:
        levels = moving_levels(copies, fmr, convention, (units, units))
    return EDC(
        convention=convention,
        fmr=fmr if convention.starting_fnmr is None else None,
        discard_fraction=np.arange(convention.n_levels) / convention.n_levels,
        fnmr=levels.rate(convention),
        n_tied=copies.scorer.n_tied,
        **vars(levels),
    )


def _step_curve(copies: Copies, units: NonmatedUnits, fmr: float | None, convention: Convention) -> EDC:
    """Return a curve with one level per distinct quality of one kind of pairs, and the closing point (1, 0)."""
    pairs, scorer = copies.sample.pairs, copies.scorer
    threshold = fixed_threshold(convention, fmr, copies.sample, units)
    allowed = allowed_at_start(convention, fmr, copies.sample, threshold)
    highest = upper_wrong(convention, threshold)
    is_accepted = pairs.similarity > highest
    is_wrong = (is_accepted != pairs.mated)[scorer.order]
    quality, n = scorer.quality, scorer.order.size
    n_discarded = np.append(np.flatnonzero(np.append(True, quality[1:] != quality[:-1])), n)
    n_errors = is_wrong.sum() - np.append(0, np.cumsum(is_wrong))[n_discarded]
    n_left, n_levels = n - n_discarded, n_discarded.size
    others = pairs.mated if convention.error == "fmr" else ~pairs.mated
    n_others = np.full(n_levels, others.sum())
    n_wrong_others = np.full(n_levels, (others & (is_accepted != pairs.mated)).sum())
    of_kind = {
        "n_mated": n_left,
        "n_nonmated": n_others,
        "n_false_nonmatches": n_errors,
        "n_false_matches": n_wrong_others,
    }
    if convention.error == "fmr":
        of_kind = {"n_mated": n_others, "n_nonmated": n_left} | {
            "n_false_nonmatches": n_wrong_others,
            "n_false_matches": n_errors,
        }
    return EDC(
        convention=convention,
        fmr=fmr if convention.starting_fnmr is None else None,
        discard_fraction=n_discarded / n,
        fnmr=n_errors / np.maximum(n_left, 1),
        threshold=np.full(n_levels, threshold),
        n_allowed=np.full(n_levels, allowed),
        n_tied=scorer.n_tied,
        **of_kind,
    )
