"""Bootstrap intervals of the area under the EDC, and of the paired difference between two scorers.

On a benchmark of 3000 mated pairs one surviving error costs about 1e-3 of area, so a single area says little. Every draw
resamples the benchmark (`resampling.py`) and gives the areas of all scorers, conventions, rates and limits on the same
sample. `intervals.py` turns draws into intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fiqa_ray.core.edc import (
    CONVENTIONS,
    EDC,
    PairOrder,
    QualityOrder,
    check_limit,
    end_of,
    level_weights,
    pair_curve,
)
from fiqa_ray.core.floor import RANDOM, expected_curve, flat_order
from fiqa_ray.core.intervals import Errors, Interval, IntervalSettings, area_interval, difference_interval
from fiqa_ray.core.kernels.discard import N_LEVELS, number_copies, recomputed_levels, step_areas, threshold_below
from fiqa_ray.core.resampling import (
    NonmatedUnits,
    Persons,
    bandwidth,
    draw_counts,
    is_smoothed,
    plain_units,
    smoothed_units,
)
from fiqa_ray.core.verdicts import leading_group
from fiqa_ray.core.verification import FloatArray, IntArray, allowed_false_matches, exact_fmr
from fiqa_ray.errors import UsageError

Cell = tuple[str, float]
"""A convention and a false match rate."""
Qualities = tuple[ArrayLike, ArrayLike]
"""quality_a and quality_b, each (n_pairs,)."""

ORDERS_PER_DRAW = 8
"""So many of the random orders are averaged in a draw; the next draw takes the next ones."""


@dataclass(frozen=True)
class AreaDraws:
    """Areas of several scorers over common draws.

    Attributes:
        curves: per scorer and cell the curve of the benchmark itself.
        draws: per scorer, cell and limit (n_draws,) float64, NaN where undefined; entry j is the same sample everywhere.
        errors: per cell the wrong decisions before anything is discarded, which all scorers share.
        settings: level, unit, draws and seed of the intervals.
    """

    curves: Mapping[tuple[str, Cell], EDC]
    draws: Mapping[tuple[str, Cell, float], FloatArray]
    errors: Mapping[Cell, Errors]
    settings: IntervalSettings

    def own_limit(self, scorer: str, cell: Cell) -> float:
        """Return the discard fraction up to which this scorer's curve is defined."""
        return self._curve(scorer, cell).defined_limit

    def interval(self, scorer: str, cell: Cell, limit: float | None = None) -> Interval:
        """Return the area of `scorer` up to `limit` (None: its own limit) with its interval.

        Raises:
            UsageError: an unknown scorer, cell or limit.
        """
        limit = self.own_limit(scorer, cell) if limit is None else limit
        value, draws = self._curve(scorer, cell).auc(limit), self._draws(scorer, cell, limit)
        return area_interval(value, draws, limit, self.errors[cell], self.settings)

    def common_limit(self, scorer_a: str, scorer_b: str, cell: Cell) -> float:
        """Return the discard fraction up to which both curves are defined."""
        return min(self.own_limit(scorer_a, cell), self.own_limit(scorer_b, cell))

    def difference(self, scorer_a: str, scorer_b: str, cell: Cell, limit: float | None = None) -> Interval:
        """Return the area of `scorer_a` minus that of `scorer_b`, paired by draw; below zero: a is better.

        The limit None stands for the largest that both curves have.

        Raises:
            UsageError: an unknown scorer, cell or limit.
        """
        limit = self.common_limit(scorer_a, scorer_b, cell) if limit is None else limit
        value = self._curve(scorer_a, cell).auc(limit) - self._curve(scorer_b, cell).auc(limit)
        draws = self._draws(scorer_a, cell, limit) - self._draws(scorer_b, cell, limit)
        return difference_interval(value, draws, self.errors[cell], self.settings)

    def leaders(self, scorers: Sequence[str], cell: Cell, limit: float) -> list[str]:
        """Return the scorer with the smallest area up to `limit` and those that cannot be told apart from it.

        One of `scorers` alone leads nobody: the list is empty. Without draws, only equal areas cannot be told apart.

        Raises:
            UsageError: an unknown scorer, cell or limit.
        """
        if len(scorers) < 2:
            return []
        areas = {scorer: self._curve(scorer, cell).auc(limit) for scorer in scorers}
        if self.settings.n_draws == 0:
            return [scorer for scorer, area in areas.items() if area == np.nanmin(list(areas.values()))]
        return leading_group(areas, lambda a, b: self.difference(a, b, cell, limit), self.settings.level)

    def _curve(self, scorer: str, cell: Cell) -> EDC:
        if (scorer, cell) not in self.curves:
            names = ", ".join(dict.fromkeys(name for name, _ in self.curves))
            raise UsageError(f"scorer {scorer!r} was not bootstrapped in {cell}: choose one of {names}")
        return self.curves[scorer, cell]

    def _draws(self, scorer: str, cell: Cell, limit: float) -> FloatArray:
        if (scorer, cell, limit) not in self.draws:
            raise UsageError(f"limit={limit} was not bootstrapped in {cell}: name it in limits")
        return self.draws[scorer, cell, limit]


