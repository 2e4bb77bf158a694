"""From the cells of one benchmark and recogniser to rows of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import kendalltau, ttest_1samp

from fiqa_ray.core.bootstrap import AreaDraws
from fiqa_ray.core.conventions import Cell
from fiqa_ray.core.intervals import INTERVAL, Interval, IntervalSettings
from fiqa_ray.core.verdicts import holm
from fiqa_ray.core.verification import FloatArray
from fiqa_ray.datasets.cells import StoredCell
from fiqa_ray.datasets.results import AucRow, BandRow, DifferenceRow, EdcLine, RankingRow, ScorerKey

LEVEL = 0.95
"""Confidence of all intervals."""


@dataclass(frozen=True)
class Judgement:
    """The cells of one benchmark and recogniser.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Label of the recogniser.
        keys: What the scorers are, by name.
        cells: The cells by scorer, convention and rate.
        limits: Limits of the partial areas.
        n_draws: Bootstrap draws.
        seed: Seed of the draws.
        references: Scorers that never compete for the best.
    """

    benchmark: str
    recognizer: str
    keys: Mapping[str, ScorerKey]
    cells: Mapping[tuple[str, Cell], StoredCell]
    limits: Sequence[float]
    n_draws: int
    seed: int
    references: Sequence[str]

    @cached_property
    def areas(self) -> AreaDraws:
        """The cells as areas over common draws."""
        first = next(iter(self.cells.values()))
        of_cell = {cell: stored for (_, cell), stored in self.cells.items()}
        return AreaDraws(
            curves={key: stored.curve for key, stored in self.cells.items()},
            draws={(*key, limit): d for key, stored in self.cells.items() for limit, d in stored.draws.items()},
            errors={cell: stored.errors for cell, stored in of_cell.items()},
            n_units={cell: stored.n_units for cell, stored in of_cell.items()},
            settings=IntervalSettings(
                level=LEVEL,
                unit=first.unit,
                n_units=first.n_units,
                n_nonmated=first.n_nonmated,
                n_draws=self.n_draws,
                seed=self.seed,
            ),
        )

    def scorers(self, cell: Cell) -> list[str]:
        """Return the scorers that a cell has, in their order."""
        return [name for name in self.keys if (name, cell) in self.cells]

    def cell_names(self) -> list[Cell]:
        """Return the conventions and rates, in their order."""
        return list(dict.fromkeys(cell for _, cell in self.cells))

    def lines(self) -> list[EdcLine]:
        """Return the curves."""
        return [
            EdcLine(**self._cell_key(name, cell), **{level: getattr(stored.curve, level) for level in EdcLine.LEVELS})
            for (name, cell), stored in self.cells.items()
        ]

    def _cell_key(self, scorer: str, cell: Cell) -> dict[str, Any]:
        """Return the columns of `CellKey`."""
        convention, fmr = cell[0], np.nan if cell[1] is None else cell[1]
        where = {"benchmark": self.benchmark, "recognizer": self.recognizer, "convention": convention, "fmr": fmr}
        return vars(self.keys[scorer]) | where

    def band_rows(self) -> list[BandRow]:
        """Return how sure each curve is between neighbouring stored limits, up to where its area has an interval."""
        tails = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
        rows = []
        for (name, cell), stored in self.cells.items():
            own = self.areas.own_limit(name, cell)
            limits = [limit for limit in sorted(stored.draws) if limit <= own]
            limits = [limit for limit in limits if self.areas.interval(name, cell, limit).kind == INTERVAL]
            areas = [np.zeros(self.n_draws), *(stored.draws[limit] for limit in limits)]
            for start, end, before, after in zip([0.0, *limits], limits, areas, areas[1:], strict=False):
                rates = (after - before) / (end - start)
                if not np.isnan(rates).all():
                    low, high = np.nanpercentile(rates, tails)
                    rows.append(
                        BandRow(**self._cell_key(name, cell), discard_from=start, discard_to=end, low=low, high=high)
                    )
        return rows

    # --- areas ---

    def area_rows(self) -> list[AucRow]:
        """Return the area of each curve up to its own limit and up to the partial ones below that."""
        rows = []
        for cell in self.cell_names():
            own_limits = {name: self.areas.own_limit(name, cell) for name in self.scorers(cell)}
            usual = self.cells[next(iter(own_limits)), cell].curve.convention.limits
            partial = sorted({*self.limits, *usual})
            limits = sorted(set(own_limits.values()), reverse=True) + [
                p for p in partial if p not in own_limits.values()
            ]
            for limit in limits:
                names = [s for s, end in own_limits.items() if end == limit or (limit in partial and limit < end)]
                if limit > 0:
                    leaders = self.areas.leaders([s for s in names if s not in self.references], cell, limit)
                    rows += [self._area_row(name, cell, limit, name in leaders) for name in names]
        return rows

    def _area_row(self, scorer: str, cell: Cell, limit: float, is_leading: bool) -> AucRow:
        stored, interval, settings = (
            self.cells[scorer, cell],
            self.areas.interval(scorer, cell, limit),
            self.areas.settings,
        )
        curve, rate_0 = stored.curve, float(stored.curve.fnmr[0])
        return AucRow(
            **self._cell_key(scorer, cell),
            fmr_achieved=curve.fmr_achieved,
            fnmr_0=rate_0,
            discard_limit=limit,
            is_own_limit=limit == self.areas.own_limit(scorer, cell),
            auc=interval.value,
            auc_low=interval.low,
            auc_high=interval.high,
            auc_normalized=interval.value / (rate_0 * limit) if rate_0 > 0 else np.nan,
            auc_above_best=interval.value - curve.best_auc(limit),
            fnmr_at_limit=curve.at(limit),
            n_mated=int(curve.n_mated[0]),
            n_nonmated=int(curve.n_nonmated[0]),
            n_unscored=stored.n_unscored,
            interval=interval.kind,
            reason=interval.reason,
            level=settings.level,
            unit=settings.unit,
            n_draws=settings.n_draws,
            draws_seed=settings.seed,
            n_undefined=interval.n_undefined,
            is_leading=is_leading,
        )

    # --- differences ---

    def difference_rows(self, families: Mapping[str, Sequence[tuple[str, str]]]) -> list[DifferenceRow]:
        """Return the differences of all families; `correct_families` corrects their p-values.

        A pair of scores whose curves have no level in common but the first has no area, and no row.
        """
        return [
            self._difference_row(family, pair, cell)
            for cell in self.cell_names()
            for family, pairs in families.items()
            for pair in pairs
            if set(pair) <= set(self.scorers(cell)) and self.areas.common_limit(*pair, cell) > 0
        ]

    def _difference_row(self, family: str, scorers: tuple[str, str], cell: Cell) -> DifferenceRow:
        interval: Interval = self.areas.difference(*scorers, cell)
        limit = self.areas.common_limit(*scorers, cell)
        trained = self._seed_differences(scorers, cell, limit)
        key = self.keys[scorers[0]]
        return DifferenceRow(
            benchmark=self.benchmark,
            recognizer=self.recognizer,
            convention=cell[0],
            fmr=np.nan if cell[1] is None else cell[1],
            discard_limit=limit,
            method=key.method,
            theta=key.theta,
            seed=key.seed,
            family=family,
            scorer_a=scorers[0],
            scorer_b=scorers[1],
            difference=interval.value,
            low=interval.low,
            high=interval.high,
            p_value=interval.p_value,
            reason=interval.reason,
            level=interval.settings.level,
            unit=interval.settings.unit,
            n_draws=interval.settings.n_draws,
            draws_seed=interval.settings.seed,
            n_undefined=interval.n_undefined,
            n_seeds=trained.size,
            pairs_sd=self._pairs_sd(scorers, cell, limit),
            training_sd=float(trained.std(ddof=1)) if trained.size > 1 else np.nan,
            p_training=_p_of_mean(trained),
        )

    def _seed_differences(self, scorers: tuple[str, str], cell: Cell, limit: float) -> FloatArray:
        """Return the difference of two areas by each training seed, (S,); S is 0 where neither was trained.

        Where one score was not trained its area is the same for all. Two regressors of one seed start alike.
        """
        by_seed = [self.cells[name, cell].seed_areas.get(limit, np.empty(0)) for name in scorers]
        n = max(areas.size for areas in by_seed)
        if limit <= 0 or any(areas.size not in (0, n) for areas in by_seed):
            return np.empty(0)
        a, b = (
            areas if areas.size else np.full(n, self.cells[name, cell].curve.auc(limit))
            for name, areas in zip(scorers, by_seed, strict=True)
        )
        return np.asarray(a - b)

    def _pairs_sd(self, scorers: tuple[str, str], cell: Cell, limit: float) -> float:
        """Return the standard deviation of a difference over the draws; NaN without draws."""
        a, b = (self.cells[name, cell].draws.get(limit, np.empty(0)) for name in scorers)
        differences = a - b if a.size == b.size else np.empty(0)
        defined = differences[~np.isnan(differences)]
        return float(defined.std(ddof=1)) if defined.size > 1 else np.nan

    # --- agreement of conventions ---

    def ranking_rows(self) -> list[RankingRow]:
        """Return, for each two cells, how far they agree on which scores are better."""
        rows = []
        for a, b in combinations(self.cell_names(), 2):
            names = [s for s in self.scorers(a) if s in self.scorers(b) and s not in self.references]
            areas = [[self._common_area(name, cell, names) for name in names] for cell in (a, b)]
            is_defined = np.isfinite(areas).all(axis=0)
            x, y = np.asarray(areas)[:, is_defined]
            if x.size >= 2:
                rows.append(
                    RankingRow(
                        benchmark=self.benchmark,
                        recognizer=self.recognizer,
                        convention_a=a[0],
                        fmr_a=np.nan if a[1] is None else a[1],
                        convention_b=b[0],
                        fmr_b=np.nan if b[1] is None else b[1],
                        tau=float(kendalltau(x, y).statistic),
                        n_scorers=int(x.size),
                        same_best=bool(np.argmin(x) == np.argmin(y)),
                    )
                )
        return rows

    def _common_area(self, name: str, cell: Cell, names: Sequence[str]) -> float:
        """Return a scorer's area up to the limit that all of `names` have."""
        limit = min(self.areas.own_limit(other, cell) for other in names)
        return self.cells[name, cell].curve.auc(limit) if limit > 0 else np.nan


def _p_of_mean(values: FloatArray) -> float:
    """Return the two-sided p-value of Student's t that the mean of some values is zero; NaN with fewer than two."""
    if values.size < 2 or np.isnan(values).any():
        return np.nan
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(ttest_1samp(values, 0.0).pvalue)


def correct_families(rows: Sequence[DifferenceRow]) -> list[DifferenceRow]:
    """Return differences with Holm's correction within each family, over all benchmarks of a recogniser and cell."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault((row.recognizer, row.convention, repr(row.fmr), row.family), []).append(i)
    corrected = list(rows)
    for members in families.values():
        adjusted = holm([rows[i].p_value for i in members])
        n = int(np.isfinite(adjusted).sum())
        for i, p in zip(members, adjusted, strict=True):
            corrected[i] = replace(rows[i], p_holm=p, n_family=n)
    return corrected
