"""Bootstrap intervals of the area under the EDC, and of the paired difference between two scorers.

On a benchmark of 3000 mated pairs one surviving error costs about 1e-3 of area, so a single area says little. Every draw
resamples the benchmark (`resampling.py`) and gives the areas of all scorers, conventions, rates and limits on the same
sample. `intervals.py` turns draws into intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from fiqa_ray.core.conventions import Cell, Convention, cells_of, convention_of
from fiqa_ray.core.edc import EDC, line_weights, pair_curve, step_weights
from fiqa_ray.core.floor import RANDOM, expected_curve, flat_order
from fiqa_ray.core.intervals import (
    IDENTITIES,
    INTERVAL,
    NONE,
    TOO_WIDE,
    Errors,
    Interval,
    IntervalSettings,
    area_interval,
    difference_interval,
)
from fiqa_ray.core.kernels.discard import step_areas
from fiqa_ray.core.levels import fixed_rate, fixed_threshold, moving_levels, upper_wrong
from fiqa_ray.core.orders import PairOrder, Qualities, QualityOrder
from fiqa_ray.core.resampling import (
    Persons,
    bandwidth,
    draw_counts,
    is_smoothed,
    smoothed_units,
)
from fiqa_ray.core.samples import Copies, NonmatedUnits, Sample
from fiqa_ray.core.verdicts import leading_group
from fiqa_ray.core.verification import FloatArray, IntArray
from fiqa_ray.errors import UsageError

QualityPair = tuple[ArrayLike, ArrayLike]
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
        n_units: per cell what the pairs were drawn from whose errors it counts: their number, or that of their persons.
        settings: level, unit, draws and seed of the intervals.
    """

    curves: Mapping[tuple[str, Cell], EDC]
    draws: Mapping[tuple[str, Cell, float], FloatArray]
    errors: Mapping[Cell, Errors]
    n_units: Mapping[Cell, int]
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
        return area_interval(value, draws, limit, self.errors[cell], self._settings(cell))

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
        interval = difference_interval(value, draws, self.errors[cell], self._settings(cell))
        if interval.kind == INTERVAL and limit < self.common_limit(scorer_a, scorer_b, cell) and self._is_wide(cell):
            interval = replace(interval, low=np.nan, high=np.nan, kind=NONE, reason=TOO_WIDE, p_value=np.nan)
        return interval

    def _is_wide(self, cell: Cell) -> bool:
        """Say whether intervals of partial differences are too wide; see `intervals.TOO_WIDE`."""
        convention = next(c.convention for (_, other), c in self.curves.items() if other == cell)
        is_few = cell[1] is not None and is_smoothed(cell[1], self.settings.n_nonmated)
        return is_few and self.settings.unit == IDENTITIES and convention.threshold == "recomputed"

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

    def _settings(self, cell: Cell) -> IntervalSettings:
        return replace(self.settings, n_units=self.n_units[cell])

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
    qualities: Mapping[str, QualityPair],
    *,
    random_orders: Sequence[QualityPair] = (),
    fmrs: Sequence[float] = (1e-3,),
    conventions: Sequence[str | Convention] = ("paper",),
    limits: Sequence[float] = (),
    identities: tuple[ArrayLike, ArrayLike] | None = None,
    images: tuple[ArrayLike, ArrayLike] | None = None,
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
        conventions: names of `fiqa_ray.core.conventions`, or conventions of your own.
        limits: discard fractions up to which areas are wanted, beside each curve's own limit. A convention whose curve
            ends before a limit goes without it.
        identities: (identity_a, identity_b), each (n_pairs,): resample persons instead of pairs.
        images: (image_a, image_b), each (n_pairs,), for conventions that discard images.
        n_draws: number of resamples, from 0.
        level: confidence of the intervals, inside (0, 1).
        seed: any integer from 0.

    Raises:
        UsageError: `fmrs`, `conventions`, `limits`, `n_draws` or `level` out of range, or no scorer.
        FiqaRayError: unusable arrays (see `edc_curve`), or identities that contradict `mated`.
    """
    cells = cells_of([convention_of(c) for c in conventions], fmrs)
    return bootstrap_cells(
        similarity,
        mated,
        qualities,
        cells,
        random_orders=random_orders,
        limits=limits,
        identities=identities,
        images=images,
        n_draws=n_draws,
        level=level,
        seed=seed,
    )


def bootstrap_cells(
    similarity: ArrayLike,
    mated: ArrayLike,
    qualities: Mapping[str, QualityPair],
    cells: Mapping[Cell, Convention],
    *,
    random_orders: Sequence[QualityPair] = (),
    limits: Sequence[float] = (),
    identities: tuple[ArrayLike, ArrayLike] | None = None,
    images: tuple[ArrayLike, ArrayLike] | None = None,
    n_draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> AreaDraws:
    """Compute the areas of some cells; arguments and errors as in `bootstrap_areas`."""
    _check_numbers(limits, n_draws, level)
    fmrs = list(dict.fromkeys(fmr for _, fmr in cells if fmr is not None))
    pairs = PairOrder.of(similarity, mated)
    persons = None if identities is None else Persons.of(pairs.mated, identities)
    scorers = {
        name: _Scorer([Qualities.of(pairs, *quality, images)], is_expectation=False)
        for name, quality in qualities.items()
    }
    if random_orders:
        orders = [Qualities.of(pairs, *quality, images) for quality in random_orders]
        scorers[RANDOM] = _Scorer(orders, is_expectation=True)
    if not scorers:
        raise UsageError("no scorer was given: name at least one pair of quality arrays")
    whole = Sample.whole(pairs)
    curves = {(n, cell): curve for n, s in scorers.items() for cell, curve in s.curves(whole, cells).items()}
    wanted = {cell: _limits(c, limits, [curves[name, cell] for name in scorers]) for cell, c in cells.items()}
    outputs = {key: np.full((n_draws, _width(c, wanted[cell])), np.nan) for key, cell, c in _keys(scorers, cells)}
    for j, drawn in zip(range(n_draws), _draws(pairs, persons, fmrs, seed), strict=False):
        for name, scorer in scorers.items():
            scorer.draw(drawn, j, {(c, cell[1]): (outputs[name, cell][j], wanted[cell]) for cell, c in cells.items()})
    draws = {
        (*key, limit): areas
        for key, cell, c in _keys(scorers, cells)
        for limit, areas in zip(wanted[cell], _areas(c, outputs[key], wanted[cell]), strict=True)
    }
    unit = np.arange(pairs.mated.size) if persons is None else persons.row_a
    first = next(iter(scorers))
    errors = {cell: _errors(pairs, unit, curves[first, cell]) for cell in cells}
    n_units = {cell: np.unique(unit[_counted_rows(pairs, c)]).size for cell, c in cells.items()}
    settings = IntervalSettings(
        level=level,
        unit="pairs" if persons is None else IDENTITIES,
        n_units=np.unique(unit[pairs.mated_rows]).size,
        n_nonmated=pairs.nonmated_rows.size,
        n_draws=n_draws,
        seed=seed,
    )
    return AreaDraws(curves, draws, errors, n_units, settings)


def curves_of(
    similarity: ArrayLike,
    mated: ArrayLike,
    qualities: Sequence[QualityPair],
    cells: Mapping[Cell, Convention],
    *,
    images: tuple[ArrayLike, ArrayLike] | None = None,
) -> dict[Cell, list[EDC]]:
    """Return, per cell, the curve of each quality; arguments as in `bootstrap_areas`."""
    pairs = PairOrder.of(similarity, mated)
    whole = Sample.whole(pairs)
    scorers = [_Scorer([Qualities.of(pairs, *quality, images)], is_expectation=False) for quality in qualities]
    curves = [scorer.curves(whole, cells) for scorer in scorers]
    return {cell: [of_scorer[cell] for of_scorer in curves] for cell in cells}


def _check_numbers(limits: Sequence[float], n_draws: int, level: float) -> None:
    for limit in limits:
        if not 0 < limit <= 1:
            raise UsageError(f"limit={limit} is outside (0, 1]: give a discarded share such as 0.3")
    if n_draws < 0:
        raise UsageError(f"n_draws={n_draws} is negative: give the number of resamples, 0 for no intervals")
    if not 0 < level < 1:
        raise UsageError(f"level={level} is outside (0, 1): give a share such as 0.95")


def _keys(
    scorers: Mapping[str, _Scorer], cells: Mapping[Cell, Convention]
) -> Iterator[tuple[tuple[str, Cell], Cell, Convention]]:
    for name in scorers:
        for cell, convention in cells.items():
            yield (name, cell), cell, convention


def _limits(convention: Convention, limits: Sequence[float], curves: Sequence[EDC]) -> list[float]:
    """Return the limits of a cell, rising: the wanted ones that its curve has, and the curves' own."""
    asked = {limit for limit in (*limits, *convention.limits) if limit <= convention.end}
    return sorted(asked | {c.defined_limit for c in curves if c.defined_limit > 0})


