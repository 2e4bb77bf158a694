"""Notices in time that a machine of the training is about to be taken away, so that its state can be saved before."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fiqa_ray.training.distributed import reduce_over

ASK_EVERY_S = 10.0
"""About so many seconds lie between two questions. Clouds announce the loss of a spot machine 30 s to 2 min before."""


class LeavingWatch:
    """Asks every few steps whether a machine is about to be taken away.

    All workers must ask after the same step, because the answer is a joint one. So they use the smallest interval that any
    of them proposes, which is that of the slowest.
    """

    def __init__(self, is_machine_leaving: Callable[[], bool], world: int) -> None:
        """Begin to count steps.

        Args:
            is_machine_leaving: tells whether a machine is about to be taken away; the same in all workers.
            world: number of workers.
        """
        self._ask, self._world = is_machine_leaving, world
        self._n_steps, self._ask_at, self._since = 0, 1, time.monotonic()

    def must_save(self) -> bool:
        """Count a step; return whether the state must be saved now. Each worker calls this after each step."""
        self._n_steps += 1
        if self._n_steps < self._ask_at:
            return False
        step_s = (time.monotonic() - self._since) / self._n_steps
        n_next = max(1, int(ASK_EVERY_S / max(step_s, 1e-9)))
        self._ask_at = int(reduce_over(torch.tensor(n_next), "min", self._world))
        self._n_steps, self._since = 0, time.monotonic()
        return self._ask()
