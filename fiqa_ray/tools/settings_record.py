"""The settings that a run was made with, as records in the run, and the version of fiqa_ray that made them."""

from __future__ import annotations

from typing import Any

from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.documents import SUM_KEY, parse_document, parse_object
from fiqa_ray.errors import UsageError
from fiqa_ray.storage import join, list_files, read_bytes

SETTINGS = "_settings"
"""Folder of the records in a run: one for each set of settings."""


def read_settings_records(run_uri: str) -> dict[str, dict[str, Any]]:
    """Return the settings records of a run by their names; none if no run was started.

    Raises:
        UsageError: Another version of fiqa_ray made the run.
        FiqaRayError: A record is damaged.
    """
    names = [name for name in list_files(join(run_uri, SETTINGS)) if name.endswith(".json")]
    return {name: read_settings_record(run_uri, name) for name in names}


def read_settings_record(run_uri: str, name: str) -> dict[str, Any]:
    """Return a settings record of a run.

    Raises:
        UsageError: Another version of fiqa_ray made the run.
        FiqaRayError: The record is damaged.
    """
    uri = join(run_uri, SETTINGS, name)
    remedy = "remove this file and run again with the settings that the run was made with: it is written again"
    content = read_bytes(uri)
    record = parse_object(content, uri, remedy)
    if SUM_KEY in record or record.get("schema_version") == SCHEMA_VERSION:
        record = parse_document(content, uri, remedy, name)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{run_uri} was {_made_by_another_version(record)}")
    return record


def _made_by_another_version(record: dict[str, Any]) -> str:
    """Return the words that say which version made a run and what to do; `record` is the run's settings record."""
    version = record.get("schema_version")
    return (
        f"made by {'a newer' if isinstance(version, int) and version > SCHEMA_VERSION else 'an earlier'} version of "
        f"fiqa_ray ({record.get('code_version', 'unknown')}, schema {version or 'before 3'}; this one has schema "
        f"{SCHEMA_VERSION}) and cannot be read; choose another run_uri"
    )
