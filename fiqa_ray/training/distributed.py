"""Exchange of tensors between training workers; with one worker nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


def reduce_over(value: torch.Tensor, operation: Literal["sum", "min"], world: int) -> torch.Tensor:
    """Return the sum or minimum of a tensor over all workers.

    Args:
        value: on the CPU; it is not changed.
        operation: what to compute, element by element.
        world: number of workers. Each must make the call.

    Returns:
        A new tensor on the CPU, the same in every worker.
    """
    if world > 1:
        import torch.distributed as dist

        on_gpu = dist.get_backend() == "nccl"
        result = value.clone().cuda() if on_gpu else value.clone()
        dist.all_reduce(result, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MIN)
        return result.cpu()
    return value.clone()


def broadcast(tensors: Iterable[torch.Tensor], world: int) -> None:
    """Overwrite the tensors of all workers with those of rank 0."""
    if world > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Replace the gradients of all workers by their mean; parameters without a gradient are left alone."""
    if world > 1:
        import torch.distributed as dist

        for p in parameters:
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= world
