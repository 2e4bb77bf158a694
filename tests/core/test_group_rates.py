"""Error rates of groups: exact binomial intervals for few errors, the law of the bootstrap for many, persons."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from fiqa_ray.core.group_rates import error_rates


def test_few_errors_have_the_exact_binomial_interval() -> None:
    similarity = np.concatenate([np.full(97, 0.9), np.full(3, 0.1), np.full(200, 0.0)])
    mated = np.arange(300) < 100
    fmr, fnmr = error_rates(similarity, mated, 0.5, None, n_draws=50)
    for rate, n_wrong, n in ((fnmr, 3, 100), (fmr, 0, 200)):
        exact = binomtest(n_wrong, n).proportion_ci(0.95, method="exact")
        assert (rate.value, rate.low, rate.high) == pytest.approx((n_wrong / n, exact.low, exact.high))


def test_many_errors_are_resampled_by_pairs_or_by_persons() -> None:
    # 100 persons with ten mated pairs that are all right or all wrong: there are 100 observations, not 1000
    rng = np.random.default_rng(3)
    is_wrong = np.repeat(rng.uniform(size=100) < 0.4, 10)
    person = np.repeat(np.arange(100), 10)
    other = (person + 1 + np.arange(1000) % 99) % 100
    similarity = np.concatenate([np.where(is_wrong, -1.0, 1.0), np.zeros(1000)])
    mated = np.arange(2000) < 1000
    identities = np.concatenate([person, person]), np.concatenate([person, other])
    share = is_wrong.mean()
    _, by_pair = error_rates(similarity, mated, 0.5, None, n_draws=1500)
    _, by_person = error_rates(similarity, mated, 0.5, identities, n_draws=1500)
    for rate, n in ((by_pair, 1000), (by_person, 100)):
        expected = binom.ppf([0.025, 0.975], n, share) / n
        assert rate.value == share
        assert [rate.low, rate.high] == pytest.approx(expected, abs=2.5 / n)
