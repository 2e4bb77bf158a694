"""Tables I to III of the paper, and all differences, from the results of finished runs.

One table is one operating point: a convention, a false match rate and a discard limit. Areas are printed times 1000, as the
paper does; smaller is better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fiqa_ray.core.intervals import UPPER_LIMIT
from fiqa_ray.core.verdicts import mean_ranks
from fiqa_ray.datasets.results import (
    BASELINE,
    EDIFF,
    GIVEN,
    OPTIMIZED,
    UNOPTIMIZED,
    VARIANTS,
    AucRow,
    CellKey,
    ConventionRow,
    DifferenceRow,
    ExclusionRow,
    GroupRateRow,
    rows_of,
)
from fiqa_ray.errors import UsageError
from fiqa_ray.storage import read_bytes
from fiqa_ray.tools.open_run import open_run
from fiqa_ray.tools.table_captions import SIGNIFICANT, caption

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OperatingPoint:
    """What all numbers of a table have in common.

    Attributes:
        convention: Name of the convention.
        fmr: False match rate; NaN where a starting FNMR sets the threshold.
        limit: Discarded share at which areas end; None: the end of each curve.
    """

    convention: str
    fmr: float
    limit: float | None

    @property
    def rate_text(self) -> str:
        """The rate that sets the threshold, in words."""
        return "a starting FNMR" if math.isnan(self.fmr) else f"FMR {self.fmr:g}"

    def holds(self, row: AucRow | DifferenceRow) -> bool:
        """Return whether a row is at this point. Without a limit, each area ends with its curve."""
        return self.holds_cell(row) and self.limit in (None, row.discard_limit)

    def holds_cell(self, row: CellKey | DifferenceRow) -> bool:
        """Return whether a row has this convention and rate."""
        is_rate = row.fmr == self.fmr or (math.isnan(row.fmr) and math.isnan(self.fmr))
        return row.convention == self.convention and is_rate


@dataclass(frozen=True)
class Results:
    """The rows of one run or several.

    Attributes:
        areas: Areas of all scores.
        differences: Their differences.
        exclusions: What the jobs leave out.
        conventions: Conventions by name.
        chosen: Recognisers of labels, methods and thetas that were chosen for these on held-out people.
    """

    areas: list[AucRow]
    differences: list[DifferenceRow]
    exclusions: list[ExclusionRow]
    conventions: dict[str, ConventionRow]
    chosen: set[tuple[str, str, float]] = field(default_factory=set)

    def at(self, point: OperatingPoint) -> list[AucRow]:
        """Return the areas at an operating point."""
        return [r for r in self.areas if point.holds(r) and (r.is_own_limit or point.limit is not None)]


@dataclass(frozen=True)
class CellText:
    """One printed area.

    Attributes:
        value: The area times 1000; NaN where there is none.
        low: Lower end of its interval; NaN where there is none.
        high: Upper end; alone, it is an upper limit.
        is_best: No other score of the column can rival it.
        is_tied: It is among the best, which cannot be told apart.
        change: "↓" or "↑" where it is smaller or larger than the method's own score beyond chance.
        text: What stands there instead of a number, such as "/".
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    is_best: bool = False
    is_tied: bool = False
    change: str = ""
    text: str = ""

    def plain(self) -> str:
        """Return the cell for Markdown."""
        if math.isnan(self.value):
            return self.text
        value = f"**{self.value:.1f}**" if self.is_best else f"{self.value:.1f}" + ("†" if self.is_tied else "")
        return value + self.change + self._interval()

    def latex(self) -> str:
        """Return the cell for LaTeX."""
        if math.isnan(self.value):
            return self.text
        value = rf"\textbf{{{self.value:.1f}}}" if self.is_best else f"{self.value:.1f}"
        value += r"$^\dagger$" if self.is_tied and not self.is_best else ""
        arrow = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "": ""}[self.change]
        interval = self._interval().strip().replace("≤", r"$\leq$")
        return rf"\shortstack[r]{{{value}{arrow}\\{{\scriptsize {interval}}}}}" if interval else value + arrow

    def _interval(self) -> str:
        if math.isnan(self.high):
            return ""
        return f" [≤ {self.high:.1f}]" if math.isnan(self.low) else f" [{self.low:.1f}, {self.high:.1f}]"


