import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from fiqa_ray.core import ranking
from fiqa_ray.core.kernels import sorting
from fiqa_ray.core.kernels.sorting import stable_order
from fiqa_ray.core.ranking import (
    Histogram,
    KeyCounter,
    RankTable,
    add_histograms,
    merge_range,
    similarity_key,
)
from fiqa_ray.core.sample_sort import choose_cuts


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(ranking, "_FEW_PAIRS", 300)  # both ways of counting are met


def similarities(key):
    return (np.asarray(key) / 2**23).astype(np.float32)


def histogram_of(*pieces):
    counter = KeyCounter()
    for key in pieces:
        counter.add(similarities(key))
    assert counter.n_pairs == sum(len(p) for p in pieces)
    return counter.histogram()


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in ((a.block, b.block), (a.count, b.count)))


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

    counted = add_histograms([histogram_of(s) for s in shards])
    at_once = histogram_of(*shards)
    runs = [np.sort(s) for s in shards]
    samples = np.concatenate([r[:: max(1, len(r) // 16)] for r in runs])
    cuts = [cut.key for cut in choose_cuts(samples, np.zeros_like(samples), n_ranges)]
    pieces = [np.split(r, np.searchsorted(r, cuts)) for r in runs]
    merged = add_histograms(merge_range(np.concatenate([p[j] for p in pieces])) for j in range(len(cuts) + 1))

    assert np.array_equal(RankTable.of(counted).doubled_ranks(similarities(everything)) / 2, expected)
    assert same(counted, at_once)
    assert same(counted, merged)
    assert counted.n_pairs.sum() == len(everything)
    least = np.sort(everything) // 64
    assert counted.n_before.tolist() == [np.searchsorted(least, b) for b in np.unique(least)]


def test_keys_are_exact():
    assert similarity_key(np.float32([-1, 0, 0.5, 1, 1 - 2**-23])).tolist() == [-(2**23), 0, 2**22, 2**23, 2**23 - 1]
    with pytest.raises(ValueError, match="multiples"):
        similarity_key(np.array([2.0**-24]))
    with pytest.raises(ValueError, match="missing"):
        RankTable.of(histogram_of([1, 2])).doubled_ranks(similarities([3]))
    with pytest.raises(ValueError, match="missing"):
        RankTable.of(histogram_of([1, 2])).doubled_ranks(similarities([64]))
    with pytest.raises(ValueError, match="missing"):
        RankTable.of(histogram_of([1, 4])).doubled_ranks(similarities([3]))


@pytest.mark.parametrize("n_copies", [0, 300_000])
def test_many_keys_are_counted_like_few(n_copies):
    """At once, bit by bit, and as the sum of two histograms; also where one similarity overflows a byte."""
    key = np.random.default_rng(0).integers(-(2**23), 2**23 + 1, 1_200_000).astype(np.int32)
    key[600_000 : 600_000 + n_copies] = 2**23
    distinct, count = np.unique(key, return_counts=True)
    halves = [histogram_of(h) for h in np.array_split(key, 2)]
    for found in (histogram_of(key), histogram_of(*np.array_split(key, 7)), add_histograms(halves)):
        row, column = np.nonzero(found.count)
        assert np.array_equal(64 * found.block[row] + column, distinct)
        assert np.array_equal(found.count[row, column], count)
        assert found.count.dtype == (np.uint32 if n_copies else np.uint8)


def test_counts_beyond_32_bits():
    key = np.arange(-(2**10), 2**10, dtype=np.int32)
    found = add_histograms(
        [Histogram.of(key, np.full(len(key), 2**40)), Histogram.of(key[::2], np.ones(2**10, np.int64))]
    )
    assert found.block.tolist() == list(range(-16, 16))
    assert found.count.ravel().tolist() == [2**40 + 1, 2**40] * 2**10


def test_ranks_beyond_32_bits():
    """A repeat of 3 thousand million pairs at two similarities: places need int64."""
    for far in (9, 2**20):  # in one block of the table, and in two
        table = RankTable.of(Histogram.of(np.array([5, far], np.int32), np.array([2 * 10**9, 10**9])))
        assert table.doubled_ranks(similarities([5, far, 5])).tolist() == [2 * 10**9 - 1, 5 * 10**9 - 1, 2 * 10**9 - 1]


def test_near_copies_cost_the_table_two_bytes_more():
    """70,000 pairs at a similarity just below 1, among single ones."""
    key = np.array([-(2**23), 0, 2**23 - 2, 2**23 - 1], np.int32)
    table = RankTable.of(Histogram.of(key, np.array([1, 1, 70_000, 1])))
    assert table.key_rank.dtype == np.uint32
    assert table.doubled_ranks(similarities(key)).tolist() == [0, 2, 2 * 2 + 69_999, 2 * 70_002]


@pytest.mark.parametrize("most", [1, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32, 2**40])
@pytest.mark.parametrize("keys", [[-129, -128, -65, -64, 63, 64], [2**23 - 1, 2**23], [-(2**23), 0], [0]])
def test_ranks_at_the_limits_of_the_table(keys, most):
    """Places of so many pairs at each similarity, one more at each than at the one before."""
    count = [most + k for k in range(len(keys))]
    found = RankTable.of(Histogram.of(np.array(keys, np.int32), np.array(count))).doubled_ranks(similarities(keys))
    assert found.tolist() == [2 * sum(count[:k]) + count[k] - 1 for k in range(len(keys))]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 2000),
    spread=st.sampled_from([1, 3, 40, 5000, 1 << 23]),
    centre=st.integers(-(1 << 23), 1 << 23),
    seed=st.integers(0, 99),
)
def test_ranks_of_a_run_in_memory(n, spread, centre, seed):
    """Without a table, ties and all."""
    draws = np.random.default_rng(seed).integers(-spread, spread + 1, n) + centre
    key = np.clip(draws, -(1 << 23), 1 << 23).astype(np.int32)
    found = RankTable.among(similarities(key)).doubled_ranks(similarities(key))
    assert np.array_equal(found, (2 * (rankdata(key) - 1)).astype(np.int64))


@pytest.mark.parametrize("n_before", [0, 1, 500])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, 2.0**-24])
def test_what_is_no_similarity_is_refused(bad, n_before):
    good = similarities(np.arange(n_before))
    with pytest.raises(ValueError, match="multiples"):
        RankTable.among(np.append(good, np.float32(bad)))
    with pytest.raises(ValueError, match="multiples"):
        RankTable.among(similarities(np.arange(9))).doubled_ranks(np.append(good[:9], np.float32(bad)))


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 400),
    kind=st.sampled_from(["doubles", "floats", "close", "places", "few", "wide", "one", "zeros"]),
    seed=st.integers(0, 2**32),
    n_runs=st.integers(0, 5),
)
def test_stable_order(n, kind, seed, n_runs):
    """Also where values differ in bits that find no room beside the row, or not at all; and of sorted runs."""
    rng = np.random.default_rng(seed)
    values = {
        "doubles": rng.standard_normal(n),
        "floats": rng.random(n, np.float32),
        "close": 0.5 + rng.integers(0, 50, n) * 2.0**-53,
        "places": rng.permutation(n) + 1e-3 * rng.random(n),
        "few": rng.integers(-2, 3, n).astype(float),
        "wide": rng.choice([-1e308, -1.0, -5e-324, 5e-324, 1.0, 1e308], n) * rng.choice([1, 0.5], n),
        "one": np.full(n, 0.7),
        "zeros": rng.choice([0.0, -0.0], n),
    }[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_FEW_VALUES", 2)
        if n_runs:
            values = np.concatenate([np.sort(run) for run in np.array_split(values, n_runs)])
        found, ties = stable_order(values, in_runs=n_runs > 0), rng.permutation(n)
        found_by_ties = stable_order(values, ties, in_runs=n_runs > 0)
    assert found.tolist() == sorted(range(n), key=lambda row: values[row])
    assert found_by_ties.tolist() == sorted(range(n), key=lambda row: (values[row], ties[row]))
