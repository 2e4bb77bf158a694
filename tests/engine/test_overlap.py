"""A worker of three operations: they overlap, keep their order, and a fault in one of them stays with its shard."""

import threading
import time

import pytest

from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.mapper import WorkerSlot
from fiqa_ray.engine.step import PipelinedWorker, Step


def part_of(i: int) -> Part:
    """The record of a part without files."""
    return Part(index=i, n_rows=1, files={}, stats={}, duration_s=0.0)


def step_of(worker: PipelinedWorker, n_shards: int) -> Step:
    """A step whose shards are their numbers."""
    return Step("embed", Dataset("/nowhere/v=0", "x"), list(range(n_shards)), lambda: worker, n_shards, uses_model=True)


def test_read_run_and_write_of_three_shards_happen_at_the_same_time():
    """A barrier of three parties that only a read, a run and a write of different shards can pass together."""
    together = threading.Barrier(3, timeout=20)

    def meet(shard: int, partners: range) -> int:
        if shard in partners:
            together.wait()
        return shard

    def write(shard: int) -> Part:
        return part_of(meet(shard, range(6)))

    worker = PipelinedWorker(lambda s: meet(s, range(2, 8)), lambda s: meet(s, range(1, 7)), write)
    step = step_of(worker, 8)
    outcomes = list(local_map([(step, shard) for shard in step.shards]))
    assert [item[1] for item, _ in outcomes] == list(range(8))
    assert [part.index for _, part in outcomes] == list(range(8))


@pytest.mark.parametrize("broken", ["read", "run", "write"])
def test_a_fault_stays_with_its_shard(broken):
    def operation(name):
        def work(shard):
            if name == broken and shard == 1:
                raise ValueError(f"no {name}")
            return part_of(shard) if name == "write" else shard

        return work

    step = step_of(PipelinedWorker(operation("read"), operation("run"), operation("write")), 3)
    first, second, third = (outcome for _, outcome in local_map([(step, shard) for shard in step.shards]))
    assert (first, third) == (part_of(0), part_of(2))
    assert isinstance(second, ValueError)
    assert str(second) == f"no {broken}"


def test_one_shard_at_a_time_runs_where_several_threads_call():
    running, most = [], []

    def run(shard):
        running.append(shard)
        most.append(len(running))
        time.sleep(0.002)
        running.remove(shard)
        return shard

    worker = PipelinedWorker(lambda s: s, run, part_of)
    threads = [threading.Thread(target=worker, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20
    assert max(most) == 1


def test_a_worker_is_replaced_only_when_no_thread_uses_it():
    slot, events, is_used = WorkerSlot(), [], threading.Event()

    def use(name):
        with slot.use(makers[name]):
            events.append(f"{name} in")
            is_used.set()
            time.sleep(0.05)
            events.append(f"{name} out")

    makers = {name: (lambda name=name: lambda shard: part_of(0)) for name in "ab"}
    first, second = threading.Thread(target=use, args=("a",)), threading.Thread(target=use, args=("b",))
    first.start()
    is_used.wait(5)
    second.start()
    first.join()
    second.join()
    assert events == ["a in", "a out", "b in", "b out"]