def read_results(run_uris: Sequence[str], *, of_groups: bool = False) -> Results:
    """Return the results of finished runs together.

    Args:
        run_uris: The runs.
        of_groups: Those of groups of people, where a benchmark is named such as "lfw: asian", not those of all pairs.

    Raises:
        FiqaRayError: A run has no results.
        UsageError: Two runs have the same cell, or conventions of one name that differ.
    """
    results = Results([], [], [], {})
    for uri in run_uris:
        run, prefix = open_run(uri), "group_" if of_groups else ""
        areas, chosen = rows_of(AucRow, run.result_table(f"{prefix}{AucRow.TABLE}")), run.chosen_thetas()
        results.areas.extend(areas)
        results.chosen.update((r.quality_model, r.method, r.theta) for r in areas if (r.method, r.theta) in chosen)
        results.differences.extend(rows_of(DifferenceRow, run.result_table(f"{prefix}{DifferenceRow.TABLE}")))
        results.exclusions.extend(rows_of(ExclusionRow, run.result_table(ExclusionRow.TABLE)))
        for convention in rows_of(ConventionRow, run.result_table(ConventionRow.TABLE)):
            if results.conventions.setdefault(convention.convention, convention) != convention:
                raise UsageError(f"{uri}: convention {convention.convention!r} means something else in another run")
    seen: set[tuple[Any, ...]] = set()
    for r in results.areas:
        key = (r.benchmark, r.recognizer, r.scorer, r.convention, str(r.fmr), r.discard_limit)
        if key in seen:
            raise UsageError(f"two of the runs have the area of {r.scorer} on {r.benchmark} under {r.recognizer}")
        seen.add(key)
    return results


def read_group_rates(run_uris: Sequence[str]) -> list[GroupRateRow]:
    """Return the error rates of each group of people in finished runs."""
    return [row for uri in run_uris for row in rows_of(GroupRateRow, open_run(uri).result_table(GroupRateRow.TABLE))]


def choose_point(results: Results, convention: str | None, fmr: float | None, limit: float | None) -> OperatingPoint:
    """Return the wanted operating point; what is not given is that of the first result.

    Raises:
        UsageError: The results have no such point; the message lists those that there are.
    """
    points = list(dict.fromkeys((r.convention, r.fmr) for r in results.areas))
    matching = [
        (c, f)
        for c, f in points
        if convention in (None, c) and (fmr is None or f == fmr or (math.isnan(f) and math.isnan(fmr)))
    ]
    if not matching:
        known = ", ".join(f"{c} at {f:g}" for c, f in points)
        wanted = " at ".join(
            [*([f"convention {convention!r}"] if convention else []), *([] if fmr is None else [f"FMR {fmr:g}"])]
        )
        raise UsageError(f"the results hold nothing of {wanted}; there are {known}")
    point = OperatingPoint(*matching[0], limit)
    if not results.at(point):
        usual = OperatingPoint(point.convention, point.fmr, None)
        limits = sorted({r.discard_limit for r in results.areas if usual.holds(r)})
        raise UsageError(
            f"the results hold no areas up to {limit}; limits of {point.convention} are "
            f"{', '.join(f'{v:g}' for v in limits)}: add the limit to evaluate.limits and run again"
        )
    return point


def tables_of(
    results: Results, point: OperatingPoint, published: Sequence[Mapping[str, Any]] = ()
) -> dict[str, tuple[pd.DataFrame, str]]:
    """Return tables of `CellText` with their captions, by name.

    `table-1`: each method's own and optimized scores, judged by the recogniser of the labels. `table-2`: the same, judged by
    other recognisers. `table-3`: with the regressors on prior labels. A table without rows is left out.

    Args:
        results: All results.
        point: The operating point.
        published: Records of printed numbers to stand beside, see `read_published`.
    """
    rows = results.at(point)
    labelled = _recognizers_of_labels(rows)
    same = [r for r in rows if not labelled or r.recognizer in labelled]
    cross = [r for r in rows if labelled and r.recognizer not in labelled]
    shown = (BASELINE, GIVEN, OPTIMIZED, EDIFF)
    ediff = " (ediff: by eDifFIQA's rule)" if any(r.variant == EDIFF for r in rows) else ""
    regressor = f"; optimized: by a regressor on optimized labels{ediff}" if labelled else ""
    all_variants = [r for r in rows if r.variant in (*shown, UNOPTIMIZED)]
    with_prior = _without_repeats(all_variants)
    same_at_0 = "; with theta 0 the two are the same and stand there once" if with_prior != all_variants else ""
    chosen = {
        "table-1": (
            [r for r in same if r.variant in shown],
            f"judged by the recogniser that the labels come from{regressor}" if labelled else "of each score",
        ),
        "table-2": (
            [r for r in cross if r.variant in shown],
            f"judged by recognisers that the labels do not come from{regressor}",
        ),
        "table-3": (
            with_prior if labelled else [],
            f"with regressors on prior labels (unoptimized) and on optimized labels{ediff}{same_at_0}",
        ),
    }
    tables = {}
    for name, (table_rows, what) in chosen.items():
        if table_rows:
            table = _table(results, point, table_rows, published)
            tables[name] = table, caption(results, point, table_rows, what, table)
    return tables


