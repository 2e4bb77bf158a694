"""The quality threshold for operation, by hand and on samples of persons."""

import numpy as np
import pytest

from fiqa_ray.core.quality_threshold import MatedSample, choose_threshold, halves, mated_sample
from fiqa_ray.errors import FiqaRayError, UsageError


def by_hand(n_copies: int = 1) -> MatedSample:
    """Ten persons with one pair each, of quality 0.0 to 0.9; wrong are those of 0.0, 0.1, 0.2 and 0.5."""
    quality = np.repeat(np.arange(10) / 10, n_copies)
    is_wrong = np.isin(np.repeat(np.arange(10), n_copies), [0, 1, 2, 5])
    person = np.arange(10 * n_copies)
    return MatedSample(quality, is_wrong, person, np.append(quality, quality), np.append(person, person))


@pytest.mark.parametrize(
    ("target", "threshold", "fnmr", "reject_rate"),
    [
        (0.39, 0.1, 3 / 9, 0.1),  # 4 of 10, 3 of 9
        (0.3, 0.2, 2 / 8, 0.2),
        (0.15, 0.3, 1 / 7, 0.3),  # 1 of 7; at 0.4 it is 1 of 6
        (0.1, 0.6, 0.0, 0.6),
    ],
)
def test_the_lowest_threshold_that_meets_the_target(target, threshold, fnmr, reject_rate) -> None:
    choice = choose_threshold(by_hand(100), target_fnmr=target, n_draws=0)
    assert choice.threshold == threshold
    assert choice.fnmr == pytest.approx(fnmr)
    assert (choice.reject_rate, choice.pair_reject_rate) == pytest.approx((reject_rate, reject_rate))
    assert choice.fnmr_before == 0.4
    assert (choice.n_pairs, choice.n_persons) == (round(1000 * (1 - reject_rate)), 1000)
    assert np.isnan(choice.fnmr_interval).all()


@pytest.mark.parametrize(("rate", "threshold"), [(0.3, 0.3), (0.35, 0.3), (0.05, 0.0), (0.99, 0.9)])
def test_the_highest_threshold_that_refuses_few(rate, threshold) -> None:
    choice = choose_threshold(by_hand(5), max_reject_rate=rate, n_draws=0)
    assert choice.threshold == threshold
    assert choice.reject_rate <= rate


def test_targets_that_cannot_be_met() -> None:
    with pytest.raises(FiqaRayError, match=r"FNMR 0\.01 can be met by 300 mated pairs or more, and there are 10;"):
        choose_threshold(by_hand(), target_fnmr=0.01)
    sample = by_hand(100)
    all_wrong = MatedSample(sample.quality, np.ones(1000, bool), *list(vars(sample).values())[2:])
    with pytest.raises(FiqaRayError, match=r"no quality threshold gives FNMR 0\.1 with 30 mated pairs left or more"):
        choose_threshold(all_wrong, target_fnmr=0.1)
    for wishes in ({}, {"target_fnmr": 0.1, "max_reject_rate": 0.1}, {"target_fnmr": 1.0}, {"max_reject_rate": 0.0}):
        with pytest.raises(UsageError, match="either a target FNMR or a maximal reject rate"):
            choose_threshold(sample, **wishes)


def population(rng: np.random.Generator, n_persons: int = 400) -> MatedSample:
    """Persons of some ten pairs; errors fall with quality and come in persons who are hard to recognise."""
    hard = rng.normal(size=n_persons)
    image_person = np.repeat(np.arange(n_persons), 6)
    image_quality = rng.normal(size=len(image_person)) + 0.3 * rng.normal(size=n_persons)[image_person]
    first = np.repeat(np.arange(n_persons) * 6, 10)
    a = first + rng.integers(6, size=len(first))
    b = first + (a - first + 1 + rng.integers(5, size=len(first))) % 6
    person, quality = image_person[a], np.minimum(image_quality[a], image_quality[b])
    is_wrong = rng.random(len(a)) < 1 / (1 + np.exp(3 + 2 * quality - 0.7 * hard[person]))
    return MatedSample(quality, is_wrong, person, image_quality, image_person)


@pytest.mark.slow
@pytest.mark.parametrize("wish", [{"target_fnmr": 0.05}, {"max_reject_rate": 0.2}])
def test_a_choice_on_half_of_the_persons_holds_on_the_other_half(wish) -> None:
    """In at least 93 % of 200 splits the other half shows rates within the intervals."""
    rng = np.random.default_rng(20)
    within = np.zeros((200, 2), bool)
    for split, row in enumerate(within):
        sample = population(rng)
        here, there = (sample.of_persons(half) for half in halves(400, split))
        choice = choose_threshold(here, **wish, n_draws=200, seed=split)
        intervals = choice.fnmr_interval, choice.reject_interval
        row[:] = [low <= r <= high for r, (low, high) in zip(there.rates(choice.threshold), intervals, strict=True)]
    assert within.mean(axis=0).min() >= 0.93
    wished = within[:, int("max_reject_rate" in wish)]
    assert wished.mean() < 1  # not by intervals that hold everything


def test_mated_sample_takes_the_mated_pairs() -> None:
    sample = mated_sample(
        similarity=[0.9, 0.1, 0.3, 0.5], mated=[1, 0, 1, 1], quality_a=[3, 4, 2, 1], quality_b=[2, 1, 5, 1],
        rows=(np.array([0, 1, 2, 3]), np.array([1, 2, 0, 3])), person=np.array([0, 0, 1, 1]),
        image_quality=[1, 2, 3, 4], threshold=0.5,
    )  # fmt: skip
    assert sample.quality.tolist() == [2, 2, 1]
    assert sample.is_wrong.tolist() == [False, True, True]
    assert sample.person.tolist() == [0, 1, 1]
