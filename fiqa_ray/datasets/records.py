"""What must hold of a part's record, a manifest and a plan, beside the sum of their content; and how stats add up.

The functions `fault_of_...` get the parsed JSON and return what is wrong with it, or an empty text. They never raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

_PART: dict[str, Any] = {"index": int, "n_rows": int, "files": dict, "stats": dict, "duration_s": (int, float)}
_HEX = "0123456789abcdef"


def fault_of_part(values: Any, index: int) -> str:
    """Return what is wrong with the record of part `index`."""
    if _is_sound_part(values, index):
        return ""
    if not isinstance(values, dict) or values.keys() != _PART.keys():
        return f"the record of part {index} must have the entries {', '.join(_PART)}"
    for key, kind in _PART.items():
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            return f"{key} of part {index} is {values[key]!r}"
    if values["index"] != index:
        return f"the index is {values['index']} where part {index} stands"
    if values["n_rows"] < 0 or not 0 <= values["duration_s"] < float("inf"):
        return f"part {index} has {values['n_rows']} rows and took {values['duration_s']} s"
    for name, sums in values["files"].items():
        if not _are_sums(sums):
            return f"the sums of {name} are {str(sums)[:80]}"
    if not _are_stats(values["stats"]):
        return f"the stats of part {index} are no numbers"
    return ""


def _is_sound_part(values: Any, index: int) -> bool:
    """Return whether nothing is wrong with a record: what almost all are, told in a third of the time."""
    if type(values) is not dict or values.keys() != _PART.keys():
        return False
    n_rows, files, duration_s = values["n_rows"], values["files"], values["duration_s"]
    return (
        type(values["index"]) is int
        and values["index"] == index
        and type(n_rows) is int
        and n_rows >= 0
        and type(files) is dict
        and type(duration_s) in (int, float)
        and 0 <= duration_s < float("inf")
        and all(map(_are_sums, files.values()))
        and type(values["stats"]) is dict
        and _are_stats(values["stats"])
    )


def fault_of_manifest(values: dict[str, Any], dataset: str, plan: dict[str, Any]) -> str:
    """Return what is wrong with the manifest of a dataset; the plan is empty if there is none."""
    parts = values.get("parts")
    if values.get("dataset") != dataset or not isinstance(parts, list):
        return f"it is no manifest of {dataset}"
    for index, part in enumerate(parts):
        fault = fault_of_part(part, index)
        if fault:
            return fault
    names = [name for part in parts for name in part["files"]]
    if len(set(names)) < len(names):
        return f"a file is named twice: {max(names, key=names.count)}"
    sizes = {"n_parts": len(parts), "n_rows": sum(part["n_rows"] for part in parts)}
    for key, size in sizes.items():
        if plan.get(key, size) != size:
            return f"{key} is {size}, and the plan beside it says {plan[key]}"
    return ""


def fault_of_plan(plan: dict[str, Any]) -> str:
    """Return what is wrong with a plan."""
    for key in ("n_parts", "n_rows"):
        if not is_count(plan.get(key, 0)):
            return f"{key} is {plan[key]!r}"
    if not isinstance(plan.get("inputs", []), list):
        return f"inputs is {plan['inputs']!r}"
    bounds = plan.get("bounds")
    if bounds is None:
        return ""
    if not isinstance(bounds, list) or not bounds or not all(is_count(b) for b in bounds):
        return "bounds is no list of row numbers"
    rises = bounds[0] == 0 and all(a < b for a, b in pairwise(bounds))
    if not rises or bounds[-1] != plan.get("n_rows") or len(bounds) != plan.get("n_parts", -1) + 1:
        return f"bounds do not rise from 0 to n_rows={plan.get('n_rows')} in {plan.get('n_parts')} parts"
    if not isinstance(plan.get("account"), dict) or not _are_sums(plan.get("source_list")):
        return "it lacks the account or the sums of the source list"
    return ""


def is_count(value: Any) -> bool:
    """Return whether a value is an integer of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_sums(sums: Any) -> bool:
    if not isinstance(sums, dict) or not is_count(sums.get("n_bytes")) or not _is_crc32(sums.get("crc32")):
        return False
    chunks = sums.get("chunk_crc32")
    if chunks is None:
        return "n_footer" not in sums or is_count(sums["n_footer"])
    return isinstance(chunks, list) and all(map(_is_crc32, chunks)) and is_count(sums.get("n_footer", 0))


def _is_crc32(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 8 and not value.strip(_HEX)


def _are_stats(stats: Any) -> bool:
    if isinstance(stats, dict):
        return all(_are_stats(value) for value in stats.values())
    return isinstance(stats, int | float) and not isinstance(stats, bool)


def add_stats(all_stats: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add numbers key by key, also in nested dicts."""
    total: dict[str, Any] = {}
    for stats in all_stats:
        _add(total, stats)
    return _sorted(total)


def _add(total: dict[str, Any], stats: Mapping[str, Any]) -> None:
    for key, value in stats.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def _sorted(total: dict[str, Any]) -> dict[str, Any]:
    return {key: _sorted(value) if isinstance(value, dict) else value for key, value in sorted(total.items())}


def part_name(index: int) -> str:
    """Return the name of a part; names sort like the numbers for up to 100,000 parts."""
    return f"part-{index:05d}"


def record_name(index: int) -> str:
    """Return the file name of a part's record; readers of Parquet folders leave out names that begin with "_"."""
    return f"_{part_name(index)}.json"


def is_record(name: str) -> bool:
    """Return whether a file of a dataset is the record of a part."""
    return name.startswith("_part-") and name.endswith(".json") and name[6:-5].isdigit()
