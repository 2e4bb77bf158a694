"""Bootstrap intervals against the binomial law they must reproduce, explicit resampling, and mistakes."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from fiqa_ray.core.bootstrap import bootstrap_auc
from fiqa_ray.core.edc import edc_curve
from fiqa_ray.errors import FiqaRayError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:all .* pairs have quality")


def benchmark(n_mated: int, n_nonmated: int, error_rate: float, rng: np.random.Generator) -> tuple:
    """Pairs whose errors are plain: similarity 1 (accepted), 0 (non-mated) or -1 (mated, never accepted)."""
    mated = np.arange(n_mated + n_nonmated) < n_mated
    similarity = np.where(mated, np.where(rng.uniform(size=mated.size) < error_rate, -1.0, 1.0), 0.0)
    return similarity, mated


def realistic(n: int, seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    mated = np.arange(n) < n // 2
    quality_a, quality_b = rng.beta(5, 2, size=(2, n))
    similarity = np.where(mated, 0.7 * np.minimum(quality_a, quality_b), 0) + 0.1 * rng.normal(size=n)
    noisy = (quality_a + 0.3 * rng.normal(size=n), quality_b + 0.3 * rng.normal(size=n))
    return similarity, mated, {"true": (quality_a, quality_b), "noisy": noisy}


def test_interval_is_binomial_where_quality_is_constant() -> None:
    # dasec with one quality for all: AUC = FNMR, and FNMR of a resample is binomial(n, e0) / n.
    similarity, mated = benchmark(400, 300, 0.1, np.random.default_rng(1))
    e0 = float(np.mean(similarity[:400] < 0))
    ones = np.ones(700)
    result = bootstrap_auc(similarity, mated, {"flat": (ones, ones)}, convention="dasec", n_draws=4000, seed=3)
    interval = result.interval("flat")
    assert interval.value == pytest.approx(e0)
    assert interval.n_undefined == 0
    expected = binom.ppf([0.025, 0.975], 400, e0) / 400
    assert [interval.low, interval.high] == pytest.approx(expected, abs=1.01 / 400)
    assert result.draws[0].std() == pytest.approx(math.sqrt(e0 * (1 - e0) / 400), rel=0.05)


def test_intervals_cover_the_truth_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(11)
    ones = np.ones(220)
    covered = 0
    for trial in range(150):
        similarity, mated = benchmark(200, 20, 0.2, rng)
        result = bootstrap_auc(
            similarity, mated, {"flat": (ones, ones)}, convention="dasec", confidence=0.9, n_draws=120, seed=trial
        ).interval("flat")
        covered += result.low <= 0.2 <= result.high
    # 150 trials at 90 %: 135 expected, standard deviation 3.7; percentile intervals run slightly short.
    assert 120 <= covered <= 149


def test_draws_equal_curves_of_explicitly_resampled_pairs() -> None:
    similarity, mated, qualities = realistic(300, seed=2)
    result = bootstrap_auc(similarity, mated, qualities, fmr=0.02, n_draws=20, seed=9)
    rng = np.random.default_rng(9)  # the documented scheme: mated rows first, then non-mated rows
    for j in range(20):
        picked = np.sort(np.concatenate([rng.integers(150, size=150), 150 + rng.integers(150, size=150)]))
        for row, (a, b) in enumerate(qualities.values()):
            expected = edc_curve(similarity[picked], mated[picked], a[picked], b[picked], fmr=0.02).auc()
            assert result.draws[row, j] == pytest.approx(expected, abs=1e-12)


def test_seed_decides_and_scorers_do_not_disturb_each_other() -> None:
    similarity, mated, qualities = realistic(300, seed=4)
    both = bootstrap_auc(similarity, mated, qualities, fmr=0.02, n_draws=30, seed=1)
    again = bootstrap_auc(similarity, mated, qualities, fmr=0.02, n_draws=30, seed=1)
    alone = bootstrap_auc(similarity, mated, {"noisy": qualities["noisy"]}, fmr=0.02, n_draws=30, seed=1)
    other = bootstrap_auc(similarity, mated, qualities, fmr=0.02, n_draws=30, seed=2)
    np.testing.assert_array_equal(both.draws, again.draws)
    np.testing.assert_array_equal(both.draws[1], alone.draws[0])
    assert not np.array_equal(both.draws, other.draws)


def test_paired_difference_is_tighter_than_the_single_intervals() -> None:
    similarity, mated, qualities = realistic(2000, seed=6)
    result = bootstrap_auc(similarity, mated, qualities, fmr=0.01, n_draws=300, seed=0)
    true, noisy = result.interval("true"), result.interval("noisy")
    difference = result.difference("true", "noisy")
    assert difference.value == pytest.approx(true.value - noisy.value)
    assert difference.low < difference.value < difference.high < 0  # the true quality is clearly better
    assert difference.high - difference.low < (true.high - true.low) + (noisy.high - noisy.low)
    back = result.difference("noisy", "true")
    assert (back.low, back.high) == pytest.approx((-difference.high, -difference.low))
    same = result.difference("true", "true")
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_identities_widen_the_interval_when_pairs_are_copies() -> None:
    # 100 persons, each with ten identical mated pairs: there are 100 observations, not 1000.
    rng = np.random.default_rng(8)
    wrong = np.repeat(rng.uniform(size=100) < 0.2, 10)
    person = np.repeat(np.arange(100), 10)
    similarity = np.concatenate([np.where(wrong, -1.0, 1.0), np.zeros(100)])
    mated = np.arange(1100) < 1000
    a = np.concatenate([person, np.arange(100)])
    b = np.concatenate([person, np.roll(np.arange(100), 1)])
    ones = np.ones(1100)
    flat = {"flat": (ones, ones)}
    by_pair = bootstrap_auc(similarity, mated, flat, convention="dasec", n_draws=600)
    by_person = bootstrap_auc(similarity, mated, flat, convention="dasec", n_draws=600, identities=(a, b))
    e0 = wrong.mean()
    assert by_pair.draws.std() == pytest.approx(math.sqrt(e0 * (1 - e0) / 1000), rel=0.15)
    assert by_person.draws.std() == pytest.approx(math.sqrt(e0 * (1 - e0) / 100), rel=0.15)


def test_identity_draws_equal_explicit_resampling() -> None:
    similarity, mated, qualities = realistic(120, seed=3)
    person_a = np.arange(120) % 20
    person_b = np.where(mated, person_a, (person_a + 7) % 20)
    quality = qualities["true"]
    result = bootstrap_auc(
        similarity, mated, {"q": quality}, fmr=0.1, limit=0.5, n_draws=10, seed=5, identities=(person_a, person_b)
    )
    rng = np.random.default_rng(5)
    for j in range(10):
        drawn = rng.integers(20, size=20).tolist()
        rows = []
        for i in range(120):
            copies = drawn.count(person_a[i]) * (1 if mated[i] else drawn.count(person_b[i]))
            rows += [i] * copies
        expected = edc_curve(similarity[rows], mated[rows], quality[0][rows], quality[1][rows], fmr=0.1).auc(0.5)
        assert result.draws[0, j] == pytest.approx(expected, abs=1e-12)


def test_draws_without_a_value_are_counted() -> None:
    # Two persons: a draw of the same one twice holds no non-mated pair.
    similarity, mated, quality = [1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0], [4.0, 3.0, 2.0, 1.0]
    result = bootstrap_auc(
        similarity, mated, {"q": (quality, quality)}, limit=0.05, n_draws=400, identities=(["x", "y"] * 2, list("xyyx"))
    ).interval("q")
    assert 150 < result.n_undefined < 250
    assert (result.value, result.low, result.high) == (0, 0, 0)
    never = bootstrap_auc(similarity, mated, {"q": (quality, quality)}, n_draws=5).interval("q")
    assert math.isnan(never.value)
    assert math.isnan(never.low)
    assert never.n_undefined == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_draws": 0}, "n_draws=0"),
        ({"confidence": 95}, "confidence=95"),
        ({"limit": 1.0}, "limit=1.0"),
        ({"qualities": {}}, "no scorer"),
        ({"identities": ([1, 2, 3], [1, 2, 3, 4])}, r"identity_a has shape \(3,\) for 4 pairs"),
        ({"identities": ([1, 2, 1, 2], [1, 2, 1, 1])}, "pair 2 is non-mated but joins identities 1 and 1"),
        ({"identities": ([1, 2, 1, 2], [3, 2, 2, 1])}, "pair 0 is mated but joins identities 1 and 3"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    ones = np.arange(4.0)
    arguments = {"similarity": [1, 1, 0, 0], "mated": [1, 1, 0, 0], "qualities": {"q": (ones, ones)}, "n_draws": 3}
    with pytest.raises(FiqaRayError, match=message):
        bootstrap_auc(**{**arguments, **change})


def test_unknown_scorer_is_refused() -> None:
    similarity, mated, qualities = realistic(60, seed=0)
    result = bootstrap_auc(similarity, mated, qualities, fmr=0.1, n_draws=2)
    with pytest.raises(UsageError, match="scorer 'x' was not bootstrapped: choose one of true, noisy"):
        result.interval("x")
