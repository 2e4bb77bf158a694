"""Thresholds of a sample and wrong decisions among the pairs that are left at each discard level.

The benchmark itself is the sample with one copy of each pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from fiqa_ray.core.conventions import Convention
from fiqa_ray.core.kernels.discard import (
    count_errors,
    count_matches,
    left_thresholds,
    recomputed_thresholds,
    threshold_below,
    threshold_nearest,
)
from fiqa_ray.core.samples import Copies, NonmatedUnits, Sample, n_looked_at
from fiqa_ray.core.verification import FloatArray, IntArray, exact_fmr


def n_allowed(convention: Convention, fmr: float, n_nonmated: IntArray) -> IntArray:
    """Return the number of false matches that a rate allows among each number of non-mated pairs."""
    target = exact_fmr(fmr)
    product, one = target.numerator * n_nonmated, target.denominator
    if convention.count == "below":
        return np.maximum(0, -(-product // one) - 1)
    return product // one if convention.count == "at_most" else (2 * product + one) // (2 * one)


def fixed_threshold(convention: Convention, fmr: float | None, sample: Sample, units: NonmatedUnits) -> float:
    """Return the threshold that all pairs of a sample set; NaN where a kind of pair is not in it.

    Args:
        convention: says how.
        fmr: target false match rate, or None.
        sample: the sample.
        units: its non-mated copies.
    """
    count, mated = sample.mated_count, sample.pairs.mated_similarity
    if sample.n_nonmated == 0 or sample.n_mated == 0:
        return np.nan
    if convention.starting_fnmr is not None:
        return float(np.quantile(np.repeat(mated, count), convention.starting_fnmr))
    target, allowed = exact_fmr(_rate(fmr)), allowed_at_start(convention, fmr, sample)
    doubled, threshold = 2 * target.numerator * sample.n_nonmated, np.nan

    def is_decided(n: int, is_all: bool) -> bool:
        nonlocal threshold
        _, _, n_copies, similarity = units.first(n)
        given = n_copies, n_copies, similarity  # none is discarded
        if convention.count == "nearest":
            threshold, _ = threshold_nearest(*given, count, count, mated, 0, doubled, target.denominator, is_all)
        else:
            threshold, _ = threshold_below(*given, 0, allowed)
        return not np.isnan(threshold)

    units.decide(n_looked_at(allowed), is_decided)
    return float(threshold)


def allowed_at_start(convention: Convention, fmr: float | None, sample: Sample, threshold: float = np.nan) -> int:
    """Return how many false matches are allowed, or, by a starting FNMR, made, before anything is discarded."""
    if sample.n_nonmated == 0 or sample.n_mated == 0:
        return 0
    if convention.starting_fnmr is not None:
        return sample.n_matches(float(upper_wrong(convention, threshold)))
    return int(n_allowed(convention, _rate(fmr), np.array(sample.n_nonmated)))


def _rate(fmr: float | None) -> float:
    return 1e-3 if fmr is None else fmr


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


def fixed_levels(copies: Copies, fmr: float | None, convention: Convention, units: NonmatedUnits) -> Levels:
    """Return a sample's levels under one threshold."""
    threshold = fixed_threshold(convention, fmr, copies.sample, units)
    cuts, n_mated, n_nonmated = copies.left(convention)
    is_empty = (n_mated == 0) | (n_nonmated == 0)
    false_nonmatches, false_matches = (_n_wrong(copies, convention, threshold, error) for error in ("fnmr", "fmr"))
    false_nonmatches[is_empty] = false_matches[is_empty] = 0
    allowed = allowed_at_start(convention, fmr, copies.sample, threshold)
    thresholds = np.where(is_empty, np.nan, threshold)
    n_allowed_at_start = np.full(cuts.size, allowed)
    return Levels(thresholds, n_mated, n_nonmated, false_nonmatches, false_matches, n_allowed_at_start)


def fixed_rate(copies: Copies, convention: Convention, threshold: float) -> FloatArray:
    """Return the rate that the convention draws at each level of a sample under one threshold, as `Levels.rate` does."""
    _, n_mated, n_nonmated = copies.left(convention)
    wrong = _n_wrong(copies, convention, threshold, convention.error)
    is_undefined = np.isnan(threshold) | (n_mated == 0) | (n_nonmated == 0)
    left = n_nonmated if convention.error == "fmr" else n_mated
    return np.where(is_undefined, np.nan, wrong / np.maximum(left, 1))


