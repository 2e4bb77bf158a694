"""A quality threshold for operation: which images to refuse at capture, so that few mated pairs fail.

Images below the threshold are refused; a pair goes when one of its images does. The threshold is the lowest at which the
FNMR of the pairs left is at most a target, or the highest that refuses at most a share of the images. It is chosen on a
sample of persons and will be used on others, where the same errors do not come again. So its intervals say what a new sample
of as many persons will show: in each draw one sample of persons chooses the threshold, and a second one meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from fiqa_ray.core.verification import BoolArray, FloatArray, IntArray, check_finite
from fiqa_ray.errors import FiqaRayError, UsageError

MAX_UNDEFINED = 0.05
"""With a larger share of draws in which no threshold meets the target there is no interval."""
MIN_EXPECTED = 3
"""A target FNMR is chosen only where so many errors are expected at it among the pairs left (rule of three)."""


@dataclass(frozen=True)
class ThresholdChoice:
    """A quality threshold and what it does; intervals are NaN where there is none.

    Attributes:
        threshold: images of lower quality are refused.
        fnmr_before: FNMR of all mated pairs.
        fnmr: FNMR of those left.
        reject_rate: refused share of the images.
        pair_reject_rate: share of the mated pairs that goes.
        threshold_interval: low and high end of the threshold as other samples would choose it.
        fnmr_interval: of the FNMR that a new sample of as many persons shows at the threshold.
        reject_interval: of the refused share there.
        n_pairs: mated pairs left.
        n_errors: those that are not accepted.
        n_persons: persons of the sample.
        n_undefined: draws in which no threshold met the target, left out.
    """

    threshold: float
    fnmr_before: float
    fnmr: float
    reject_rate: float
    pair_reject_rate: float
    threshold_interval: tuple[float, float]
    fnmr_interval: tuple[float, float]
    reject_interval: tuple[float, float]
    n_pairs: int
    n_errors: int
    n_persons: int
    n_undefined: int


@dataclass(frozen=True)
class MatedSample:
    """Mated pairs and images of a sample of persons.

    Attributes:
        quality: `(L,) float64` pair qualities: of the worse image.
        is_wrong: `(L,) bool`, not accepted.
        person: `(L,) int64` from 0.
        image_quality: `(I,) float64`.
        image_person: `(I,) int64` from 0.
    """

    quality: FloatArray
    is_wrong: BoolArray
    person: IntArray
    image_quality: FloatArray
    image_person: IntArray

    def of_persons(self, chosen: BoolArray) -> MatedSample:
        """Return the pairs and images of the persons for whom `chosen` `(n_persons,)` holds."""
        pairs, images = chosen[self.person], chosen[self.image_person]
        return MatedSample(
            self.quality[pairs],
            self.is_wrong[pairs],
            self.person[pairs],
            self.image_quality[images],
            self.image_person[images],
        )

    def rates(self, threshold: float) -> tuple[float, float]:
        """Return FNMR of the pairs left at a threshold, NaN without any, and the refused share of the images."""
        left = self.quality >= threshold
        fnmr = float(self.is_wrong[left].mean()) if left.any() else np.nan
        return fnmr, float((self.image_quality < threshold).mean())


def choose_threshold(
    sample: MatedSample,
    *,
    target_fnmr: float | None = None,
    max_reject_rate: float | None = None,
    n_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ThresholdChoice:
    """Choose a quality threshold on a sample.

    Args:
        sample: pairs and images.
        target_fnmr: the FNMR of the pairs left shall be at most this, inside (0, 1).
        max_reject_rate: or at most this share of the images shall be refused, inside (0, 1).
        n_draws: pairs of samples of persons, for intervals.
        level: confidence.
        seed: of the draws.

    Raises:
        UsageError: both or none of the two wishes were given, or one is outside (0, 1).
        FiqaRayError: no threshold meets the target.
    """
    wishes = [wish for wish in (target_fnmr, max_reject_rate) if wish is not None]
    if len(wishes) != 1 or not 0 < wishes[0] < 1:
        raise UsageError("give either a target FNMR or a maximal reject rate, inside (0, 1)")
    search = _Search.of(sample, target_fnmr, max_reject_rate)
    once = np.ones(search.n_persons)
    threshold = search.choose(once)
    if np.isnan(threshold):
        raise FiqaRayError(_no_threshold(sample, target_fnmr or 0.0))
    fnmr, reject_rate = search.rates(threshold, once)
    left = sample.quality >= threshold
    intervals, n_undefined = _intervals(search, (fnmr, reject_rate), n_draws, level, seed)
    return ThresholdChoice(
        threshold,
        float(sample.is_wrong.mean()),
        fnmr,
        reject_rate,
        float(1 - left.mean()),
        intervals[0],
        intervals[1],
        intervals[2],
        n_pairs=int(left.sum()),
        n_errors=int(sample.is_wrong[left].sum()),
        n_persons=search.n_persons,
        n_undefined=n_undefined,
    )


def _no_threshold(sample: MatedSample, target: float) -> str:
    n_needed = int(np.ceil(MIN_EXPECTED / target))
    n = len(sample.quality)
    if n < n_needed:
        return (
            f"FNMR {target:g} can be met by {n_needed:,} mated pairs or more, and there are {n:,}; give more pairs or "
            "a larger FNMR"
        )
    return (
        f"no quality threshold gives FNMR {target:g} with {n_needed:,} mated pairs left or more; all {n:,} pairs have FNMR "
        f"{sample.is_wrong.mean():.3g}. Give a larger FNMR, a lower similarity threshold, or a better quality score"
    )


def _intervals(
    search: _Search, rates: tuple[float, float], n_draws: int, level: float, seed: int
) -> tuple[list[tuple[float, float]], int]:
    """Return the intervals of threshold, FNMR and reject rate, and the number of draws that met no threshold.

    Args:
        search: the sample.
        rates: its FNMR and reject rate at its own threshold.
        n_draws: pairs of samples.
        level: confidence.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    draws = np.full((n_draws, 5), np.nan)  # threshold, rates of the sample that chose it, rates of the other
    for draw in draws:
        first, second = (_copies(rng, search.n_persons) for _ in range(2))
        draw[0] = search.choose(first)
        draw[1:3], draw[3:] = search.rates(draw[0], first), search.rates(draw[0], second)
    is_undefined = np.isnan(draws).any(axis=1)
    n_undefined = int(is_undefined.sum())
    if n_draws == 0 or n_undefined > MAX_UNDEFINED * n_draws:
        return [(np.nan, np.nan)] * 3, n_undefined
    defined = draws[~is_undefined]
    low, high = np.quantile(defined[:, 0], [(1 - level) / 2, (1 + level) / 2])
    of_rates = [_rate_interval(rates[k], defined[:, 1 + k], defined[:, 3 + k], level) for k in range(2)]
    return [(float(low), float(high)), *of_rates], n_undefined


