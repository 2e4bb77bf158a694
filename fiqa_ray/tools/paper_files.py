"""The tables of a paper as files: CSV with numbers, Markdown, and LaTeX with booktabs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fiqa_ray.datasets.results import GroupRateRow
from fiqa_ray.report.downloads import escaped, narrowed
from fiqa_ray.storage import join, write_atomic
from fiqa_ray.tools.paper_tables import CellText, OperatingPoint, Results, difference_table, tables_of
from fiqa_ray.tools.table_captions import difference_caption
from fiqa_ray.tools.time_table import time_table, time_text

if TYPE_CHECKING:
    import pandas as pd


def write_tables(
    results: Results,
    point: OperatingPoint,
    folder: str,
    published: Sequence[Mapping[str, Any]] = (),
    times: Mapping[str, Any] | None = None,
    groups: Results | None = None,
    group_rates: Sequence[GroupRateRow] = (),
) -> list[str]:
    """Write all tables into a folder, each as .csv, .md and .tex, and return their names.

    `table-4` holds the run times, `groups-1` to `groups-3` are tables 1 to 3 of the groups of people, `group-rates` their
    error rates at one threshold, `differences` every difference, `long` every area of all operating points, in CSV alone.
    """
    import pandas as pd

    names = []
    for name, (frame, caption) in tables_of(results, point, published).items():
        _write(folder, name, _as_numbers(frame), _markdown(frame, caption), _latex(frame, caption, name))
        names.append(name)
    if groups is not None and groups.areas:
        for name, (frame, caption) in tables_of(groups, point).items():
            name = name.replace("table", "groups")
            _write(folder, name, _as_numbers(frame), _markdown(frame, caption), _latex(frame, caption, name))
            names.append(name)
        _write_rates(folder, group_rates)
        names.append("group-rates")
    if times is not None:
        numbers, caption = time_table(times)
        text = time_text(numbers)
        latex = _latex_of(text, caption, "table-4").replace("±", r"$\pm$")
        _write(folder, "table-4", numbers, text.to_markdown(index=False) + f"\n\n{caption}\n", latex)
        names.append("table-4")
    differences = difference_table(results, point)
    if len(differences):
        text = differences.copy()
        for column in ("difference x 1000", "low", "high"):
            text[column] = ["–" if math.isnan(v) else f"{v:.2f}" for v in differences[column]]
        text["limit"] = [f"{v:g}" for v in differences["limit"]]
        text["p (Holm)"] = ["–" if math.isnan(p) else f"{p:.3g}" for p in differences["p (Holm)"]]
        caption = difference_caption(results, point)
        tex = _latex_of(text, caption, "differences", environment="longtable")
        _write(folder, "differences", differences, text.to_markdown(index=False) + f"\n\n{caption}\n", tex)
        names.append("differences")
    long = pd.DataFrame([vars(r) for r in results.areas])
    write_atomic(join(folder, "long.csv"), long.to_csv(index=False).encode())
    return [*names, "long"]


def _write_rates(folder: str, rows: Sequence[GroupRateRow]) -> None:
    """Write the error rates of groups at one threshold for all."""
    import pandas as pd

    numbers = pd.DataFrame([vars(r) for r in rows])
    text = numbers[["benchmark", "recognizer", "group", "n_mated", "n_nonmated", "fmr_wanted"]].copy()
    for rate in ("fmr", "fnmr"):
        columns = zip(numbers[rate], numbers[f"{rate}_low"], numbers[f"{rate}_high"], strict=True)
        text[f"{rate.upper()} [%]"] = [f"{100 * v:.2f} [{100 * low:.2f}, {100 * high:.2f}]" for v, low, high in columns]
    caption = (
        "Error rates of groups of people in percent, with 95 % intervals, at the threshold that all pairs of the benchmark "
        "set for the wanted FMR. Non-mated pairs are those within a group. The threshold is taken as it is."
    )
    latex = _latex_of(text, caption, "group-rates")
    _write(folder, "group-rates", numbers, text.to_markdown(index=False) + f"\n\n{caption}\n", latex)


def _write(folder: str, name: str, numbers: pd.DataFrame, markdown: str, latex: str) -> None:
    write_atomic(join(folder, f"{name}.csv"), numbers.to_csv(index=False).encode())
    write_atomic(join(folder, f"{name}.md"), markdown.encode())
    write_atomic(join(folder, f"{name}.tex"), latex.encode())


def _as_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of cells as columns of numbers: value, low and high of each benchmark."""
    import pandas as pd

    columns: dict[str, list[Any]] = {}
    for name in frame.columns:
        cells: list[CellText] = list(frame[name])
        if any(not math.isnan(c.high) for c in cells):
            columns[name] = [c.text if math.isnan(c.value) else c.value for c in cells]
            columns[f"{name} low"], columns[f"{name} high"] = [c.low for c in cells], [c.high for c in cells]
            marks = ["best" if c.is_best else "tied" if c.is_tied else "" for c in cells]
            columns[f"{name} mark"] = [" ".join(filter(None, (m, c.change))) for m, c in zip(marks, cells, strict=True)]
        else:
            columns[name] = [c.text if math.isnan(c.value) else c.value for c in cells]
    return pd.concat([frame.index.to_frame(index=False), pd.DataFrame(columns)], axis=1)


def _markdown(frame: pd.DataFrame, caption: str) -> str:
    text = frame.map(lambda cell: cell.plain()).reset_index()
    return f"{text.to_markdown(index=False)}\n\n{caption}\n"


def _latex(frame: pd.DataFrame, caption: str, name: str) -> str:
    style = frame.style.format(lambda cell: cell.latex())
    style = style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    columns = "lll" + "r" * frame.shape[1]
    latex = style.to_latex(
        hrules=True, caption=escaped(caption), label=f"tab:{name}", column_format=columns, multirow_align="t"
    )
    return f"% needs \\usepackage{{booktabs,graphicx,multirow}}\n{narrowed(latex)}"


def _latex_of(text: pd.DataFrame, caption: str, name: str, environment: str = "table") -> str:
    """Return a table of text as LaTeX, with a line that says which packages it needs."""
    style = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    if environment == "table":
        latex = style.to_latex(hrules=True, caption=escaped(caption), label=f"tab:{name}")
        return f"% needs \\usepackage{{booktabs,graphicx}}\n{narrowed(latex)}"
    columns = "".join("p{50pt}" if c in ("first", "second") else "l" for c in text.columns)
    latex = style.to_latex(
        hrules=True, caption=escaped(caption), label=f"tab:{name}", environment=environment, column_format=columns
    )
    # not the whole text on each page
    latex = re.sub(r"\\caption\[\]\{.*\}", lambda _: r"\caption[]{(continued)}", latex)
    small = f"{{\\scriptsize\\setlength{{\\tabcolsep}}{{2pt}}\\raggedright\n{latex}}}\n"
    return f"% needs \\usepackage{{booktabs,longtable}}\n{small}"
