"""What several training workers tell each other; with one worker nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


def reduce_over(value: torch.Tensor, how: Literal["sum", "min"], world: int) -> torch.Tensor:
    """Sum or minimum of a CPU tensor over the ``world`` workers."""
    if world > 1:
        import torch.distributed as dist

        on_gpu = dist.get_backend() == "nccl"
        moved = value.clone().cuda() if on_gpu else value.clone()
        dist.all_reduce(moved, op=dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MIN)
        return moved.cpu()
    return value.clone()


def broadcast(tensors: Iterable[torch.Tensor], world: int) -> None:
    """Rank 0's values for all workers."""
    if world > 1:
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """The workers' mean gradient, for all of them."""
    if world > 1:
        import torch.distributed as dist

        for p in parameters:
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= world