def _rate_interval(rate: float, chosen: FloatArray, new: FloatArray, level: float) -> tuple[float, float]:
    """Return the interval of a rate that a new sample shows, from what it differs by between the samples of the draws.

    `chosen` holds the rates of the samples that chose a threshold, `new` those of the samples that did not.

    Differences are taken between arcsines of roots, whose spread hardly depends on the rate: a sample with few errors by
    chance also says that they vary little.
    """
    difference = _angle(new) - _angle(chosen)
    half = norm.ppf((1 + level) / 2) * difference.std()
    middle = _angle(np.array(rate)) + difference.mean()
    low, high = np.sin(np.clip([middle - half, middle + half], 0, np.pi / 2)) ** 2
    return float(low), float(high)


def _angle(rate: FloatArray) -> FloatArray:
    """Return the variance-stabilised rate."""
    return np.asarray(np.arcsin(np.sqrt(rate)))


def _copies(rng: np.random.Generator, n: int) -> FloatArray:
    """Return how often each of `n` persons stands in a sample of as many, (n,)."""
    return np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)


@dataclass(frozen=True)
class _Search:
    """A sample in the order in which thresholds are tried.

    Attributes:
        person, is_wrong: of the mated pairs by falling quality.
        group_end: `(G,)` number of pairs whose quality is at least `group_quality`, the distinct qualities, falling.
        image_person, image_quality: of the images by rising quality.
    """

    person: IntArray
    is_wrong: FloatArray
    group_end: IntArray
    group_quality: FloatArray
    image_person: IntArray
    image_quality: FloatArray
    n_persons: int
    target_fnmr: float | None
    max_reject_rate: float | None

    @classmethod
    def of(cls, sample: MatedSample, target_fnmr: float | None, max_reject_rate: float | None) -> _Search:
        """Sort a sample."""
        order = np.argsort(-sample.quality, kind="stable")
        quality = sample.quality[order]
        ends = np.flatnonzero(np.append(quality[1:] != quality[:-1], True)) + 1
        images = np.argsort(sample.image_quality, kind="stable")
        persons = np.unique(np.concatenate([sample.person, sample.image_person]))
        return cls(
            np.searchsorted(persons, sample.person[order]),
            sample.is_wrong[order].astype(np.float64),
            ends,
            quality[ends - 1],
            np.searchsorted(persons, sample.image_person[images]),
            sample.image_quality[images],
            len(persons),
            target_fnmr,
            max_reject_rate,
        )

    def choose(self, weight: FloatArray) -> float:
        """Return the threshold that a sample of persons chooses; NaN if none meets the target."""
        return self._by_fnmr(weight) if self.max_reject_rate is None else self._by_reject_rate(weight)

    def rates(self, threshold: float, weight: FloatArray) -> tuple[float, float]:
        """Return FNMR and reject rate of a sample of persons at a threshold; NaN where they are undefined."""
        if np.isnan(threshold):
            return np.nan, np.nan
        n_groups = int(np.searchsorted(-self.group_quality, -threshold, side="right"))
        n_left = int(self.group_end[n_groups - 1]) if n_groups else 0
        of_pair, of_image = weight[self.person[:n_left]], weight[self.image_person]
        total = of_pair.sum()
        n_refused = int(np.searchsorted(self.image_quality, threshold, side="left"))
        fnmr = float(of_pair @ self.is_wrong[:n_left] / total) if total else np.nan
        return fnmr, float(of_image[:n_refused].sum() / of_image.sum())

    def _by_fnmr(self, weight: FloatArray) -> float:
        """Return the lowest threshold whose pairs left meet the target; NaN if none does."""
        target = self.target_fnmr or 0.0
        of_pair = weight[self.person]
        n_left = np.cumsum(of_pair)[self.group_end - 1]
        n_wrong = np.cumsum(of_pair * self.is_wrong)[self.group_end - 1]
        meets = np.flatnonzero((n_wrong <= target * n_left) & (n_left * target >= MIN_EXPECTED))
        return float(self.group_quality[meets[-1]]) if meets.size else np.nan

    def _by_reject_rate(self, weight: FloatArray) -> float:
        """Return the highest quality of an image at which at most the wished share of images is refused."""
        of_image = weight[self.image_person]
        below = np.append(0.0, np.cumsum(of_image)[:-1]) / of_image.sum()
        first = np.flatnonzero(np.append(True, np.diff(self.image_quality) != 0))  # of equal qualities: all or none go
        allowed = first[below[first] <= (self.max_reject_rate or 0.0)]
        return float(self.image_quality[allowed[-1]])


