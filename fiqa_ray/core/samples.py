"""A sample of a benchmark: how often it holds each pair, and what of that is looked up for thresholds and levels.

Few numbers of a large sample are needed: those of its mated pairs, and of as many of its most similar non-mated pairs as
decide a threshold. So one pass in the order of a score numbers all copies, and the rest is looked up in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.conventions import Convention
from fiqa_ray.core.kernels.discard import number_copies
from fiqa_ray.core.orders import PairOrder, QualityOrder
from fiqa_ray.core.verification import FloatArray, IntArray

CountArray = NDArray[np.int32]
"""Copies of pairs."""
Units = tuple[IntArray, CountArray, FloatArray]
"""Pairs of a kind in the order of their similarity: number of the last copy, copies, similarity."""


@dataclass(frozen=True)
class Sample:
    """A sample that holds pair i `counts[i]` times, in input order, (n_pairs,) int32."""

    pairs: PairOrder
    counts: CountArray

    @classmethod
    def whole(cls, pairs: PairOrder) -> Sample:
        """Return the benchmark itself, one copy of each pair."""
        return cls(pairs, np.ones(pairs.mated.size, dtype=np.int32))

    @cached_property
    def mated_count(self) -> CountArray:
        """Copies of the mated pairs, by rising similarity."""
        return self.counts[self.pairs.mated_rows]

    @cached_property
    def n_mated(self) -> int:
        """Mated copies."""
        return int(self.mated_count.sum())

    @cached_property
    def n_nonmated(self) -> int:
        """Non-mated copies."""
        return int(self.counts.sum()) - self.n_mated

    def n_matches(self, highest: float) -> int:
        """Return the number of non-mated copies whose similarity is above `highest`."""
        similarity = self.pairs.nonmated_similarity
        n = similarity.size - np.searchsorted(similarity[::-1], highest, side="right")
        return int(self.counts[self.pairs.nonmated_rows[:n]].sum())


@dataclass(frozen=True)
class NonmatedUnits:
    """The non-mated copies of a sample by falling similarity; the first ones are looked up as they are asked for.

    Attributes:
        sample: the sample.
        rows: (n_moved,) int64 input rows of copies that stand alone, by a falling similarity of their own.
        back: (n_moved,) int64, by how many copies each lies before its pair's last one.
        similarity: (n_moved,) float64.
        n_moved_pairs: the most similar pairs, whose copies these are. All others follow, each with all of its copies.
    """

    sample: Sample
    rows: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    back: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    similarity: FloatArray = field(default_factory=lambda: np.empty(0))
    n_moved_pairs: int = 0

    @property
    def size(self) -> int:
        """Number of the units."""
        return self.rows.size + self.sample.pairs.nonmated_rows.size - self.n_moved_pairs

    def first(self, n: int) -> tuple[IntArray, IntArray, CountArray, FloatArray]:
        """Return row, back, copies and similarity of the first `n` units."""
        pairs, others = self.sample.pairs, slice(self.n_moved_pairs, self.n_moved_pairs + max(0, n - self.rows.size))
        rows, similarity = pairs.nonmated_rows[others], pairs.nonmated_similarity[others]
        count, back = self.sample.counts[rows], np.zeros_like(rows)
        if self.rows.size == 0:
            return rows, back, count, similarity
        return (
            np.concatenate([self.rows, rows])[:n],
            np.concatenate([self.back, back])[:n],
            np.concatenate([np.ones(self.rows.size, dtype=np.int32), count])[:n],
            np.concatenate([self.similarity, similarity])[:n],
        )

    def decide(self, n_first: int, is_decided: Callable[[int, bool], bool]) -> None:
        """Call `is_decided(n, is_all)`, which looks at the first n units, with more and more of them until it is true."""
        n = n_first
        while n < self.size:
            if is_decided(n, False):
                return
            n *= 2
        is_decided(self.size, True)


def n_looked_at(n_allowed: int) -> int:
    """Return how many units are looked at first where so many false matches are allowed."""
    return n_allowed + n_allowed // 4 + 64


@dataclass(frozen=True)
class Copies:
    """The copies of a sample in the order of a score, and what conventions and rates share of them.

    Attributes:
        sample: the sample.
        scorer: its pairs by quality.
    """

    sample: Sample
    scorer: QualityOrder
    _left: dict[tuple[str, int], tuple[IntArray, IntArray, IntArray]] = field(default_factory=dict, repr=False)
    _units: dict[int, Units] = field(default_factory=dict, repr=False)

    @cached_property
    def ends(self) -> IntArray:
        """Copies up to and including those of each pair, in the order of the score, (n,)."""
        ends = np.empty(self.scorer.order.size, dtype=np.int64)
        number_copies(self.scorer.order, self.sample.counts, ends)
        return ends

    @cached_property
    def mated(self) -> Units:
        """The mated pairs by rising similarity."""
        pairs = self.sample.pairs
        return self.ends[self.scorer.position[pairs.mated_rows]], self.sample.mated_count, pairs.mated_similarity

    def units(self, nonmated: NonmatedUnits, n: int) -> Units:
        """Return the first `n` of the sample's non-mated units."""
        found = self._units.get(id(nonmated))
        if found is None or found[0].size < n:
            rows, back, count, similarity = nonmated.first(n)
            found = self.ends[self.scorer.position[rows]] - back, count, similarity
            self._units[id(nonmated)] = found
        last, count, similarity = found
        return last[:n], count[:n], similarity[:n]

    def left(self, convention: Convention) -> tuple[IntArray, IntArray, IntArray]:
        """Return how many copies each level discards, and the mated and non-mated ones that it leaves, (n_levels,) each."""
        key = convention.ties, convention.n_levels
        if key not in self._left:
            cuts = self.scorer.cuts(self.ends, convention)
            n_left = self.ends[-1] - cuts
            if convention.pool == "mated":
                of_kinds = n_left, np.full(cuts.size, self.sample.n_nonmated)
            elif convention.pool == "nonmated":
                of_kinds = np.full(cuts.size, self.sample.n_mated), n_left
            else:
                n_mated = self.behind(cuts, self.scorer.mated_at)
                of_kinds = n_mated, n_left - n_mated
            self._left[key] = cuts, *of_kinds
        return self._left[key]

    def behind(self, cuts: IntArray, at: IntArray) -> IntArray:
        """Return how many copies of the pairs at these places in the order, rising, lie behind each cut."""
        last, count = self.ends[at], self.sample.counts[self.scorer.order[at]]
        sums = np.append(0, np.cumsum(count, dtype=np.int64))
        first = np.searchsorted(last, cuts, side="right")  # the first pair that does not lie before the cut
        last, count = np.append(last, cuts[-1]), np.append(count, 0)
        n_cut: IntArray = np.maximum(0, count[first] - (last[first] - cuts))  # its copies that do
        left: IntArray = sums[-1] - sums[first] - n_cut
        return left
