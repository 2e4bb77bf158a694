"""Verification figures against hand-worked values, slow loops and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve as sklearn_roc

from fiqa_ray.core.verification import (
    allowed_false_matches,
    equal_error_rate,
    fold_accuracy,
    roc_curve,
    tar_at_fmr,
    threshold_at_fmr,
)
from fiqa_ray.errors import FiqaRayError, UsageError

pair_lists = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({kind for _, kind in pairs}) == 2
)


def test_hand_case() -> None:
    # non-mated, falling: 0.5 0.4 0.3 0.2; mated: 0.9 0.45 0.4 0.1
    similarity = [0.5, 0.4, 0.3, 0.2, 0.9, 0.45, 0.4, 0.1]
    mated = [0, 0, 0, 0, 1, 1, 1, 1]
    assert threshold_at_fmr(similarity, mated, 0.2) == 0.5  # none allowed
    assert tar_at_fmr(similarity, mated, 0.2) == 0.25
    assert threshold_at_fmr(similarity, mated, 0.25) == 0.4  # one allowed: 0.5
    assert tar_at_fmr(similarity, mated, 0.25) == 0.5  # 0.4 itself is not above the threshold
    roc = roc_curve(similarity, mated)
    assert roc.threshold.tolist() == [math.inf, 0.9, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1]
    assert roc.fmr.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.75, 1, 1]
    assert roc.tar.tolist() == [0, 0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 1]
    # FNMR falls from 0.5 to 0.25 while FMR rises from 0.25 to 0.5: they meet half way.
    assert equal_error_rate(similarity, mated) == pytest.approx(0.375)


def test_equal_error_rate_at_the_extremes() -> None:
    mated = np.array([0, 0, 1, 1])
    assert equal_error_rate([0.1, 0.2, 0.8, 0.9], mated) == 0
    assert equal_error_rate([0.8, 0.9, 0.1, 0.2], mated) == 1
    assert equal_error_rate([0.5, 0.5, 0.5, 0.5], mated) == 0.5


@given(pairs=pair_lists, fmr=st.sampled_from([0.001, 0.1, 0.29, 0.5, 0.99]))
@settings(max_examples=150, deadline=None)
def test_threshold_is_the_lowest_that_keeps_the_rate(pairs: list[tuple], fmr: float) -> None:
    similarity, mated = (list(column) for column in zip(*pairs, strict=True))
    nonmated = [s for s, kind in pairs if not kind]
    threshold = threshold_at_fmr(similarity, mated, fmr)
    assert sum(s > threshold for s in nonmated) <= fmr * len(nonmated) + 1e-9
    lower = [t for t in nonmated if t < threshold]
    if lower:
        assert sum(s > max(lower) for s in nonmated) > fmr * len(nonmated) + 1e-9
    hits = [s > threshold for s, kind in pairs if kind]
    assert tar_at_fmr(similarity, mated, fmr) == pytest.approx(sum(hits) / len(hits))


@given(pairs=pair_lists)
@settings(max_examples=100, deadline=None)
def test_roc_equals_scikit_learn(pairs: list[tuple]) -> None:
    similarity, mated = (np.array(column) for column in zip(*pairs, strict=True))
    roc = roc_curve(similarity, mated)
    fmr, tar, threshold = sklearn_roc(mated, similarity, drop_intermediate=False)
    np.testing.assert_allclose(roc.fmr, fmr)
    np.testing.assert_allclose(roc.tar, tar)
    np.testing.assert_allclose(roc.threshold, threshold)
    # Walk along the joined points in small steps to where the two rates are nearest to each other.
    steps = np.linspace(0, fmr.size - 1, 50_001)
    false_match, false_nonmatch = (np.interp(steps, np.arange(fmr.size), rate) for rate in (fmr, 1 - tar))
    nearest = np.argmin(np.abs(false_match - false_nonmatch))
    assert equal_error_rate(similarity, mated) == pytest.approx(false_match[nearest], abs=2e-3)


def test_equal_error_rate_of_two_normal_laws() -> None:
    # Means 0 and 2, unit variance: the rates meet at threshold 1, where both are Phi(-1).
    rng = np.random.default_rng(0)
    mated = np.arange(200_000) < 100_000
    assert equal_error_rate(rng.normal(size=mated.size) + 2 * mated, mated) == pytest.approx(0.158655, abs=0.004)


def slow_fold_accuracy(cosine: list, mated: list, fold: list) -> tuple[list, list]:
    accuracies, chosen = [], []
    for test in sorted(set(fold)):
        best, best_threshold = -1.0, math.nan
        for step in range(400):
            threshold = step * 0.01
            right = [(2 - 2 * c < threshold) == m for c, m, f in zip(cosine, mated, fold, strict=True) if f != test]
            if sum(right) / len(right) > best:
                best, best_threshold = sum(right) / len(right), threshold
        chosen.append(best_threshold)
        right = [(2 - 2 * c < best_threshold) == m for c, m, f in zip(cosine, mated, fold, strict=True) if f == test]
        accuracies.append(sum(right) / len(right))
    return accuracies, chosen


def test_fold_accuracy_equals_slow_loops() -> None:
    rng = np.random.default_rng(3)
    mated = rng.permutation(np.arange(150) < 70)
    cosine = np.clip(0.3 * mated + 0.3 * rng.normal(size=150), -1, 1)
    fold = rng.integers(0, 5, size=150)  # unequal sizes
    result = fold_accuracy(cosine, mated, fold)
    accuracies, thresholds = slow_fold_accuracy(cosine.tolist(), mated.tolist(), fold.tolist())
    assert result.per_fold.tolist() == pytest.approx(accuracies)
    assert result.threshold.tolist() == pytest.approx(thresholds)
    assert result.mean == pytest.approx(sum(accuracies) / 5)
    assert result.std == pytest.approx(np.std(accuracies))


def test_fold_accuracy_by_hand() -> None:
    # Squared distances 0.2 / 1.8 in both folds: the first threshold above 0.2 separates everything.
    result = fold_accuracy([0.9, 0.1, 0.9, 0.1], [1, 0, 1, 0], [3, 3, 7, 7])
    assert (result.mean, result.std) == (1, 0)
    assert result.threshold.tolist() == pytest.approx([0.2, 0.2], abs=0.0101)


def test_allowed_false_matches_are_counted_in_decimal() -> None:
    assert [allowed_false_matches(1e-3, n) for n in (999, 1000, 3000, 3500)] == [0, 1, 3, 3]
    assert allowed_false_matches(0.29, 100) == 29


def test_mistakes_are_named() -> None:
    for fmr in (1, "0.1"):
        with pytest.raises(UsageError, match=f"fmr={fmr}"):
            threshold_at_fmr([0, 1], [0, 1], fmr)
    with pytest.raises(UsageError, match="1 values of similarity are masked"):
        roc_curve(np.ma.masked_array([0, 1], [False, True]), [0, 1])
    with pytest.raises(UsageError, match="values of similarity are complex"):
        roc_curve([0, 1j], [0, 1])
    with pytest.raises(FiqaRayError, match="no mated pair"):
        roc_curve([0, 1], [0, 0])
    with pytest.raises(FiqaRayError, match=r"cosine\[1\] is 12"):
        fold_accuracy([0, 12], [0, 1], [0, 1])
    with pytest.raises(FiqaRayError, match="all pairs are in fold 4"):
        fold_accuracy([0, 1], [0, 1], [4, 4])
    with pytest.raises(FiqaRayError, match="fold has shape"):
        fold_accuracy([0, 1], [0, 1], [4])
    with pytest.raises(FiqaRayError, match="similarity has shape"):
        roc_curve([[0, 1]], [[0, 1]])
