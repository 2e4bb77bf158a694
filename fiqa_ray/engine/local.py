"""Runs the shards of a step one by one in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from fiqa_ray.datasets.dataset import Part
from fiqa_ray.engine.step import Step, Worker

Outcome = Part | Exception


Item = tuple[Step, Any]
"""A shard and the step that it belongs to."""


Mapper = Callable[[Sequence[Item]], Iterator[tuple[Item | None, Outcome]]]
"""Runs shards: yields each with its part or the exception it raised, in any order (None: nobody knows which)."""


def local_map(items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
    """Runs shards one by one in this process."""
    from fiqa_ray.core.kernels.threads import one_thread

    workers = WorkerSlot()
    for step, shard in items:
        with one_thread() if step.engine != "driver" else nullcontext():
            yield (step, shard), _outcome(lambda step=step, shard=shard: workers.get(step.make_worker)(shard))  # type: ignore[misc]


def _outcome(call: Callable[[], Part]) -> Outcome:
    try:
        return call()
    except Exception as exc:
        # the traceback does not survive the way back from a worker: the line nearest to the fault does, as a note
        frames = traceback.extract_tb(exc.__traceback__)
        own = [f for f in frames if "site-packages" not in f.filename] or frames
        if type(exc).__module__ not in ("builtins", "fiqa_ray.errors"):  # others may not survive pickling
            exc = RuntimeError(f"{type(exc).__name__}: {exc}")
        exc.add_note(f"at {own[-1].filename}:{own[-1].lineno}")
        return exc


class WorkerSlot:
    """Holds the last worker made: steps follow one another, and two models need not share the memory."""

    def __init__(self) -> None:
        self._made_by: Any = None
        self._worker: Worker | None = None

    def get(self, make_worker: Callable[[], Worker]) -> Worker:
        """The worker of this maker, made if another's was held."""
        if self._worker is None or self._made_by is not make_worker:
            self._worker, self._made_by = None, None
            self._worker, self._made_by = make_worker(), make_worker
        return self._worker
