"""Tables that the commands print, and numbers with units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from fiqa_ray.models.method_table import METHODS, MethodRow
from fiqa_ray.models.recognizer_table import RECOGNIZERS

if TYPE_CHECKING:
    from fiqa_ray.tools.doctor import Finding


def plan_table(rows: Sequence[dict[str, Any]], n_workers: int) -> Table:
    """Return the table of `fiqa-ray plan`: one line per step."""
    time_column = f"time, {n_workers} worker{'s' if n_workers > 1 else ''}"
    table = Table(
        "stage", "what", "state", "rows", "shards", "read", "written", "work, 1 CPU", time_column, "memory/worker"
    )
    for r in rows:
        table.add_row(
            r["stage"],
            r["what"],
            r["state"],
            f"{r['n_rows']:,}",
            f"{r['n_shards']:,}",
            format_bytes(r["read_bytes"]),
            format_bytes(r["written_bytes"]),
            format_seconds(r["work_s"]),
            format_seconds(r["time_s"]),
            format_bytes(r["memory_bytes"]),
        )
    return table


def plan_total(rows: Sequence[dict[str, Any]], n_workers: int) -> str:
    """Return the last line of `fiqa-ray plan`: the sums over all steps."""
    keys = ("work_s", "time_s", "read_bytes", "written_bytes", "object_store_bytes")
    total = {key: sum(r[key] for r in rows) for key in keys}
    return (
        f"together {format_seconds(total['work_s'])} of work on this machine's CPU, {format_seconds(total['time_s'])} on "
        f"{n_workers} worker(s); {format_bytes(total['read_bytes'])} read from storage, "
        f"{format_bytes(total['written_bytes'])} written, {format_bytes(total['object_store_bytes'])} through Ray's object "
        "store"
    )


def status_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the table of `fiqa-ray status`: one line per dataset."""
    table = Table("stage", "dataset", "parts", "rows", "failed", "size", "work")
    for r in records:
        failed = ", ".join(f"{k} {v}" for k, v in r["failed"].items()) or "0"
        table.add_row(
            r["stage"],
            r["dataset"].rsplit("/v=", 1)[0],
            f"{r['n_parts_done']}/{r['n_parts']}" + (" ok" if r["finished"] else ""),
            f"{r['n_rows_done']:,}/{r['n_rows']:,} {r['unit']}",
            failed,
            format_bytes(r["n_bytes"]),
            format_seconds(r["work_s"]),
        )
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the table of `fiqa-ray doctor`: one line per check."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        state = "FAULT" if finding.state == "fault" else finding.state
        table.add_row(finding.check, state, finding.message)
    return table


def findings_total(findings: Sequence[Finding]) -> str:
    """Return the last line of `fiqa-ray doctor`: how many checks failed, and how many could not tell."""
    n_faults = sum(f.state == "fault" for f in findings)
    n_open = sum(f.state == "open" for f in findings)
    text = f"{n_faults} fault(s) found" if n_faults else "nothing wrong was found"
    return text + (f"; {n_open} check(s) could not tell" if n_open else "")


def recognizers_table() -> Table:
    """Return the table of FR models that have a name."""
    table = _titled_table("recognizer.name", "FR model", "GMAC", "pixels", "released file", "fetch", "licence")
    for name, row in RECOGNIZERS.items():
        pixels = f"{row.preprocessing.colour} (v-{row.preprocessing.mean:g})/{row.preprocessing.scale:g}"
        fetch = "yes" if row.fetch_uri else "by hand"
        table.add_row(name, f"{row.macs / 1e9:.2f}", pixels, row.released_file, fetch, row.licence)
    return table


def methods_table() -> Table:
    """Return the table of FIQA methods that have a name."""
    table = _titled_table(
        "methods[].name", "FIQA method", "needs", "cost per face", "range", "usual", "better", "licence"
    )
    for name, row in METHODS.items():
        table.add_row(name, _needs(row), row.cost, row.range_text, row.usual_range, row.direction, row.licence)
    return table


def _needs(row: MethodRow) -> str:
    if row.network is not None:
        return f"weights: {row.network.released_file}"
    if row.head is not None:
        return f"FR model; weights: {row.head.released_file}"
    if row.from_embedding:
        return "stored embeddings"
    return "FR model with gradients" if row.needs_gradient else "FR model"


def _titled_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    return table


def format_bytes(n_bytes: float) -> str:
    """Return a size with three digits or fewer and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.0f} {unit}" if unit == "B" or n_bytes >= 10 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def format_seconds(duration_s: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if duration_s < 120:
        return f"{duration_s:.1f} s"
    return f"{duration_s / 60:.1f} min" if duration_s < 7200 else f"{duration_s / 3600:,.1f} h"
