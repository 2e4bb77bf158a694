"""Makes the datasets of steps, or what is missing of them, and checks their counts. `run_steps` is the entry."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fiqa_ray.datasets.dataset import Manifest, part_name
from fiqa_ray.datasets.folders import remove_leftovers
from fiqa_ray.engine.mapper import Item, LostProcessError, Mapper
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.run_state import run_state
from fiqa_ray.engine.step import Step
from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError
from fiqa_ray.storage import exists
from fiqa_ray.storage.patience import one_try

MAX_FAILED_SHARDS, MAX_FAILED_SHARE = 3, 0.01
"""A group of steps gives up after so many failed shards, or this share if that is more; finished parts stay."""
MAX_TRIES = 3
"""Tries of a shard that fails by a lost machine or by storage."""


def run_steps(steps: Sequence[Step], mapper: Mapper, max_bad_fraction: float = 1.0) -> list[Manifest]:
    """Make the datasets of steps that run side by side; finished parts are verified and skipped.

    The missing shards of all steps go through the mapper together.

    Args:
        steps: those of one group, see `stages.stage_steps`.
        mapper: runs the shards.
        max_bad_fraction: share of images that may be bad.

    Returns:
        The manifests of all datasets, in order.

    Raises:
        FiqaRayError: a shard's own, or the counts do not fit those of the input.
        IncompleteError: shards failed; running again continues.
    """
    manifests = [[dataset.manifest() for dataset in step.datasets] for step in steps]
    items: list[Item] = []
    done: list[tuple[Step, int]] = []
    unfinished = []
    for step, stored in zip(steps, manifests, strict=True):
        finished = step.finished_parts(stored)
        missing = [s for i, s in enumerate(step.shards) if i not in finished]
        if missing or None in stored:
            for dataset in step.datasets:
                remove_leftovers(dataset.uri)
            _write_plans(step)
            items += [(step, s) for s in missing]
            done += [(step, p.n_rows) for p in finished.values()]
            unfinished.append(step)
        elif any(not manifest.plan for manifest in stored if manifest):  # its plan was lost
            _write_plans(step)
    if items:
        if steps[0].runs_in == "driver":  # training shows its own progress, the report needs none
            _run_items(items, mapper, lambda *_: None)
        else:
            unit = _largest_step(unfinished).unit  # progress counts one unit; rows in other units are few
            total = sum(s.n_rows for s in unfinished if s.unit == unit)
            n_done = sum(n for s, n in done if s.unit == unit)
            waits_for = partial(mapper.waits_for, items)
            with StepProgress(group_name(unfinished), total, unit, n_done, waits_for, is_run=True) as progress:
                _run_items(items, mapper, lambda step, n: progress.advance(n if step.unit == unit else 0))
    committed = []
    for step, stored in zip(steps, manifests, strict=True):
        for dataset, manifest in zip(step.datasets, stored, strict=True):
            whole = manifest if manifest and step not in unfinished else dataset.commit(len(step.shards))
            _reconcile(step, whole, max_bad_fraction)
            committed.append(whole)
    return committed


def _write_plans(step: Step) -> None:
    """Write the plan of each dataset of a step, unless it is there."""
    plan = {"stage": step.stage, "n_parts": len(step.shards), "n_rows": step.n_rows, "unit": step.unit}
    for dataset in step.datasets:
        dataset.write_plan({**plan, "created_s": time.time(), **step.plan})


@dataclass
class _Failures:
    """Failed shards of a group of steps; decides which are tried again and when the group gives up.

    Machines that are lost and storage that is away say nothing about a shard: such a shard is tried again. What the code
    raises counts, and so does a shard that ends its process each time that Ray tries it.
    """

    n_shards: int
    n_done: int = 0
    items: list[tuple[Item | None, Exception]] = field(default_factory=list)
    tries: dict[int, int] = field(default_factory=dict)
    again: list[Item] = field(default_factory=list)

    def add(self, item: Item | None, outcome: Exception) -> bool:
        """Record a failure; return whether the group must end."""
        key = id(item)
        self.tries[key] = self.tries.get(key, 0) + 1
        is_system = is_system_failure(outcome)
        kind = "system" if is_system else "code"
        dataset, part = _names_of(item)
        run_state.add_failure(dataset, part, kind, f"{type(outcome).__name__}: {outcome}", self.tries[key])
        if is_system and item is not None and self.tries[key] < MAX_TRIES and not _is_storage_away(item[0], outcome):
            self.again.append(item)
            return False
        self.items.append((item, outcome))
        is_hopeless = isinstance(outcome, LostProcessError) and not self.n_done
        is_final = isinstance(outcome, FiqaRayError) or item is None or is_hopeless
        return is_final or len(self.items) >= max(MAX_FAILED_SHARDS, math.ceil(MAX_FAILED_SHARE * self.n_shards))


def _is_storage_away(step: Step, outcome: Exception) -> bool:
    """Return whether this process does not reach the storage either: then another try is in vain."""
    if not isinstance(outcome, StorageError):
        return False
    try:
        with one_try():
            exists(step.dataset.uri)
    except StorageError:
        return True
    return False


def is_system_failure(outcome: Exception) -> bool:
    """Return whether a failure came from a lost machine or from storage, so that the same shard may succeed elsewhere."""
    if isinstance(outcome, FiqaRayError):
        return isinstance(outcome, StorageError) and outcome.may_pass
    return isinstance(outcome, LostProcessError) and outcome.is_machine


def _run_items(items: list[Item], mapper: Mapper, advance: Callable[[Step, int], None]) -> None:
    """Run shards and report their rows; raise the first failure when no more can be done."""
    failures = _Failures(len(items))
    pending = items
    while pending:
        for item, outcome in mapper(pending):
            if isinstance(outcome, Exception):
                if failures.add(item, outcome):
                    failures.again.clear()
                    break
            else:
                failures.n_done += 1
                step = (item or items[0])[0]
                n_rejected = _n_rejected(step, outcome.stats.get("status", {}))
                run_state.add_part(sum(f["n_bytes"] for f in outcome.files.values()), n_rejected)
                advance(step, outcome.n_rows)
        pending, failures.again = failures.again, []
    if not failures.items:
        return
    item, first = failures.items[0]
    if isinstance(first, FiqaRayError):
        raise first
    step = (item or items[0])[0]
    _, part = _names_of(item)
    line = "".join(f" ({note})" for note in getattr(first, "__notes__", []))
    text = f"the first, {part}, with" if part else "the first with"
    raise IncompleteError(
        f"{step.stage}: {len(failures.items)} shard(s) of {step.dataset.uri} failed, {text} "
        f"{type(first).__name__}: {first}{line}; mend the cause if it is in your model or data, and run the same "
        "command again to continue"
    ) from first


def _n_rejected(step: Step, n_of_status: Mapping[str, int]) -> int:
    """Return the images that a part rejects: embed and score carry the statuses of pack on, and add two of their own."""
    of_embed = ("non_finite", "no_direction")
    return sum(n for s, n in n_of_status.items() if s != "ok" and (step.stage == "pack" or s in of_embed))


def _names_of(item: Item | None) -> tuple[str, str]:
    """Return the dataset and the name of the part that a shard makes, or empty texts."""
    if item is None:
        return "", ""
    step, shard = item
    index = next((i for i, other in enumerate(step.shards) if other is shard), None)
    return short_name(step), "" if index is None else part_name(index)


def group_name(steps: Sequence[Step]) -> str:
    """Return what a group of steps does, in a few words."""
    more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
    step = _largest_step(steps)
    return f"{step.stage}: {short_name(step)}{more}"


def _largest_step(steps: Sequence[Step]) -> Step:
    """Return the step of a group with the most rows."""
    return max(steps, key=lambda step: step.n_rows)


def short_name(step: Step) -> str:
    """Return a dataset's name and keys, without root and fingerprint."""
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
