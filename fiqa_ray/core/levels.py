"""Thresholds of a sample and wrong decisions among the pairs that are left at each discard level.

A sample holds pair i `counts[i]` times; the benchmark itself is the sample with one copy of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fiqa_ray.core.conventions import Convention
from fiqa_ray.core.kernels.discard import (
    count_errors,
    count_left,
    count_matches,
    left_thresholds,
    number_copies,
    recomputed_thresholds,
    threshold_nearest,
)
from fiqa_ray.core.orders import PairOrder, QualityOrder
from fiqa_ray.core.verification import FloatArray, IntArray, exact_fmr

Units = tuple[IntArray, IntArray, FloatArray]
"""Non-mated pairs of a sample by falling similarity: number of the last copy, copies, similarity."""


def n_allowed(convention: Convention, fmr: float, n_nonmated: IntArray) -> IntArray:
    """Return the number of false matches that a rate allows among each number of non-mated pairs."""
    target = exact_fmr(fmr)
    product, one = target.numerator * n_nonmated, target.denominator
    if convention.count == "below":
        return np.maximum(0, -(-product // one) - 1)
    return product // one if convention.count == "at_most" else (2 * product + one) // (2 * one)


def fixed_threshold(
    convention: Convention, fmr: float | None, pairs: PairOrder, counts: IntArray, units: Units
) -> tuple[float, int]:
    """Return the threshold that all pairs of a sample set, and the number of false matches it allows.

    NaN where a kind of pair is not in the sample.

    Args:
        convention: says how.
        fmr: target false match rate, or None.
        pairs: the benchmark.
        counts: (n_pairs,) int64 copies of each pair.
        units: the sample's non-mated pairs; of their copies none is discarded here.
    """
    _, count, similarity = units
    mated_count, mated = counts[pairs.mated_rows], pairs.similarity[pairs.mated_rows]
    n_nonmated = int(count.sum())
    if n_nonmated == 0 or not mated_count.any():
        return np.nan, 0
    if convention.starting_fnmr is not None:
        threshold = float(np.quantile(np.repeat(mated, mated_count), convention.starting_fnmr))
        return threshold, int(count[similarity > upper_wrong(convention, threshold)].sum())
    rate = 1e-3 if fmr is None else fmr
    allowed = int(n_allowed(convention, rate, np.array(n_nonmated)))
    if convention.count == "nearest":
        target = exact_fmr(rate)
        doubled = 2 * target.numerator * n_nonmated
        threshold, _ = threshold_nearest(
            count, count, similarity, mated_count, mated_count, mated, 0, doubled, target.denominator
        )
        return float(threshold), allowed
    # none is discarded: the first unit with more than `allowed` copies up to and with it
    return float(similarity[np.searchsorted(np.cumsum(count), allowed, side="right")]), allowed


def upper_wrong(convention: Convention, threshold: float | FloatArray) -> float | FloatArray:
    """Return the largest similarity that a threshold rejects."""
    return threshold if convention.accept == "above" else np.nextafter(threshold, -np.inf)


@dataclass(frozen=True)
class Levels:
    """A sample at each level, arrays (n_levels,): counts as in `EDC`."""

    threshold: FloatArray
    n_mated: IntArray
    n_nonmated: IntArray
    n_false_nonmatches: IntArray
    n_false_matches: IntArray
    n_allowed: IntArray

    def rate(self, convention: Convention) -> FloatArray:
        """Return the rate that the convention draws; NaN where it is undefined."""
        wrong, left = self.n_false_nonmatches, self.n_mated
        if convention.error == "fmr":
            wrong, left = self.n_false_matches, self.n_nonmated
        return np.where(np.isnan(self.threshold) | (left == 0), np.nan, wrong / np.maximum(left, 1))


def fixed_levels(
    pairs: PairOrder,
    scorer: QualityOrder,
    counts: IntArray,
    fmr: float | None,
    convention: Convention,
    units: Units,
) -> Levels:
    """Return a sample's levels under one threshold."""
    threshold, allowed = fixed_threshold(convention, fmr, pairs, counts, units)
    cuts = scorer.cuts(counts, convention)
    highest = upper_wrong(convention, threshold)
    accepted = pairs.similarity[scorer.order] > highest
    kinds = (scorer.mated, ~scorer.mated, scorer.mated & ~accepted, ~scorer.mated & accepted)
    left = np.empty((4, cuts.size), dtype=np.int64)
    for row, is_counted in zip(left, kinds, strict=True):
        count_left(scorer.order, is_counted, counts, cuts, row)
    if convention.pool == "mated":  # non-mated pairs stay
        left[1], left[3] = units[1].sum(), units[1][units[2] > highest].sum()
    elif convention.pool == "nonmated":
        rows = pairs.mated_rows
        left[0] = counts[rows].sum()
        left[2] = counts[rows][pairs.similarity[rows] <= highest].sum()
    left[2:, (left[0] == 0) | (left[1] == 0)] = 0
    thresholds = np.where((left[0] == 0) | (left[1] == 0), np.nan, threshold)
    return Levels(thresholds, left[0], left[1], left[2], left[3], np.full(cuts.size, allowed))


