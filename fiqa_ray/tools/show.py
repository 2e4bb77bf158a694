"""Tables that the commands print, and numbers with units."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich import box
from rich.table import Table

from fiqa_ray.core.intervals import UPPER_LIMIT
from fiqa_ray.engine.progress import rate_text
from fiqa_ray.models.method_table import METHODS, MethodRow
from fiqa_ray.models.recognizer_table import RECOGNIZERS

if TYPE_CHECKING:
    from fiqa_ray.tools.input_checks import Finding
    from fiqa_ray.tools.time_methods import Timing


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
    keys = ("work_s", "time_s", "read_bytes", "written_bytes", "through_store_bytes")
    total = {key: sum(r[key] for r in rows) for key in keys}
    return (
        f"together {format_seconds(total['work_s'])} of work on this machine's CPU, {format_seconds(total['time_s'])} on "
        f"{n_workers} worker(s); {format_bytes(total['read_bytes'])} read from storage, "
        f"{format_bytes(total['written_bytes'])} written, {format_bytes(total['through_store_bytes'])} through Ray's object "
        "store"
    )


def stages_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the table of `fiqa-ray status`: one line per stage, the sums of what the last settings have begun."""
    table = Table("stage", "datasets", "parts", "rows", "failed", "size", "work")
    for stage in dict.fromkeys(r["stage"] for r in records):
        of_stage = [r for r in records if r["stage"] == stage and not r["is_earlier"]]
        if not of_stage:
            continue
        work_s = [r["work_s"] for r in of_stage if r["work_s"] is not None]
        begun = [r for r in of_stage if r["n_parts"] or r["finished"]]
        share = _share if len(begun) == len(of_stage) else _so_far  # how much the others hold is not known yet
        table.add_row(
            stage,
            _share(sum(r["finished"] for r in of_stage), len(of_stage)),
            share(sum(r["n_parts_done"] for r in begun), sum(r["n_parts"] for r in begun)) if begun else "",
            ", ".join(
                share(_sum_of(begun, unit, "n_rows_done"), _sum_of(begun, unit, "n_rows"), f" {unit}")
                for unit in dict.fromkeys(r["unit"] for r in begun)
            ),
            _failed_text(sum((Counter(r["failed"]) for r in of_stage), Counter())),
            format_bytes(sum(r["n_bytes"] for r in of_stage)),
            format_seconds(sum(work_s)) if work_s else "",
        )
    return table


def _sum_of(records: Sequence[dict[str, Any]], unit: str, key: str) -> int:
    return sum(r[key] for r in records if r["unit"] == unit)


def _share(n_done: int, n: int, unit: str = "") -> str:
    return f"{n_done:,} of {n:,}{unit}" if n_done != n else f"all {n:,}{unit}"


def _so_far(n_done: int, n: int, unit: str = "") -> str:
    return f"{n_done:,} of {n:,}{unit} so far"


def _failed_text(failed: Mapping[str, int]) -> str:
    return ", ".join(f"{k} {v:,}" for k, v in failed.items()) or "0"


def _state_text(record: Mapping[str, Any]) -> str:
    states = [*(["ok"] if record["finished"] else []), *(["of earlier settings"] if record["is_earlier"] else [])]
    return f" {', '.join(states)}" if states else ""


def earlier_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines on datasets that the run's last settings do not ask for: finished ones and others, if there are some."""
    earlier = [r for r in records if r["is_earlier"]]
    finished = [r for r in earlier if r["finished"]]
    lines = []
    if finished:
        size = format_bytes(sum(r["n_bytes"] for r in finished))
        lines.append(
            f"{len(finished)} finished dataset(s) of earlier settings ({size}) are not counted above; --datasets has them"
        )
    if len(finished) < len(earlier):
        n = len(earlier) - len(finished)
        lines.append(f"{n} dataset(s) of earlier settings are unfinished; the last settings do not need them")
    return lines


