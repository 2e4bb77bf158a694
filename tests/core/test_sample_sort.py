"""Keys, cuts and their places, against Python's own sort of (value, tie)."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from fiqa_ray.core.sample_sort import Cut, choose_cuts, float_key, n_below

VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-300, -1e-300, 1e300, -1e300, 5e-324, -5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(VALUES, min_size=1, max_size=60))
def test_keys_ascend_like_the_floats(values):
    key = float_key(np.array(values)).tolist()
    for a, key_a in zip(values, key, strict=True):
        for b, key_b in zip(values, key, strict=True):
            assert (key_a < key_b, key_a == key_b) == (a < b, a == b)


@given(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 2.0]), max_size=40), st.integers(1, 7))
@example([0.25] * 40, 7)
def test_cuts_share_out_sorted_rows(values, n_ranges):
    """Every row lies in one range, ranges stand in order, and equal values are split too."""
    rows = sorted((v, i) for i, v in enumerate(values))
    key = float_key(np.array([v for v, _ in rows], float))
    tie = np.array([i for _, i in rows], np.int64)
    cuts = choose_cuts(key[::-1], tie[::-1], n_ranges)
    assert cuts == sorted(cuts)
    assert len(cuts) == n_ranges - 1
    bounds = [0, *(n_below(key, tie, cut) for cut in cuts), len(rows)]
    assert bounds == [0, *(sum((k, t) < cut for k, t in zip(key, tie, strict=True)) for cut in cuts), len(rows)]
    sizes = np.diff(bounds)
    assert sizes.max() - sizes.min() <= 1  # the samples are all rows


def test_without_ties_equal_keys_stay_together():
    key = np.array([1, 3, 3, 3, 7])
    assert [n_below(key, None, Cut(k, 0)) for k in (0, 1, 3, 4, 9)] == [0, 0, 1, 4, 5]
