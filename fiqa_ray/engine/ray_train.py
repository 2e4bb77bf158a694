"""Runs a training loop in the workers of Ray Train."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError

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
