"""Runs the shards of steps in this process, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

from fiqa_ray.engine.mapper import Item, Outcome, WorkerSlot, call_and_catch
from fiqa_ray.engine.step import PipelinedWorker, Step


class LocalMapper:
    """Runs shards one by one in this process; of a `PipelinedWorker`, threads read and write while the model works."""

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        """Run shards."""
        from fiqa_ray.core.kernels.threads import one_thread

        workers = WorkerSlot()
        for _, group in itertools.groupby(items, key=lambda item: id(item[0])):
            of_step = list(group)
            with one_thread() if of_step[0][0].runs_in != "driver" else nullcontext():
                yield from _run_step(workers, of_step[0][0], of_step)

    def waits_for(self, items: Sequence[Item]) -> str:
        """Return an empty text: this process never waits."""
        return ""


local_map = LocalMapper()


def _run_step(workers: WorkerSlot, step: Step, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
    """Run the shards of one step."""
    if step.uses_model:
        worker = call_and_catch(lambda: workers.get(step.make_worker))
        if isinstance(worker, PipelinedWorker):
            yield from _overlapped(worker, items)
            return
    for item in items:
        yield item, call_and_catch(lambda shard=item[1]: workers.get(step.make_worker)(shard))  # type: ignore[misc]


def _overlapped(worker: PipelinedWorker, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
    """Run the model over one shard after the other here, while a thread reads the next and another writes the last."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = reader.submit(call_and_catch, partial(worker.read, items[0][1]))
        writing: tuple[Item, Future[Outcome]] | None = None
        for item, following in zip(items, (*items[1:], None), strict=True):
            loaded = reading.result()
            if following is not None:
                reading = reader.submit(call_and_catch, partial(worker.read, following[1]))
            computed = loaded if isinstance(loaded, Exception) else call_and_catch(partial(worker.run, loaded))
            if writing is not None:
                yield writing[0], writing[1].result()
            writing = item, writer.submit(_write, worker, computed)
            del loaded, computed  # a part's faces and embeddings
        if writing is not None:
            yield writing[0], writing[1].result()


def _write(worker: PipelinedWorker, computed: Any) -> Outcome:
    outcome: Outcome = computed if isinstance(computed, Exception) else call_and_catch(partial(worker.write, computed))
    return outcome
