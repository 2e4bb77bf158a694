"""Face verification figures: threshold at a false match rate, ROC, equal error rate, k-fold accuracy.

With pairs of known kind (mated: same person; non-mated: different persons) and a similarity that is larger for more
alike faces, a pair is accepted when `similarity > threshold` and

    FMR(t)  = accepted non-mated pairs / all non-mated pairs        (false match rate)
    FNMR(t) = rejected mated pairs / all mated pairs                (false non-match rate)
    TAR(t)  = 1 - FNMR(t)                                           (true accept rate)

All figures are pooled over the given pairs, except the k-fold accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.given_arrays import real_array
from fiqa_ray.errors import FiqaRayError, UsageError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ROC:
    """Operating points of a recogniser, from accepting nothing to accepting every pair.

    Point i accepts the pairs with `similarity >= threshold[i]`; thresholds are the distinct similarities in falling
    order, after a first `inf`. All arrays are (n_points,) float64; rates lie in [0, 1].
    """

    threshold: FloatArray
    fmr: FloatArray
    tar: FloatArray


@dataclass(frozen=True)
class FoldAccuracy:
    """k-fold verification accuracy, in rising order of the fold number.

    Attributes:
        mean: Mean over the folds, in [0, 1].
        std: Population standard deviation over the folds.
        per_fold: `(F,)` accuracies.
        threshold: `(F,)` squared distances of unit vectors, in [0, 4).
    """

    mean: float
    std: float
    per_fold: FloatArray
    threshold: FloatArray


def allowed_false_matches(fmr: float, n_nonmated: int) -> int:
    """Return the largest number of false matches among `n_nonmated` pairs whose rate is at most `fmr`.

    The product is exact in decimal (0.29 of 100 pairs is 29, where binary arithmetic gives 28.999...).

    Raises:
        UsageError: `fmr` is not inside (0, 1).
    """
    target = exact_fmr(fmr)
    return target.numerator * n_nonmated // target.denominator


def exact_fmr(fmr: float) -> Fraction:
    """Return the target rate as the decimal number that was written, to nine digits of its denominator.

    Raises:
        UsageError: the rate is not inside (0, 1).
    """
    if not isinstance(fmr, Real) or not 0 < fmr < 1:
        raise UsageError(f"fmr={fmr} is not a usable false match rate: give a value inside (0, 1), such as 0.001")
    return Fraction(repr(float(fmr))).limit_denominator(10**9)  # whole numbers of 64 bits hold its product with pairs


def check_pairs(similarity: ArrayLike, mated: ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return similarities `(L,) float64` and kinds `(L,) bool` after checking that they can be evaluated.

    Raises:
        FiqaRayError: lengths differ, a similarity is not finite, a kind is neither 0 nor 1, or one kind is absent.
    """
    scores = check_finite("similarity", similarity)
    kinds = np.asarray(mated)
    if kinds.shape != scores.shape:
        raise FiqaRayError(f"mated has shape {kinds.shape}, similarity {scores.shape}: give one of each per pair")
    if kinds.dtype != np.bool_:
        odd = np.flatnonzero((kinds != 0) & (kinds != 1))
        if odd.size:
            raise FiqaRayError(f"mated[{odd[0]}] is {kinds[odd[0]]!r}: give 1 (same person) or 0 (different persons)")
        kinds = kinds == 1
    n_mated = int(kinds.sum())
    if n_mated in (0, kinds.size):
        missing = "mated" if n_mated == 0 else "non-mated"
        raise FiqaRayError(f"there is no {missing} pair among the {kinds.size} pairs: both kinds are needed")
    return scores, kinds


def check_finite(name: str, values: ArrayLike) -> FloatArray:
    """Return values as an `(L,) float64` array; `FiqaRayError` names the first that is not finite."""
    array = real_array(f"values of {name}", values, np.float64)
    if array.ndim != 1:
        raise FiqaRayError(f"{name} has shape {array.shape}: give a one-dimensional array, one value per pair")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise FiqaRayError(
            f"{name}[{bad[0]}] is {array[bad[0]]} ({bad.size} of {array.size} values are not finite): "
            "drop the pairs of images without a score, or score those images first"
        )
    return array


