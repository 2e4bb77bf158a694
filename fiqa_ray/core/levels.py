"""Thresholds of a sample and wrong decisions among the pairs that are left at each discard level.

A sample holds pair i `counts[i]` times; the benchmark itself is the sample with one copy of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

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
from fiqa_ray.core.verification import BoolArray, FloatArray, IntArray, exact_fmr

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


@dataclass(frozen=True)
class Copies:
    """The copies of a sample in the order of a score, and what conventions and rates share of them.

    Attributes:
        pairs: the benchmark.
        scorer: its pairs by quality.
        counts: (n_pairs,) int64 copies of each pair.
    """

    pairs: PairOrder
    scorer: QualityOrder
    counts: IntArray
    _left: dict[tuple[str, int], tuple[IntArray, IntArray, IntArray]] = field(default_factory=dict, repr=False)

    @cached_property
    def last(self) -> IntArray:
        """The number of the last copy of each pair, (n_pairs,), where all copies are numbered by rising quality."""
        last = np.empty(self.pairs.mated.size, dtype=np.int64)
        number_copies(self.scorer.order, self.counts, last)
        return last

    def left(self, convention: Convention) -> tuple[IntArray, IntArray, IntArray]:
        """Return how many copies each level discards, and the mated and non-mated ones that it leaves, (n_levels,) each."""
        key = convention.ties, convention.n_levels
        if key not in self._left:
            cuts = self.scorer.cuts(self.counts, convention)
            self._left[key] = cuts, self.count(self.scorer.mated, cuts), self.count(~self.scorer.mated, cuts)
        return self._left[key]

    def count(self, is_counted: BoolArray, cuts: IntArray) -> IntArray:
        """Return how many copies of some pairs, in the order of the score, lie behind each cut."""
        left = np.empty(cuts.size, dtype=np.int64)
        count_left(self.scorer.order, is_counted, self.counts, cuts, left)
        return left


def fixed_levels(copies: Copies, fmr: float | None, convention: Convention, units: Units) -> Levels:
    """Return a sample's levels under one threshold."""
    pairs, scorer, counts = copies.pairs, copies.scorer, copies.counts
    threshold, allowed = fixed_threshold(convention, fmr, pairs, counts, units)
    cuts, n_mated, n_nonmated = copies.left(convention)
    highest = upper_wrong(convention, threshold)
    accepted = pairs.similarity[scorer.order] > highest
    n_false_nonmatches = copies.count(scorer.mated & ~accepted, cuts)
    n_false_matches = copies.count(~scorer.mated & accepted, cuts)
    if convention.pool == "mated":  # non-mated pairs stay
        n_nonmated = np.full(cuts.size, units[1].sum())
        n_false_matches = np.full(cuts.size, units[1][units[2] > highest].sum())
    elif convention.pool == "nonmated":
        rows = pairs.mated_rows
        n_mated = np.full(cuts.size, counts[rows].sum())
        n_false_nonmatches = np.full(cuts.size, counts[rows][pairs.similarity[rows] <= highest].sum())
    is_empty = (n_mated == 0) | (n_nonmated == 0)
    n_false_nonmatches[is_empty] = n_false_matches[is_empty] = 0
    thresholds = np.where(is_empty, np.nan, threshold)
    return Levels(thresholds, n_mated, n_nonmated, n_false_nonmatches, n_false_matches, np.full(cuts.size, allowed))


def moving_levels(copies: Copies, fmr: float | None, convention: Convention, units: tuple[Units, Units]) -> Levels:
    """Return a sample's levels under thresholds that differ from level to level.

    Args:
        copies: the sample, of a pool with both kinds of pairs.
        fmr: target false match rate; None: 0.001.
        convention: says how.
        units: the non-mated pairs by falling similarity, twice: for levels that leave more than half of all pairs, and,
            without those that are discarded by then, for the others.
    """
    pairs, counts, last = copies.pairs, copies.counts, copies.last
    cuts, n_mated, n_nonmated = copies.left(convention)
    rows, threshold = pairs.mated_rows, np.empty(cuts.size)
    n_false_nonmatches, n_false_matches = np.empty((2, cuts.size), dtype=np.int64)
    mated_pairs = last[rows], counts[rows], pairs.similarity[rows]
    rate = 1e-3 if fmr is None else fmr
    target, allowed = exact_fmr(rate), n_allowed(convention, rate, n_nonmated)
    if convention.threshold == "recomputed":
        recomputed_thresholds(
            *units,
            mated_pairs,
            int(last[copies.scorer.order[-1]]),
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
