"""Which failures end a step, which shards are tried again, and what the message says."""

import pyarrow as pa
import pytest

from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine import run_steps as module
from fiqa_ray.engine.mapper import LostProcessError
from fiqa_ray.engine.ray_workers import lost_process
from fiqa_ray.engine.run_state import run_state
from fiqa_ray.engine.run_steps import is_system_failure, run_steps
from fiqa_ray.engine.step import Step
from fiqa_ray.errors import IncompleteError, StorageError


class Mapper:
    """Runs shards in this process; `faults` gives what a shard raises, try by try."""

    def __init__(self, faults):
        self.faults, self.tries = faults, {}

    def waits_for(self, items):
        return ""

    def __call__(self, items):
        for item in items:
            step, shard = item
            self.tries[shard] = self.tries.get(shard, 0) + 1
            fault = next(iter(self.faults.get(shard, [])[self.tries[shard] - 1 :]), None)
            yield item, fault or step.dataset.write_part(shard, {".parquet": pa.table({"x": [1]})}, n_rows=1)


def step_of(root, n):
    return Step("embed", Dataset(f"{root}/embeddings/v=0123456789abcdef", "embeddings"), range(n), lambda: None, n)


AWAY = StorageError("s3://b/x: cannot be reached", may_pass=True)
MACHINE = LostProcessError("its machine was lost", is_machine=True)


def test_lost_machines_and_storage_are_tried_again(tmp_path):
    mapper = Mapper({1: [AWAY], 2: [MACHINE, MACHINE], 5: [AWAY]})
    run_state.reset()
    (manifest,) = run_steps([step_of(tmp_path, 6)], mapper)
    assert manifest.n_rows == 6
    assert mapper.tries == {0: 1, 1: 2, 2: 3, 3: 1, 4: 1, 5: 2}
    state = run_state.as_dict()
    assert state["n_failures"] == {"code": 0, "system": 4}
    lost = [f for f in state["failures"] if f["part"] == "part-00002"]
    assert [(f["n_tries"], f["error"]) for f in lost] == [
        (1, "LostProcessError: its machine was lost"), (2, "LostProcessError: its machine was lost"),
    ]  # fmt: skip


@pytest.mark.parametrize(("n_shards", "n_allowed"), [(50, 2), (1000, 9)])
def test_the_budget_of_code_failures_grows_with_the_step(tmp_path, n_shards, n_allowed):
    """Three, or 1 % of the shards, end a step; with fewer the rest is made before it ends."""
    for n_faults, n_made in ((n_allowed, n_shards - n_allowed), (n_allowed + 5, 0)):
        mapper = Mapper({i: [ValueError("a bug")] for i in range(n_faults)})
        step = step_of(tmp_path / f"{n_faults}", n_shards)
        with pytest.raises(IncompleteError, match=r"the first, part-00000, with ValueError: a bug"):
            run_steps([step], mapper)
        assert len(step.dataset.finished_parts()) == n_made


def test_a_command_whose_machine_ray_has_given_up_says_so(tmp_path):
    """A busy machine that answers no health check is dead to Ray; Ray Data then misses a helper of its own there."""
    import ray

    fault = lost_process(
        ray.exceptions.ActorUnschedulableError(
            "The node specified via NodeAffinitySchedulingStrategy doesn't exist any more or is infeasible, and soft=False "
            "was specified."
        )
    )
    assert is_system_failure(fault)
    with pytest.raises(IncompleteError, match=r"given up the machine of this command.*; run the same command again"):
        run_steps([step_of(tmp_path, 9)], Mapper({0: [fault] * 3}))


def test_storage_that_will_not_pass_ends_at_once(tmp_path):
    mapper = Mapper({0: [StorageError("s3://b/x: access denied")]})
    with pytest.raises(StorageError, match="access denied"):
        run_steps([step_of(tmp_path, 9)], mapper)
    assert mapper.tries == {0: 1}


def test_storage_that_the_driver_does_not_reach_either_ends_the_run(tmp_path, monkeypatch):
    def away(_):
        raise AWAY

    monkeypatch.setattr(module, "exists", away)
    with pytest.raises(StorageError, match="cannot be reached"):
        run_steps([step_of(tmp_path, 9)], Mapper({0: [AWAY]}))


def test_a_method_that_kills_its_process_is_named_at_once(tmp_path):
    died = LostProcessError("its process ended in the middle of the work (exit code 9)")
    mapper = Mapper({i: [died] for i in range(9)})
    with pytest.raises(
        IncompleteError, match=r"embeddings.*part-00000, with LostProcessError: .*exit code 9.*your model"
    ):
        run_steps([step_of(tmp_path, 9)], mapper)
    assert mapper.tries == {0: 1}


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    step = step_of(tmp_path, 2)
    step.dataset.write_plan({"n_parts": 2})
    leftover = tmp_path / "embeddings" / "v=0123456789abcdef" / f"part-00001.parquet.{'0a' * 16}.tmp"
    leftover.write_bytes(b"half")
    other = leftover.with_name("notes.tmp")
    other.write_bytes(b"mine")
    run_steps([step], Mapper({}))
    assert not leftover.exists()
    assert other.exists()


def test_a_finished_dataset_is_read_from_its_manifest(tmp_path, monkeypatch):
    step = step_of(tmp_path, 5)
    run_steps([step], Mapper({}))
    monkeypatch.setattr(Dataset, "parse_record", lambda *_: pytest.fail("a record was read"))
    (manifest,) = run_steps([step], Mapper({}))
    assert manifest.n_rows == 5
