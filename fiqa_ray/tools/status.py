"""What a run has done so far, and what it does now, read from storage alone."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.datasets.dataset import Dataset, add_stats
from fiqa_ray.datasets.folders import find_folders, in_parallel, record_names
from fiqa_ray.documents import read_document
from fiqa_ray.engine.lock import STALE_S, holder_lives, newest_lock, read_holder
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.stages import STAGES
from fiqa_ray.storage import filesystem, join, read_json
from fiqa_ray.tools.asked_datasets import stage_of_asked
from fiqa_ray.tools.settings_record import read_settings_records

REJECTS = pa.schema([(n, pa.string()) for n in ("dataset", "image_id", "identity", "status", "error")])
VERIFIED = "_verified.json"
MAX_RECORDS_READ = 500
"""Of an unfinished dataset with more parts, rows are estimated from their share, and counts of failures are left out."""
MAX_SAMPLE = 32
"""Records of such a dataset that are read, to estimate its bytes."""


def run_status(run_uri: str) -> list[dict[str, Any]]:
    """Return one record per dataset of a run, in the order of the stages: parts and rows done, failures, bytes, seconds.

    Reads the plan and the manifest of each dataset, and the records of an unfinished one; works from any machine, also
    during the run. `is_earlier` says that the run's last settings do not ask for a dataset. One that they ask for and that
    is not there has no parts.

    Raises:
        UsageError: Another version of fiqa_ray made the run.
        FiqaRayError: There is no run, or a settings record is damaged.
    """
    read_settings_records(run_uri)  # refuses those of another version
    fs, _ = filesystem(run_uri)
    folders = find_folders(run_uri)
    statuses = in_parallel(lambda folder: _dataset_status(run_uri, folder), folders, fs)
    records = [record for record in statuses if record is not None]
    if not records:
        raise FiqaRayError(f"{run_uri} holds no run; give the run_uri of a job that was started")
    asked = stage_of_asked(run_uri)
    for record in records:
        record["is_earlier"] = asked is not None and record["dataset"] not in asked
    there = {record["dataset"] for record in records}
    records += [_missing_dataset(folder, stage) for folder, stage in (asked or {}).items() if folder not in there]
    order = {name: i for i, name in enumerate(STAGES)}
    return sorted(records, key=lambda r: (order.get(r["stage"], 99), r["started_s"]))


def _dataset_status(run_uri: str, folder: str) -> dict[str, Any] | None:
    """Return the record of one dataset, or None if it was not begun."""
    dataset = Dataset(join(run_uri, folder), folder.split("/")[0])
    plan = dataset.plan()
    manifest = None if plan is None else dataset.manifest_beside(plan)
    if plan is None:
        return None
    n_parts, n_rows = plan.get("n_parts", 0), plan.get("n_rows", 0)
    is_estimate = False
    if manifest is not None:
        parts = manifest.parts
    else:
        names = record_names(dataset.uri, n_parts)
        n_records, is_estimate = len(names), len(names) > MAX_RECORDS_READ
        parts = list(dataset.recorded_parts(names[:: 1 + n_records // MAX_SAMPLE] if is_estimate else names).values())
    stats = add_stats([] if is_estimate else [p.stats for p in parts])
    n_bytes = sum(f["n_bytes"] for p in parts for f in p.files.values())
    return {
        "stage": plan.get("stage", ""),
        "dataset": folder,
        "n_parts_done": n_records if is_estimate else len(parts),
        "n_parts": n_parts,
        "n_rows_done": n_rows * n_records // max(n_parts, 1) if is_estimate else sum(p.n_rows for p in parts),
        "n_rows": n_rows,
        "unit": plan.get("unit", "rows"),
        "failed": {k: v for k, v in stats.get("status", {}).items() if k != "ok"},
        "storage_retries": stats.get("storage_retries", 0),
        "n_bytes": n_bytes * n_records // max(len(parts), 1) if is_estimate else n_bytes,
        "work_s": None if is_estimate else round(sum(p.duration_s for p in parts), 2),
        "is_estimate": is_estimate,
        "finished": manifest is not None,
        "started_s": plan.get("created_s", 0.0),
    }


def _missing_dataset(folder: str, stage: str) -> dict[str, Any]:
    """Return the record of a dataset that is asked for and was not begun, or was lost."""
    counts = dict.fromkeys(("n_parts_done", "n_parts", "n_rows_done", "n_rows", "storage_retries", "n_bytes"), 0)
    flags = dict.fromkeys(("is_estimate", "finished", "is_earlier"), False)
    texts = {"stage": stage, "dataset": folder, "unit": "rows"}
    return {**texts, **counts, **flags, "failed": {}, "work_s": None, "started_s": 0.0}


def run_now(run_uri: str) -> dict[str, Any]:
    """Return what holds the lock of a run, whether it lives, and what it did by its last beat.

    Returns:
        `is_at_work`; `holder` (host, pid) and `beat_age_s`, or None; `machine_s` of all runs so far; `verified` (time_s and
        n_damaged of the last `fiqa-ray verify`), or None; and the entries of
        `RunState.as_dict` by the last beat: the step with rows per second and seconds left, failed parts with reasons.

    Raises:
        FiqaRayError: The lock is damaged.
    """
    uri = join(run_uri, "_lock")
    number, is_released = newest_lock(uri)
    if not number:
        nothing = {"is_at_work": False, "has_died": False, "holder": None, "beat_age_s": None, "machine_s": 0.0}
        return {**nothing, "verified": _verified(run_uri)}
    numbers = range(max(1, number - _MAX_BEATS), number + 1)
    beats = in_parallel(lambda n: _beat(uri, n), numbers, filesystem(uri)[0])
    holder, beat = read_holder(uri, number), beats[-1]
    is_alive = not is_released and _is_alive(uri, number, holder, beat)
    state = dict(beat.get("state", {}))
    if not is_alive:
        state.pop("step", None)
    return {
        **state,
        "is_at_work": is_alive,
        "has_died": not is_alive and not is_released,
        "holder": {"host": holder.get("host"), "pid": holder["pid"]},
        "beat_age_s": round(time.time() - beat["beat_s"], 1) if "beat_s" in beat else None,
        "machine_s": round(sum(b.get("state", {}).get("machine_s", 0.0) for b in beats), 1),
        "verified": _verified(run_uri),
    }


def _verified(run_uri: str) -> dict[str, Any] | None:
    """Return when the run was verified last and how many files were damaged, or None."""
    return read_document(join(run_uri, VERIFIED), "remove this file and verify again", VERIFIED)


_MAX_BEATS = 100
_LOOK_AGAIN_S = 6.0


def _beat(uri: str, number: int) -> dict[str, Any]:
    beat = read_json(join(uri, f"{number:06d}.beat"))
    return beat if isinstance(beat, dict) else {}


def _is_alive(uri: str, number: int, holder: dict[str, Any], beat: dict[str, Any]) -> bool:
    """Return whether the holder lives: by its process, else by its beats."""
    is_alive = holder_lives(holder)
    if is_alive is not None:
        return is_alive
    if abs(time.time() - beat.get("beat_s", 0.0)) < STALE_S:
        return True
    time.sleep(_LOOK_AGAIN_S)  # its clock may differ from this one
    return _beat(uri, number) != beat


def rejected_images(run_uri: str) -> pa.Table:
    """Return the images that pack could not use or of which libjpeg complained, as a table of `REJECTS`.

    Reads finished parts only.

    Raises:
        FiqaRayError: There is no run.
    """
    records = run_status(run_uri)
    tables = [REJECTS.empty_table()]
    for folder in (r["dataset"] for r in records if r["stage"] == "pack"):
        dataset = Dataset(join(run_uri, folder), "faces")
        for _, part in sorted(dataset.finished_parts().items()):
            if set(part.stats["status"]) != {"ok"} or part.stats.get("complaints"):
                rows = dataset.read(part, [n for n in REJECTS.names if n != "dataset"])
                rows = rows.filter(pc.is_valid(rows["error"]))
                tables.append(rows.add_column(0, "dataset", pa.repeat(folder, len(rows))).cast(REJECTS))
    return pa.concat_tables(tables)
