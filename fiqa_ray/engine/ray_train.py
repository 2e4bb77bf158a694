"""Runs a training loop in the workers of Ray Train.

The loop keeps its state in the run's own storage, not in checkpoints of Ray Train (`report(checkpoint=)`): the same loop
runs without Ray, and either continues what the other began.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fiqa_ray.engine.ray_workers import wants_gpus
from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError
from fiqa_ray.storage.patience import patience_s, set_patience

MAX_FAILURES = 5
"""Times that Ray Train restarts its workers after failures; machines that are taken away count apart, without a limit."""


def _ignore(_: dict[str, Any]) -> None:
    """Stands in for Ray Train's `report`."""


@dataclass(frozen=True)
class TrainHost:
    """What a training loop asks of what runs it; the defaults are those without Ray.

    Attributes:
        report: Tells Ray Train how training goes.
        is_machine_leaving: Tells whether a machine of the training is about to be taken away. All workers must ask as often.
    """

    report: Callable[[dict[str, Any]], None] = _ignore
    is_machine_leaving: Callable[[], bool] = lambda: False


ALONE = TrainHost()
"""Training in this process, without Ray."""

TrainLoop = Callable[[Any, int, int, TrainHost], None]
"""Trains in one of several workers: (plan, rank, world, host)."""


def fit_with_ray(loop: TrainLoop, plan: Any, n_workers: int, device: str) -> None:
    """Run a training loop in workers of Ray Train; the loop restores its state from storage by itself.

    Args:
        loop: called in each worker.
        plan: handed to the loop; picklable.
        n_workers: of Ray Train.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        FiqaRayError: the loop's own, where trying again cannot help.
        IncompleteError: workers failed more than `MAX_FAILURES` times.
    """
    # Ray Train would move its workers to a folder of its own, where relative paths lead nowhere
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from fiqa_ray.engine.training_group import WithoutGroup

    use_gpu = wants_gpus(device, n_workers)
    trainer = TorchTrainer(
        _loop_in_ray,  # type: ignore[arg-type]  # what it returns is the result's return_value
        train_loop_config={
            "loop": loop,
            "plan": plan,
            "patience_s": patience_s(),
            "backend": "nccl" if use_gpu else "gloo",
        },
        torch_config=WithoutGroup(),
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
    """Run the loop inside a worker; return the message of a fault that trying again cannot mend."""
    from ray.train import get_context, report

    from fiqa_ray.engine.training_group import training_group

    context = get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    try:
        set_patience(config["patience_s"], has_answered=True)
        host = TrainHost(report, _is_machine_leaving)
        with training_group(rank, world, config["backend"]):
            config["loop"](config["plan"], rank, world, host)
    except FiqaRayError as exc:
        may_pass = isinstance(exc, StorageError) and exc.may_pass
        if may_pass or world > 1:  # the others may wait for this one: only a failure stops them
            raise
        return str(exc)
    return None


def _is_machine_leaving() -> bool:
    """Return whether Ray says that a machine of this training is about to be taken away; all workers wait for each other."""
    import ray.train

    ask = getattr(ray.train, "get_preemption_info", None)  # Ray before 2.60 has none
    return ask is not None and ask() is not None
