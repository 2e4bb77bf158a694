"""Runs the shards of steps one by one in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from fiqa_ray.engine.mapper import Item, Outcome, WorkerSlot, call_and_catch


class LocalMapper:
    """Runs shards one by one in this process."""

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        """Run shards."""
        from fiqa_ray.core.kernels.threads import one_thread

        workers = WorkerSlot()
        for item in items:
            step, shard = item
            with one_thread() if step.runs_in != "driver" else nullcontext():
                yield item, call_and_catch(lambda step=step, shard=shard: workers.get(step.make_worker)(shard))  # type: ignore[misc]

    def waits_for(self, items: Sequence[Item]) -> str:
        """Return an empty text: this process never waits."""
        return ""


local_map = LocalMapper()
