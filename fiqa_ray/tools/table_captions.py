"""Captions of tables: the operating point, the sizes of the benchmarks, and the signs that a table has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fiqa_ray.datasets.results import BASELINE, AucRow
from fiqa_ray.report.answer import merged, why_untold

if TYPE_CHECKING:
    import pandas as pd

    from fiqa_ray.tools.paper_tables import OperatingPoint, Results

SIGNIFICANT = 0.05
"""Level of the arrows: a difference with a p-value below it, after Holm's correction."""


def caption(results: Results, point: OperatingPoint, rows: Sequence[AucRow], what: str, table: pd.DataFrame) -> str:
    """Return the caption of a table.

    Args:
        results: All results.
        point: The operating point.
        rows: The areas of the table.
        what: What the table shows.
        table: The table, of `CellText`.
    """
    convention = results.conventions.get(point.convention)
    ends = sorted({r.discard_limit for r in rows})
    end = " to ".join(f"{100 * e:g} %" for e in dict.fromkeys((ends[0], ends[-1]))) + " discarded"
    end += ", the end of each curve" if point.limit is None else ""
    sizes = {r.benchmark: f"{r.benchmark} {r.n_mated:,} + {r.n_nonmated:,}" for r in rows}
    choices = ""
    if convention is not None:
        choices = f" ({convention.pool} discarded, threshold {convention.threshold}, count {convention.count})"
    sentences = [
        f"Area under the error-versus-discard curve times 1000 (smaller is better), {what}.",
        f"Convention {point.convention}{choices}, {point.rate_text}, up to {end}.",
        f"Mated + non-mated pairs: {'; '.join(sizes.values())}.",
        *_intervals(results, point, rows),
    ]
    if any("(chosen)" in key[-1] for key in table.index):
        sentences.append("Chosen: theta was chosen on held-out training people.")
    if signs := "; ".join(_signs(table)):
        sentences.append(f"{re.sub('[a-z]', lambda letter: letter[0].upper(), signs, count=1)}.")
    return " ".join(sentences)


def difference_caption(results: Results, point: OperatingPoint) -> str:
    """Return the caption of the table of all differences."""
    rows = [d for d in results.differences if point.holds(d)]
    text = [
        "Differences of areas times 1000; below 0 the first score is better.",
        f"Convention {point.convention}, {point.rate_text}; limit: discarded share at which both areas end.",
    ]
    drawn = [d for d in rows if d.n_draws]
    if drawn:
        draws, units = sorted({f"{d.n_draws:,}" for d in drawn}), sorted({d.unit for d in drawn})
        text.append(
            f"Low, high: {100 * drawn[0].level:g} % intervals of {' or '.join(draws)} paired bootstrap draws of "
            f"{' or '.join(units)}; p: after Holm's correction."
        )
    return " ".join([*text, *(f"Not told: {reason}." for reason in merged(filter(None, map(why_untold, rows))))])


def _intervals(results: Results, point: OperatingPoint, rows: Sequence[AucRow]) -> Iterator[str]:
    """Yield what the brackets are, and why some scores have none or cannot be told apart."""
    if all(r.interval == "none" for r in rows):
        yield "No intervals, so no score is told apart from another."
    else:
        draws, units = sorted({r.n_draws for r in rows}), sorted({r.unit for r in rows})
        n_draws = " or ".join(f"{n:,}" for n in draws)
        yield f"Brackets: {100 * rows[0].level:g} % intervals of {n_draws} bootstrap draws of {' or '.join(units)}."
    arrows = [d for d in results.differences if d.family == BASELINE and point.holds(d)]
    untold = [why for d in arrows if (why := why_untold(d)) and not d.reason]
    for reason in merged([*(r.reason for r in rows if r.reason), *untold]):
        yield f"{reason[0].upper()}{reason[1:]}."


def _signs(table: pd.DataFrame) -> Iterator[str]:
    """Yield what the signs mean that the cells of a table have."""
    cells = [cell for column in table for cell in table[column]]
    if any(cell.is_best for cell in cells):
        yield "bold: no other score is as good"
    if any(cell.is_tied and not cell.is_best for cell in cells):
        yield "†: among the best, which cannot be told apart"
    arrows = "".join(arrow for arrow in "↓↑" if any(cell.change == arrow for cell in cells))
    if arrows:
        meaning = {"↓": "smaller", "↑": "larger", "↓↑": "smaller or larger"}[arrows]
        yield f"{' '.join(arrows)}: {meaning} than the method's own score (p < {SIGNIFICANT:g} after Holm's correction)"
    if any(cell.text == "/" for cell in cells):
        yield "/: left out by the user"
