import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from fiqa_ray.core.ranking import add_counts, count_keys, look_up, mean_ranks, merge_range, range_cuts, similarity_key


@settings(max_examples=100, deadline=None)
@given(
    n_shards=st.integers(1, 5),
    n_ranges=st.integers(1, 6),
    spread=st.sampled_from([1, 5, 1000, 2**23]),
    seed=st.integers(0, 2**32),
)
def test_both_engines_equal_scipy(n_shards, n_ranges, spread, seed):
    rng = np.random.default_rng(seed)
    shards = [rng.integers(-spread, spread + 1, rng.integers(0, 200)).astype(np.int32) for _ in range(n_shards)]
    everything = np.concatenate(shards)
    expected = rankdata(everything, method="average") - 1 if len(everything) else np.empty(0)

    counted = add_counts([count_keys(s) for s in shards])
    runs = [np.sort(s) for s in shards]
    cuts = range_cuts(np.concatenate([r[:: max(1, len(r) // 16)] for r in runs]), n_ranges)
    pieces = [np.split(r, np.searchsorted(r, cuts)) for r in runs]
    ranges = [merge_range([p[j] for p in pieces]) for j in range(len(cuts) + 1)]
    merged = tuple(np.concatenate(column) for column in zip(*ranges, strict=True))

    for key, count in (counted, merged):
        assert np.array_equal(look_up(everything, key, mean_ranks(count)) / 2, expected)
    assert all(np.array_equal(a, b) for a, b in zip(counted, merged, strict=True))


def test_keys_are_exact():
    assert similarity_key(np.float32([-1, 0, 0.5, 1, 1 - 2**-23])).tolist() == [-(2**23), 0, 2**22, 2**23, 2**23 - 1]
    with pytest.raises(ValueError, match="multiples"):
        similarity_key(np.array([2.0**-24]))
    with pytest.raises(ValueError, match="missing"):
        look_up(np.array([3]), np.array([1, 2]), np.array([0, 2]))
