"""The pairs of a benchmark in two orders, by similarity and by the quality that a score gives them.

All conventions, rates and samples are computed from these orders; nothing is sorted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.conventions import Convention, Pool
from fiqa_ray.core.verification import BoolArray, FloatArray, IntArray, check_finite, check_pairs
from fiqa_ray.errors import FiqaRayError, UsageError


@dataclass(frozen=True)
class PairOrder:
    """The comparisons of a benchmark by similarity: what all scorers have in common.

    Attributes:
        similarity: (n_pairs,) float64, in input order.
        mated: (n_pairs,) bool, in input order.
        mated_rows: (n_mated,) int64, input rows of the mated pairs by rising similarity.
        nonmated_rows: (n_nonmated,) int64, input rows of the non-mated pairs by falling similarity.
    """

    similarity: FloatArray
    mated: BoolArray
    mated_rows: IntArray
    nonmated_rows: IntArray

    @classmethod
    def of(cls, similarity: ArrayLike, mated: ArrayLike) -> PairOrder:
        """Check and sort; arguments and errors as in `edc_curve`."""
        scores, kinds = check_pairs(similarity, mated)
        by_similarity = np.argsort(scores, kind="stable")
        is_mated = kinds[by_similarity]
        return cls(scores, kinds, by_similarity[is_mated], by_similarity[~is_mated][::-1].copy())

    @cached_property
    def mated_similarity(self) -> FloatArray:
        """Similarities of the mated pairs, rising."""
        return self.similarity[self.mated_rows]

    @cached_property
    def nonmated_similarity(self) -> FloatArray:
        """Similarities of the non-mated pairs, falling."""
        return self.similarity[self.nonmated_rows]


@dataclass(frozen=True, eq=False)
class QualityOrder:
    """The comparisons of a pool by the quality that one scorer gives them.

    Attributes:
        order: (n,) int64, input rows by rising pair quality; equal qualities keep their input order.
        quality: (n,) float64, in that order; of the pool "images" the rank of the worse image, from 0.
        mated: (n,) bool, in that order.
        n_tied: pairs whose quality some other pair shares.
        n_images: images that the pairs show; 0 but for the pool "images".
    """

    order: IntArray
    quality: FloatArray
    mated: BoolArray
    n_tied: int
    n_images: int = 0

    @classmethod
    def of(cls, quality: FloatArray, mated: BoolArray, pool: Pool = "all", n_images: int = 0) -> QualityOrder:
        """Sort the pairs of a pool by their quality, (n_pairs,); the tied pairs are counted over all pairs."""
        order = np.argsort(quality, kind="stable")
        ordered = quality[order]
        same = ordered[1:] == ordered[:-1]
        n_tied = int((np.append(same, False) | np.append(False, same)).sum())
        if pool in ("mated", "nonmated"):
            order = order[mated[order] == (pool == "mated")]
            ordered = quality[order]
        return cls(order, ordered, mated[order], n_tied, n_images)

    @cached_property
    def position(self) -> NDArray[Any]:
        """Place of each pair of the pool in the order, (n_pairs,) unsigned."""
        position = np.zeros(self.order.max() + 1, dtype=np.min_scalar_type(self.order.size))
        position[self.order] = np.arange(self.order.size, dtype=position.dtype)
        return position

    @cached_property
    def mated_at(self) -> IntArray:
        """Places of the mated pairs in the order, rising."""
        return np.flatnonzero(self.mated)

    def cuts(self, ends: IntArray, convention: Convention) -> IntArray:
        """Return how many copies each level of a sample discards, (n_levels,) int64.

        Images are discarded down to the same quality in each sample.

        Args:
            ends: (n,) int64 copies in the sample up to and including those of each pair, in this order.
            convention: says how.
        """
        levels, n = np.arange(convention.n_levels), convention.n_levels

        def before(place: IntArray) -> IntArray:
            return np.where(place > 0, ends[np.maximum(place, 1) - 1], 0)

        if self.n_images:
            return before(np.searchsorted(self.quality, levels * self.n_images // n, side="left"))
        total = int(ends[-1])
        if convention.ties == "cut" or total == 0:
            return levels * total // n
        # The percentile of the copies' qualities with linear interpolation; what lies below it goes.
        at, between = np.divmod(levels * (total - 1), n)
        position, after = (np.searchsorted(ends, i, side="right") for i in (at, np.minimum(at + 1, total - 1)))
        group = np.searchsorted(self.quality, self.quality[position], side="left")
        is_group_kept = (between == 0) | (self.quality[position] == self.quality[after])
        return np.where(is_group_kept, before(group), at + 1)


class Qualities:
    """A scorer's qualities of the images of all pairs, sorted for each pool when it is first asked for."""

    def __init__(self, mated: BoolArray, quality: FloatArray, rank: FloatArray | None, n_images: int) -> None:
        """Hold the qualities; see `of`."""
        self._mated, self._quality, self._rank, self._n_images = mated, quality, rank, n_images
        self._orders: dict[Pool, QualityOrder] = {}

    @classmethod
    def of(
        cls,
        pairs: PairOrder,
        quality_a: ArrayLike,
        quality_b: ArrayLike,
        images: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> Qualities:
        """Check qualities; arguments and errors as in `edc_curve`."""
        qualities = [check_finite("quality_a", quality_a), check_finite("quality_b", quality_b)]
        for name, values in zip(("quality_a", "quality_b"), qualities, strict=True):
            if values.shape != pairs.mated.shape:
                raise FiqaRayError(f"{name} has {values.size} values for {pairs.mated.size} pairs: give one per pair")
        rank, n_images = None, 0
        if images is not None:
            names, rows = np.unique(np.concatenate([np.asarray(side) for side in images]), return_inverse=True)
            n_images, of_image = names.size, np.empty(names.size)
            of_image[rows] = np.concatenate(qualities)
            ranks = np.empty(n_images)
            ranks[np.argsort(of_image, kind="stable")] = np.arange(n_images)
            rank = np.minimum(*ranks[rows].reshape(2, -1))
        return cls(pairs.mated, np.minimum(*qualities), rank, n_images)

    def order(self, pool: Pool) -> QualityOrder:
        """Return the pairs of a pool by quality.

        Raises:
            UsageError: the pool is "images", and no images were given.
        """
        if pool not in self._orders:
            if pool == "images" and self._rank is None:
                raise UsageError("a convention that discards images needs images: give those of each pair")
            quality = self._rank if pool == "images" and self._rank is not None else self._quality
            n_images = self._n_images if pool == "images" else 0
            self._orders[pool] = QualityOrder.of(quality, self._mated, pool, n_images)
        return self._orders[pool]
