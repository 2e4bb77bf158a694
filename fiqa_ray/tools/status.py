"""What a run has done so far, read from storage alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.datasets.dataset import Dataset, add_stats
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.documents import SUM_KEY, parse_document, parse_object
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.stages import STAGES
from fiqa_ray.storage import join, list_files, read_bytes

REJECTS = pa.schema([(n, pa.string()) for n in ("dataset", "image_id", "identity", "status", "error")])


def run_status(run_uri: str) -> list[dict[str, Any]]:
    """Return one record per dataset of a run, in the order of the stages: parts and rows done, failures, bytes, seconds.

    Reads one listing and the parts' records; works from any machine, also during the run.

    Raises:
        FiqaRayError: There is no run.
    """
    sizes = list_files(run_uri)
    folders = [n.removesuffix("/_plan.json") for n in sizes if n.endswith("/_plan.json")]
    if not folders:
        raise FiqaRayError(f"{run_uri} holds no run; give the run_uri of a job that was started")
    records = []
    for folder in folders:
        dataset = Dataset(join(run_uri, folder), folder.split("/")[0])
        plan = dataset.plan() or {}
        parts = list(dataset.finished_parts().values())
        stats = add_stats([p.stats for p in parts])
        failed = {k: v for k, v in stats.get("status", {}).items() if k != "ok"}
        records.append(
            {
                "stage": plan.get("stage", ""),
                "dataset": folder,
                "n_parts_done": len(parts),
                "n_parts": plan.get("n_parts", 0),
                "n_rows_done": sum(p.n_rows for p in parts),
                "n_rows": plan.get("n_rows", 0),
                "unit": plan.get("unit", "rows"),
                "failed": failed,
                "n_bytes": sum(f["n_bytes"] for p in parts for f in p.files.values()),
                "work_s": round(sum(p.duration_s for p in parts), 2),
                "finished": f"{folder}/_manifest.json" in sizes,
                "started_s": plan.get("created_s", 0.0),
            }
        )
    order = {name: i for i, name in enumerate(STAGES)}
    return sorted(records, key=lambda r: (order.get(r["stage"], 99), r["started_s"]))


def rejected_images(run_uri: str) -> pa.Table:
    """Return the images that pack could not use, as a table of `REJECTS`. Reads finished parts only.

    Raises:
        FiqaRayError: There is no run.
    """
    records = run_status(run_uri)
    tables = [REJECTS.empty_table()]
    for folder in (r["dataset"] for r in records if r["stage"] == "pack" and r["failed"]):
        dataset = Dataset(join(run_uri, folder), "faces")
        for _, part in sorted(dataset.finished_parts().items()):
            if set(part.stats["status"]) != {"ok"}:
                rows = dataset.read(part, [n for n in REJECTS.names if n != "dataset"])
                rows = rows.filter(pc.not_equal(rows["status"], "ok"))
                tables.append(rows.add_column(0, "dataset", pa.repeat(folder, len(rows))).cast(REJECTS))
    return pa.concat_tables(tables)


def read_settings_record(run_uri: str, name: str) -> dict[str, Any]:
    """Return a settings record of a run.

    Raises:
        UsageError: Another version of fiqa_ray made the run.
        FiqaRayError: The record is damaged.
    """
    uri = join(run_uri, "_settings", name)
    remedy = "remove this file and run again with the settings that the run was made with: it is written again"
    content = read_bytes(uri)
    record = parse_object(content, uri, remedy)
    if SUM_KEY in record or record.get("schema_version") == SCHEMA_VERSION:
        record = parse_document(content, uri, remedy, name)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{run_uri} was {made_by_another_version(record)}")
    return record


def made_by_another_version(record: dict[str, Any]) -> str:
    """Return the words that say which version made a run and what to do; `record` is the run's settings record."""
    version = record.get("schema_version")
    return (
        f"made by {'a newer' if isinstance(version, int) and version > SCHEMA_VERSION else 'an earlier'} version of "
        f"fiqa_ray ({record.get('code_version', 'unknown')}, schema {version or 'before 3'}; this one has schema "
        f"{SCHEMA_VERSION}) and cannot be read; choose another run_uri"
    )


def is_locked(run_uri: str) -> bool:
    """Return whether a process holds the lock of the run (or ended without releasing it)."""
    names = [n for n in list_files(join(run_uri, "_lock")) if n[:6].isdigit()]
    newest = max((n[:6] for n in names), default=None)
    return newest is not None and f"{newest}.released" not in names
