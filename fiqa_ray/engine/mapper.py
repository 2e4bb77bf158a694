"""Runs the shards of steps: the contract of mappers, and what `local.py` and `ray.py` have in common."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fiqa_ray.datasets.dataset import Part
from fiqa_ray.engine.step import Step, Worker
from fiqa_ray.public_uri import public_text

Outcome = Part | Exception


class LostProcessError(Exception):
    """A worker's process or machine died while it ran a shard, again and again, until Ray gave up.

    Attributes:
        is_machine: Whether the whole machine was lost, which says nothing about the shard.
    """

    def __init__(self, *args: object, is_machine: bool = False) -> None:
        super().__init__(*args)
        self.is_machine = is_machine


Item = tuple[Step, Any]
"""A shard and the step that it belongs to."""


class Mapper(Protocol):
    """Runs shards."""

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        """Yield each shard with its part, or with the exception that it raised, in any order.

        The item is None where Ray failed as a whole.
        """

    def waits_for(self, items: Sequence[Item]) -> str:
        """Return why none of the shards can run at the moment, or an empty text."""


def call_and_catch(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the exception that it raises, in a form that survives the way back from a worker."""
    try:
        return call()
    except Exception as exc:
        # the traceback does not survive pickling; the line nearest to the fault does, as a note
        frames = traceback.extract_tb(exc.__traceback__)
        nearest = [f for f in frames if "site-packages" not in f.filename] or frames
        if type(exc).__module__ not in ("builtins", "fiqa_ray.errors"):  # others may not survive pickling
            exc = RuntimeError(public_text(f"{type(exc).__name__}: {exc}"))
        exc.add_note(f"at {nearest[-1].filename}:{nearest[-1].lineno}")
        return exc


class WorkerSlot:
    """Keeps the last worker only, so that two models are never in memory together."""

    def __init__(self) -> None:
        self._maker: Any = None
        self._worker: Worker | None = None
        self._n_users = 0
        self._changed = threading.Condition()

    def get(self, make_worker: Callable[[], Worker]) -> Worker:
        """Return the worker of this maker; make it unless it is the one held."""
        if self._worker is None or self._maker is not make_worker:
            self._worker, self._maker = None, None
            self._worker, self._maker = make_worker(), make_worker
        return self._worker

    @contextmanager
    def use(self, make_worker: Callable[[], Worker]) -> Iterator[Worker]:
        """Yield the worker of this maker to one of several threads; wait while others use another worker."""
        with self._changed:
            while self._n_users and self._maker is not make_worker:
                self._changed.wait()
            worker = self.get(make_worker)
            self._n_users += 1
        try:
            yield worker
        finally:
            with self._changed:
                self._n_users -= 1
                self._changed.notify_all()