def _width(convention: Convention, limits: Sequence[float]) -> int:
    """Return how many numbers of a draw are kept: the rate at each level, or the area up to each limit."""
    return convention.n_levels or len(limits)


def _areas(convention: Convention, output: FloatArray, limits: Sequence[float]) -> list[FloatArray]:
    """Return the areas of all draws, (n_draws,) per limit, from what the draws gave."""
    if convention.step is None:
        return list(output.T)
    weigh = step_weights if convention.is_stepped else line_weights
    weights = [weigh(limit, convention.n_levels) for limit in limits]
    return [output[:, : w.size] @ w for w in weights]


def _counted_rows(pairs: PairOrder, convention: Convention) -> IntArray:
    """Return the rows of the pairs whose errors a convention counts."""
    return pairs.nonmated_rows if convention.error == "fmr" else pairs.mated_rows


def _errors(pairs: PairOrder, unit: IntArray, curve: EDC) -> Errors:
    """Count the units with a wrong decision before anything is discarded; no scorer's order matters to them."""
    rows = _counted_rows(pairs, curve.convention)
    is_accepted = pairs.similarity[rows] > upper_wrong(curve.convention, float(curve.threshold[0]))
    return Errors(curve.fmr, np.unique(unit[rows[is_accepted != pairs.mated[rows]]]).size)


