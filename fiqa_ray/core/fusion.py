"""Fusion of FIQA methods (the paper's section V names it as future work): several priors become one.

Scores of unlike methods have nothing in common but their order. Each score q is therefore replaced by F(q) in [0, 1], its
quantile among the training faces' scores of that method. The fused score of an image is the weighted mean of its quantiles.
The weights are equal (the average of ranks), given, or fitted: a pair can only be as similar as its worse image permits (the
principle of PCNet, Xie, Byrne, Zisserman 2020), so the similarities s of mated training pairs (a, b) are regressed on

    s ~ w_0 + sum over methods m of w_m * min(F_m(a), F_m(b)),    w_m >= 0,

and the weights w_m, scaled to a sum of 1, are what the methods contribute to predicting s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from fiqa_ray.errors import FiqaRayError

MAX_KNOTS = 1 << 16
_DIGITS = 4
_LEAST_EFFECT = 1e-7
"""Similarity by a method's standard deviation: less is the rounding of the sums."""


@dataclass(frozen=True)
class ScoreDistribution:
    """The distribution F of a method's scores over the training faces.

    Exact where there are no more than 65,536 distinct scores, else interpolated.

    Attributes:
        value: `(V,) float64` scores, ascending and distinct.
        quantile: `(V,) float64` in (0, 1): the share of smaller scores plus half that of equal ones.
    """

    value: np.ndarray
    quantile: np.ndarray

    @staticmethod
    def of(scores: np.ndarray) -> ScoreDistribution:
        """Return the distribution of `(I,)` finite scores, at least one."""
        value, count = np.unique(np.asarray(scores, np.float64), return_counts=True)
        quantile = (np.cumsum(count) - count / 2) / len(scores)
        if len(value) > MAX_KNOTS:
            knots = np.unique(np.linspace(0, len(value) - 1, MAX_KNOTS).astype(np.int64))
            value, quantile = value[knots], quantile[knots]
        return ScoreDistribution(value, quantile)

    def quantiles(self, scores: np.ndarray) -> np.ndarray:
        """Return the quantiles `(I,) float64` of scores; beyond the training faces' scores the outermost; NaN stays NaN."""
        return np.asarray(np.interp(scores, self.value, self.quantile))


def fuse(quantiles: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return the weighted mean `(I,) float64` of the methods' quantiles `(I,)`; NaN where any of them is."""
    total = float(sum(weights))
    fused = np.zeros(len(quantiles[0]))
    for quantile, weight in zip(quantiles, weights, strict=True):
        fused += quantile * (weight / total)
    return fused


@dataclass(frozen=True)
class PairSums:
    """What a least-squares fit needs of some pairs: sums that add up over parts, with x = (1, min F_1, .. min F_M).

    Attributes:
        xx: `(M + 1, M + 1) float64`, sum of x x^T over the pairs.
        xy: `(M + 1,) float64`, sum of x s.
    """

    xx: np.ndarray
    xy: np.ndarray

    @staticmethod
    def of(quantiles: Sequence[np.ndarray], image: np.ndarray, mate: np.ndarray, similarity: np.ndarray) -> PairSums:
        """Return the sums of some pairs; those with a NaN are left out.

        Args:
            quantiles: M arrays `(I,)`, one per method.
            image: `(L,)` positions of the first images.
            mate: `(L,)` positions of the second images.
            similarity: `(L,)`.

        Memory: 16 (M + 1) bytes per pair.
        """
        x = np.stack([np.ones(len(image)), *(np.minimum(q[image], q[mate]) for q in quantiles)])
        is_finite = ~np.isnan(x).any(axis=0)
        x, y = x[:, is_finite], np.asarray(similarity, np.float64)[is_finite]
        return PairSums(x @ x.T, x @ y)


def fit_weights(sums: Sequence[PairSums]) -> np.ndarray:
    """Return the weights `(M,) float64` of the methods, at least 0 and with a sum of 1.

    They are rounded to four digits, so that a last bit of the sums cannot change a fused score. A method that adds nothing
    to the others gets 0.

    Raises:
        FiqaRayError: No method predicts similarity.
    """
    xx = np.sum([s.xx for s in sums], axis=0)
    xy = np.sum([s.xy for s in sums], axis=0)
    n = xx[0, 0]
    if n < 2:
        raise FiqaRayError("no weights can be fitted: no mated pair has both images scored by all methods to be fused")
    mean = xx[0, 1:] / n
    covariance = xx[1:, 1:] / n - np.outer(mean, mean)
    towards = xy[1:] / n - mean * (xy[0] / n)
    # the least-squares problem with these normal equations; the ridge keeps copies of one method solvable
    ridge = 1e-9 * max(float(np.trace(covariance)), 1e-12)
    factor = np.linalg.cholesky(covariance + ridge * np.eye(len(mean)))
    weights, _ = nnls(factor.T, np.linalg.solve(factor, towards))
    if not weights.sum() > 0 or not (towards > _LEAST_EFFECT * np.sqrt(np.diag(covariance))).any():
        raise FiqaRayError(
            "no weights can be fitted: the similarity of mated pairs grows with none of the scores to be fused; check that "
            "larger scores mean better images, or give the weights"
        )
    rounded = np.round(weights / weights.sum(), _DIGITS)
    return np.asarray(rounded / rounded.sum())
