import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from scipy.stats import rankdata

from fiqa_ray.core import fusion
from fiqa_ray.core.fusion import PairSums, ScoreDistribution, fit_weights, fuse
from fiqa_ray.errors import FiqaRayError


@given(st.lists(st.integers(-5, 5) | st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_places_are_mid_ranks(scores):
    scores = np.array(scores, np.float64)
    quantiles = ScoreDistribution.of(scores).quantiles(scores)
    assert np.allclose(quantiles, (rankdata(scores) - 0.5) / len(scores), rtol=0, atol=1e-12)


def test_places_of_other_scores():
    distribution = ScoreDistribution.of(np.array([1.0, 2.0, 2.0, 4.0]))  # quantiles 1/8, 4/8, 7/8
    assert distribution.quantiles(np.array([0.0, 1.5, 3.0, 9.0])).tolist() == [0.125, 0.3125, 0.6875, 0.875]
    assert np.isnan(distribution.quantiles(np.array([np.nan]))).all()


def test_few_knots_stand_for_many_scores(monkeypatch):
    monkeypatch.setattr(fusion, "MAX_KNOTS", 64)
    scores = np.random.default_rng(0).normal(size=5000)
    distribution = ScoreDistribution.of(scores)
    assert len(distribution.value) <= 64
    quantiles = distribution.quantiles(scores)
    assert np.abs(quantiles - (rankdata(scores) - 0.5) / 5000).max() < 1 / 64
    assert (np.diff(quantiles[np.argsort(scores)]) > 0).all()


def test_rank_average_by_hand():
    first, second = np.array([10.0, 30.0, 20.0]), np.array([-1.0, -1.0, 5.0])
    quantiles = [ScoreDistribution.of(s).quantiles(s) for s in (first, second)]
    # quantiles 1/6, 5/6, 3/6 and 2/6, 2/6, 5/6
    assert fuse(quantiles, [1, 1]) == pytest.approx([0.25, 3.5 / 6, 4 / 6])
    assert fuse(quantiles, [3, 1]) == pytest.approx([1.25 / 6, 4.25 / 6, 3.5 / 6])


def pairs_of(seed, n_images=300, n_pairs=4000):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=n_images)
    quantiles = [
        ScoreDistribution.of(s).quantiles(s)
        for s in (
            truth + rng.normal(size=n_images) * 0.2,
            truth + rng.normal(size=n_images) * 0.6,
            rng.normal(size=n_images),
        )
    ]
    image, mate = rng.integers(0, n_images, (2, n_pairs))
    similarity = np.minimum(truth[image], truth[mate]) + rng.normal(size=n_pairs) * 0.1
    return quantiles, image, mate, similarity


@pytest.mark.parametrize("seed", range(5))
def test_fitted_weights_solve_the_bounded_least_squares(seed):
    quantiles, image, mate, similarity = pairs_of(seed)
    some = slice(0, 1500), slice(1500, None)
    weights = fit_weights([PairSums.of(quantiles, image[s], mate[s], similarity[s]) for s in some])
    x = np.stack([np.minimum(p[image], p[mate]) for p in quantiles] + [np.ones(len(image))], axis=1)
    solved = lsq_linear(x, similarity, bounds=([0, 0, 0, -np.inf], np.inf)).x[:3]
    assert weights == pytest.approx(solved / solved.sum(), abs=2e-4)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > weights[1] > weights[2]


def test_a_copy_shares_its_weight_and_a_reversed_score_gets_none():
    quantiles, image, mate, similarity = pairs_of(9)
    weights = fit_weights([PairSums.of([quantiles[0], quantiles[0], 1 - quantiles[0]], image, mate, similarity)])
    assert weights[0] + weights[1] == pytest.approx(1)
    assert weights[2] == 0
    with pytest.raises(FiqaRayError, match="grows with none of the scores"):
        fit_weights([PairSums.of([1 - quantiles[0], np.full(300, 0.5)], image, mate, similarity)])


def test_rounding_is_no_effect():
    quantiles, image, mate, _ = pairs_of(4)
    with pytest.raises(FiqaRayError, match="grows with none of the scores"):
        fit_weights([PairSums.of(quantiles, image, mate, np.full(len(image), 0.3))])


def test_pairs_without_a_score_are_left_out():
    quantiles, image, mate, similarity = pairs_of(3)
    gaps = [p.copy() for p in quantiles]
    gaps[1][:30] = np.nan
    kept = (image >= 30) & (mate >= 30)
    found = PairSums.of(gaps, image, mate, similarity)
    expected = PairSums.of(quantiles, image[kept], mate[kept], similarity[kept])
    assert np.allclose(found.xx, expected.xx)
    assert np.allclose(found.xy, expected.xy)
    with pytest.raises(FiqaRayError, match="no mated pair has both images scored"):
        fit_weights([PairSums.of([np.full(300, np.nan)] * 2, image, mate, similarity)])