def _n_wrong(copies: Copies, convention: Convention, threshold: float, error: str) -> IntArray:
    """Return the wrong decisions of a kind that each level leaves under one threshold, (n_levels,)."""
    sample, order, highest = copies.sample, copies.scorer, float(upper_wrong(convention, threshold))
    cuts, *_ = copies.left(convention)
    if error == "fnmr":
        if convention.pool == "nonmated":  # mated pairs stay
            is_wrong = sample.pairs.mated_similarity <= highest
            return np.full(cuts.size, sample.mated_count[is_wrong].sum())
        at = order.mated_at
        return copies.behind(cuts, at[~(sample.pairs.similarity[order.order[at]] > highest)])
    if convention.pool == "mated":
        return np.full(cuts.size, sample.n_matches(highest))
    return copies.behind(cuts, np.flatnonzero(~order.mated & (sample.pairs.similarity[order.order] > highest)))


def moving_levels(
    copies: Copies, fmr: float | None, convention: Convention, units: tuple[NonmatedUnits, NonmatedUnits]
) -> Levels:
    """Return a sample's levels under thresholds that differ from level to level.

    Args:
        copies: the sample, of a pool with both kinds of pairs.
        fmr: target false match rate; None: 0.001.
        convention: says how.
        units: the non-mated copies, twice: for levels that leave more than half of all pairs, and, without those that
            are discarded by then, for the others.
    """
    cuts, n_mated, n_nonmated = copies.left(convention)
    threshold, n_false_matches = np.empty(cuts.size), np.empty(cuts.size, dtype=np.int64)
    if convention.threshold == "recomputed":
        allowed = n_allowed(convention, _rate(fmr), n_nonmated)
        is_decided = partial(_recomputed, copies, fmr, convention, units, (threshold, n_false_matches))
    else:
        allowed = np.full(cuts.size, allowed_at_start(convention, fmr, copies.sample))
        fixed = fixed_threshold(convention, fmr, copies.sample, units[0])
        is_decided = partial(_nearest_left, copies, convention, units[0], fixed, (threshold, n_false_matches))
    units[0].decide(n_looked_at(int(allowed.max())), is_decided)
    n_false_nonmatches = np.empty(cuts.size, dtype=np.int64)
    count_errors(copies.mated, cuts, np.asarray(upper_wrong(convention, threshold)), n_false_nonmatches)
    return Levels(threshold, n_mated, n_nonmated, n_false_nonmatches, n_false_matches, allowed)


def _recomputed(
    copies: Copies,
    fmr: float | None,
    convention: Convention,
    units: tuple[NonmatedUnits, NonmatedUnits],
    filled: tuple[FloatArray, IntArray],
    n: int,
    is_all: bool,
) -> bool:
    """Set each level's threshold by the pairs that it leaves; False where the first n units do not decide it."""
    cuts, n_mated, n_nonmated = copies.left(convention)
    target = exact_fmr(_rate(fmr))
    early, late = (copies.units(of_levels, n) for of_levels in units)
    return recomputed_thresholds(
        early,
        late,
        copies.mated,
        int(copies.ends[-1]),
        cuts,
        n_mated,
        n_nonmated,
        n_allowed(convention, _rate(fmr), n_nonmated),
        (target.numerator, target.denominator),
        convention.count == "nearest",
        is_all,
        *filled,
    )


def _nearest_left(
    copies: Copies,
    convention: Convention,
    units: NonmatedUnits,
    fixed: float,
    filled: tuple[FloatArray, IntArray],
    n: int,
    is_all: bool,
) -> bool:
    """Set each level's threshold by the similarity left that is nearest to `fixed`; False as in `_recomputed`."""
    cuts, *_ = copies.left(convention)
    threshold, n_false_matches = filled
    given = copies.units(units, n)
    if not left_thresholds(given, copies.mated, cuts, fixed, is_all, threshold):
        return False
    highest = np.asarray(upper_wrong(convention, threshold))
    count_matches(given, cuts, highest, n_false_matches)
    return is_all or given[2][-1] <= np.nanmin(highest)
