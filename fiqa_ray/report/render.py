"""Turns `ReportData` into one self-contained HTML page: no links, figures as data URIs, and one script that sorts tables.

This module groups rows and words the numbers; `page.html` lays them out and escapes every value; `page.css` and
`page.js` are put into the page, whose content policy allows no other script.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from fiqa_ray.core.verdicts import mean_ranks
from fiqa_ray.datasets.results import (
    BASELINE,
    ORACLE,
    RANDOM,
    UNOPTIMIZED,
    VARIANTS,
    AucRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    ThetaRow,
)
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.report import figures
from fiqa_ray.report.answer import answer_lines, merged, why_untold
from fiqa_ray.report.data import ReportData
from fiqa_ray.report.downloads import csv_uri, latex_uri

FOLDER = Path(__file__).parent

Item = TypeVar("Item")
Key = TypeVar("Key")


def render_report(data: ReportData) -> str:
    """Return the page as text; write it as UTF-8.

    Raises:
        FiqaRayError: a face is neither PNG nor JPEG.
    """
    styles = figures.curve_styles(data.edc)
    points = operating_points(data, styles)
    script = "\n" + (FOLDER / "page.js").read_text(encoding="utf-8")
    return _template().render(
        data=data,
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        findings=findings(data),
        glyphs=figures.GLYPHS,
        settings=flat_settings(data.settings),
        label_figures=[(labels, figures.label_figure(labels)) for labels in data.labels],
        similarity_figures=[(row, figures.similarity_figure(row)) for row in data.similarities],
        points=points,
        conventions=[row.summary for row in data.conventions],
        group_tables=group_tables(data),
        correlations=correlation_tables(data.correlations),
        faces=[
            (strip.title, [(row.name, picture_uris(row.faces)) for row in strip.rows if row.faces])
            for strip in data.faces
        ],
    )


@cache
def _template() -> jinja2.Template:
    """Return the compiled page, which all reports of a process share."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        area=area,
        area_interval=area_interval,
        count=count,
        decimals=decimals,
        difference_interval=difference_interval,
        duration=duration,
        percent=percent,
        rate=rate,
        signed_area=signed_area,
        verdict=verdict,
    )
    return environment.get_template("page.html")


# --- words and numbers ------------------------------------------------------------------------------------------------


def count(value: int) -> str:
    """Write 1234567 as 1,234,567."""
    return f"{value:,}"


def decimals(value: float, places: int = 3) -> str:
    """Write a number with fixed decimals and a true minus sign; NaN is "undefined"."""
    return "undefined" if math.isnan(value) else f"{value:.{places}f}".replace("-", "−")


def area(value: float) -> str:
    """Write an area times 1000 with one decimal, as the paper's tables do."""
    return decimals(1000 * value, 1)


def signed_area(value: float) -> str:
    """Write a difference of areas times 1000 with its sign and two decimals, so that few intervals seem to end at zero."""
    return "undefined" if math.isnan(value) else f"{1000 * value:+.2f}".replace("-", "−")


def percent(value: float, places: int = 2) -> str:
    """Write a fraction in percent."""
    return "undefined" if math.isnan(value) else f"{decimals(100 * value, places)} %"


def _same(value: float) -> float | None:
    """Return None for NaN, which is not equal to itself."""
    return None if math.isnan(value) else value


