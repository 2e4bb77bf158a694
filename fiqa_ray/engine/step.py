"""A step of the job: its shards, the datasets that they write, and the worker that runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from fiqa_ray.datasets.dataset import Dataset, Manifest, Part

Worker = Callable[[Any], Part]
"""Runs one shard: reads one part, calls core or models, writes one part, returns its record."""


class PipelinedWorker:
    """A worker in three operations, so that the next shard is read and the last one written while the model works.

    Attributes:
        read: takes a shard; may run in any thread.
        run: takes what `read` returned; one call at a time.
        write: takes what `run` returned, and returns the part; may run in any thread.
    """

    OVERLAP = 3
    """Shards that one worker has in hand at most: one runs, the others are read or written."""

    def __init__(self, read: Callable[[Any], Any], run: Callable[[Any], Any], write: Callable[[Any], Part]) -> None:
        self.read, self.run, self.write = read, run, write
        self._turn = threading.Lock()

    def __call__(self, shard: Any, on_turn: Callable[[], None] = lambda: None) -> Part:
        """Run one shard; where several threads call, their operations overlap. `on_turn` is called before the model runs."""
        loaded = self.read(shard)
        with self._turn:
            on_turn()
            computed = self.run(loaded)
        return self.write(computed)


@dataclass(frozen=True)
class Step:
    """One or several datasets to make: shard i makes part i of each. And the worker that runs the shards.

    Attributes:
        stage: name of the stage.
        dataset: what the shards write; see also `extra_datasets`.
        shards: picklable; shard i makes part i.
        make_worker: picklable; called once per process or actor, so it may load a model.
        n_rows: rows of the dataset, which its parts must add up to.
        runs_in: a `pool` of actors (of Ray Data), Ray `tasks`, or the `driver`: one shard, run in the job's own process; it
            may start Ray work itself, as training does.
        uses_model: whether a GPU helps; the worker is a `PipelinedWorker`.
        needs_gpu: whether each shard of a `tasks` step takes a GPU.
        unit: what a row is called in progress lines, such as `images`.
        plan: what the dataset's plan says beside the number of parts and rows.
        check: raises for a finished dataset that must not be used.
        extra_datasets: datasets of the same length that the same shards also write (shard i writes part i of each).
        memory_bytes: memory of one shard of a `tasks` step; given only where it grows with the database, so that Ray puts no
            more shards on a machine than fit.
    """

    stage: str
    dataset: Dataset
    shards: Sequence[Any]
    make_worker: Callable[[], Worker]
    n_rows: int
    runs_in: Literal["pool", "tasks", "driver"] = "tasks"
    uses_model: bool = False
    needs_gpu: bool = False
    unit: str = "rows"
    plan: dict[str, Any] = field(default_factory=dict)
    check: Callable[[Manifest], None] = lambda _: None
    extra_datasets: tuple[Dataset, ...] = ()
    memory_bytes: int = 0

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All datasets that the step makes."""
        return (self.dataset, *self.extra_datasets)

    def finished_parts(self, manifests: Sequence[Manifest | None]) -> dict[int, Part]:
        """Return records of the first dataset's parts whose shards need not be run: every dataset has the part.

        Args:
            manifests: Of each dataset; None where it is unfinished.
        """
        first, *others = (d.stored_parts(m) for d, m in zip(self.datasets, manifests, strict=True))
        return {i: part for i, part in first.items() if all(i in other for other in others)}


def stateless_worker(run: Callable[..., Part], *settings: Any) -> Callable[[], Worker]:
    """Return a factory for workers without set-up: its product calls `run(*settings, shard)`."""
    return partial(partial, run, *settings)  # a call of the outer partial makes the inner one
