"""Shards that run much longer than their fellows are named with their node, again and again, and the run goes on."""

import re
import socket
import time

import pytest

from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine import late_shards
from fiqa_ray.engine.board import Announcer
from fiqa_ray.engine.late_shards import LateShards
from fiqa_ray.engine.ray import RayMapper
from fiqa_ray.engine.step import Step, stateless_worker


def steps():
    """Two datasets of three shards each."""
    return [Step("score", Dataset(f"memory://r/{name}/v=0", name), ["x", "y", "z"], lambda: None, 3) for name in "ab"]


def watch(late_after_s=60.0, waits_for=lambda: ""):
    return LateShards([(s, shard) for s in steps() for shard in s.shards], Announcer(None, 0), late_after_s, waits_for)


def part(seconds):
    return Part(0, 1, {}, {}, seconds)


def test_a_shard_is_late_after_five_times_what_its_own_fellows_took():
    late = watch()
    assert late.late_line({0: (59.0, "n1"), 1: (60.0, "n1")}) == ""
    line = late.late_line({0: (61.0, "n1"), 1: (60.0, "n2")})
    assert line == "score: late: part 0 of a (none is finished) has run for 61 s on n1; the run goes on"
    late.finish(0, part(100.0))
    late.finish(1, part(30.0))
    late.finish(2, part(50.0))
    late.finish(3, part(1.0))  # of the other dataset, whose shards are quick
    assert late.late_line({5: (59.0, "n3")}) == ""
    assert "part 2 of b (half of the 1 finished took under 1.0 s) has run for 61 s on n3" in late.late_line(
        {5: (61.0, "n3")}
    )

    late = watch()
    for number, seconds in ((0, 100.0), (1, 30.0)):
        late.finish(number, part(seconds))
    assert late.late_line({2: (325.0, "n1")}) == ""  # 5 times the median of 65 s
    assert "part 2 of a" in late.late_line({2: (326.0, "n1")})


def test_a_late_shard_is_named_again_when_its_time_has_doubled_and_one_line_names_three():
    late = watch()
    named = [t for t in range(0, 1200, 10) if late.late_line({0: (float(t), "n")})]
    assert named == [70, 140, 280, 560, 1120]
    line = watch().late_line({n: (100.0 + n, f"n{n}") for n in range(6)})
    assert [int(n) for n in re.findall(r"on n(\d)", line)] == [5, 4, 3]
    assert line.endswith("; and 3 more parts; the run goes on")
    late = watch()
    assert late.late_line({0: (100.0, "n")})
    assert not late.late_line({0: (1.0, "other")})  # begun again, elsewhere
    assert late.late_line({0: (61.0, "other")})


def test_a_cluster_that_runs_nothing_is_said_unless_it_lacks_what_is_needed():
    idle = watch()
    assert [t for t in range(0, 500, 10) if idle.idle_line(float(t))] == [60, 120, 240, 480]
    assert idle.idle_line(3.0) == ""  # something ran
    assert idle.idle_line(61.0).startswith("score: no part has run for 61 s: the cluster is busy")
    assert watch(waits_for=lambda: "no CPU").idle_line(100.0) == ""  # which the progress says


@pytest.mark.parametrize("runs_in", ["tasks", "pool"])
def test_the_log_names_the_late_shard_and_its_node(tmp_path, ray_cluster, monkeypatch, runs_in):
    named_twice, lines = tmp_path / "named", []

    def log(line):
        lines.extend([line] if "late: part 2 of labels" in line else [])
        if len(lines) == 2:
            named_twice.touch()

    def make_part(shard):
        until = time.time() + 300
        while shard == 2 and not named_twice.exists() and time.time() < until:
            time.sleep(0.05)
        return Part(shard, 1, {}, {}, 0.1)

    monkeypatch.setattr(late_shards, "note", log)
    step = Step(
        "score", Dataset(f"{tmp_path}/v=0", "labels"), range(4), stateless_worker(make_part), 4, runs_in=runs_in
    )
    mapper = RayMapper(ComputeSettings(n_workers=2, late_after_s=0.5))
    outcomes = list(mapper([(step, shard) for shard in step.shards]))
    assert sorted((item[1], part.index) for item, part in outcomes) == [(i, i) for i in range(4)]
    node = ray_cluster.get_runtime_context().get_node_id()[:8]
    assert len(lines) >= 2
    for line in lines:
        match = re.search(r"has run for \d+ s on (\S+) \(.*, Ray node (\w+)\); the run goes on$", line)
        assert match, line
        assert match.groups() == (socket.gethostname(), node)
