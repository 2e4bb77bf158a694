"""Error versus discard characteristic (EDC; the paper's ERC, section IV) and the area under it.

A pair is as good as its worse image, Q = min(q_a, q_b). Pairs are discarded from the lowest Q upwards; FNMR(r) is the
share of the mated pairs left at discard fraction r that are not accepted, acceptance being ``similarity > threshold``
at a target false match rate (FMR). AUC = integral of FNMR(r) dr; lower is better. Three conventions are in use:

    paper    Discards from all pairs, levels r = 0, 0.05, ..., 0.95 (floor(k*n/20) pairs go). At every level the
             threshold is set anew: the (m+1)-th largest similarity of the non-mated pairs left, with
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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

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

CONVENTIONS = ("paper", "dasec", "nearest")
N_LEVELS = 20


@dataclass(frozen=True)
class EDC:
    """One curve; all arrays are (n_levels,), one entry per discard level, in rising order of ``discard_fraction``.

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

    @property
    def fmr_achieved(self) -> float:
        """False match rate before anything is discarded, in [0, 1]; 0 where the target is below one pair."""
        return float(self.n_false_matches[0] / self.n_nonmated[0])

    @property
    def end(self) -> float:
        """Discard fraction at which the curve ends: 0.95 (paper, nearest) or 1 (dasec)."""
        return float(self.discard_fraction[-1])

    @property
    def defined_limit(self) -> float:
        """Largest discard fraction up to which FNMR is defined everywhere: ``auc(defined_limit)`` is not NaN."""
        undefined = np.flatnonzero(np.isnan(self.fnmr))
        return float(self.discard_fraction[undefined[0] - 1]) if undefined.size else self.end

    def auc(self, limit: float | None = None) -> float:
        """Area below the curve over [0, limit], in [0, 1]; the paper's tables print 1000 times this value.

        Straight lines between the levels (paper, nearest) or steps that hold the left value (dasec). NaN if FNMR is
        undefined within the range; see `defined_limit`. A limit below `end` gives the partial area (pAUC).

        Raises:
            UsageError: ``limit`` is not inside (0, end].
        """
        limit = self.end if limit is None else limit
        if not 0 < limit <= self.end:
            raise UsageError(
                f"limit={limit} is outside (0, {self.end:g}], the range of the {self.convention!r} curve: "
                "give a discard fraction inside it, or none for the whole curve"
            )
        x, y = self.discard_fraction, self.fnmr
        inside = x < limit
        if self.convention == "dasec":
            return float(np.sum(np.diff(np.append(x[inside], limit)) * y[inside]))
        beyond = int(inside.sum())
        share = (limit - x[beyond - 1]) / (x[beyond] - x[beyond - 1])
        at_limit = y[beyond - 1] + share * (y[beyond] - y[beyond - 1])
        return float(np.trapezoid(np.append(y[inside], at_limit), np.append(x[inside], limit)))

    def best_auc(self, limit: float | None = None) -> float:
        """`theoretical_best` for this curve: the area that no scorer undercuts under fixed errors."""
        return theoretical_best(float(self.fnmr[0]), self.end if limit is None else limit)


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
        UsageError: unknown convention, or ``fmr`` outside (0, 1).
        FiqaRayError: arrays of different lengths, values that are not finite, or no pair of one kind.
    """
    pairs = SortedPairs.from_arrays(similarity, mated, quality_a, quality_b)
    if pairs.quality[0] == pairs.quality[-1]:
        warnings.warn(
            f"all {pairs.quality.size} pairs have quality {pairs.quality[0]:g}: their input order decides the curve",
            stacklevel=2,
        )
    return pairs.curve(fmr=fmr, convention=convention)


@dataclass(frozen=True)
class SortedPairs:
    """Pairs sorted once, from which curves of weighted samples are drawn cheaply (the bootstrap's inner loop).

    Attributes:
        order: (n_pairs,) int64, input rows by rising pair quality; equal qualities keep their input order.
        similarity, mated, quality: (n_pairs,) in that order.
        mated_rows: (n_mated,) int64, positions in that order of the mated pairs, by rising similarity.
        nonmated_rows: (n_nonmated,) int64, positions of the non-mated pairs, by falling similarity.
        n_tied: pairs whose quality some other pair shares.
    """

    order: IntArray
    similarity: FloatArray
    mated: BoolArray
    quality: FloatArray
    mated_rows: IntArray
    nonmated_rows: IntArray
    n_tied: int

    @classmethod
    def from_arrays(
        cls, similarity: ArrayLike, mated: ArrayLike, quality_a: ArrayLike, quality_b: ArrayLike
    ) -> SortedPairs:
        """Check and sort; arguments and errors as in `edc_curve`."""
        scores, kinds = check_pairs(similarity, mated)
        qualities = [check_finite("quality_a", quality_a), check_finite("quality_b", quality_b)]
        for name, values in zip(("quality_a", "quality_b"), qualities, strict=True):
            if values.shape != scores.shape:
                raise FiqaRayError(f"{name} has {values.size} values for {scores.size} pairs: give one per pair")
        pair_quality = np.minimum(*qualities)
        order = np.argsort(pair_quality, kind="stable")
        scores, kinds, pair_quality = scores[order], kinds[order], pair_quality[order]
        by_similarity = np.argsort(scores, kind="stable")
        same = pair_quality[1:] == pair_quality[:-1]
        return cls(
            order=order,
            similarity=scores,
            mated=kinds,
            quality=pair_quality,
            mated_rows=by_similarity[kinds[by_similarity]],
            nonmated_rows=by_similarity[~kinds[by_similarity]][::-1],
            n_tied=int((np.append(same, False) | np.append(False, same)).sum()),
        )

    def curve(self, *, fmr: float = 1e-3, convention: str = "paper", counts: IntArray | None = None) -> EDC:
        """The curve of the sample that holds input pair i ``counts[i]`` times (None: each once), in input order.

        Equals `edc_curve` on the repeated arrays, without sorting again. A sample without mated or non-mated pairs is
        not an error here: its FNMR is NaN.

        Args:
            fmr: target false match rate, inside (0, 1).
            convention: "paper", "dasec" or "nearest".
            counts: (n_pairs,) int64, at least 0, in input order, with a sum above 0.

        Raises:
            UsageError: unknown convention, or ``fmr`` outside (0, 1).
        """
        if convention not in CONVENTIONS:
            raise UsageError(f"convention={convention!r} is unknown: choose one of {', '.join(CONVENTIONS)}")
        exact_fmr(fmr)
        weight = np.ones(self.order.size, dtype=np.int64) if counts is None else counts[self.order]
        if convention == "dasec":
            return self._fixed_threshold(fmr, weight)
        return self._recomputed_threshold(fmr, weight, convention)

    def _recomputed_threshold(self, fmr: float, weight: IntArray, convention: str) -> EDC:
        """`paper` and `nearest`: 20 levels over all pairs, the threshold set anew at each."""
        last = np.cumsum(weight)  # copies up to and including each pair, worst quality first
        n_pairs = int(last[-1])
        n_discarded = np.arange(N_LEVELS) * n_pairs // N_LEVELS
        # The pair in which the level's cut falls keeps the copies behind the cut.
        cut = np.searchsorted(last, n_discarded, side="right")
        mated_last = np.cumsum(weight * self.mated)
        n_mated = mated_last[-1] - mated_last[cut] + self.mated[cut] * (last[cut] - n_discarded)
        n_nonmated = n_pairs - n_discarded - n_mated

        def kept(rows: IntArray) -> IntArray:
            """Copies of the pairs ``rows`` left at every level, (n_levels, n_rows)."""
            return np.asarray(np.clip(last[rows] - n_discarded[:, None], 0, weight[rows]))

        find = self._threshold_below if convention == "paper" else self._threshold_nearest
        threshold = find(fmr, n_nonmated, kept)
        threshold[(n_mated == 0) | (n_nonmated == 0)] = np.nan
        n_false_nonmatches, n_false_matches = self._count_errors(threshold, kept)
        with np.errstate(invalid="ignore"):
            fnmr = n_false_nonmatches / n_mated
        fnmr[np.isnan(threshold)] = np.nan
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
            n_tied=self.n_tied,
        )

    def _count_errors(self, threshold: FloatArray, kept: Callable[[IntArray], IntArray]) -> tuple[IntArray, IntArray]:
        """False non-matches and false matches per level, from the few pairs on the wrong side of any threshold."""
        if np.isnan(threshold).all():
            return np.zeros(N_LEVELS, dtype=np.int64), np.zeros(N_LEVELS, dtype=np.int64)
        mated = self.similarity[self.mated_rows]
        rows = self.mated_rows[: np.searchsorted(mated, np.nanmax(threshold), side="right")]
        n_false_nonmatches = (kept(rows) * (self.similarity[rows] <= threshold[:, None])).sum(axis=1)
        nonmated = -self.similarity[self.nonmated_rows]
        rows = self.nonmated_rows[: np.searchsorted(nonmated, -np.nanmin(threshold), side="left")]
        n_false_matches = (kept(rows) * (self.similarity[rows] > threshold[:, None])).sum(axis=1)
        return n_false_nonmatches, n_false_matches

    def _threshold_below(self, fmr: float, n_nonmated: IntArray, kept: Callable[[IntArray], IntArray]) -> FloatArray:
        """(m+1)-th largest similarity of the non-mated pairs left, m = max(0, ceil(fmr * n) - 1); NaN for n = 0."""
        target = exact_fmr(fmr)
        allowed = np.array(
            [max(0, -(-target.numerator * int(n) // target.denominator) - 1) for n in n_nonmated], dtype=np.int64
        )
        # The wanted pair is nearly always among the most similar ones: look there first.
        n_looked = 64 + 4 * int(allowed.max())
        while True:
            rows = self.nonmated_rows[:n_looked]
            above = np.cumsum(kept(rows), axis=1) > allowed[:, None]
            found = above[:, -1]  # the sum only rises
            if n_looked >= self.nonmated_rows.size or found[n_nonmated > 0].all():
                break
            n_looked *= 4
        return np.where(found, self.similarity[rows[np.argmax(above, axis=1)]], np.nan)

    def _threshold_nearest(self, fmr: float, n_nonmated: IntArray, kept: Callable[[IntArray], IntArray]) -> FloatArray:
        """Lowest of the similarities left whose FMR (non-mated >= it) is nearest to the target; NaN for n = 0."""
        target = exact_fmr(fmr)
        rows = np.argsort(-self.similarity, kind="stable")
        falling, is_mated = self.similarity[rows], self.mated[rows]
        threshold = np.full(N_LEVELS, np.nan)
        for level, n_kept in enumerate(kept(rows)):
            if n_nonmated[level] == 0:
                continue
            left = n_kept > 0
            scores = falling[left]
            n_at_least = np.cumsum(np.where(is_mated, 0, n_kept)[left])
            group_end = np.append(scores[1:] != scores[:-1], True)
            scores, n_at_least = scores[group_end], n_at_least[group_end]
            # Two counts can be nearest, one on each side of the target; exact arithmetic decides, a tie goes to the
            # lower similarity, which is the larger count.
            wanted = target * int(n_nonmated[level])
            above = int(np.searchsorted(n_at_least, float(wanted)))
            near = {int(n_at_least[i]) for i in (above - 1, above) if 0 <= i < n_at_least.size}
            nearest = min(near, key=lambda n: (abs(n - wanted), -n))
            threshold[level] = scores[np.searchsorted(n_at_least, nearest, side="right") - 1]
        return threshold

    def _fixed_threshold(self, fmr: float, weight: IntArray) -> EDC:
        """`dasec`: one threshold, mated pairs only, one level per distinct quality plus the closing point (1, 0)."""
        nonmated_weight = weight[self.nonmated_rows]
        n_nonmated = int(nonmated_weight.sum())
        rows = np.flatnonzero(self.mated & (weight > 0))
        if n_nonmated == 0 or rows.size == 0:
            nothing = np.zeros(2, dtype=np.int64)
            undefined = np.full(2, np.nan)
            return EDC(
                convention="dasec",
                fmr=fmr,
                discard_fraction=np.array([0.0, 1.0]),
                fnmr=undefined,
                threshold=undefined,
                n_mated=nothing + int(weight[self.mated].sum()),
                n_nonmated=nothing + n_nonmated,
                n_false_nonmatches=nothing,
                n_false_matches=nothing,
                n_tied=self.n_tied,
            )
        at_least = np.cumsum(nonmated_weight)
        place = int(np.searchsorted(at_least, allowed_false_matches(fmr, n_nonmated), side="right"))
        threshold = self.similarity[self.nonmated_rows[place]]
        n_false_matches = int(nonmated_weight[self.similarity[self.nonmated_rows] > threshold].sum())

        quality, copies = self.quality[rows], weight[rows]
        errors = copies * (self.similarity[rows] <= threshold)
        group_start = np.flatnonzero(np.append(True, quality[1:] != quality[:-1]))
        n_total = int(copies.sum())
        n_discarded = np.append((np.cumsum(copies) - copies)[group_start], n_total)
        n_errors = np.append(errors.sum() - (np.cumsum(errors) - errors)[group_start], 0)
        n_mated = n_total - n_discarded
        return EDC(
            convention="dasec",
            fmr=fmr,
            discard_fraction=n_discarded / n_total,
            fnmr=n_errors / np.maximum(n_mated, 1),
            threshold=np.full(n_mated.size, threshold),
            n_mated=n_mated,
            n_nonmated=np.full(n_mated.size, n_nonmated),
            n_false_nonmatches=n_errors,
            n_false_matches=np.full(n_mated.size, n_false_matches),
            n_tied=self.n_tied,
        )
