"""Bootstrap intervals of the area under the EDC, and of the paired difference between two scorers.

On a benchmark of 3000 mated pairs one surviving error costs about 1e-3 of area, so a single AUC says little. Every
draw here resamples the benchmark with replacement and computes the AUC of all scorers on the same sample; intervals
are percentiles over the draws (Efron). Two ways to resample:

    pairs       mated and non-mated pairs are drawn apart, so that their numbers, which the protocol fixes, stay.
    identities  persons are drawn; a mated pair counts as often as its person was drawn, a non-mated pair as often as
                the product of its two persons' counts (subset bootstrap: pairs that share a person are not
                independent). Wider and more honest where images or persons occur in several pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fiqa_ray.core.edc import SortedPairs
from fiqa_ray.core.verification import BoolArray, FloatArray, IntArray, check_pairs
from fiqa_ray.errors import FiqaRayError, UsageError


@dataclass(frozen=True)
class Interval:
    """A value on the whole benchmark with the percentile interval [low, high] of its draws; NaN where undefined.

    ``n_undefined`` draws had no value (a kind of pair ran out before the limit) and were left out of the percentiles.
    """

    value: float
    low: float
    high: float
    n_undefined: int


@dataclass(frozen=True)
class AucBootstrap:
    """AUCs of several scorers over common draws.

    Attributes:
        scorers: names, in the order of the rows below.
        auc: (n_scorers,) float64, on the benchmark itself, in [0, 1].
        draws: (n_scorers, n_draws) float64, NaN where undefined; column j is the same sample for all scorers.
        confidence: coverage of the intervals, inside (0, 1).
    """

    scorers: tuple[str, ...]
    auc: FloatArray
    draws: FloatArray
    confidence: float

    def interval(self, scorer: str) -> Interval:
        """AUC of ``scorer`` with its interval; UsageError if the name is unknown."""
        row = self._row(scorer)
        return self._percentiles(float(self.auc[row]), self.draws[row])

    def difference(self, scorer_a: str, scorer_b: str) -> Interval:
        """AUC of ``scorer_a`` minus that of ``scorer_b``, paired by draw; below zero: a is better."""
        a, b = self._row(scorer_a), self._row(scorer_b)
        return self._percentiles(float(self.auc[a] - self.auc[b]), self.draws[a] - self.draws[b])

    def _row(self, scorer: str) -> int:
        if scorer not in self.scorers:
            raise UsageError(f"scorer {scorer!r} was not bootstrapped: choose one of {', '.join(self.scorers)}")
        return self.scorers.index(scorer)

    def _percentiles(self, value: float, draws: FloatArray) -> Interval:
        defined = draws[~np.isnan(draws)]
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail]) if defined.size else (np.nan, np.nan)
        return Interval(value, float(low), float(high), int(draws.size - defined.size))


def bootstrap_auc(
    similarity: ArrayLike,
    mated: ArrayLike,
    qualities: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    fmr: float = 1e-3,
    convention: str = "paper",
    limit: float | None = None,
    identities: tuple[ArrayLike, ArrayLike] | None = None,
    n_draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> AucBootstrap:
    """AUC of every scorer on one benchmark, with draws for intervals and paired differences.

    The draws depend on ``seed``, the pairs' kinds and ``identities`` alone, so results repeat and scorers may be added
    without changing the others. One draw of 6000 pairs costs about 0.3 ms per scorer (paper), 0.2 ms (dasec) or 5 ms
    (nearest) on one core.

    Args:
        similarity: (n_pairs,) float, larger is more alike.
        mated: (n_pairs,) bool or 0/1.
        qualities: per scorer its (quality_a, quality_b), each (n_pairs,) float, larger is better.
        fmr: false match rate of the threshold, inside (0, 1).
        convention: of `fiqa_ray.core.edc`: `paper`, `nearest` or `dasec`.
        limit: discard fraction up to which the area is taken; None for all of the curve.
        identities: (identity_a, identity_b), each (n_pairs,): resample persons instead of pairs.
        n_draws: number of resamples, at least 1.
        confidence: coverage of the intervals, inside (0, 1).
        seed: any integer from 0.

    Raises:
        UsageError: ``fmr``, ``convention``, ``limit``, ``n_draws`` or ``confidence`` out of range, or no scorer.
        FiqaRayError: unusable arrays (see `edc_curve`), or identities that contradict ``mated``.
    """
    if n_draws < 1:
        raise UsageError(f"n_draws={n_draws}: at least one draw is needed")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence={confidence} is outside (0, 1): give a share such as 0.95")
    if not qualities:
        raise UsageError("no scorer was given: name at least one pair of quality arrays")
    _, kinds = check_pairs(similarity, mated)
    scorers = [SortedPairs.from_arrays(similarity, kinds, a, b) for a, b in qualities.values()]
    rng = np.random.default_rng(seed)
    samples = _draw_pairs(rng, kinds) if identities is None else _draw_identities(rng, kinds, identities)

    def auc(pairs: SortedPairs, counts: IntArray | None) -> float:
        return pairs.curve(fmr=fmr, convention=convention, counts=counts).auc(limit)

    value = np.array([auc(pairs, None) for pairs in scorers])
    draws = np.full((len(scorers), n_draws), np.nan)
    for j, counts in zip(range(n_draws), samples, strict=False):
        if counts.any():
            draws[:, j] = [auc(pairs, counts) for pairs in scorers]
    return AucBootstrap(tuple(qualities), value, draws, confidence)


def _draw_pairs(rng: np.random.Generator, mated: BoolArray) -> Iterator[IntArray]:
    """Endless samples: how often each pair was drawn, (n_pairs,) int64; mated and non-mated drawn apart."""
    strata = [np.flatnonzero(mated), np.flatnonzero(~mated)]
    while True:
        counts = np.zeros(mated.size, dtype=np.int64)
        for rows in strata:
            counts[rows] = np.bincount(rng.integers(rows.size, size=rows.size), minlength=rows.size)
        yield counts


def _draw_identities(
    rng: np.random.Generator, mated: BoolArray, identities: tuple[ArrayLike, ArrayLike]
) -> Iterator[IntArray]:
    """Endless samples: how often each pair occurs when persons are drawn, (n_pairs,) int64."""
    columns = [np.asarray(column) for column in identities]
    for name, column in zip("ab", columns, strict=True):
        if column.shape != mated.shape:
            raise FiqaRayError(f"identity_{name} has shape {column.shape} for {mated.size} pairs: give one per pair")
    names, rows = np.unique(np.concatenate(columns), return_inverse=True)
    row_a, row_b = rows.reshape(2, -1)
    wrong = np.flatnonzero((row_a == row_b) != mated)
    if wrong.size:
        i = wrong[0]
        kind = "mated" if mated[i] else "non-mated"
        raise FiqaRayError(
            f"pair {i} is {kind} but joins identities {columns[0][i]} and {columns[1][i]}: "
            "check that identities and pairs are in the same order"
        )

    def samples() -> Iterator[IntArray]:
        while True:
            drawn = np.bincount(rng.integers(names.size, size=names.size), minlength=names.size)
            yield np.where(mated, drawn[row_a], drawn[row_a] * drawn[row_b])

    return samples()
