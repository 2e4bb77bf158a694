"""Stages of the job. Each module yields `Step`s: it plans (manifests in, shards out) and says how a worker runs a shard.

Stages do not import each other; they meet through the datasets of `fiqa_ray.lineage`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError
from fiqa_ray.storage import Dataset, Manifest, Part

Worker = Callable[[Any], Part]
"""Runs one shard: reads one part, calls core or models, writes one part, returns its record."""


@dataclass(frozen=True)
class Step:
    """One dataset to make: its shards (shard i makes part i) and the worker that runs them.

    ``also``: further datasets of as many rows, whose part i the same shard makes. ``make_worker`` is picklable and called
    once per process or actor, so it may load a model. ``engine``: Ray "data" (an actor pool of Ray Data), Ray "tasks", or
    "driver" (the worker starts Ray work of its own). ``memory_bytes``: what a shard of a "tasks" step takes
    where that grows with the whole database, so that a machine gets no more of them than it can hold.
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
    check: Callable[[Manifest], None] = lambda _: None
    also: tuple[Dataset, ...] = ()
    memory_bytes: int = 0

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


MAX_FAILURES = 5
"""How often Ray Train starts its workers again."""

TrainLoop = Callable[[Any, int, int, Callable[[dict[str, Any]], None]], None]
"""Trains in one of several workers: (plan, rank, world, report)."""


def fit_with_ray(loop: TrainLoop, plan: Any, n_workers: int, device: str) -> None:
    """Runs a training loop in ``n_workers`` workers of Ray Train; the loop restores its state from storage by itself.

    ``device``: cpu, cuda or auto. Raises `FiqaRayError` with the loop's own message where trying again cannot help, and
    `IncompleteError` where workers failed more than `MAX_FAILURES` times.
    """
    # Ray Train would move its workers to a folder of its own, where relative paths lead nowhere
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # "cuda" is a demand, which makes an autoscaled cluster start its GPU machines; "auto" takes what is there
    use_gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= n_workers)
    trainer = TorchTrainer(
        _loop_in_ray,  # type: ignore[arg-type]  # what it returns is the result's return_value
        train_loop_config={"loop": loop, "plan": plan},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=n_workers, use_gpu=use_gpu, resources_per_worker=None if use_gpu else {"CPU": 1}
        ),
        # the loop restores from the run's own storage, so a worker that is started again goes on from there
        run_config=RunConfig(failure_config=FailureConfig(max_failures=MAX_FAILURES)),
    )
    try:
        result = trainer.fit()
    except Exception as exc:  # Ray Train's own, with the workers' tracebacks in its text
        reason = [line for line in str(exc).splitlines() if line.strip()][-1].strip()
        raise IncompleteError(
            f"training failed in a worker ({reason}); run the same command again to continue"
        ) from exc
    fault = getattr(result, "return_value", None)
    if isinstance(fault, str):
        raise FiqaRayError(fault)


def _loop_in_ray(config: dict[str, Any]) -> str | None:
    """The loop inside Ray Train's workers; a fault that trying again cannot mend is returned as its message."""
    from ray.train import get_context, report

    context = get_context()
    try:
        config["loop"](config["plan"], context.get_world_rank(), context.get_world_size(), report)
    except StorageError:
        raise
    except FiqaRayError as exc:
        if context.get_world_size() > 1:  # the others may wait for this one: only a failure stops them
            raise
        return str(exc)
    return None
