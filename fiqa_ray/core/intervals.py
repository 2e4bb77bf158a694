"""From bootstrap draws to intervals that say how they were made, or that there is none and why.

An area depends on two things that vary: which pairs are wrong, and where the threshold lies. If the threshold
makes most of the variation, percentiles of the draws have the right coverage, since a monotone map of the area maps them
too. For a sum of errors they lie too low, which the accelerated interval (BCa, Efron 1987) corrects by the skewness.
`SKEWNESS_SHARE` and `SKEWNESS_LIMIT` stand between the two. The docs' page of recorded runs has the coverage that
`benchmarks/coverage.py` finds. Cells that are known to miss 92 to 98 % have no interval: `reason_for_none` is the list, with
`TOO_WIDE`, which needs to know the convention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm, skew

from fiqa_ray.core.verification import FloatArray, exact_fmr

INTERVAL, UPPER_LIMIT, NONE = "interval", "upper limit", "none"
"""Kinds of `Interval`."""

MIN_ERRORS = 20
"""With fewer errors before any discard, areas have an upper limit only and differences no interval."""
MIN_UNITS = 50
"""With fewer mated pairs, or persons of mated pairs, there is no interval."""
MAX_UNDEFINED = 0.05
"""With a larger share of draws without a value there is no interval."""
NOT_RESAMPLED = (
    "no draw has a value: all pairs of a large set are not resampled, and other pairs ran out before the limit"
)
IDENTITIES = "identities"
"""The unit of draws of people."""
TOO_WIDE = (
    "few false matches are allowed and people are drawn: intervals of differences up to a limit before the curve's end are "
    "too wide, in simulation 99 % of them hold the truth"
)
"""For thresholds that each level sets anew. A higher threshold makes such a difference and its spread larger alike, so the
intervals are the widest where they err the most."""
SKEWNESS_SHARE = 0.5
SKEWNESS_LIMIT = 0.5


@dataclass(frozen=True)
class IntervalSettings:
    """How the intervals of a benchmark are made.

    Attributes:
        level: confidence, inside (0, 1).
        unit: what was drawn: "pairs" or "identities".
        n_units: what mated pairs were drawn from: their number, or that of their persons.
        n_nonmated: non-mated pairs.
        n_draws: resamples.
        seed: of the draws.
    """

    level: float
    unit: str
    n_units: int
    n_nonmated: int
    n_draws: int
    seed: int


@dataclass(frozen=True)
class Errors:
    """What a curve stands on: `n_wrong` units are decided wrongly before anything is discarded.

    The rate `fmr` sets the threshold, or without one a starting FNMR.
    """

    fmr: float | None
    n_wrong: int


@dataclass(frozen=True)
class Interval:
    """A value on the whole benchmark and its interval [low, high].

    Attributes:
        value: NaN where undefined.
        low, high: NaN where there is no interval.
        kind: "interval"; "upper limit": the binomial limit of the error rate times the discard limit, with `low` 0; or
            "none".
        reason: why it is not an interval; empty where it is.
        p_value: two-sided, that the value is zero; NaN unless it is an interval.
        n_undefined: draws without a value, left out: a kind of pair ran out before the limit.
        settings: level, unit, draws and seed.
    """

    value: float
    low: float
    high: float
    kind: str
    reason: str
    p_value: float
    n_undefined: int
    settings: IntervalSettings


def area_interval(
    value: float, draws: FloatArray, limit: float, errors: Errors, settings: IntervalSettings
) -> Interval:
    """Return an area with its interval.

    With few errors it is an upper limit: FNMR is below the limit of Clopper and Pearson (1934) at no discards, and a score
    that is not worse than none keeps it there.

    Args:
        value: the area on the benchmark itself.
        draws: (n_draws,) the area on the samples, NaN where undefined.
        limit: discard fraction up to which the area is taken.
        errors: how many wrong decisions there are to discard.
        settings: how the draws were made.
    """
    n_undefined, reason = int(np.isnan(draws).sum()), reason_for_none(value, draws, errors, settings)
    if not reason and errors.n_wrong < MIN_ERRORS:
        high = max(value, limit * upper_rate(errors.n_wrong, settings.n_units, settings.level))
        return Interval(value, 0.0, high, UPPER_LIMIT, few_errors(errors), np.nan, n_undefined, settings)
    return _interval(value, draws, reason, settings)


def difference_interval(value: float, draws: FloatArray, errors: Errors, settings: IntervalSettings) -> Interval:
    """Return a difference of two areas with its interval; arguments as in `area_interval`."""
    reason = reason_for_none(value, draws, errors, settings)
    if not reason and errors.n_wrong < MIN_ERRORS:
        reason = few_errors(errors)
    return _interval(value, draws, reason, settings)


def _interval(value: float, draws: FloatArray, reason: str, settings: IntervalSettings) -> Interval:
    defined = draws[~np.isnan(draws)]
    n_undefined = draws.size - defined.size
    if reason:
        return Interval(value, np.nan, np.nan, NONE, reason, np.nan, n_undefined, settings)
    low, high = accelerated_percentiles(defined, settings.level)
    return Interval(value, low, high, INTERVAL, "", two_sided_p(defined), n_undefined, settings)


def few_errors(errors: Errors) -> str:
    """Say that there are few errors."""
    where = "" if errors.fmr is None else f" at FMR {errors.fmr:g}"
    return f"{errors.n_wrong} errors{where} are too few for an interval: {MIN_ERRORS} are needed"


def reason_for_none(value: float, draws: FloatArray, errors: Errors, settings: IntervalSettings) -> str:
    """Say why there is neither an interval nor a limit that would cover; empty if there is."""
    if math.isnan(value):
        return "the curve is undefined within the limit"
    if errors.fmr is not None and exact_fmr(errors.fmr) * settings.n_nonmated < 1:
        return f"FMR {errors.fmr:g} allows no false match among {settings.n_nonmated} non-mated pairs"
    if settings.n_units < MIN_UNITS:
        return f"{settings.n_units} {settings.unit} are too few for an interval: {MIN_UNITS} are needed"
    if settings.n_draws == 0:
        return "no draws were asked for"
    n_undefined = int(np.isnan(draws).sum())
    if n_undefined == settings.n_draws:
        return NOT_RESAMPLED
    if n_undefined > MAX_UNDEFINED * settings.n_draws:
        return f"{n_undefined} of {settings.n_draws} draws have no value: a kind of pair ran out before the limit"
    return ""


def accelerated_percentiles(draws: FloatArray, level: float) -> tuple[float, float]:
    """Return the central percentiles, moved by part of the skewness as in the module's head.

    With the acceleration a = skewness / 6, which is also the bias correction of a sum, BCa takes the percentile
    cdf(a + (a + z) / (1 - a (a + z))) in place of cdf(z).
    """
    z = norm.ppf([(1 - level) / 2, (1 + level) / 2])
    spread = np.ptp(draws)
    skewness = float(skew(draws)) if spread > 1e-12 else 0.0
    a = SKEWNESS_SHARE * np.clip(skewness, -SKEWNESS_LIMIT, SKEWNESS_LIMIT) / 6
    low, high = np.quantile(draws, norm.cdf(a + (a + z) / (1 - a * (a + z))))
    return float(low), float(high)


def upper_rate(n_wrong: int, n: int, level: float) -> float:
    """Return the upper Clopper-Pearson limit of an error rate: `n_wrong` of `n` independent decisions were wrong."""
    return float(beta.ppf((1 + level) / 2, n_wrong + 1, n - n_wrong)) if n_wrong < n else 1.0


def two_sided_p(draws: FloatArray) -> float:
    """Return the bootstrap p-value, in (0, 1], of the hypothesis that the value is zero.

    Twice the share of the draws on the rarer side of zero, with the benchmark itself counted as one more draw there.
    """
    n_rarer = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (n_rarer + 1) / (draws.size + 1))