def _without_repeats(rows: Sequence[AucRow]) -> list[AucRow]:
    """Return rows without those of theta 0 whose regressor is the one on prior labels: their labels are the same."""
    prior = {(r.method, r.benchmark, r.recognizer, r.discard_limit, r.auc) for r in rows if r.variant == UNOPTIMIZED}
    return [
        r
        for r in rows
        if not (
            r.variant == OPTIMIZED
            and r.theta == 0
            and (r.method, r.benchmark, r.recognizer, r.discard_limit, r.auc) in prior
        )
    ]


def _recognizers_of_labels(rows: Sequence[AucRow]) -> set[str]:
    """Return the recognisers from whose labels the regressors among some scores come."""
    return {r.quality_model for r in rows if r.variant in (UNOPTIMIZED, OPTIMIZED, EDIFF)}


def why_missing(results: Results, point: OperatingPoint) -> dict[str, str]:
    """Return why a table of `tables_of` has no rows, by name."""
    rows = results.at(point)
    labelled = _recognizers_of_labels(rows)
    if not labelled:
        why = "the last command on this run judged scores alone, without regressors on labels (`fiqa-ray run` judges both)"
        return {"table-2": why, "table-3": why}
    missing = {}
    if not any(r.recognizer in labelled for r in rows):
        missing["table-1"] = "no benchmark is judged by the recogniser that the labels come from"
    if all(r.recognizer in labelled for r in rows):
        missing["table-2"] = "evaluate.recognizers names no other recogniser than that of the labels"
    return missing


