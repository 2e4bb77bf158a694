"""Runs a job: the ordered stages, one step at a time, with the in-process or the Ray mapper; continues what exists."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fiqa_ray.datasets.dataset import Manifest
from fiqa_ray.engine.local import Item, Mapper
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.step import Step
from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError

MAX_FAILED_SHARDS = 3
"""A step gives up after so many failed shards; what the others made stays."""


def run_steps(steps: Sequence[Step], mapper: Mapper, max_bad_fraction: float = 1.0) -> list[Manifest]:
    """Makes the steps' datasets, or what is missing of them, commits them and reconciles their counts with their input's.

    The missing shards of all steps go through the mapper together.
    """
    manifests = [[dataset.manifest() for dataset in step.datasets] for step in steps]
    items: list[Item] = []
    done: list[tuple[Step, int]] = []
    unfinished = []
    for step, stored in zip(steps, manifests, strict=True):
        finished = step.finished_parts()
        missing = [s for i, s in enumerate(step.shards) if i not in finished]
        if missing or None in stored:
            plan = {"stage": step.stage, "n_parts": len(step.shards), "n_rows": step.n_rows, "unit": step.unit}
            for dataset in step.datasets:
                dataset.write_plan({**plan, "created_s": time.time(), **step.plan})
            items += [(step, s) for s in missing]
            done += [(step, p.n_rows) for p in finished.values()]
            unfinished.append(step)
    if items:
        if steps[0].engine == "driver":  # shows its own progress
            _map(items, mapper, lambda *_: None)
        else:
            unit = _main(unfinished).unit  # what counts in other units is small beside it
            total = sum(s.n_rows for s in unfinished if s.unit == unit)
            n_done = sum(n for s, n in done if s.unit == unit)
            with StepProgress(group_name(unfinished), total, unit, n_done) as progress:
                _map(items, mapper, lambda step, n: progress.advance(n if step.unit == unit else 0))
    committed = []
    for step, stored in zip(steps, manifests, strict=True):
        for dataset, manifest in zip(step.datasets, stored, strict=True):
            whole = manifest if manifest and step not in unfinished else dataset.commit(len(step.shards))
            _reconcile(step, whole, max_bad_fraction)
            committed.append(whole)
    return committed


def _map(items: list[Item], mapper: Mapper, advance: Callable[[Step, int], None]) -> None:
    failures: list[tuple[Item | None, Exception]] = []
    for item, outcome in mapper(items):
        if isinstance(outcome, Exception):
            failures.append((item, outcome))
            hopeless = isinstance(outcome, FiqaRayError) and not isinstance(outcome, StorageError)
            if hopeless or len(failures) >= MAX_FAILED_SHARDS:
                break
        else:
            advance((item or items[0])[0], outcome.n_rows)
    if not failures:
        return
    item, first = failures[0]
    if isinstance(first, FiqaRayError):
        raise first
    place = (item or items[0])[0]
    line = "".join(f" ({note})" for note in getattr(first, "__notes__", []))
    raise IncompleteError(
        f"{place.stage}: {len(failures)} shard(s) of {place.dataset.uri} failed, the first with "
        f"{type(first).__name__}: {first}{line}; mend the cause if it is in your model or data, and run the same "
        "command again to continue"
    ) from first


def group_name(steps: Sequence[Step]) -> str:
    """What a group of steps is doing, in a few words."""
    more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
    main = _main(steps)
    return f"{main.stage}: {short_name(main)}{more}"


def _main(steps: Sequence[Step]) -> Step:
    """The step of a group with the most to do."""
    return max(steps, key=lambda step: step.n_rows)


def short_name(step: Step) -> str:
    """A dataset's name and keys, without root and fingerprint."""
    uri = step.dataset.uri.rsplit("/v=", 1)[0]
    keys = [p.split("=", 1)[1] for p in uri.split("/") if "=" in p]
    return " ".join([step.dataset.name.replace("_", " "), *keys])


def _reconcile(step: Step, manifest: Manifest, max_bad_fraction: float) -> None:
    if manifest.n_rows != step.n_rows:
        raise FiqaRayError(
            f"{step.stage}: {manifest.n_rows} rows in {manifest.uri} where its input has {step.n_rows}; "
            "the input changed under the run: choose another run_uri"
        )
    reasons = {k: v for k, v in manifest.stats.get("status", {}).items() if k != "ok"}
    n_bad = sum(reasons.values())
    if manifest.n_rows and n_bad / manifest.n_rows > max_bad_fraction:
        counts = ", ".join(f"{k} {v}" for k, v in reasons.items())
        raise FiqaRayError(
            f"{step.stage}: {n_bad} of {manifest.n_rows} images are bad ({counts}), more than "
            f"max_bad_fraction={max_bad_fraction:g}; their rows with status and error are in {manifest.uri} "
            "(`fiqa-ray rejects` lists those of pack): mend the source or the model and choose another run_uri, or raise "
            "max_bad_fraction and run again"
        )
    step.check(manifest)