@dataclass(frozen=True)
class _Draw:
    """One draw.

    Attributes:
        sample: how often it holds each pair.
        units: its non-mated copies by falling similarity, per rate: for early and for late levels. The two differ where
            few false matches are allowed: there they are smoothed.
    """

    sample: Sample
    units: Mapping[float | None, tuple[NonmatedUnits, NonmatedUnits]]

    @cached_property
    def _thresholds(self) -> dict[tuple[Convention, float | None], float]:
        return {}

    def threshold(self, convention: Convention, fmr: float | None) -> float:
        """Return the threshold that the whole sample sets; NaN where it lacks a kind of pair."""
        if (convention, fmr) not in self._thresholds:
            early, _ = self.units[fmr]
            self._thresholds[convention, fmr] = fixed_threshold(convention, fmr, self.sample, early)
        return self._thresholds[convention, fmr]


def _draws(pairs: PairOrder, persons: Persons | None, fmrs: Sequence[float], seed: int) -> Iterator[_Draw]:
    """Yield draws without end. The noise of smoothed rates has its own generator: the counts do not depend on it."""
    noise = np.random.default_rng([seed, 1])
    nonmated = pairs.nonmated_similarity
    widths = [bandwidth(nonmated, n) for n in (nonmated.size, nonmated.size / 4)]
    smoothed: dict[float | None, bool] = {fmr: is_smoothed(fmr, nonmated.size) for fmr in fmrs}
    smoothed[None] = False
    for counts in draw_counts(np.random.default_rng(seed), pairs, persons):
        sample = Sample(pairs, counts)
        plain = NonmatedUnits(sample)
        units = {False: (plain, plain)}
        if any(smoothed.values()):
            early, late = smoothed_units(noise, sample, widths)
            units[True] = early, late
        yield _Draw(sample, {fmr: units[is_smooth] for fmr, is_smooth in smoothed.items()})