@dataclass(frozen=True)
class Numbers:
    """The copies of a sample, numbered by rising quality: `counts` of each pair and the number of its `last` one."""

    counts: IntArray
    last: IntArray

    @classmethod
    def of(cls, pairs: PairOrder, scorer: QualityOrder, counts: IntArray) -> Numbers:
        """Give the copies of all pairs their numbers."""
        last = np.empty(pairs.mated.size, dtype=np.int64)
        number_copies(scorer.order, counts, last)
        return cls(counts, last)


def moving_levels(
    pairs: PairOrder,
    scorer: QualityOrder,
    numbers: Numbers,
    fmr: float | None,
    convention: Convention,
    units: tuple[Units, Units],
) -> Levels:
    """Return a sample's levels under thresholds that differ from level to level.

    Args:
        pairs: the benchmark.
        scorer: its pairs by quality, of a pool with both kinds.
        numbers: of the sample.
        fmr: target false match rate; None: 0.001.
        convention: says how.
        units: the non-mated pairs by falling similarity, twice: for levels that leave more than half of all pairs, and,
            without those that are discarded by then, for the others.
    """
    counts, cuts = numbers.counts, scorer.cuts(numbers.counts, convention)
    n_mated, n_nonmated, n_false_nonmatches, n_false_matches = np.empty((4, cuts.size), dtype=np.int64)
    count_left(scorer.order, scorer.mated, counts, cuts, n_mated)
    count_left(scorer.order, ~scorer.mated, counts, cuts, n_nonmated)
    rows, threshold = pairs.mated_rows, np.empty(cuts.size)
    mated_pairs = numbers.last[rows], counts[rows], pairs.similarity[rows]
    rate = 1e-3 if fmr is None else fmr
    target, allowed = exact_fmr(rate), n_allowed(convention, rate, n_nonmated)
    if convention.threshold == "recomputed":
        recomputed_thresholds(
            *units,
            mated_pairs,
            int(numbers.last[scorer.order[-1]]),
            cuts,
            n_mated,
            n_nonmated,
            allowed,
            (target.numerator, target.denominator),
            convention.count == "nearest",
            threshold,
            n_false_matches,
        )
    else:
        fixed, at_start = fixed_threshold(convention, rate, pairs, counts, units[0])
        left_thresholds(units[0], mated_pairs, cuts, fixed, threshold)
        count_matches(units[0], cuts, np.asarray(upper_wrong(convention, threshold)), n_false_matches)
        allowed = np.full(cuts.size, at_start)
    count_errors(mated_pairs, cuts, np.asarray(upper_wrong(convention, threshold)), n_false_nonmatches)
    return Levels(threshold, n_mated, n_nonmated, n_false_nonmatches, n_false_matches, allowed)