def _table(
    results: Results, point: OperatingPoint, rows: list[AucRow], published: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """Return a table with a row per recogniser, method and variant, a column per benchmark; the mean rank over several."""
    import pandas as pd

    arrows = _arrows(results, point)
    best = {  # a theta that is given and chosen too is one line
        column: {_line(r, results.chosen) for r in results.at(point) if r.is_leading and _column(r) == column}
        for column in {_column(r) for r in rows}
    }
    benchmarks = list(dict.fromkeys(r.benchmark for r in rows))
    excluded = {(e.benchmark, e.method) for e in results.exclusions}
    cells: dict[tuple[str, str, str], dict[str, CellText]] = {}
    for r in sorted(rows, key=lambda r: VARIANTS.index(r.variant)):
        line = cells.setdefault((r.recognizer, *_line(r, results.chosen)), {})
        line[r.benchmark] = CellText(
            value=1000 * r.auc,
            low=math.nan if r.interval == UPPER_LIMIT else 1000 * r.auc_low,
            high=1000 * r.auc_high,
            is_best=best[_column(r)] == {_line(r, results.chosen)},
            is_tied=len(best[_column(r)]) > 1 and r.is_leading and r.interval != "none",
            change=arrows.get((r.benchmark, r.recognizer, r.scorer), ""),
        )
    keys = sorted(cells, key=_row_order(rows))
    frame: dict[str, list[Any]] = {}
    for b in benchmarks:
        frame[b] = [
            cells[k].get(b, CellText(text="/" if (b.partition(": ")[0], k[1]) in excluded else "")) for k in keys
        ]
        if published:
            frame[f"{b} (published)"] = [CellText(value=_published(published, k, b)) for k in keys]
    if len(benchmarks) > 1:
        ranks = _mean_ranks(cells, benchmarks)
        frame["mean rank"] = [CellText(text=f"{ranks[k]:.1f}" if k in ranks else "") for k in keys]
    index = pd.MultiIndex.from_tuples(keys, names=["recogniser", "method", "variant"])
    return pd.DataFrame(frame, index=index)


def _column(row: AucRow) -> tuple[str, str, float]:
    """Return what the scores compete in: a benchmark under a recogniser, up to one limit."""
    return row.benchmark, row.recognizer, row.discard_limit


def _line(row: AucRow, chosen: Collection[tuple[str, str, float]]) -> tuple[str, str]:
    """Return method and variant, which a line of a table has."""
    return row.method, _variant_name(row, chosen)


def _variant_name(row: AucRow, chosen: Collection[tuple[str, str, float]]) -> str:
    """Return the variant; of optimized labels with theta, and whether it was chosen on held-out people."""
    if row.variant != OPTIMIZED:
        return row.variant
    return f"{row.variant}, theta {row.theta:g}" + (
        " (chosen)" if (row.quality_model, row.method, row.theta) in chosen else ""
    )


def _row_order(rows: list[AucRow]) -> Any:
    """Return a sort key of (recogniser, method, variant): the order of the job, variants as in `VARIANTS`."""
    recognizers = list(dict.fromkeys(r.recognizer for r in rows))
    methods = list(dict.fromkeys(r.method for r in rows))
    return lambda k: (
        recognizers.index(k[0]),
        methods.index(k[1]),
        [v for v in range(len(VARIANTS)) if k[2].startswith(VARIANTS[v])],
        k[2],
    )


def _arrows(results: Results, point: OperatingPoint) -> dict[tuple[str, str, str], str]:
    """Return where an optimized score differs from the method's own beyond chance."""
    return {
        (d.benchmark, d.recognizer, d.scorer_a): "↓" if d.difference < 0 else "↑"
        for d in results.differences
        if d.family == BASELINE
        and point.holds(d)
        and d.p_holm < SIGNIFICANT
        and not d.p_training >= SIGNIFICANT  # NaN: one training or none
    }


def _mean_ranks(
    cells: Mapping[tuple[str, str, str], Mapping[str, CellText]], benchmarks: Sequence[str]
) -> dict[tuple[str, str, str], float]:
    """Return each row's mean rank among the rows of its recogniser."""
    ranks: dict[tuple[str, str, str], float] = {}
    for recognizer in {k[0] for k in cells}:
        rows = {k: line for k, line in cells.items() if k[0] == recognizer}
        ranks |= mean_ranks([{k: line[b].value for k, line in rows.items() if b in line} for b in benchmarks])
    return ranks


def difference_table(results: Results, point: OperatingPoint) -> pd.DataFrame:
    """Return all differences at an operating point, each with interval and p-value, as numbers."""
    import pandas as pd

    rows = [d for d in results.differences if point.holds(d)]
    columns = {
        "family": [d.family for d in rows],
        "benchmark": [d.benchmark for d in rows],
        "recogniser": [d.recognizer for d in rows],
        "first": [d.scorer_a for d in rows],
        "second": [d.scorer_b for d in rows],
        "limit": [d.discard_limit for d in rows],
        "difference x 1000": [1000 * d.difference for d in rows],
        "low": [1000 * d.low for d in rows],
        "high": [1000 * d.high for d in rows],
        "p (Holm)": [d.p_holm for d in rows],
    }
    return pd.DataFrame(columns)


def read_published(uri: str) -> list[Mapping[str, Any]]:
    """Return printed numbers from JSON: records of method, variant, fr_model, benchmark and auc_x1000.

    Raises:
        UsageError: The file has no such records.
    """
    try:
        content = json.loads(read_bytes(uri))
        records = content["records"] if isinstance(content, dict) else content
        return [dict(r) for r in records if {"method", "variant", "fr_model", "benchmark", "auc_x1000"} <= set(r)]
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{uri} holds no records of published numbers ({exc})") from exc


def _published(records: Sequence[Mapping[str, Any]], key: tuple[str, str, str], benchmark: str) -> float:
    """Return the printed number of a cell, or NaN; names are compared by letters and digits, and may be longer here."""

    def is_same(here: str, there: str) -> bool:
        a, b = ("".join(c for c in name.lower() if c.isalnum()) for name in (here, there))
        return a.startswith(b)

    for r in records:
        names = ((key[0], r["fr_model"]), (key[1], r["method"]), (benchmark, r["benchmark"]))
        if r["variant"].split("-")[0] == key[2].split(",")[0] and all(is_same(*pair) for pair in names):
            return math.nan if r["auc_x1000"] is None else float(r["auc_x1000"])
    return math.nan
