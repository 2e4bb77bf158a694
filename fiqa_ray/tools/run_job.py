"""Run a whole job: its stages in order, under the lock of the run."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fiqa_ray._version import __version__
from fiqa_ray.config import Settings
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.documents import create_document
from fiqa_ray.engine.interrupts import sigterm_as_ctrl_c
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.engine.ray import ray_when_needed
from fiqa_ray.engine.run_state import run_state
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.errors import IncompleteError, StorageError, UsageError
from fiqa_ray.job import Job
from fiqa_ray.stages import STAGES, stage_steps
from fiqa_ray.stages.pack import listed_faces
from fiqa_ray.storage import fingerprint, join
from fiqa_ray.storage.patience import set_patience
from fiqa_ray.tools.asked_datasets import AskedDatasets
from fiqa_ray.tools.inputs import match_inputs, read_inputs
from fiqa_ray.tools.results_record import record_results
from fiqa_ray.tools.settings_record import SETTINGS, read_settings_records


def run_job(settings: Settings, stages: Iterable[str] = tuple(STAGES), *, new_settings: bool = False) -> Job:
    """Run stages of a job in their order. Finished parts are not computed again.

    Args:
        settings: The job.
        stages: Names from `STAGES`, in any order.
        new_settings: Allow a run that was started with other settings.

    Raises:
        UsageError: An unknown stage, or a run with other settings or from another version.
        FiqaRayError: A stage failed; the message says how to continue.
    """
    return run_stages(Job(settings), stages, new_settings=new_settings)


def run_stages(job: Job, stages: Iterable[str], *, new_settings: bool = False) -> Job:
    """Run stages of a job; arguments and errors as in `run_job`."""
    settings, wanted = job.settings, [s for s in STAGES if s in set(_checked(stages))]
    if settings.compute.engine == "ray" and settings.run_uri.startswith("memory://"):
        raise UsageError(
            f"run_uri={settings.run_uri}: memory:// lives in one process, Ray has many; use compute.engine=local"
        )
    set_patience(settings.compute.storage_patience_s)
    run_state.reset()
    is_local = settings.compute.engine == "local"
    session = nullcontext(local_map) if is_local else ray_when_needed(settings.compute)
    with _pauses(), RunLock(settings.run_uri, run_state.as_dict) as lock, session as mapper:
        _check_settings(settings, new_settings)
        read_inputs(job, wanted)
        is_recorded, asked = False, AskedDatasets(settings)
        for stage in wanted:
            for steps in stage_steps(stage, job):
                if stage == "pack":  # its faces are listed now
                    match_inputs(job, wanted, lambda face_set: listed_faces(job.faces(face_set)))
                if not is_recorded and not lock.is_read_only:  # what was refused until here can be corrected
                    _record_settings(settings)
                    record_results(job)
                    is_recorded = True
                if not lock.is_read_only:
                    asked.add(stage, steps)
                run_steps(steps, mapper, settings.max_bad_fraction)
            if not lock.is_read_only:
                asked.end(stage)
    return job


@contextmanager
def _pauses() -> Iterator[None]:
    """Turn what ends a run that can be continued into exit code 3: SIGTERM, and storage that was away for too long."""
    with sigterm_as_ctrl_c():
        try:
            yield
        except StorageError as exc:
            if exc.may_pass:
                raise IncompleteError(str(exc)) from exc
            raise


def _checked(stages: Iterable[str]) -> list[str]:
    chosen = list(stages)
    unknown = [s for s in chosen if s not in STAGES]
    if unknown:
        raise UsageError(f"unknown stage(s) {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    return chosen


def _check_settings(settings: Settings, new_settings: bool) -> None:
    """Raise `UsageError` if the run has other settings or another schema version."""
    identity, _, name = _record_of(settings)
    records = read_settings_records(settings.run_uri)
    if records and name not in records and not new_settings:
        before = max(records.values(), key=lambda r: r.get("created_s", 0.0))
        changes = "; ".join(_differences(before.get("settings", {}), identity))
        raise UsageError(
            f"{settings.run_uri} was made with other settings: {changes}. To compute what the change affects beside the old "
            "results, add --new-settings; to keep the two apart, choose another run_uri; or change the settings back"
        )


def _record_of(settings: Settings) -> tuple[dict[str, Any], str, str]:
    """Return what a run records of its settings, the folder of the records, and the record's name."""
    identity = settings.identity()
    return identity, join(settings.run_uri, SETTINGS), f"{fingerprint(identity)}.json"


def _record_settings(settings: Settings) -> None:
    """Store the settings in the run, unless they are there."""
    identity, folder, name = _record_of(settings)
    record = {
        "settings": identity,
        "created_s": time.time(),
        "code_version": __version__,
        "schema_version": SCHEMA_VERSION,
        "python": platform.python_version(),
    }
    create_document(join(folder, name), record, name)


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Return one text per setting that differs: the key, its value before and now."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [k for k in now if k in before] + sorted(before.keys() ^ now.keys())
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{key}.{k}" if key else k)]
    old, new = _by_name(before), _by_name(now)
    if old is not None and new is not None:
        gone = [f"{key}: {name} is no longer there" for name in old if name not in new]
        added = [f"{key}: {name} is new" for name in new if name not in old]
        both = [d for name in new if name in old for d in _differences(old[name], new[name], f"{key}[{name}]")]
        return gone + added + both
    return [] if before == now else [f"{key} was {_in_words(before)} and is now {_in_words(now)}"]


def _by_name(value: Any) -> dict[str, Any] | None:
    """Return a list of sections, such as methods, by their labels or names; None for other values."""
    if not isinstance(value, list) or not all(isinstance(v, dict) and "name" in v for v in value):
        return None
    return {str(v.get("label") or v["name"]): v for v in value}


def _in_words(value: Any) -> str:
    """Return a value of a setting as a person writes it."""
    if value is None or value in ([], {}):
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_in_words(v)}" for k, v in value.items() if v not in (None, [], {})) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
