"""Fusion of FIQA methods (the paper's section V names it as future work): several priors become one.

Scores of unlike methods have nothing in common but their order, so each is first replaced by its place in the method's own
distribution over the training faces, F(q) in [0, 1]. The fused score of an image is the weighted mean of its places. The
weights are equal (the average of ranks), given, or fitted: a pair can only be as similar as its worse image permits (the
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
    """Where a method's scores lie among those of the training faces.

    ``value``: (n_knots,) float64, ascending and distinct; ``place``: (n_knots,) float64 in (0, 1), the share of smaller
    scores plus half of the equal ones. Exact where there are no more than 65,536 distinct scores, else interpolated.
    """

    value: np.ndarray
    place: np.ndarray

    @staticmethod
    def of(scores: np.ndarray) -> ScoreDistribution:
        """From (n_images,) finite scores, at least one."""
        value, count = np.unique(np.asarray(scores, np.float64), return_counts=True)
        place = (np.cumsum(count) - count / 2) / len(scores)
        if len(value) > MAX_KNOTS:
            kept = np.unique(np.linspace(0, len(value) - 1, MAX_KNOTS).astype(np.int64))
            value, place = value[kept], place[kept]
        return ScoreDistribution(value, place)

    def places(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) float64 places; beyond the training faces' scores those of the ends; NaN stays NaN."""
        return np.asarray(np.interp(scores, self.value, self.place))


def fuse(places: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Weighted mean (n_images,) float64 of the methods' (n_images,) places; NaN where any of them is."""
    total = float(sum(weights))
    fused = np.zeros(len(places[0]))
    for place, weight in zip(places, weights, strict=True):
        fused += place * (weight / total)
    return fused


@dataclass(frozen=True)
class PairSums:
    """What a least-squares fit needs of some pairs: sums that add up over parts.

    With x = (1, min F_1, .. min F_M): ``xx`` (M + 1, M + 1) and ``xy`` (M + 1,) float64.
    """

    xx: np.ndarray
    xy: np.ndarray

    @staticmethod
    def of(places: Sequence[np.ndarray], image: np.ndarray, mate: np.ndarray, similarity: np.ndarray) -> PairSums:
        """From M arrays (n_images,) of places, (n_pairs,) int positions and similarities; pairs with a NaN are left out.

        Memory: 16 (M + 1) bytes per pair.
        """
        x = np.stack([np.ones(len(image)), *(np.minimum(p[image], p[mate]) for p in places)])
        known = ~np.isnan(x).any(axis=0)
        x, y = x[:, known], np.asarray(similarity, np.float64)[known]
        return PairSums(x @ x.T, x @ y)


def fit_weights(sums: Sequence[PairSums]) -> np.ndarray:
    """(M,) float64 weights, none negative, with a sum of 1; the sums are added in their order.

    Rounded to four digits, so that a last bit of the sums cannot change a fused score. A method that adds nothing to the
    others gets 0. Raises `FiqaRayError` where no method predicts similarity.
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
