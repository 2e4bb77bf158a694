"""The estimates of label optimization, by hand: unit costs of one each make the counts visible."""

import numpy as np
import pytest

from fiqa_ray.core.pairs import mated_pairs
from fiqa_ray.datasets.pairs import part_images
from fiqa_ray.engine.cost import CONTENTION, PROCESS_BYTES, START_S, Scale, Units
from fiqa_ray.stages import optimize, pair, rank
from fiqa_ray.tools.unit_costs import measure_units

FREE = dict.fromkeys(Units.__dataclass_fields__, 0.0)
VGGFACE2 = Scale(3_311_286, 9_131)


def steps(scale, **changes):
    units = Units(**{**FREE, **changes})
    costs = [pair.step_cost(scale, units), *rank.step_costs(scale, units), *optimize.step_costs(scale, units)]
    return {c.what: c for c in costs}


@pytest.fixture(autouse=True)
def shipped(monkeypatch, shipped_part_images):
    for name, value in shipped_part_images.items():
        monkeypatch.setattr(f"fiqa_ray.datasets.pairs.{name}", value)


def test_pairs_of_vggface2():
    """62,914,434 pairs per repeat, 4 bytes each in ten repeats, and 2 kB per embedding."""
    assert VGGFACE2.n_pairs == 62_914_434
    cost = steps(VGGFACE2)["mated pairs"]
    assert cost.written_bytes == pytest.approx(4 * 10 * 62_914_434, rel=0.01)
    assert cost.read_bytes == pytest.approx(3_311_286 * 2048, rel=0.01)
    assert cost.n_shards == 102  # parts of 32,768 images
    small = Scale(1000, 500)  # two images each: one other cluster
    assert small.n_pairs == 1000
    x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    made = mated_pairs(x, np.arange(0, 1001, 2), np.arange(500), n_repeats=1)
    assert len(made[0].mate) == small.n_pairs


def test_parts_of_pairs_are_neither_small_nor_huge():
    sizes = [part_images(n) for n in (10, 100_000, 10**6, 3_311_286, 42_474_558, 260_890_076, 10**9)]
    assert sizes == [8_192, 8_192, 31_250, 32_768, 32_768, 127_388, 262_144]


def test_work_is_shared_out_by_shards():
    """102 shards on 4 workers: the busiest has 26; 102 s of work take 26 s, and its bytes wait on its own line."""
    unit = {"pair_image": 102 / VGGFACE2.n_images}
    cost = steps(VGGFACE2, **unit)["mated pairs"]
    assert cost.wall_s(1) == pytest.approx(102 + START_S)
    assert cost.wall_s(4) == pytest.approx(26 * CONTENTION + START_S)
    cost = steps(VGGFACE2)["mated pairs"]
    n_bytes = cost.read_bytes + cost.written_bytes
    assert cost.wall_s(64, bandwidth=1e8) == pytest.approx(n_bytes * 2 / 102 / 1e8 + START_S)


def test_engines_and_keeping():
    kept, not_kept = steps(VGGFACE2), steps(Scale(3_311_286, 9_131, keep=False))
    assert not_kept["mated pairs"].written_bytes < kept["mated pairs"].written_bytes / 200
    assert "histograms" in not_kept  # all repeats at once: several runs
    sort = steps(Scale(3_311_286, 9_131, engine="sort"), sort_pair=1.0, merge_pair=1.0)
    assert sort["sorted keys"].work_s == sort["merged key ranges"].work_s == 629_144_340
    large, large_sort = (steps(Scale(42_474_558, 2_059_906, engine=e)) for e in ("counting", "sort"))
    assert large["histograms"].n_shards > 100
    assert large["histograms"].written_bytes < large_sort["sorted keys"].written_bytes
    assert max(s.memory_bytes for s in kept.values()) < 3e9


def test_webface260m_needs_no_large_machine_and_takes_many():
    """63 spans of 4,194,304 images; a task of 4 GB at most, also where nothing is kept; more workers, less time."""
    for keep in (True, False):
        scale = Scale(260_890_076, 4_008_130, keep=keep)
        costs = steps(scale, index_image=3e-7, label_image=5e-7, pair_image=1e-4, sum_pair=5e-9, count_pair=2e-9)
        assert PROCESS_BYTES + max(c.memory_bytes for c in costs.values()) < 4e9
        sort = ["sorted runs of scores", "sorted scores", "quality index", "sorted runs of indices", "sorted indices"]
        assert {costs[what].n_shards for what in [*sort, "labels"]} == {63}
        minutes = [sum(c.wall_s(w, 3e8) for c in costs.values()) / 60 for w in (1, 8, 64, 512)]
        assert minutes[0] > 6 * minutes[1] > 30 * minutes[2] > 150 * minutes[3]


@pytest.mark.slow
def test_units_are_of_this_machine():
    """Every unit is a positive time; none is absurd for a processor: between 10 ps and 1 ms, but for photographs."""
    units = measure_units(Scale(4000, 100, dim=32, n_clusters=5, n_repeats=2))
    values = dict(vars(units))
    assert 1e-4 < values.pop("pack_image") < 0.1
    assert values.pop("sum_pair_method") >= 0
    assert all(1e-11 < value < 1e-3 for value in values.values())
