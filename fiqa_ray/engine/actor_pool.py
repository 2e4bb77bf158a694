"""Runs shards in actor pools of Ray Data: for models and decoding. `run_in_pools` is the entry.

A pool has a fixed size and replaces actors that die. The rows of its Ray dataset are positions of shards: a shard reads
and writes its own part, so that a lost actor costs one part and a resumed run repeats none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.board import Announcer
from fiqa_ray.engine.cores import set_cores
from fiqa_ray.engine.mapper import Item, Outcome, WorkerSlot, call_and_catch
from fiqa_ray.engine.ray_workers import lost_process, machine_labels, wants_gpus
from fiqa_ray.engine.step import PipelinedWorker, Worker
from fiqa_ray.storage.patience import set_patience

BLOCKS_PER_WORKER = 64
"""Blocks of a Ray dataset per worker. More shards than that share blocks, so that Ray's store holds few objects."""


def run_in_pools(
    items: Sequence[Item], compute: ComputeSettings, announce: Announcer
) -> Iterator[tuple[int | None, Outcome]]:
    """Run shards in an actor pool; yield their numbers with what came of them.

    A shard that ends its actor again and again ends the pool. It is yielded as failed, and another pool runs the rest.
    """
    import ray

    left = dict(enumerate(items))
    while left:
        try:
            for number, outcome in _run_pool(left, compute, announce):
                left.pop(number)
                yield number, outcome
        except ray.exceptions.RayError as exc:
            culprit, outcome = announce.in_hand(exc), lost_process(exc)
            if culprit is None or left.pop(culprit, None) is None:
                yield None, outcome
                return
            yield culprit, outcome


@dataclass(frozen=True)
class _Makers:
    """What an actor needs of the steps: a factory of workers and the datasets of each."""

    make_worker: list[Callable[[], Worker]]
    datasets: list[tuple[Dataset, ...]]


class _Entry(NamedTuple):
    """A shard on its way to an actor.

    Attributes:
        number: Position among the shards of this call.
        step: Number of its step.
        part: Number of its part, or None if that is not known.
        shard: The shard.
    """

    number: int
    step: int
    part: int | None
    shard: Any


class _ShardActor:
    """One worker of a Ray Data actor pool; loads a model when the first of its shards comes.

    Where the steps use a model, several threads call it with a shard each: one is read, one written while the model works.
    """

    def __init__(self, makers: _Makers, chunks: _Chunks, announce: Announcer, patience_s: float, n_cores: int) -> None:
        set_patience(patience_s, has_answered=True)
        set_cores(n_cores)
        self._makers, self._chunks, self._announce, self._workers = makers, chunks, announce, WorkerSlot()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        import torch
        from ray import cloudpickle

        torch.set_num_threads(1)  # of the thread that calls
        (index,) = batch["item"]
        entry = self._chunks.get(int(index))
        outcome: Outcome | None = self._part_from_before(entry)
        if outcome is None:
            with self._announce(entry.number):
                make_worker = self._makers.make_worker[entry.step]
                outcome = call_and_catch(lambda: self._run(make_worker, entry))
        return {"number": [entry.number], "outcome": [cloudpickle.dumps(outcome)]}

    def _run(self, make_worker: Callable[[], Worker], entry: _Entry) -> Part:
        with self._workers.use(make_worker) as worker:
            if isinstance(worker, PipelinedWorker):
                return worker(entry.shard, lambda: self._announce.begin(entry.number))
            return worker(entry.shard)

    def _part_from_before(self, entry: _Entry) -> Part | None:
        """Return the part of a shard that this actor finished before it died: all shards of its block come again."""
        import ray

        if entry.part is None or not ray.get_runtime_context().was_current_actor_reconstructed:
            return None
        parts = [dataset.recorded_part(entry.part) for dataset in self._makers.datasets[entry.step]]
        return parts[0] if all(parts) else None


class _Chunks:
    """Shards in a few objects of Ray's store; an actor holds the chunk that it works on."""

    def __init__(self, entries: list[_Entry], n_chunks: int) -> None:
        import ray

        self._size = max(1, -(-len(entries) // n_chunks))
        self._refs = [ray.put(entries[i : i + self._size]) for i in range(0, len(entries), self._size)]
        self._held: tuple[int, list[_Entry]] = (-1, [])  # replaced as one, so that threads see both alike

    def get(self, index: int) -> _Entry:
        """Return a shard by its place."""
        import ray

        chunk, place = divmod(index, self._size)
        held = self._held
        if held[0] != chunk:
            held = self._held = (chunk, ray.get(self._refs[chunk]))
        return held[1][place]


def _run_pool(items: dict[int, Item], compute: ComputeSettings, announce: Announcer) -> Iterator[tuple[int, Outcome]]:
    """Run shards, given by number, in one actor pool of Ray Data."""
    import warnings

    import ray
    from ray import cloudpickle

    resources = ray.cluster_resources()
    n_gpus = int(resources.get("GPU", 0))
    uses_model = next(iter(items.values()))[0].uses_model
    on_gpu = uses_model and wants_gpus(compute.device, 1)
    n_present = n_gpus if on_gpu else int(resources.get("CPU", 1))
    size = min(compute.n_workers or max(1, n_present), len(items))
    n_cores = max(1, int(resources.get("CPU", 1)) // size)
    steps = list({id(step): step for step, _ in items.values()}.values())
    number_of = {id(step): i for i, step in enumerate(steps)}
    part_of = {id(shard): i for step in steps for i, shard in enumerate(step.shards)}
    entries = [_Entry(n, number_of[id(step)], part_of.get(id(shard)), shard) for n, (step, shard) in items.items()]
    makers = _Makers([step.make_worker for step in steps], [step.datasets for step in steps])
    n_blocks = min(len(items), BLOCKS_PER_WORKER * size)
    data: ray.data.Dataset = ray.data.from_items([{"item": i} for i in range(len(items))], override_num_blocks=n_blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_restarts has no named parameter yet
        data = data.map_batches(
            _ShardActor,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=size, enable_true_multi_threading=uses_model),
            max_concurrency=PipelinedWorker.OVERLAP if uses_model else 1,
            fn_constructor_args=(makers, _Chunks(entries, 2 * size), announce, compute.storage_patience_s, n_cores),
            num_gpus=1 if on_gpu else 0,
            num_cpus=1,
            label_selector=machine_labels(steps[0], compute),
            # a worker that dies for good must end the step: by default Ray Data tries forever
            max_restarts=3,
            max_task_retries=3,
        )
    for row in data.iter_rows():
        yield int(row["number"]), cloudpickle.loads(row["outcome"])