def datasets_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the table of `fiqa-ray status --datasets`: one line per dataset."""
    table = Table("stage", "dataset", "parts", "rows", "failed", "size", "work", "rows/s of a worker")
    for r in records:
        table.add_row(
            r["stage"],
            r["dataset"].rsplit("/v=", 1)[0],
            f"{r['n_parts_done']}/{r['n_parts']}{_state_text(r)}",
            f"{r['n_rows_done']:,}/{r['n_rows']:,} {r['unit']}",
            _failed_text(r["failed"]),
            format_bytes(r["n_bytes"]),
            "" if r["work_s"] is None else format_seconds(r["work_s"]),
            f"{r['n_rows_done'] / r['work_s']:,.1f}" if r["work_s"] else "",
        )
    return table


def run_lines(now: dict[str, Any]) -> list[str]:
    """Return what `fiqa-ray status` says below the table: who is at work, on what, and what failed."""
    holder = now["holder"] and f"process {now['holder']['pid']} on {now['holder']['host']}"
    if now["is_at_work"]:
        machines = f"{now.get('n_machines', 1)} machine(s)"
        lines = [f"a run is at work: {holder}, {machines}, last sign {format_seconds(now['beat_age_s'] or 0.0)} ago"]
    elif now["has_died"]:
        lines = [f"no run is at work; that of {holder} has died: run the same command again to continue"]
    else:
        lines = ["no run is at work"]
    step = now.get("step")
    if step:
        left = "" if step["left_s"] is None else f", {format_seconds(step['left_s'])} left"
        share = f"{step['done']:,} of {step['total']:,} {step['unit']}"
        lines.append(f"{step['name']}: {share}, {rate_text(step['rows_per_s'], step['unit'])}{left}")
    if now.get("waits_for"):
        lines.append(now["waits_for"])
    if now["machine_s"]:
        lines.append(f"machines have worked for {format_seconds(now['machine_s'])} in all")
    if now.get("storage_retries"):
        lines.append(f"storage was tried again {now['storage_retries']:,} time(s) by the driver")
    if verified := now.get("verified"):
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(verified["time_s"]))
        lines.append(f"last verified on {day}: {verified['n_damaged'] or 'no'} damaged file(s)")
    lines += [
        f"failed: {f['part'] or 'a part'} of {f['dataset'] or 'a dataset'}, try {f['n_tries']} ({f['kind']}): {f['error']}"
        for f in now.get("failures", [])[-5:]
    ]
    return lines


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
    """Return the last line of `fiqa-ray doctor`: which checks failed, and which could not tell."""
    wrong, still_open = ([f.check for f in findings if f.state == state] for state in ("fault", "open"))
    if not wrong and not still_open:
        return f"nothing wrong was found in {len(findings)} checks"
    return f"{_counted(wrong)} wrong, {_counted(still_open)} open, {len(findings) - len(wrong) - len(still_open)} ok"


def _counted(checks: Sequence[str]) -> str:
    return f"{len(checks)} ({', '.join(checks)})" if checks else "0"


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


def times_table(timing: Timing) -> Table:
    """Return run times in milliseconds per image; the speed-up is that against the first method."""
    table = _titled_table("Milliseconds per image", "method", "batch 1", "best batch", "in that batch", "speed-up")
    first = timing.methods[0].mean
    for t in timing.methods:
        best = f"{t.best_mean:.3f} ± {t.best_sd:.3f}"
        table.add_row(
            " ".join(filter(None, (t.method, t.variant))),
            f"{t.mean:.3f} ± {t.sd:.3f}",
            str(t.best_batch),
            best,
            f"{first / t.mean - 1:+.0%}",
        )
    return table


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


def areas_tables(areas: pa.Table, exclusions: pa.Table) -> list[tuple[str, Table]]:
    """Return the tables of `fiqa-ray evaluate`: 1000 times each area up to the curve's own end, with its interval.

    One table per recogniser, convention and rate, with its title; scorers by benchmarks. "*" marks the smallest area of a
    column and those that cannot be told from it; "/" a score that the benchmark leaves out.
    """
    rows = [row for row in areas.to_pylist() if row["is_own_limit"]]
    excluded = {(row["benchmark"], row["method"]) for row in exclusions.to_pylist()}
    groups: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recognizer"], row["convention"], row["fmr"]), []).append(row)
    tables = []
    for (recognizer, convention, fmr), members in groups.items():
        benchmarks = list(dict.fromkeys(row["benchmark"] for row in members))
        rate = "" if fmr is None else f", FMR {fmr:g}"
        table = Table("1000 x area", *benchmarks, box=box.SIMPLE)
        cells = {(row["scorer"], row["benchmark"]): row for row in members}
        for scorer, method in dict.fromkeys((row["scorer"], row["method"]) for row in members):
            texts = [
                "/" if (benchmark, method) in excluded else _area_text(cells.get((scorer, benchmark)))
                for benchmark in benchmarks
            ]
            table.add_row(scorer, *texts)
        tables.append((f"{recognizer}, convention {convention}{rate}", table))
    return tables


def _area_text(row: dict[str, Any] | None) -> str:
    if row is None or row["auc"] is None:
        return ""
    mark = "*" if row["is_leading"] else ""
    limit = f" to {row['discard_limit']:g}" if row["reason"].startswith("the curve") else ""
    ends = ""
    if row["interval"] == UPPER_LIMIT:
        ends = f" [≤ {1000 * row['auc_high']:.1f}]"
    elif row["auc_low"] is not None:
        ends = f" [{1000 * row['auc_low']:.1f}, {1000 * row['auc_high']:.1f}]"
    return f"{1000 * row['auc']:.1f}{mark}{limit}{ends}"