Wanted = Mapping[tuple[Convention, float | None], tuple[FloatArray, Sequence[float]]]
"""Per convention and rate the row to fill, and its limits."""


@dataclass(frozen=True)
class _Scorer:
    """A scorer's qualities of the pairs; several random ones for their expectation."""

    qualities: Sequence[Qualities]
    is_expectation: bool

    def curves(self, sample: Sample, cells: Mapping[Cell, Convention]) -> dict[Cell, EDC]:
        """Return the curves of the benchmark itself, given as a sample."""
        units, copies, curves = NonmatedUnits(sample), _CopiesOf(sample), {}
        for cell, convention in cells.items():
            orders = self._orders(sample.pairs, convention)
            curves[cell] = expected_curve([pair_curve(copies[o], units, cell[1], convention) for o in orders])
        return curves

    def _orders(self, pairs: PairOrder, convention: Convention) -> list[QualityOrder]:
        """Return the orders whose mean is the scorer's curve; random ones are exact where equal qualities stay as one."""
        if self.is_expectation and convention.step is None:
            return [flat_order(pairs, convention.pool)]
        return [quality.order(convention.pool) for quality in self.qualities]

    def draw(self, drawn: _Draw, j: int, wanted: Wanted) -> None:
        """Fill the rows of draw `j`: the rates at each level, or the areas of a curve that has a level at each quality."""
        if drawn.sample.n_mated + drawn.sample.n_nonmated == 0:
            return
        copies = _CopiesOf(drawn.sample)
        for (convention, fmr), (row, limits) in wanted.items():
            orders = self._orders(drawn.sample.pairs, convention)
            if convention.step is None:
                row[:] = _step_areas(drawn, orders[0], fmr, convention, limits)
                continue
            n = min(ORDERS_PER_DRAW, len(orders))
            chosen = [orders[(j * n + i) % len(orders)] for i in range(n)]
            row[:] = np.mean([_rates(drawn, copies[order], fmr, convention) for order in chosen], axis=0)


class _CopiesOf(dict[QualityOrder, Copies]):
    """The copies of a sample in each order, which all conventions and rates share."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self._sample = sample

    def __missing__(self, order: QualityOrder) -> Copies:
        return self.setdefault(order, Copies(self._sample, order))


def _rates(drawn: _Draw, copies: Copies, fmr: float | None, convention: Convention) -> FloatArray:
    """Return a sample's rates at each level, (n_levels,)."""
    if convention.threshold == "fixed":
        return fixed_rate(copies, convention, drawn.threshold(convention, fmr))
    return moving_levels(copies, fmr, convention, drawn.units[fmr]).rate(convention)


def _step_areas(
    drawn: _Draw, order: QualityOrder, fmr: float | None, convention: Convention, limits: Sequence[float]
) -> FloatArray:
    """Return a sample's areas up to each limit, below a curve with a level at each quality."""
    area, sample = np.full(len(limits), np.nan), drawn.sample
    threshold = drawn.threshold(convention, fmr)
    if not np.isnan(threshold):
        is_accepted = sample.pairs.similarity[order.order] > upper_wrong(convention, threshold)
        step_areas(order.quality, is_accepted != order.mated, sample.counts[order.order], np.asarray(limits), area)
    return area
