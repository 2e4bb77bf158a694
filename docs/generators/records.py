"""The page of recorded benchmark runs, from `benchmarks/results/*.json`, which `record.py` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


INTRODUCTION = """# Recorded runs

Written by `python benchmarks/record.py SCRIPT ...`, which keeps every figure of a run with its machine and commit. Compare
figures within one run only. The load counts the programs at work on the machine before the run began.
"""


def records_page() -> str:
    """Return the page: one section per record, with command, machine, commit and all figures."""
    text = INTRODUCTION
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        m = record["machine"]
        text += f"\n## {path.stem.replace('_', ' ').capitalize()}\n\n`{record['command']}`\n\n"
        text += f"{record['date']}, commit {record['commit']}; {m['processor']}, {m['cores']} cores, "
        load = m.get("load_before", "not recorded")
        text += f"load {load}; Python {m['python']}, numpy {m['numpy']}.\n\n{_tables(record['result'])}"
    return text


def _tables(result: dict[str, Any]) -> str:
    """Return a result as tables: its plain values in one, and one more for each list of runs in it."""
    lists = {
        key: value for key, value in result.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    text = _table([_flat({key: value for key, value in result.items() if key not in lists})])
    return text + "".join(_table([_flat(row) for row in rows]) for rows in lists.values())


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under joined names: `seconds, sort`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        flat |= _flat(value, f"{name}, ") if isinstance(value, dict) else {name: value}
    return flat


def _table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table; a single row stands upright."""
    if not rows[0]:
        return ""
    if len(rows) == 1:
        lines = [["what", "value"], ["---", "---"], *([name, value] for name, value in rows[0].items())]
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "".join("| " + " | ".join(map(_text, line)) + " |\n" for line in lines) + "\n"


def _text(value: Any) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000
    return f"{value:,}" if is_count else str(value)
