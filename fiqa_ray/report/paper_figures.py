"""Figures of a paper, each from rows of results and arrays; `tools/figures.py` reads those and writes the files.

Colours and styles are those of the report. Equal data give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.conventions import DISCARDED
from fiqa_ray.datasets.results import (
    BASELINE,
    EDIFF,
    GIVEN,
    OPTIMIZED,
    ORACLE,
    RANDOM,
    UNOPTIMIZED,
    AucRow,
    BandRow,
    ConventionRow,
    EdcLine,
)
from fiqa_ray.report import figures
from fiqa_ray.report.figures import BLUE, GREY, INK, ORANGE, LineStyle, mark_changes

FloatArray = NDArray[np.float64]

STYLE: dict[Any, Any] = figures.STYLE | {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "font.sans-serif": ["DejaVu Sans"],  # part of matplotlib: PDF files look alike everywhere
    "pdf.fonttype": 42,
}
PANEL_INCH = 2.3
VARIANT_STYLES = {
    BASELINE: LineStyle(BLUE, (), "o"),
    GIVEN: LineStyle(BLUE, (), "o"),
    UNOPTIMIZED: LineStyle("#008566", (5, 1.6), "^"),
    OPTIMIZED: LineStyle(ORANGE, (7, 1.6, 1.5, 1.6), "s"),
    EDIFF: LineStyle("#7b4fb3", (3, 1.3, 1.2, 1.3), "D"),
}
REFERENCE_STYLES = {RANDOM: figures.RANDOM_STYLE, ORACLE: figures.ORACLE_STYLE}


def files_of(figure: Figure) -> dict[str, bytes]:
    """Return a figure as SVG and PDF, by ending, without creator or date."""
    contents = {}
    nothing: dict[str, dict[str, None]] = {
        "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
        "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
    }
    with matplotlib.rc_context(STYLE):
        for ending, metadata in nothing.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=ending, dpi=200, metadata=metadata)
            contents[ending] = stream.getvalue()
    return contents


# --- curves -----------------------------------------------------------------------------------------------------------


def edc_figure(
    lines: Sequence[EdcLine], bands: Sequence[BandRow], convention: ConventionRow, limits: Sequence[float] = ()
) -> Figure:
    """Draw the curves of one benchmark and recogniser at one operating point, a panel per method, with a shared legend.

    Where no method has more than one score, all curves stand in one panel.

    Args:
        lines: The curves.
        bands: How sure they are; those of other cells are ignored.
        convention: Of the curves.
        limits: Ends of partial areas, which are marked.
    """
    references = [line for line in lines if line.variant in REFERENCE_STYLES]
    judged = [line for line in lines if line.variant not in REFERENCE_STYLES]
    methods = list(dict.fromkeys(line.method for line in judged))
    by_method = len(judged) > len(methods)
    if by_method:
        panels = {method: [line for line in judged if line.method == method] for method in methods}
        styles, names = _looks_of_variants(judged)
    else:
        panels = {"": judged}
        styles = figures.line_styles([line.scorer for line in judged])
        names = {line.scorer: line.scorer for line in judged}
    styles |= {line.scorer: REFERENCE_STYLES[line.variant] for line in references}
    names |= {line.scorer: line.scorer for line in references}
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(panels), size=PANEL_INCH if by_method else 4.0)
        marks = 0
        for ax, (method, members) in zip(axes, panels.items(), strict=False):
            for line in (*references, *members):
                _draw_band(ax, line, bands, styles[line.scorer].colour)
            for line in (*references, *members):
                _draw_curve(ax, line, styles[line.scorer], convention)
            marks += mark_changes(ax, members, convention)
            for limit in limits:
                ax.axvline(100 * limit, color=GREY, linewidth=0.8, linestyle=":")
            ax.set(title=method, xlim=(0, 100 * min(figures.X_END, convention.end)))
        axes[0].set_ylim(bottom=0)  # of all panels
        figure.supxlabel(f"Discarded {DISCARDED[convention.pool]} [%]", fontsize=9)
        figure.supylabel(convention.error.upper(), fontsize=9)
        handles = _legend(names, styles)
        if marks:
            mark = Line2D([], [], color=INK, marker="|", linestyle="", markersize=6)
            mark.set_label("allowed false matches change")
            handles.append(mark)
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=min(len(handles), 3 if by_method and len(panels) > 1 else 2),
        )
        return figure


def _looks_of_variants(lines: Sequence[EdcLine]) -> tuple[dict[str, LineStyle], dict[str, str]]:
    """Return the style and the name in the legend of each score, by its variant; several thetas are told apart."""
    styles = {line.scorer: VARIANT_STYLES[line.variant] for line in lines}
    names = {line.scorer: line.variant for line in lines}
    optimized = [line for line in lines if line.variant == OPTIMIZED]
    if len(optimized) > len({line.method for line in optimized}):
        taken = {style.colour for variant, style in VARIANT_STYLES.items() if variant != OPTIMIZED}
        free = [style for style in figures.CYCLE if style.colour not in taken]
        thetas = sorted({f"{line.theta:g}" for line in optimized}, key=float)
        for line in optimized:
            theta = f"{line.theta:g}"
            styles[line.scorer] = free[thetas.index(theta) % len(free)]
            names[line.scorer] = f"{OPTIMIZED}, theta {theta}"
    return styles, names


def _panels(n: int, *, size: float = PANEL_INCH, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure with `n` panels in up to three columns, and its panels; those left over are hidden."""
    n_columns = min(n, 3)
    n_rows = -(-n // n_columns)
    shape = (max(size * n_columns, 3.4), 0.85 * size * n_rows + 0.7)
    figure = Figure(figsize=shape, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=sharey, sharey=sharey).ravel()
    for ax in axes[n:]:
        ax.set_visible(False)
    for ax in axes[max(0, n - n_columns) : n]:
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, list(axes)


def _legend(names: Mapping[str, str], styles: Mapping[str, LineStyle]) -> list[Line2D]:
    """Return one handle per name, in the order of first appearance."""
    handles: dict[str, Line2D] = {}
    for scorer, name in names.items():
        s = styles[scorer]
        handle = Line2D([], [], color=s.colour, marker=s.marker, markersize=3.6, linewidth=1.6, label=name)
        if s.dashes:
            handle.set_dashes(s.dashes)
        handles.setdefault(name, handle)
    return list(handles.values())


def _draw_curve(ax: Axes, line: EdcLine, style: LineStyle, convention: ConventionRow) -> None:
    shown = line.discard_fraction <= figures.X_END + 1e-9
    stepped = convention.curve == "step"
    ax.plot(
        100 * line.discard_fraction[shown],
        line.fnmr[shown],
        color=style.colour,
        linewidth=1.3,
        dashes=style.dashes or (None, None),
        drawstyle="steps-post" if stepped else "default",
        marker="" if stepped or line.fnmr.size > 40 else style.marker,
        markersize=2.6,
        markeredgewidth=0,
    )


def _draw_band(ax: Axes, line: EdcLine, bands: Sequence[BandRow], colour: str) -> None:
    """Shade the percentiles of the mean rate of each stretch, at the middle of the stretch."""
    key = (line.benchmark, line.recognizer, line.scorer, line.convention, repr(line.fmr))
    of_line = [b for b in bands if (b.benchmark, b.recognizer, b.scorer, b.convention, repr(b.fmr)) == key]
    of_line = [b for b in of_line if b.discard_to <= figures.X_END + 1e-9]
    if len(of_line) > 1:
        middle = [50 * (b.discard_from + b.discard_to) for b in of_line]
        low, high = [b.low for b in of_line], [b.high for b in of_line]
        ax.fill_between(middle, low, high, color=colour, alpha=0.14, linewidth=0)


@dataclass(frozen=True)
class DetCurve:
    """One detection error trade-off curve.

    Attributes:
        name: What is judged, such as a recogniser.
        fmr: `(P,)` false match rates.
        fnmr: `(P,)` false non-match rates at the same thresholds.
        points: Operating points: wanted rate -> (FMR, FNMR) at its threshold.
    """

    name: str
    fmr: FloatArray
    fnmr: FloatArray
    points: Mapping[float, tuple[float, float]]


def det_figure(curves: Sequence[DetCurve]) -> Figure:
    """Draw the false non-match rate against the false match rate, both on logarithmic axes, with operating points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.8, 3.4), layout="constrained")
        ax = figure.subplots()
        styles = figures.line_styles([c.name for c in curves])
        for curve in curves:
            style, shown = styles[curve.name], (curve.fmr > 0) & (curve.fnmr > 0)
            x, y = curve.fmr[shown], curve.fnmr[shown]
            ax.plot(
                x, y, color=style.colour, linewidth=1.4, dashes=style.dashes or (None, None), drawstyle="steps-post"
            )
            for wanted, (fmr, fnmr) in curve.points.items():
                if fnmr > 0:
                    ax.plot(max(fmr, wanted), fnmr, style.marker, color=style.colour, markersize=6)
        for wanted in sorted({w for c in curves for w in c.points}):
            ax.axvline(wanted, color=GREY, linewidth=0.8, linestyle=":")
        if not any(((c.fmr > 0) & (c.fnmr > 0)).any() for c in curves):
            ax.set(xlim=(1e-4, 1), ylim=(1e-4, 1))
            ax.text(0.5, 0.5, "no threshold makes errors of both kinds", transform=ax.transAxes, ha="center", color=INK)
        ax.set(xscale="log", yscale="log", xlabel="FMR", ylabel="FNMR")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        handles = _legend({c.name: c.name for c in curves}, styles)
        figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)))
        return figure


# --- histograms -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Similarities:
    """Similarities of a benchmark under one recogniser: `(M,)` mated, `(N,)` non-mated, thresholds by rate."""

    name: str
    mated: FloatArray
    nonmated: FloatArray
    thresholds: Mapping[float, float]


def similarity_figure(rows: Sequence[Similarities]) -> Figure:
    """Draw the densities of mated and non-mated similarities with the thresholds, a panel per recogniser."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(rows), sharey=False)
        for ax, row in zip(axes, rows, strict=False):
            both = np.concatenate([row.mated, row.nonmated])
            edges = np.linspace(both.min(), both.max() + 1e-9, 51)
            for values, colour in ((row.nonmated, ORANGE), (row.mated, BLUE)):
                density = np.histogram(values, edges, density=True)[0]
                ax.stairs(density, edges, fill=True, color=colour, alpha=0.3)
                ax.stairs(density, edges, color=colour, linewidth=1.2)
            for i, threshold in enumerate(row.thresholds.values()):
                if np.isfinite(threshold):
                    ax.axvline(threshold, color=INK, linewidth=1, dashes=((4, 2), (1.5, 1.5), (6, 2, 1, 2))[i % 3])
            ax.set(title=row.name, xlabel="Similarity")
            ax.set_ylim(bottom=0)
        axes[0].set_ylabel("Density")
        handles = [
            Line2D([], [], color=BLUE, linewidth=4, alpha=0.6, label="same person"),
            Line2D([], [], color=ORANGE, linewidth=4, alpha=0.6, label="different persons"),
        ]
        for i, fmr in enumerate(rows[0].thresholds):
            handle = Line2D([], [], color=INK, linewidth=1, label=f"threshold at FMR {fmr:g}")
            handle.set_dashes(((4, 2), (1.5, 1.5), (6, 2, 1, 2))[i % 3])
            handles.append(handle)
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
        return figure


def quality_figure(scores: Mapping[str, FloatArray]) -> Figure:
    """Draw the histogram of each score, a panel each; scores keep their own ranges."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(scores), sharey=False)
        for ax, (name, values) in zip(axes, scores.items(), strict=False):
            finite = values[np.isfinite(values)]
            ax.hist(finite, bins=int(np.clip(np.sqrt(finite.size), 8, 50)), color=BLUE, alpha=0.75)
            ax.set_title(name, fontsize=8)
        figure.supxlabel("Quality", fontsize=9)
        figure.supylabel("Images", fontsize=9)
        return figure


# --- labels -----------------------------------------------------------------------------------------------------------


def labels_figure(labels: Mapping[str, tuple[FloatArray, FloatArray]]) -> Figure:
    """Draw Fig. 4 of the paper for all methods: the histogram of the priors above optimized labels against priors.

    Args:
        labels: Per method prior and optimized label, both `(I,)` and scaled to [0, 1].
    """
    n_columns = min(3, len(labels))
    n_rows = -(-len(labels) // n_columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_INCH * n_columns, 3.0 * n_rows), layout="constrained")
        grid = figure.subplots(2 * n_rows, n_columns, squeeze=False, sharex=True, height_ratios=[1, 2.6] * n_rows)
        for i, (method, (prior, optimized)) in enumerate(labels.items()):
            row, column = divmod(i, n_columns)
            top, bottom = grid[2 * row, column], grid[2 * row + 1, column]
            top.hist(prior, bins=np.linspace(0, 1, 41), color=BLUE, alpha=0.75)
            top.set_title(method)
            alpha = float(np.clip(400 / max(1, prior.size), 0.05, 0.6))
            bottom.scatter(prior, optimized, s=4, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)
            bottom.axline((0, 0), slope=1, color=INK, linewidth=0.9, dashes=(4, 3))
            bottom.set(xlim=(0, 1), ylim=(0, 1))
            if column == 0:
                top.set_ylabel("Images")
                bottom.set_ylabel("Optimized label")
            bottom.set_xlabel("Prior label")
            bottom.xaxis.set_tick_params(labelbottom=True)
        for ax in grid.T.ravel():
            ax.set_visible(bool(ax.has_data()))
        return figure


# --- ranks and faces --------------------------------------------------------------------------------------------------


def mean_rank_figure(ranks: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the mean rank of each score over the benchmarks, a marker per recogniser; 1 is the best.

    Args:
        ranks: Per recogniser the mean ranks by score.
    """
    scorers = list(dict.fromkeys(s for by_score in ranks.values() for s in by_score))
    scorers.sort(key=lambda s: float(np.mean([r[s] for r in ranks.values() if s in r])), reverse=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 0.9 + 0.21 * len(scorers)), layout="constrained")
        ax = figure.subplots()
        styles = figures.line_styles(list(ranks))
        for recognizer, by_score in ranks.items():
            s = styles[recognizer]
            places = [(by_score[name], i) for i, name in enumerate(scorers) if name in by_score]
            ax.plot(*zip(*places, strict=True), s.marker, color=s.colour, markersize=5, label=recognizer, alpha=0.85)
        ax.set_yticks(range(len(scorers)), scorers, fontsize=8)
        figure.supxlabel("Mean rank over the benchmarks (1 is the best)", fontsize=9)
        figure.legend(loc="outside upper center", ncols=min(3, len(ranks)))
        return figure


def faces_figure(rows: Mapping[str, Sequence[bytes]]) -> Figure:
    """Draw one row of encoded faces per score: the middle of each tenth of the images, from the worst."""
    n_columns = max(len(faces) for faces in rows.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 0.55 * n_columns, 0.35 + 0.57 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), n_columns, squeeze=False)
        for ax in grid.ravel():
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        for axes, (name, faces) in zip(grid, rows.items(), strict=True):
            for ax, face in zip(axes, faces, strict=False):
                ax.imshow(_picture(face))
            axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for d in range(n_columns):
            grid[0, d].set_title(f"{100 * d // n_columns}–{100 * (d + 1) // n_columns} %", fontsize=6.5)
        return figure


def _picture(content: bytes) -> ArrayLike:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return np.asarray(matplotlib.image.imread(io.BytesIO(content), format=kind))


def competing(rows: Sequence[AucRow]) -> list[AucRow]:
    """Return the areas of scores that compete for the best."""
    return [r for r in rows if r.variant not in REFERENCE_STYLES]
