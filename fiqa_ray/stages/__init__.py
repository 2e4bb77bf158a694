"""Stages of the job. Each module yields `Step`s: it plans (manifests in, shards out) and says how a worker runs a shard.

Stages do not import each other; they meet through the datasets of `fiqa_ray.lineage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from fiqa_ray.storage import Dataset, Part

Worker = Callable[[Any], Part]
"""Runs one shard: reads one part, calls core or models, writes one part, returns its record."""


@dataclass(frozen=True)
class Step:
    """One dataset to make: its shards (shard i makes part i) and the worker that runs them.

    ``also``: further datasets of as many rows, whose part i the same shard makes. ``make_worker`` is picklable and called
    once per process or actor, so it may load a model. ``engine``: Ray "data" (an actor pool of Ray Data), Ray "tasks", or
    "driver" (the worker starts Ray work of its own).
    """

    stage: str
    dataset: Dataset
    shards: Sequence[Any]
    make_worker: Callable[[], Worker]
    n_rows: int
    engine: Literal["data", "tasks", "driver"] = "tasks"
    uses_model: bool = False
    unit: str = "rows"
    plan: dict[str, Any] = field(default_factory=dict)
    also: tuple[Dataset, ...] = ()

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """All that the step makes."""
        return (self.dataset, *self.also)

    def finished_parts(self) -> dict[int, Part]:
        """Records of the first dataset's parts whose shards need not be run: the part is there in every dataset."""
        first, *others = (d.finished_parts(verify=True) for d in self.datasets)
        return {i: part for i, part in first.items() if all(i in other for other in others)}


def ready(run: Callable[..., Part], *settings: Any) -> Callable[[], Worker]:
    """The ``make_worker`` of a worker that has nothing to load: ``run(*settings, shard)`` is the worker."""
    return partial(partial, run, *settings)