def rate(value: float | None) -> str:
    """Write a small rate or step with up to three digits, such as 0.001 or 6.67e−4; None: set by a starting FNMR."""
    if value is None:
        return "by starting FNMR"
    text = f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}".replace("e-0", "e-")
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """Write seconds as 4.2 s, 3 min 05 s or 2 h 07 min; empty for NaN."""
    if math.isnan(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def verdict(row: DifferenceRow) -> str:
    """Say what the interval of a difference of areas means for its first scorer; smaller areas are better.

    A difference is clear where the interval leaves out zero and the p-value, corrected for its family, is small enough.
    Where regressors were trained several times, the mean over the trainings must differ from zero too.
    """
    if math.isnan(row.low) or math.isnan(row.high):
        return "undefined" if math.isnan(row.difference) else "no interval"
    is_clear = row.p_holm < 1 - row.level and not row.p_training >= 1 - row.level  # NaN: one training or none
    if is_clear and row.high < 0:
        return "improves"
    if is_clear and row.low > 0:
        return "worsens"
    return "too few draws" if why_untold(row) else "no clear difference"


def area_interval(row: AucRow) -> str:
    """Write the interval of an area, its upper limit, or that there is none."""
    if row.interval == "upper limit":
        return f"at most {area(row.auc_high)}"
    return f"{area(row.auc_low)} – {area(row.auc_high)}" if row.interval == "interval" else "no interval"


def difference_interval(row: DifferenceRow | ThetaRow) -> str:
    """Write the interval of a difference of areas, or that there is none."""
    return "no interval" if math.isnan(row.low) else f"{signed_area(row.low)} to {signed_area(row.high)}"


def how_made(rows: Sequence[AucRow | DifferenceRow]) -> str:
    """Say how the intervals of some rows were made, and why some rows have none."""
    schemes = grouped([r for r in rows if r.n_draws], lambda r: (r.level, r.n_draws, r.unit, r.draws_seed))
    text = []
    for (level, n, unit, seed), members in schemes.items():
        on = f" on {', '.join(dict.fromkeys(r.benchmark for r in members))}" if len(schemes) > 1 else ""
        text.append(f"Intervals{on}: {percent(level, 0)}, {count(n)} draws of {unit}, seed {seed}.")
    undefined = [r.n_undefined for r in rows if r.n_undefined]
    if undefined:
        text.append(f"Up to {count(max(undefined))} draws had no value and were left out.")
    reasons = [r.reason or (why_untold(r) if isinstance(r, DifferenceRow) else "") for r in rows]
    text += [f"{reason[0].upper()}{reason[1:]}." for reason in merged([reason for reason in reasons if reason])]
    return " ".join(text)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return settings as (dotted name, text) in their order."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat_settings(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            rows.append((f"{prefix}{name}", ", ".join(str(item) for item in value)))
        else:
            rows.append((f"{prefix}{name}", "none" if value is None else str(value)))
    return rows


def findings(data: ReportData) -> list[tuple[str, list[str]]]:
    """Return what the benchmarks say of optimized labels, and what went wrong: sentences, each with its details."""
    if any(row.family in (BASELINE, UNOPTIMIZED) for row in data.differences):
        *sentences, (note, _) = nested(answer_lines(data.auc, data.differences))
        sentences[-1][1].append(note)
    else:
        sentences = [(line, []) for line in leaders(data.auc)]
    sentences += [(summary, []) for summary in dict.fromkeys(row.summary for row in data.thetas)]
    if len(data.signs) > 1:
        sentences.append(
            (f"For {len(data.signs)} methods it is not certain that larger scores mean better images.", [*data.signs])
        )
    else:
        sentences += [(sign, []) for sign in data.signs]
    n_failed = sum(stage.n_failed for stage in data.stages)
    if n_failed:
        text = f"{count(n_failed)} row{'s' if n_failed != 1 else ''} failed; “Flow” says where and why."
        sentences.append((text, []))
    return sentences


def nested(lines: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return sentences with their details from lines that are indented by 0, 2 or 4; the last continue their detail."""
    sentences: list[tuple[str, list[str]]] = []
    for line in lines:
        text = line.strip()
        if not line.startswith(" "):
            sentences.append((text, []))
        elif not line.startswith("    "):
            sentences[-1][1].append(text)
        else:
            sentences[-1][1][-1] += f"; {text}"
    return sentences


def leaders(rows: Sequence[AucRow]) -> list[str]:
    """Return, for the first recogniser, convention and rate, which score is best on each benchmark."""
    whole = [r for r in rows if r.is_own_limit and _point_of(r) == _point_of(rows[0])]
    sentences = []
    for benchmark, column in grouped(whole, lambda r: r.benchmark).items():
        best = [f"{r.scorer} ({area(r.auc)})" for r in column if r.is_leading]
        if len(best) == 1:
            sentences.append(f"Best on {benchmark}: {best[0]}.")
        elif best:
            sentences.append(f"Best on {benchmark}, not to be told apart: {', '.join(best)}.")
    if sentences:
        sentences.append(f"In brackets areas × 1000, lower is better ({_point_text(whole[0])}).")
    return sentences


# --- grouping ---------------------------------------------------------------------------------------------------------


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Group items by a key; keys and items keep the order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def operating_points(data: ReportData, styles: Mapping[str, figures.LineStyle]) -> list[dict[str, Any]]:
    """Return what is known at each (recogniser, convention, FMR): areas, curves and differences."""
    areas = grouped(data.auc, _point_of)
    curves = grouped(data.edc, _point_of)
    differences = grouped(data.differences, _point_of)
    meanings = {row.convention: row for row in data.conventions}
    points = []
    for i, key in enumerate(dict.fromkeys([*areas, *curves, *differences])):
        fr, convention, fmr = key
        tables = area_tables(areas.get(key, []), differences.get(key, []))
        limits = sorted({t["limit"] for t in tables if t["partial"] and t["limit"] < figures.X_END})
        lines = curves.get(key, [])
        points.append(
            {
                "id": f"point-{i}",
                "is_of_groups": False,
                "fr": fr,
                "convention": convention,
                "fmr": fmr,
                "table": next((t for t in tables if not t["partial"]), None),
                "partial_tables": [t for t in tables if t["partial"]],
                "differences": difference_table(differences.get(key, [])),
                "limits": limits,
                "legend": [(name, styles[name]) for name in dict.fromkeys(line.scorer for line in lines)],
                "figures": [
                    (benchmark, *figures.edc_figure(members, styles, limits, meanings.get(convention)))
                    for benchmark, members in grouped(lines, lambda line: line.benchmark).items()
                ],
            }
        )
    return points


def group_tables(data: ReportData) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the tables of the groups of people, each with its operating point."""
    areas, differences = grouped(data.group_auc, _point_of), grouped(data.group_differences, _point_of)
    return [
        (table, {"id": f"groups-{i}", "is_of_groups": True, "fr": fr, "convention": convention, "fmr": fmr})
        for i, ((fr, convention, fmr), rows) in enumerate(areas.items())
        for table in area_tables(rows, differences.get((fr, convention, fmr), []))
        if not table["partial"]
    ]


def _point_of(row: AucRow | EdcLine | DifferenceRow) -> tuple[str, str, float | None]:
    return row.recognizer, row.convention, _same(row.fmr)


def _point_text(row: AucRow) -> str:
    return f"convention {row.convention}, FMR {rate(_same(row.fmr))}, {row.recognizer}"


def area_tables(rows: Sequence[AucRow], differences: Sequence[DifferenceRow]) -> list[dict[str, Any]]:
    """Return scorers by benchmarks: areas, those that lead marked, and what optimized labels changed.

    The first table has the areas up to the end of each curve, which may differ; one table per partial limit follows.
    """
    changes = {(d.scorer_a, d.benchmark, d.discard_limit): d for d in differences if d.family == BASELINE}
    tables = []
    for limit, members in grouped(rows, lambda r: None if r.is_own_limit else r.discard_limit).items():
        ends = {r.discard_limit for r in members}
        cells = {(row.scorer, row.benchmark): row for row in members}
        by_benchmark = grouped(members, lambda row: row.benchmark)
        marks = {benchmark: leading_mark(column) for benchmark, column in by_benchmark.items()}
        competing = [r for r in members if r.variant not in (ORACLE, RANDOM)]
        ranks = mean_ranks([{r.scorer: r.auc for r in competing if r.benchmark == b} for b in by_benchmark])
        lines = []
        for row in sorted({r.scorer: r for r in members}.values(), key=_row_order(members)):
            line = []
            for benchmark in by_benchmark:
                cell = cells.get((row.scorer, benchmark))
                mark = marks[benchmark] if cell is not None and cell.is_leading else ""
                change = None if cell is None else changes.get((row.scorer, benchmark, cell.discard_limit))
                line.append((cell, mark, change))
            lines.append((row.scorer, line, ranks.get(row.scorer)))
        made = how_made(members)
        table = {
            "limit": max(ends),
            "partial": limit is not None,
            "ends_differ": len(ends) > 1,
            "how_made": made,
            "columns": [(benchmark, column[0]) for benchmark, column in by_benchmark.items()],
            "rows": lines,
            "has_ranks": len(by_benchmark) > 1,
        }
        latex = latex_uri(table, _point_text(members[0]), made)
        tables.append(table | {"csv": csv_uri(members), "latex": latex})
    return sorted(tables, key=lambda t: (t["partial"], -t["limit"]))


def _row_order(rows: Sequence[AucRow]) -> Callable[[AucRow], tuple[int, int, float]]:
    """Return a sort key: references last, then methods in their order, variants as in `VARIANTS`, theta rising."""
    methods = list(dict.fromkeys(r.method for r in rows))

    def key(row: AucRow) -> tuple[int, int, float]:
        is_reference = row.variant in (ORACLE, RANDOM)
        theta = -1.0 if math.isnan(row.theta) else row.theta
        return (len(methods) if is_reference else methods.index(row.method), VARIANTS.index(row.variant), theta)

    return key


def leading_mark(column: Sequence[AucRow]) -> str:
    """Return the mark of the leading scorers of a benchmark: "best" if there is one, "tied" if there are several."""
    return "best" if sum(row.is_leading for row in column) == 1 else "tied"


def difference_table(rows: Sequence[DifferenceRow]) -> dict[str, Any]:
    """Return all differences of an operating point with their verdicts, those of the same two scores together."""
    members = [row for group in grouped(rows, lambda r: (r.scorer_a, r.scorer_b)).values() for row in group]
    return {
        "how_made": how_made(members),
        "is_trained": any(row.n_seeds > 1 for row in members),
        "rows": [{"row": row, "verdict": verdict(row)} for row in members],
    }


def correlation_tables(rows: Sequence[CorrelationRow]) -> list[dict[str, Any]]:
    """Return one table per benchmark: scorers by kinds of degradation, "all" first."""
    tables = []
    for benchmark, members in grouped(rows, lambda row: row.benchmark).items():
        kinds = sorted(dict.fromkeys(row.kind for row in members), key=lambda kind: kind != "all")
        cells = {(row.scorer, row.kind): row for row in members}
        scorers = dict.fromkeys(row.scorer for row in members)
        table_rows = [(scorer, [cells.get((scorer, kind)) for kind in kinds]) for scorer in scorers]
        tables.append({"benchmark": benchmark, "kinds": kinds, "rows": table_rows})
    return tables


def picture_uris(faces: Sequence[Any]) -> list[tuple[Any, str]]:
    """Return faces with their pictures as data URIs.

    Raises:
        FiqaRayError: Bytes that are neither PNG nor JPEG.
    """
    pairs = []
    for face in faces:
        if face.image.startswith(b"\x89PNG\r\n\x1a\n"):
            kind = "png"
        elif face.image.startswith(b"\xff\xd8\xff"):
            kind = "jpeg"
        else:
            raise FiqaRayError(
                f"report: the picture {face.caption!r} begins with {face.image[:4]!r}: give PNG or JPEG bytes"
            )
        pairs.append((face, f"data:image/{kind};base64,{base64.b64encode(face.image).decode()}"))
    return pairs