def threshold_at_fmr(similarity: ArrayLike, mated: ArrayLike, fmr: float = 1e-3) -> float:
    """Return the lowest threshold that accepts at most `fmr` of the non-mated pairs by `similarity > threshold`.

    It is the (k+1)-th largest non-mated similarity with k = floor(fmr * n_nonmated).

    Args:
        similarity: (n_pairs,) float, larger is more alike.
        mated: (n_pairs,) bool or 0/1.
        fmr: target false match rate, inside (0, 1).

    Raises:
        FiqaRayError: unusable arrays or rate, see `check_pairs` and `allowed_false_matches`.
    """
    scores, kinds = check_pairs(similarity, mated)
    nonmated = scores[~kinds]
    rank = nonmated.size - 1 - allowed_false_matches(fmr, nonmated.size)
    return float(np.partition(nonmated, rank)[rank])


def tar_at_fmr(similarity: ArrayLike, mated: ArrayLike, fmr: float = 1e-3) -> float:
    """Return the share of the mated pairs that `threshold_at_fmr` accepts, in [0, 1]; arguments and errors as there."""
    threshold = threshold_at_fmr(similarity, mated, fmr)
    scores, kinds = check_pairs(similarity, mated)
    return float(np.mean(scores[kinds] > threshold))


def roc_curve(similarity: ArrayLike, mated: ArrayLike) -> ROC:
    """Return every operating point of `similarity` `(L,)` against `mated` `(L,)`; errors as in `check_pairs`."""
    scores, kinds = check_pairs(similarity, mated)
    order = np.argsort(-scores, kind="stable")
    scores, kinds = scores[order], kinds[order]
    group_end = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    accepted_mated = np.cumsum(kinds)[group_end]
    accepted_nonmated = group_end + 1 - accepted_mated
    return ROC(
        threshold=np.concatenate([[np.inf], scores[group_end]]),
        fmr=np.concatenate([[0.0], accepted_nonmated / accepted_nonmated[-1]]),
        tar=np.concatenate([[0.0], accepted_mated / accepted_mated[-1]]),
    )


def equal_error_rate(similarity: ArrayLike, mated: ArrayLike) -> float:
    """Return the rate in [0, 1] at which FMR equals FNMR, on the ROC with its points joined by straight lines.

    Arguments and errors as in `roc_curve`.
    """
    roc = roc_curve(similarity, mated)
    # FMR - FNMR rises from -1 (nothing accepted) to 1 (all accepted), so it crosses zero once.
    gap = roc.fmr - (1.0 - roc.tar)
    after = int(np.argmax(gap >= 0))
    share = gap[after] / (gap[after] - gap[after - 1])
    return float(roc.fmr[after] - share * (roc.fmr[after] - roc.fmr[after - 1]))


def fold_accuracy(cosine: ArrayLike, mated: ArrayLike, fold: ArrayLike) -> FoldAccuracy:
    """Return the k-fold accuracy of the LFW protocol as the field computes it.

    Source: deepinsight/insightface, eval/verification.py.

    A pair is accepted when the squared distance of the unit embeddings, 2 - 2 * cosine, is below a threshold out of
    0.00, 0.01, ..., 3.99. Each fold is judged with the first of the thresholds that are most accurate on all others.

    Args:
        cosine: (n_pairs,) float, cosine of the two embeddings in [-1, 1]. Published figures use the sum of the
            embeddings of the image and of its mirror image.
        mated: (n_pairs,) bool or 0/1.
        fold: (n_pairs,) int, the fold of each pair; usually ten folds without common identities.

    Raises:
        FiqaRayError: unusable pairs, a cosine outside [-1, 1], or fewer than two folds.
    """
    scores, kinds = check_pairs(cosine, mated)
    outside = np.flatnonzero(np.abs(scores) > 1 + 1e-4)
    if outside.size:
        raise FiqaRayError(f"cosine[{outside[0]}] is {scores[outside[0]]}: normalise the embeddings to unit length")
    folds = np.asarray(fold)
    if folds.shape != scores.shape:
        raise FiqaRayError(f"fold has shape {folds.shape}, cosine {scores.shape}: give one fold number per pair")
    names, fold_row = np.unique(folds, return_inverse=True)
    if names.size < 2:
        raise FiqaRayError(f"all pairs are in fold {names[0]}: accuracy by folds needs at least two folds")

    thresholds = np.arange(0, 4, 0.01)
    right = ((2.0 - 2.0 * scores)[:, None] < thresholds) == kinds[:, None]
    # (n_folds, n_thresholds): right decisions per fold
    n_right = np.stack([right[fold_row == row].sum(axis=0) for row in range(names.size)])
    n_pairs = np.bincount(fold_row)
    # Counts over the other folds share one denominator, so the best count is the best accuracy.
    best = np.argmax(n_right.sum(axis=0) - n_right, axis=1)
    per_fold = n_right[np.arange(names.size), best] / n_pairs
    return FoldAccuracy(float(per_fold.mean()), float(per_fold.std()), per_fold, thresholds[best])
