"""Turns `ReportData` into one self-contained HTML page: no links, no scripts, figures as data URIs.

This module groups rows and words the numbers; `page.html` lays them out and escapes every value; `page.css` is put
into the page.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from fiqa_ray.core.conventions import CONVENTIONS
from fiqa_ray.datasets.results import AucRow, CorrelationRow, DifferenceRow, ThetaRow
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.report import figures
from fiqa_ray.report.data import ReportData

FOLDER = Path(__file__).parent

FAMILIES = {
    "imitated": "regressors on prior labels against the scores that they imitate",
    "baseline": "regressors on optimized labels against the methods' own scores",
    "unoptimized": "regressors on optimized labels against those on prior labels",
}
"""Comparisons that are told in one sentence, by `DifferenceRow.family`."""

Item = TypeVar("Item")
Key = TypeVar("Key")


def render_report(data: ReportData) -> str:
    """Return the page as text; write it as UTF-8.

    Raises:
        FiqaRayError: a face is neither PNG nor JPEG.
    """
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
    )
    styles = figures.line_styles([line.scorer for line in data.edc])
    return environment.get_template("page.html").render(
        data=data,
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        findings=findings(data),
        settings=flat_settings(data.settings),
        label_figures=[(labels, figures.label_figure(labels)) for labels in data.labels],
        similarity_figures=[(row, figures.similarity_figure(row)) for row in data.similarities],
        curves=curve_groups(data, styles),
        conventions=[
            CONVENTIONS[name].summary
            for name in dict.fromkeys(line.convention for line in data.edc)
            if name in CONVENTIONS
        ],
        auc_tables=auc_tables(data.auc),
        differences=difference_groups(data.differences),
        correlations=correlation_tables(data.correlations),
        faces=[
            (strip.scorer, [("best", picture_uris(strip.best)), ("worst", picture_uris(strip.worst))])
            for strip in data.faces
        ],
    )


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


def percent_range(values: Sequence[float]) -> str:
    """Write the range of some fractions in percent, as one number where both ends print alike."""
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low} to {high}"


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
    return "worsens" if is_clear and row.low > 0 else "no clear difference"


def area_interval(row: AucRow) -> str:
    """Write the interval of an area, its upper limit, or that there is none."""
    if row.interval == "upper limit":
        return f"at most {area(row.auc_high)}"
    return f"{area(row.auc_low)} – {area(row.auc_high)}" if row.interval == "interval" else "no interval"


def difference_interval(row: DifferenceRow | ThetaRow) -> str:
    """Write the interval of a difference of areas, or that there is none."""
    return "none" if math.isnan(row.low) else f"{signed_area(row.low)} to {signed_area(row.high)}"


def how_made(rows: Sequence[AucRow | DifferenceRow]) -> str:
    """Say how the intervals of some rows were made, and why some rows have none."""
    made = dict.fromkeys((r.level, r.n_draws, r.unit, r.draws_seed) for r in rows if r.n_draws)
    text = [f"Intervals: {level:.0%}, {count(n)} draws of {unit}, seed {seed}." for level, n, unit, seed in made]
    undefined = [r.n_undefined for r in rows if r.n_undefined]
    if undefined:
        text.append(f"Up to {count(max(undefined))} draws had no value and were left out.")
    text += [f"{reason[0].upper()}{reason[1:]}." for reason in dict.fromkeys(r.reason for r in rows) if reason]
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


def findings(data: ReportData) -> list[str]:
    """Return the run in a few sentences, results first; what beats random numbers is left to the tables."""
    told = [row for row in data.differences if row.family != "random"]
    groups = grouped(
        told, lambda r: (r.recognizer, r.convention, r.family if r.family in FAMILIES else (r.scorer_a, r.scorer_b))
    )
    sentences = list(dict.fromkeys(row.summary for row in data.thetas))
    for (fr, convention, family), members in groups.items():
        by_verdict = grouped(members, verdict)
        parts = [
            f"{word}{_named(by_verdict[word], is_family=family in FAMILIES)}"
            for word in ("improves", "no clear difference", "worsens", "no interval", "undefined")
            if word in by_verdict
        ]
        what = FAMILIES[family] if family in FAMILIES else f"{family[0]} against {family[1]}"
        sentences.append(f"Convention {convention}, {fr}: {what}: {'; '.join(parts)}.")
    for n_images, labels_of in grouped(data.labels, lambda labels: labels.n_images).items():
        methods = ", ".join(dict.fromkeys(labels.method for labels in labels_of))
        alone = percent_range([labels.n_without_pairs / max(1, n_images) for labels in labels_of])
        moved = percent_range([labels.mean_index_move for labels in labels_of])
        sentences.append(
            f"Labels of {count(n_images)} images ({methods}): {alone} own no pair and keep their index; "
            f"the index moved by {moved} of the images on average."
        )
    n_failed = sum(stage.n_failed for stage in data.stages)
    if data.stages:
        failed = f"{count(n_failed)} row{'s' if n_failed != 1 else ''}" if n_failed else "no row"
        sentences.append(f"{len(data.stages)} stages ran; {failed} failed.")
    return sentences


def _named(rows: Sequence[DifferenceRow], *, is_family: bool) -> str:
    """Return what some rows of one verdict are about: benchmarks, within a family by the first scorer."""
    if not is_family:
        return f" on {', '.join(row.benchmark for row in rows)}"
    by_scorer = grouped(rows, lambda row: row.scorer_a.replace(", regressor on optimized labels", ""))
    return ": " + ", ".join(
        f"{name} on {', '.join(r.benchmark for r in members)}" for name, members in by_scorer.items()
    )


# --- grouping ---------------------------------------------------------------------------------------------------------


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Group items by a key; keys and items keep the order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def curve_groups(data: ReportData, styles: Mapping[str, figures.LineStyle]) -> list[dict[str, Any]]:
    """Return, per (recogniser, convention, FMR), legend and one figure per benchmark."""
    groups = []
    for (fr, convention, fmr), lines in grouped(data.edc, lambda c: (c.recognizer, c.convention, _same(c.fmr))).items():
        limits = sorted(
            {
                row.discard_limit
                for row in data.auc
                if (row.recognizer, row.convention, _same(row.fmr)) == (fr, convention, fmr)
                and row.discard_limit < min(figures.X_END, curve_end(convention))
            }
        )
        groups.append(
            {
                "fr": fr,
                "convention": convention,
                "fmr": fmr,
                "limits": limits,
                "legend": [(name, styles[name]) for name in dict.fromkeys(line.scorer for line in lines)],
                "figures": [
                    (benchmark, figures.edc_figure(members, styles, limits))
                    for benchmark, members in grouped(lines, lambda line: line.benchmark).items()
                ],
            }
        )
    return groups


def curve_end(convention: str) -> float:
    """Return the discard fraction at which a convention's curves end; 1 for one that this version does not know."""
    return CONVENTIONS[convention].end if convention in CONVENTIONS else 1.0


