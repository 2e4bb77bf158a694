"""Tables of the page as files that a reader saves: CSV and LaTeX in data URIs."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fiqa_ray.datasets.results import AucRow


def csv_uri(rows: Sequence[AucRow]) -> str:
    """Return rows as a CSV file, every column of `AucRow`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(AucRow))
    for row in rows:
        values = [getattr(row, f.name) for f in fields(AucRow)]
        writer.writerow("" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in values)
    return _data_uri("text/csv", text.getvalue())


def latex_uri(table: Mapping[str, Any], point: str, how_made: str) -> str:
    """Return a table of areas as LaTeX with booktabs.

    Args:
        table: What `render.area_tables` returns.
        point: Convention, rate and recogniser in words.
        how_made: Sentences on the intervals.
    """
    columns = [benchmark for benchmark, _ in table["columns"]]
    head = ["Score", *columns] + ["Mean rank"] * table["has_ranks"]
    lines = [" & ".join(map(escaped, head)) + r" \\", r"\midrule"]
    for scorer, cells, rank in table["rows"]:
        texts = [escaped(scorer), *(_cell(row, mark) for row, mark, _ in cells)]
        if table["has_ranks"]:
            texts.append("" if rank is None else f"{rank:.1f}")
        lines.append(" & ".join(texts) + r" \\")
    sizes = "; ".join(f"{name} {row.n_mated:,} + {row.n_nonmated:,}" for name, row in table["columns"])
    caption = (
        f"Area under the error-versus-discard curve times 1000 (smaller is better), {point}, up to "
        f"{100 * table['limit']:g} % discarded. Mated + non-mated pairs: {sizes}. {how_made} "
        "Bold: no other score is as good; †: cannot be told apart from the smallest."
    )
    body = "\n".join(lines)
    tabular = narrowed(
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"
    )
    return _data_uri(
        "application/x-tex",
        "% needs \\usepackage{booktabs,graphicx}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{escaped(caption)}}}\n{tabular}\n\\end{{table}}\n",
    )


def narrowed(latex: str) -> str:
    """Return LaTeX whose table shrinks where it is wider than the text; it needs the package graphicx."""
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{\begin{tabular}"
    return latex.replace(r"\begin{tabular}", fit).replace(r"\end{tabular}", r"\end{tabular}}")


def escaped(text: str) -> str:
    """Return text with LaTeX's special characters, and the signs of the captions, as commands."""
    marks = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "†": r"$\dagger$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "−": "$-$", "–": "--",
    }  # fmt: skip
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _cell(row: AucRow | None, mark: str) -> str:
    """Return an area times 1000 with its interval; "/" where there is no area."""
    if row is None or math.isnan(row.auc):
        return "/" if row is None else "undefined"
    value = f"{1000 * row.auc:.1f}"
    value = rf"\textbf{{{value}}}" if mark == "best" else value + r"$^\dagger$" * (mark == "tied")
    if row.interval == "none":
        return value
    low = r"$\leq$ " if row.interval == "upper limit" else f"{1000 * row.auc_low:.1f}, "
    return rf"\shortstack[r]{{{value}\\{{\scriptsize [{low}{1000 * row.auc_high:.1f}]}}}}"


def _data_uri(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
