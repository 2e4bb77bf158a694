"""Which machines workers ask for, and what is said of those that are lost."""

from __future__ import annotations

import re

from fiqa_ray.config import ComputeSettings
from fiqa_ray.engine.mapper import LostProcessError
from fiqa_ray.engine.step import Step


def wants_gpus(device: str, n_workers: int) -> bool:
    """Return whether workers ask for a GPU each.

    `cuda` is a demand, which makes an autoscaled cluster start its GPU machines; `auto` takes GPUs if all workers get one.
    """
    import ray

    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= n_workers)


def machine_labels(step: Step, compute: ComputeSettings) -> dict[str, str] | None:
    """Return the labels that a machine must have to run a step, or None if any will do."""
    return (compute.model_labels if step.uses_model else compute.other_labels) or None


def lost_process(exc: Exception) -> Exception:
    """Return what Ray says of a lost worker as one sentence; other faults of Ray stay as they are."""
    import ray

    text = " ".join(str(exc).split())
    if isinstance(exc, ray.exceptions.OutOfMemoryError):
        cause = "its machine ran out of memory; run fewer workers (compute.n_workers) or smaller parts (rows_per_part)"
        return LostProcessError(cause)
    if isinstance(exc, ray.exceptions.ActorUnschedulableError) and "doesn't exist any more" in text:
        # what Ray Data keeps beside this process is gone with its node
        cause = "Ray has given up the machine of this command, which did not answer for too long, as overloaded ones do"
        return LostProcessError(cause, is_machine=True)
    is_node = isinstance(exc, ray.exceptions.NodeDiedError) or re.search(
        r"node .{0,80}(died|dead|terminated|failed)", text
    )
    if is_node:
        return LostProcessError("its machine was lost time after time", is_machine=True)
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError)
    if not isinstance(exc, (*lost, ray.exceptions.ObjectLostError)):
        return exc
    code = re.search(r"exit code[:= ]*(-?\d+)", text)
    how = f"exit code {code[1]}" if code else "killed, out of memory, or a crash in native code"
    return LostProcessError(f"its process ended in the middle of the work, also when it was tried again ({how})")
