"""The cost model, by hand: unit costs of one each make the counts visible."""

import numpy as np
import pytest

from fiqa_ray.core.pairs import mated_pairs
from fiqa_ray.datasets.pairs import part_images
from fiqa_ray.tools.costs import CONTENTION, PROCESS_BYTES, START_S, Scale, Units, label_costs, measure_units

FREE = dict.fromkeys(Units.__dataclass_fields__, 0.0)
VGGFACE2 = Scale(3_311_286, 9_131)


def steps(scale, n_workers=1, bandwidth=None, **units):
    return {s.what: s for s in label_costs(scale, Units(**{**FREE, **units}), n_workers, bandwidth)}


def test_pairs_of_vggface2():
    """62,914,434 pairs per repeat, 4 bytes each in ten repeats, and 2 kB per embedding."""
    assert VGGFACE2.n_pairs == 62_914_434
    pair = steps(VGGFACE2)["mated pairs"]
    assert pair.written_bytes == pytest.approx(4 * 10 * 62_914_434, rel=0.01)
    assert pair.read_bytes == pytest.approx(3_311_286 * 2048, rel=0.01)
    assert pair.n_shards == 64
    small = Scale(1000, 500)  # two images each: one other cluster
    assert small.n_pairs == 1000
    x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    made = mated_pairs(x, np.arange(0, 1001, 2), np.arange(500), n_repeats=1)
    assert len(made[0].mate) == small.n_pairs


def test_parts_of_pairs_are_neither_small_nor_huge(monkeypatch, shipped_min_part_images):
    monkeypatch.setattr("fiqa_ray.datasets.pairs.MIN_PART_IMAGES", shipped_min_part_images)
    assert [part_images(n) for n in (10, 100_000, 3_311_286, 42_474_558)] == [32_768, 32_768, 51_739, 262_144]


def test_work_is_shared_out_by_shards():
    """64 shards on 3 workers: the busiest has 22; 640 s of work take 220 s, and its bytes wait on its own line."""
    unit = {"pair_image": 640 / VGGFACE2.n_images}
    assert steps(VGGFACE2, 1, **unit)["mated pairs"].wall_s == pytest.approx(640 + START_S)
    assert steps(VGGFACE2, 3, **unit)["mated pairs"].wall_s == pytest.approx(220 * CONTENTION + START_S)
    pair = steps(VGGFACE2, 64, bandwidth=1e8)["mated pairs"]
    assert pair.wall_s == pytest.approx((pair.read_bytes + pair.written_bytes) / 64 / 1e8 + START_S)


def test_engines_and_keeping():
    kept, not_kept = steps(VGGFACE2), steps(Scale(3_311_286, 9_131, keep=False))
    assert not_kept["mated pairs"].written_bytes < kept["mated pairs"].written_bytes / 200
    assert "counting: histograms" in not_kept  # all repeats at once: several runs
    sort = steps(Scale(3_311_286, 9_131, engine="sort"), sort_pair=1.0, merge_pair=1.0)
    assert sort["sort: runs"].work_s == sort["sort: ranges"].work_s == 629_144_340
    large, large_sort = (steps(Scale(42_474_558, 2_059_906, engine=e)) for e in ("counting", "sort"))
    assert large["counting: histograms"].n_shards > 100
    assert large["counting: histograms"].written_bytes < large_sort["sort: runs"].written_bytes
    assert max(s.memory_bytes for s in kept.values()) < 4e9 - PROCESS_BYTES


def test_units_are_of_this_machine():
    """Every unit is a positive time; none is absurd for a processor: between 10 ps and 1 ms."""
    units = measure_units(Scale(4000, 100, dim=32, n_clusters=5, n_repeats=2))
    assert all(1e-11 < value < 1e-3 for name, value in vars(units).items() if name != "sum_pair_method")
    assert units.sum_pair_method >= 0