def bootstrap_areas(
    similarity: ArrayLike,
    mated: ArrayLike,
    qualities: Mapping[str, Qualities],
    *,
    random_orders: Sequence[Qualities] = (),
    fmrs: Sequence[float] = (1e-3,),
    conventions: Sequence[str] = ("paper",),
    limits: Sequence[float] = (),
    identities: tuple[ArrayLike, ArrayLike] | None = None,
    n_draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> AreaDraws:
    """Compute the areas of all scorers on one benchmark and on resamples of it.

    The draws depend on `seed`, the pairs, their order and `identities` alone: results repeat, and another scorer,
    convention, rate or limit changes none of the others. One pass over the draws serves them all.

    Args:
        similarity: (n_pairs,) float, larger is more alike.
        mated: (n_pairs,) bool or 0/1.
        qualities: per scorer its (quality_a, quality_b), each (n_pairs,) float, larger is better.
        random_orders: qualities of random orders of the images: adds the scorer `floor.RANDOM`, their expectation.
        fmrs: false match rates of the threshold, each inside (0, 1).
        conventions: of `fiqa_ray.core.edc`: `paper`, `nearest`, `dasec`.
        limits: discard fractions up to which areas are wanted, beside each curve's own limit. A convention whose curve
            ends before a limit goes without it.
        identities: (identity_a, identity_b), each (n_pairs,): resample persons instead of pairs.
        n_draws: number of resamples, from 0.
        level: confidence of the intervals, inside (0, 1).
        seed: any integer from 0.

    Raises:
        UsageError: `fmrs`, `conventions`, `limits`, `n_draws` or `level` out of range, or no scorer.
        FiqaRayError: unusable arrays (see `edc_curve`), or identities that contradict `mated`.
    """
    cells = _checked_cells(fmrs, conventions, limits, n_draws, level)
    pairs = PairOrder.of(similarity, mated)
    persons = None if identities is None else Persons.of(pairs.mated, identities)
    unit = np.arange(pairs.mated.size) if persons is None else persons.row_a
    settings = IntervalSettings(
        level=level,
        unit="pairs" if persons is None else "identities",
        n_units=np.unique(unit[pairs.mated_rows]).size,
        n_nonmated=pairs.nonmated_rows.size,
        n_draws=n_draws,
        seed=seed,
    )
    scorers = {}
    for name, quality in qualities.items():
        order = QualityOrder.of(pairs, *quality)
        scorers[name] = _Scorer([order], order)
    if random_orders:
        orders = [QualityOrder.of(pairs, *quality) for quality in random_orders]
        scorers[RANDOM] = _Scorer(orders, flat_order(pairs))
    if not scorers:
        raise UsageError("no scorer was given: name at least one pair of quality arrays")
    curves = {(name, cell): s.curve(pairs, cell) for name, s in scorers.items() for cell in cells}
    wanted = {cell: _limits(cell, limits, [curves[name, cell] for name in scorers]) for cell in cells}
    draws = {
        (name, cell, limit): np.full(n_draws, np.nan) for name in scorers for cell in cells for limit in wanted[cell]
    }
    for j, sample in zip(range(n_draws), _samples(pairs, persons, fmrs, seed), strict=False):
        for name, scorer in scorers.items():
            for cell, areas in scorer.areas(sample, wanted, j).items():
                for limit, area in zip(wanted[cell], areas, strict=True):
                    draws[name, cell, limit][j] = area
    errors = {cell: _errors(pairs, unit, curves[next(iter(scorers)), cell]) for cell in cells}
    return AreaDraws(curves, draws, errors, settings)


def _checked_cells(
    fmrs: Sequence[float], conventions: Sequence[str], limits: Sequence[float], n_draws: int, level: float
) -> list[Cell]:
    """Return every convention with every rate; UsageError for what is out of range."""
    for convention in conventions:
        if convention not in CONVENTIONS:
            raise UsageError(f"convention={convention!r} is unknown: choose one of {', '.join(CONVENTIONS)}")
    for fmr in fmrs:
        exact_fmr(fmr)
    for limit in limits:
        check_limit("dasec", limit)  # the longest of the curves
    if n_draws < 0:
        raise UsageError(f"n_draws={n_draws} is negative: give the number of resamples, 0 for no intervals")
    if not 0 < level < 1:
        raise UsageError(f"level={level} is outside (0, 1): give a share such as 0.95")
    return [(convention, fmr) for convention in conventions for fmr in fmrs]


def _limits(cell: Cell, limits: Sequence[float], curves: Sequence[EDC]) -> list[float]:
    """Return the limits of a cell, rising: the wanted ones that its curve has, and the curves' own."""
    end = end_of(cell[0])
    return sorted(
        {limit for limit in limits if limit <= end} | {c.defined_limit for c in curves if c.defined_limit > 0}
    )


def _errors(pairs: PairOrder, unit: IntArray, curve: EDC) -> Errors:
    """Count the units with a wrong decision before anything is discarded; no scorer's order matters to them."""
    rows = pairs.mated_rows
    return Errors(curve.fmr, np.unique(unit[rows[pairs.similarity[rows] <= curve.threshold[0]]]).size)


@dataclass(frozen=True)
class _Sample:
    """One draw.

    Attributes:
        pairs: the benchmark.
        counts: (n_pairs,) int64 copies of each pair.
        units: the non-mated copies by falling similarity, per rate: for early and for late levels. The two differ where
            few false matches are allowed: there they are smoothed.
    """

    pairs: PairOrder
    counts: IntArray
    units: Mapping[float, tuple[NonmatedUnits, NonmatedUnits]]

    def step_threshold(self, fmr: float) -> float:
        """Return the threshold of `dasec`; NaN where no non-mated pair was drawn."""
        units, _ = self.units[fmr]
        n_allowed = allowed_false_matches(fmr, int(units.count.sum()))
        return threshold_below(units.count, units.count, units.similarity, 0, n_allowed)[0]


def _samples(pairs: PairOrder, persons: Persons | None, fmrs: Sequence[float], seed: int) -> Iterator[_Sample]:
    """Yield draws without end. The noise of smoothed rates has its own generator: the counts do not depend on it."""
    noise = np.random.default_rng([seed, 1])
    nonmated = pairs.similarity[pairs.nonmated_rows]
    widths = [bandwidth(nonmated, n) for n in (nonmated.size, nonmated.size / 4)]
    smoothed = {fmr: is_smoothed(fmr, nonmated.size) for fmr in fmrs}
    for counts in draw_counts(np.random.default_rng(seed), pairs, persons):
        units = {}
        if not all(smoothed.values()):
            plain = plain_units(pairs, counts)
            units[False] = plain, plain
        if any(smoothed.values()):
            early, late = smoothed_units(noise, pairs, counts, widths)
            units[True] = early, late
        yield _Sample(pairs, counts, {fmr: units[is_smooth] for fmr, is_smooth in smoothed.items()})


@dataclass(frozen=True)
class _Scorer:
    """A scorer's order of the pairs; several for the expectation over random orders.

    Attributes:
        orders: for the conventions with 20 levels: the mean over these.
        step_order: for `dasec`.
    """

    orders: Sequence[QualityOrder]
    step_order: QualityOrder

    def curve(self, pairs: PairOrder, cell: Cell) -> EDC:
        """Return the curve of the benchmark itself."""
        convention, fmr = cell
        if convention == "dasec":
            return pair_curve(pairs, self.step_order, fmr, convention)
        return expected_curve([pair_curve(pairs, order, fmr, convention) for order in self.orders])

    def areas(self, sample: _Sample, limits: Mapping[Cell, Sequence[float]], draw: int) -> dict[Cell, FloatArray]:
        """Return the sample's areas per cell, one per limit."""
        if not sample.counts.any():
            return {}
        n = min(ORDERS_PER_DRAW, len(self.orders))
        orders = [self.orders[(draw * n + i) % len(self.orders)] for i in range(n)]
        levels = [c for c in limits if c[0] != "dasec"]
        fnmr = np.mean([_sample_fnmr(sample, order, levels) for order in orders], axis=0) if levels else ()
        areas = {
            cell: np.array([w @ row[: w.size] for w in map(level_weights, limits[cell])])
            for cell, row in zip(levels, fnmr, strict=True)
        }
        return areas | {c: self._step_areas(sample, c[1], limits[c]) for c in limits if c[0] == "dasec"}

    def _step_areas(self, sample: _Sample, fmr: float, limits: Sequence[float]) -> FloatArray:
        rows = self.step_order.order[self.step_order.mated]
        threshold, area = sample.step_threshold(fmr), np.full(len(limits), np.nan)
        if not np.isnan(threshold):
            quality = self.step_order.quality[self.step_order.mated]
            similarity, counts = sample.pairs.similarity[rows], sample.counts[rows]
            step_areas(quality, similarity, counts, threshold, np.asarray(limits), area)
        return area


def _sample_fnmr(sample: _Sample, scorer: QualityOrder, cells: Sequence[Cell]) -> FloatArray:
    """Return FNMR of `paper` and `nearest` at the 20 levels, (n_cells, 20)."""
    pairs, counts = sample.pairs, sample.counts
    n_mated, n_nonmated, n_false_nonmatches, n_false_matches = np.empty((4, N_LEVELS), dtype=np.int64)
    last = np.empty_like(counts)
    number_copies(scorer.order, scorer.mated, counts, last, n_mated, n_nonmated)
    rows = pairs.mated_rows
    mated_pairs = last[rows], counts[rows], pairs.similarity[rows]
    fnmr, threshold = np.empty((len(cells), N_LEVELS)), np.empty(N_LEVELS)
    numbered = {id(u): (last[u.rows] - u.back, u.count, u.similarity) for both in sample.units.values() for u in both}
    for i, (convention, fmr) in enumerate(cells):
        target = exact_fmr(fmr)
        early, late = sample.units[fmr]
        recomputed_levels(
            numbered[id(early)],
            numbered[id(late)],
            mated_pairs,
            int(last[scorer.order[-1]]),
            n_mated,
            n_nonmated,
            (target.numerator, target.denominator),
            convention == "nearest",
            threshold,
            n_false_nonmatches,
            n_false_matches,
        )
        fnmr[i] = np.where(np.isnan(threshold), np.nan, n_false_nonmatches / np.maximum(n_mated, 1))
    return fnmr
