"""Samples of a benchmark for bootstrap intervals: what is drawn, and how often each pair then counts.

    pairs       Mated and non-mated pairs are drawn apart with replacement: their numbers, which the protocol sets, stay.
    identities  Persons are drawn with replacement, w_i times person i. A mated pair counts as often as its person. A
                non-mated pair of the persons i and j has two sources of variance, the two persons and itself, and the
                usual product w_i w_j counts its own part three times (Poisson weights: variance 3 instead of 1). So here
                its count is a Poisson draw with mean v_i v_j, where v = 1 + tau (w - 1). The Poisson draw is the pair's
                own part, counted once; `person_share` measures tau^2, the share of the persons. With tau = 0 persons do
                not matter to non-mated pairs, and the pairs are drawn as above.

A threshold that only a few non-mated pairs exceed cannot be resampled: no draw finds a similarity above the largest. For
`FEW_FALSE_MATCHES` or fewer allowed false matches the non-mated similarities of a draw get Gaussian noise (the smoothed
bootstrap: Silverman and Young, Biometrika 1987), with Silverman's bandwidth for the pairs that are left: all of them, and a
quarter of them for the levels that discard half or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fiqa_ray.core.kernels.persons import count_pairs
from fiqa_ray.core.orders import PairOrder
from fiqa_ray.core.samples import CountArray, NonmatedUnits, Sample
from fiqa_ray.core.verification import BoolArray, FloatArray, IntArray, allowed_false_matches
from fiqa_ray.errors import FiqaRayError

FEW_FALSE_MATCHES = 20
"""Up to so many allowed false matches the non-mated similarities are smoothed."""
TAIL_RATE = 0.01
"""Share of the non-mated pairs, the most similar ones, on which the share of the persons is measured."""
N_SMOOTHED = 4096
"""So many of the most similar non-mated pairs are smoothed; less similar ones never set a threshold of few pairs."""


@dataclass(frozen=True)
class Persons:
    """The persons of the pairs: row_a and row_b (n_pairs,) int64 in [0, n)."""

    n: int
    row_a: IntArray
    row_b: IntArray

    @classmethod
    def of(cls, mated: BoolArray, identities: tuple[ArrayLike, ArrayLike]) -> Persons:
        """Give the persons numbers by their names.

        Args:
            mated: (n_pairs,) bool.
            identities: the persons of the first and of the second images, each (n_pairs,).

        Raises:
            FiqaRayError: a length differs, or the persons of a pair contradict its kind.
        """
        columns = [np.asarray(column) for column in identities]
        for name, column in zip("ab", columns, strict=True):
            if column.shape != mated.shape:
                raise FiqaRayError(
                    f"identity_{name} has shape {column.shape} for {mated.size} pairs: give one per pair"
                )
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
        return cls(names.size, row_a, row_b)


def person_share(pairs: PairOrder, persons: Persons) -> float:
    """Return tau^2, the share of the persons in the variance of the non-mated pairs' tail, in [0, 1].

    With x = 1 for the most similar non-mated pairs minus their mean, and S_i the sum of x over the pairs of person i, the
    variance of the sum of x is estimated by sum(S^2) - sum(x^2): all products of pairs that share a person, each pair
    with itself once (Fafchamps and Gubert 2007). The draws give tau^2 sum(S^2) + sum(x^2), up to tau^4. Both are equal for
    the value returned.
    """
    rows = pairs.nonmated_rows
    n_top = max(FEW_FALSE_MATCHES, round(TAIL_RATE * rows.size))
    if n_top >= rows.size:
        return 0.0
    x = np.full(rows.size, -n_top / rows.size)
    x[:n_top] += 1
    sums = np.bincount(persons.row_a[rows], x, persons.n) + np.bincount(persons.row_b[rows], x, persons.n)
    return float(np.clip(1 - 2 * np.sum(x**2) / np.sum(sums**2), 0, 1))


def draw_counts(rng: np.random.Generator, pairs: PairOrder, persons: Persons | None) -> Iterator[CountArray]:
    """Yield without end how often each pair counts in a sample, (n_pairs,) int32; persons None: pairs are drawn."""
    if persons is None:
        strata = [np.flatnonzero(pairs.mated), np.flatnonzero(~pairs.mated)]
        while True:
            counts = np.zeros(pairs.mated.size, dtype=np.int32)
            for rows in strata:
                counts[rows] = np.bincount(rng.integers(rows.size, size=rows.size), minlength=rows.size)
            yield counts
    tau = np.sqrt(person_share(pairs, persons))
    while True:
        drawn = np.bincount(rng.integers(persons.n, size=persons.n), minlength=persons.n)
        counts = np.empty(pairs.mated.size, dtype=np.int32)
        count_pairs(rng, drawn, 1 + tau * (drawn - 1), persons.row_a, persons.row_b, pairs.mated, counts)
        yield counts


def bandwidth(nonmated: FloatArray, n: float) -> float:
    """Return Silverman's bandwidth for `n` of these similarities, 0.9 standard deviations times n^-0.2."""
    return float(0.9 * nonmated.std() * n**-0.2)


def is_smoothed(fmr: float, n_nonmated: int) -> bool:
    """Say whether few false matches are allowed at this rate."""
    return allowed_false_matches(fmr, n_nonmated) <= FEW_FALSE_MATCHES


def smoothed_units(rng: np.random.Generator, sample: Sample, widths: Sequence[float]) -> list[NonmatedUnits]:
    """Return the sample's non-mated copies, each with its Gaussian noise of a standard deviation, for each of `widths`."""
    top = sample.pairs.nonmated_rows[:N_SMOOTHED]
    n_copies = sample.counts[top]
    rows = np.repeat(top, n_copies)
    back = np.arange(rows.size) - np.repeat(np.cumsum(n_copies) - n_copies, n_copies)
    noise = rng.standard_normal(rows.size)
    smoothed = []
    for width in widths:
        similarity = sample.pairs.similarity[rows] + width * noise
        order = np.argsort(-similarity)
        smoothed.append(NonmatedUnits(sample, rows[order], back[order], similarity[order], top.size))
    return smoothed
