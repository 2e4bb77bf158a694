"""Error rates of groups of people at one threshold for all: what a system that is in use would do to each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from fiqa_ray.core.intervals import MIN_ERRORS
from fiqa_ray.core.orders import PairOrder
from fiqa_ray.core.resampling import Persons, draw_counts
from fiqa_ray.core.verification import BoolArray


@dataclass(frozen=True)
class Rate:
    """An error rate with its interval [low, high]."""

    value: float
    low: float
    high: float


def error_rates(
    similarity: ArrayLike,
    mated: ArrayLike,
    threshold: float,
    identities: tuple[ArrayLike, ArrayLike] | None,
    *,
    n_draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Rate, Rate]:
    """Return FMR and FNMR of some pairs at a threshold; a similarity above it is accepted.

    The interval is that of the bootstrap, which draws persons where `identities` name them. With few errors, or without
    draws, it is the binomial one of Clopper and Pearson.

    Args:
        similarity: `(L,)` of the group's pairs.
        mated: `(L,)`.
        threshold: Of all pairs, taken as it is: the intervals do not hold its own uncertainty.
        identities: Persons of both sides, each `(L,)`, or None.
        n_draws: Bootstrap draws.
        level: Confidence.
        seed: Of the draws.
    """
    pairs = PairOrder.of(similarity, mated)
    persons = None if identities is None else Persons.of(pairs.mated, identities)
    is_wrong = (pairs.similarity > threshold) != pairs.mated
    kinds = ~pairs.mated, pairs.mated
    draws = np.full((2, n_draws), np.nan)
    for j, counts in zip(range(n_draws), draw_counts(np.random.default_rng(seed), pairs, persons), strict=False):
        for k, of_kind in enumerate(kinds):
            n = counts[of_kind].sum()
            if n:
                draws[k, j] = counts[of_kind & is_wrong].sum() / n
    fmr, fnmr = (_rate(is_wrong, of_kind, draws[k], level) for k, of_kind in enumerate(kinds))
    return fmr, fnmr


def _rate(is_wrong: BoolArray, of_kind: BoolArray, draws: np.ndarray, level: float) -> Rate:
    n, n_wrong = int(of_kind.sum()), int((is_wrong & of_kind).sum())
    tails = (1 - level) / 2, (1 + level) / 2
    if min(n_wrong, n - n_wrong) < MIN_ERRORS or draws.size == 0:
        low = float(beta.ppf(tails[0], n_wrong, n - n_wrong + 1)) if n_wrong else 0.0
        high = float(beta.ppf(tails[1], n_wrong + 1, n - n_wrong)) if n_wrong < n else 1.0
    else:
        low, high = (float(v) for v in np.nanquantile(draws, tails))
    return Rate(n_wrong / n, low, high)
