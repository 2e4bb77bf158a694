"""Figures of the report as SVG data URIs: label scatter (paper Fig. 4), similarity histograms, EDC curves.

Text stays text, dense scatters are rasterised, and equal data give equal bytes. Sizes are chosen so that letters stay
readable when a figure is shown 350 pixels wide.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fiqa_ray.core.conventions import DISCARDED
from fiqa_ray.datasets.results import VARIANTS, ConventionRow, EdcLine
from fiqa_ray.report.data import LabelSummary, SimilarityHistogram

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#767676"
WIDTH_INCH = 4.2
X_END = 0.95  # drawn range of the curves; the rest holds too few pairs to read
MOST_MARKED_CHANGES = 12
"""With more levels at which the number of allowed false matches changes, that happens nearly everywhere: none is marked."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fiqa_ray",
    "font.family": "sans-serif",
    "font.sans-serif": ["Segoe UI", "Roboto", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class LineStyle:
    """How a scorer is drawn in all figures: colour, dash lengths in line widths (empty: solid), marker."""

    colour: str
    dashes: tuple[float, ...]
    marker: str


# Okabe and Ito's colours, the light ones darkened for thin lines on white; dashes and markers repeat the distinction.
CYCLE = (
    LineStyle(BLUE, (), "o"),
    LineStyle(ORANGE, (5, 1.6), "s"),
    LineStyle("#008566", (7, 1.6, 1.5, 1.6), "^"),
    LineStyle("#9A4C84", (3, 1.4), "D"),
    LineStyle("#8A6D00", (1.6, 1.4), "v"),
    LineStyle("#2F86B5", (9, 2), "P"),
    LineStyle("#5A4FA2", (5, 1.4, 1.4, 1.4, 1.4, 1.4), "X"),
)
GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
"""The markers as signs of the page's legend."""
RANDOM_STYLE = LineStyle(GREY, (2, 2), "")
ORACLE_STYLE = LineStyle("#111111", (1.2, 1.6), "")


def line_styles(scorers: Sequence[str]) -> dict[str, LineStyle]:
    """Return one style per scorer, by order; scorers named random or oracle are grey or black, as references are."""
    styles: dict[str, LineStyle] = {}
    n_cycled = 0
    for scorer in dict.fromkeys(scorers):
        if scorer.lower() == "random":
            styles[scorer] = RANDOM_STYLE
        elif scorer.lower() == "oracle":
            styles[scorer] = ORACLE_STYLE
        else:
            styles[scorer] = CYCLE[n_cycled % len(CYCLE)]
            n_cycled += 1
    return styles


def curve_styles(lines: Sequence[EdcLine]) -> dict[str, LineStyle]:
    """Return one style per scorer: colour and marker by its method, dashes by its variant and theta.

    Where no method has more than one score, `line_styles` chooses. Up to 49 methods and 7 variants are told apart.
    """
    styles = line_styles([line.scorer for line in lines])
    judged = {line.scorer: line for line in lines if styles[line.scorer] not in (RANDOM_STYLE, ORACLE_STYLE)}
    methods = list(dict.fromkeys(line.method for line in judged.values()))
    if len(methods) == len(judged):
        return styles
    variants = list(dict.fromkeys((VARIANTS.index(line.variant), repr(line.theta)) for line in judged.values()))
    for scorer, line in judged.items():
        i, n = methods.index(line.method), len(CYCLE)
        dashes = CYCLE[sorted(variants).index((VARIANTS.index(line.variant), repr(line.theta))) % n].dashes
        styles[scorer] = LineStyle(CYCLE[i % n].colour, dashes, CYCLE[(i + i // n) % n].marker)
    return styles


def label_figure(labels: LabelSummary) -> str:
    """Draw Fig. 4 of the paper: the histogram of the prior scores above optimized against prior scores."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCH, 4.7), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.9])
        edges = np.asarray(labels.histogram_edges, dtype=np.float64)
        top.stairs(np.asarray(labels.histogram_counts, dtype=np.float64), edges, fill=True, color=BLUE, alpha=0.75)
        top.set_ylabel("Images")
        top.ticklabel_format(axis="y", scilimits=(-3, 4))
        prior = np.asarray(labels.prior_score, dtype=np.float64)
        optimized = np.asarray(labels.optimized_score, dtype=np.float64)
        alpha = float(np.clip(400 / max(1, prior.size), 0.08, 0.6))
        bottom.scatter(prior, optimized, s=5, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)
        bottom.axline((edges[0], edges[0]), slope=1, color=INK, linewidth=1, dashes=(4, 3))
        bottom.set(xlabel="Prior quality", ylabel="Optimized quality", xlim=(edges[0], edges[-1]))
        bottom.set_ylim(edges[0], edges[-1])
        return _data_uri(figure)


def similarity_figure(row: SimilarityHistogram) -> str:
    """Draw the density of the similarity of mated and of non-mated pairs, with the threshold in use."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCH, 2.7), layout="constrained")
        axes = figure.subplots()
        edges = np.asarray(row.edges, dtype=np.float64)
        for counts, name, colour in (
            (row.nonmated_counts, "different persons", ORANGE),
            (row.mated_counts, "same person", BLUE),
        ):
            density = _density(counts, edges)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(density, edges, color=colour, linewidth=1.4, label=name)
        if np.isfinite(row.threshold):
            axes.axvline(row.threshold, color=INK, linewidth=1.1, dashes=(4, 3), label="threshold")
        axes.set(xlabel="Similarity", ylabel="Density", xlim=(edges[0], edges[-1]))
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper center", ncols=3, handlelength=1.3, columnspacing=0.9, handletextpad=0.5)
        return _data_uri(figure)


def edc_figure(
    lines: Sequence[EdcLine],
    styles: Mapping[str, LineStyle],
    limits: Sequence[float] = (),
    convention: ConventionRow | None = None,
) -> tuple[str, str]:
    """Draw an error rate against the discarded share, one line per scorer; return the figure and its readings as JSON.

    Args:
        lines: Curves of one benchmark, recogniser, convention and rate.
        styles: Of each scorer.
        limits: Ends of partial areas, which are marked.
        convention: Their convention; None: not known, and drawn as the paper's.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCH, 3.1), layout="constrained")
        axes = figure.subplots()
        highest = 0.0
        for line in lines:
            shown = line.discard_fraction <= X_END + 1e-9
            x, y = 100 * line.discard_fraction[shown], line.fnmr[shown]
            highest = max(highest, float(np.nanmax(y, initial=0.0)))
            _draw_line(axes, x, y, styles[line.scorer], stepped=convention is not None and convention.curve == "step")
        if convention is not None:
            mark_changes(axes, lines, convention)
        for limit in limits:
            axes.axvline(100 * limit, color=GREY, linewidth=0.9, linestyle=":")
        axes.set_xlabel(f"Discarded {DISCARDED[convention.pool] if convention else 'pairs'} [%]")
        axes.set_ylabel(convention.error.upper() if convention else "FNMR")
        axes.set_xlim(0, 100 * X_END)
        axes.set_ylim(0, 1.06 * highest if highest > 0 else 1e-3)
        return _data_uri(figure), _readings(lines, axes, convention)


def _readings(lines: Sequence[EdcLine], axes: Axes, convention: ConventionRow | None) -> str:
    """Return what the page's script shows under the pointer: each curve at each 5 %, and where the axis lies."""
    x = np.arange(0, 100 * X_END + 1, 5)
    curves = []
    for line in lines:
        at = 100 * line.discard_fraction
        last = np.searchsorted(at, x + 1e-6, side="right") - 1
        y = line.fnmr[last] if convention is not None and convention.curve == "step" else np.interp(x, at, line.fnmr)
        shown = [
            round(float(v), 5) if np.isfinite(v) and end <= at[-1] + 1e-6 else None for end, v in zip(x, y, strict=True)
        ]
        curves.append([line.scorer, shown])
    box = axes.get_position()  # final: the figure is drawn
    ends = [round(float(box.x0), 4), round(float(box.x1), 4)]
    texts = {"ends": ends, "x": x.tolist(), "what": axes.get_xlabel(), "error": axes.get_ylabel(), "curves": curves}
    return json.dumps(texts)


def mark_changes(ax: Axes, lines: Sequence[EdcLine], convention: ConventionRow) -> int:
    """Mark the levels at which the rate allows another number of false matches; return how many are marked."""
    if convention.threshold != "recomputed":
        return 0
    changes: set[float] = set()
    for line in lines:
        is_change = np.flatnonzero(np.diff(line.n_allowed)) + 1
        changes |= set((100 * line.discard_fraction[is_change]).tolist())
    shown = sorted(c for c in changes if c <= 100 * X_END + 1e-9)
    if not 0 < len(shown) <= MOST_MARKED_CHANGES:
        return 0
    ax.plot(shown, np.zeros(len(shown)), color=INK, marker="|", linestyle="", markersize=7, clip_on=False)
    return len(shown)


def _draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, style: LineStyle, *, stepped: bool) -> None:
    axes.plot(
        x,
        y,
        color=style.colour,
        linewidth=1.7,
        dashes=style.dashes or (None, None),
        drawstyle="steps-post" if stepped else "default",
        marker="" if stepped else style.marker,
        markersize=3.6,
        markeredgewidth=0,
        clip_on=False,  # a line along an axis keeps its full width
    )


def _density(counts: ArrayLike, edges: np.ndarray) -> np.ndarray:
    values = np.asarray(counts, dtype=np.float64)
    return values / max(1.0, values.sum()) / np.diff(edges)


def _data_uri(figure: Figure) -> str:
    """Return a figure as an SVG data URI without creator, date or links."""
    stream = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", dpi=150, metadata=nothing)
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