def auc_tables(rows: Sequence[AucRow]) -> list[dict[str, Any]]:
    """Return, per (recogniser, convention, FMR, limit), scorers by benchmarks, those that lead marked."""
    tables = []
    for (fr, convention, fmr, limit), members in grouped(
        rows, lambda r: (r.recognizer, r.convention, _same(r.fmr), r.discard_limit)
    ).items():
        cells = {(row.scorer, row.benchmark): row for row in members}
        by_benchmark = grouped(members, lambda row: row.benchmark)
        marks = {benchmark: leading_mark(column) for benchmark, column in by_benchmark.items()}
        tables.append(
            {
                "fr": fr,
                "convention": convention,
                "fmr": fmr,
                "limit": limit,
                "partial": limit < curve_end(convention),
                "how_made": how_made(members),
                "columns": [(benchmark, column[0]) for benchmark, column in by_benchmark.items()],
                "rows": [
                    (
                        scorer,
                        [
                            (row, marks[benchmark] if row is not None and row.is_leading else "")
                            for benchmark in by_benchmark
                            for row in [cells.get((scorer, benchmark))]
                        ],
                    )
                    for scorer in dict.fromkeys(row.scorer for row in members)
                ],
            }
        )
    return tables


def leading_mark(column: Sequence[AucRow]) -> str:
    """Return the mark of the leading scorers of a benchmark: "best" if there is one, "tied" if there are several."""
    return "best" if sum(row.is_leading for row in column) == 1 else "tied"


def difference_groups(rows: Sequence[DifferenceRow]) -> list[dict[str, Any]]:
    """Return, per (recogniser, convention, scorer a, scorer b), benchmarks with their verdicts."""
    return [
        {
            "a": a,
            "b": b,
            "where": f"Convention {convention}, {fr}",
            "how_made": how_made(members),
            "rows": [{"row": row, "verdict": verdict(row)} for row in members],
        }
        for (fr, convention, a, b), members in grouped(
            rows, lambda r: (r.recognizer, r.convention, r.scorer_a, r.scorer_b)
        ).items()
    ]


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