def mated_sample(
    similarity: ArrayLike,
    mated: ArrayLike,
    quality_a: ArrayLike,
    quality_b: ArrayLike,
    rows: tuple[IntArray, IntArray],
    person: IntArray,
    image_quality: ArrayLike,
    threshold: float,
) -> MatedSample:
    """Return the mated pairs of a list as a sample.

    Args:
        similarity: `(L,)` of all pairs.
        mated: `(L,)`.
        quality_a: `(L,)` of the first images.
        quality_b: `(L,)` of the second ones.
        rows: `(L,)` rows of the first and of the second images.
        person: `(I,)` person of each image, from 0.
        image_quality: `(I,)`.
        threshold: similarity above which a pair is accepted.
    """
    kinds = np.asarray(mated, bool)
    quality = np.minimum(check_finite("quality_a", quality_a), check_finite("quality_b", quality_b))
    is_wrong = check_finite("similarity", similarity) <= threshold
    of_images = check_finite("image quality", image_quality)
    return MatedSample(quality[kinds], is_wrong[kinds], person[rows[0][kinds]], of_images, person)


def halves(n_persons: int, seed: int) -> Sequence[BoolArray]:
    """Return two random halves of the persons."""
    first = np.zeros(n_persons, bool)
    first[np.random.default_rng(seed).permutation(n_persons)[: n_persons // 2]] = True
    return first, ~first
