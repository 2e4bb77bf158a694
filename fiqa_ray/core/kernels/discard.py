"""Compiled loops of the error-versus-discard curve: wrong decisions among the pairs that are left at each level.

A sample holds pair i `counts[i]` times. Its copies stand in one row, from the worst pair quality to the best, and level k
discards the first k/20 of them. So a copy is left where its number in that row is above the level's cut: nothing is sorted
for a sample, the order of the pairs by quality and their order by similarity serve all samples.
"""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled

N_LEVELS = 20
LATE_LEVEL = 10
"""First level at which half of the pairs or more are gone."""


@compiled
def number_copies(
    order: np.ndarray,
    ordered_mated: np.ndarray,
    counts: np.ndarray,
    last: np.ndarray,
    n_mated: np.ndarray,
    n_nonmated: np.ndarray,
) -> None:
    """Count up the copies of a sample by rising quality, and count what each level leaves.

    In numpy:

        last[order] = np.cumsum(counts[order])

    Args:
        order: `(n_pairs,) int64` pairs by rising quality.
        ordered_mated: `(n_pairs,) bool`, in that order.
        counts: `(n_pairs,) int64` copies of each pair.
        last: `(n_pairs,) int64`, filled: copies up to and including the pair's own.
        n_mated: `(20,) int64`, filled: mated copies left at each level.
        n_nonmated: `(20,) int64`, filled.
    """
    total, position, mated_before, level = 0, 0, 0, 0
    for i in range(len(counts)):
        total += counts[i]
    n_mated[:] = 0
    for p in range(len(order)):
        pair = order[p]
        end = position + counts[pair]
        while level < N_LEVELS and level * total // N_LEVELS < end:
            # the cut falls into this pair: so many mated copies lie before it
            n_mated[level] = mated_before + (level * total // N_LEVELS - position) * ordered_mated[p]
            level += 1
        mated_before += counts[pair] * ordered_mated[p]
        position = end
        last[pair] = end
    for k in range(N_LEVELS):
        n_mated[k] = mated_before - n_mated[k]
        n_nonmated[k] = total - k * total // N_LEVELS - n_mated[k]


@compiled
def copies_left(last: int, count: int, cut: int) -> int:
    """Return how many of a pair's `count` copies, of which the last has number `last`, lie behind the cut."""
    return max(0, min(last - cut, count))


@compiled
def threshold_below(
    unit_last: np.ndarray, unit_count: np.ndarray, unit_similarity: np.ndarray, cut: int, n_allowed: int
) -> tuple[float, int]:
    """Return the (n_allowed + 1)-th largest non-mated similarity left, and how many lie above it; NaN if none does.

    Args:
        unit_last: `(U,) int64` number of the last copy of each unit: non-mated pairs by falling similarity.
        unit_count: `(U,) int64` copies.
        unit_similarity: `(U,) float64`, falling.
        cut: copies that the level discards.
        n_allowed: false matches that may be made.
    """
    n_left, n_above, value = 0, 0, np.inf
    for u in range(len(unit_last)):
        left = copies_left(unit_last[u], unit_count[u], cut)
        if left == 0:
            continue
        if unit_similarity[u] != value:
            n_above, value = n_left, unit_similarity[u]
        n_left += left
        if n_left > n_allowed:
            return value, n_above
    return np.nan, 0


@compiled
def lowest_mated_above(
    mated_last: np.ndarray, mated_count: np.ndarray, mated_similarity: np.ndarray, cut: int, value: float
) -> float:
    """Return the lowest similarity above `value` of a mated pair that is left; infinity if there is none."""
    for m in range(np.searchsorted(mated_similarity, value, side="right"), len(mated_last)):
        if copies_left(mated_last[m], mated_count[m], cut) > 0:
            return float(mated_similarity[m])
    return np.inf


@compiled
def threshold_nearest(
    unit_last: np.ndarray,
    unit_count: np.ndarray,
    unit_similarity: np.ndarray,
    mated_last: np.ndarray,
    mated_count: np.ndarray,
    mated_similarity: np.ndarray,
    cut: int,
    doubled_target: int,
    denominator: int,
) -> tuple[float, int]:
    """Return the lowest similarity left whose count of non-mated pairs at or above it is nearest to the target.

    The second value is the number of non-mated pairs above that similarity. Arguments as in `threshold_below`; the mated
    pairs by rising similarity; the target is doubled_target / 2 / denominator. Of two nearest counts the larger is taken.
    """
    n_left, value = 0, np.inf  # non-mated pairs at or above the current similarity
    n_before, value_before, n_first = 0, np.inf, 0  # the group of equal similarities before, and what lies above that
    u = 0
    while u < len(unit_last):
        # 1. the next group of equal similarities
        here, n_group = unit_similarity[u], 0
        while u < len(unit_last) and unit_similarity[u] == here:
            n_group += copies_left(unit_last[u], unit_count[u], cut)
            u += 1
        if n_group == 0:
            continue
        if 2 * n_left * denominator >= doubled_target and n_left > 0:
            break  # the group before reached the target; `here` bounds it from below
        n_first, n_before, value_before = n_before, n_left, value
        n_left, value = n_left + n_group, here
    else:
        here = -np.inf
    if n_left == 0:
        return np.nan, 0
    # 2. is the count before this group nearer?
    if doubled_target < (n_before + n_left) * denominator:
        mated = lowest_mated_above(mated_last, mated_count, mated_similarity, cut, value)
        if mated < value_before:
            return mated, n_before
        if n_before > 0:
            return value_before, n_first
    # 3. else this group, or a mated pair between it and the next
    mated = lowest_mated_above(mated_last, mated_count, mated_similarity, cut, here)
    if mated < value:
        return mated, n_left
    return value, n_before


@compiled
def recomputed_levels(
    units: tuple[np.ndarray, np.ndarray, np.ndarray],
    late_units: tuple[np.ndarray, np.ndarray, np.ndarray],
    mated_pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    n_pairs: int,
    n_mated: np.ndarray,
    n_nonmated: np.ndarray,
    target: tuple[int, int],
    is_nearest: bool,
    threshold: np.ndarray,
    n_false_nonmatches: np.ndarray,
    n_false_matches: np.ndarray,
) -> None:
    """Fill the three `(20,)` arrays at the end: the conventions whose threshold is set again at each level.

    Args:
        units: last, count, similarity of the non-mated pairs by falling similarity, for levels below `LATE_LEVEL`.
        late_units: the same for the other levels.
        mated_pairs: the same of the mated pairs by rising similarity.
        n_pairs: copies in the sample.
        n_mated: `(20,) int64` mated copies left.
        n_nonmated: `(20,) int64` non-mated copies left.
        target: numerator and denominator of the false match rate.
        is_nearest: `nearest`, else `paper`.
        threshold: float64, filled; NaN where a kind of pair ran out.
        n_false_nonmatches: int64, filled.
        n_false_matches: int64, filled.
    """
    last, count, similarity = mated_pairs
    numerator, denominator = target
    highest = -np.inf
    for k in range(N_LEVELS):
        threshold[k], n_false_nonmatches[k], n_false_matches[k] = np.nan, 0, 0
        if n_mated[k] == 0 or n_nonmated[k] == 0:
            continue
        cut, wanted = k * n_pairs // N_LEVELS, numerator * n_nonmated[k]
        u_last, u_count, u_similarity = units if k < LATE_LEVEL else late_units
        if is_nearest:
            found = threshold_nearest(
                u_last, u_count, u_similarity, last, count, similarity, cut, 2 * wanted, denominator
            )
        else:
            found = threshold_below(u_last, u_count, u_similarity, cut, max(0, -(-wanted // denominator) - 1))
        threshold[k], n_false_matches[k] = found
        highest = max(highest, threshold[k])
    for m in range(len(last)):
        if similarity[m] > highest:
            break
        for k in range(N_LEVELS):
            left = copies_left(last[m], count[m], k * n_pairs // N_LEVELS)
            if left == 0:
                break
            if similarity[m] <= threshold[k]:
                n_false_nonmatches[k] += left


@compiled
def step_areas(
    quality: np.ndarray,
    similarity: np.ndarray,
    count: np.ndarray,
    threshold: float,
    limits: np.ndarray,
    area: np.ndarray,
) -> None:
    """Fill `area`: the areas below the step curve of the mated pairs up to each limit.

    Args:
        quality: `(n_mated,) float64`, rising; equal qualities are discarded together.
        similarity: `(n_mated,) float64`, in that order.
        count: `(n_mated,) int64` copies.
        threshold: a pair is wrong where its similarity is not above this.
        limits: `(n_limits,) float64`, rising, in (0, 1].
        area: `(n_limits,) float64`, filled.
    """
    n_left, n_wrong = 0, 0
    for m in range(len(count)):
        n_left += count[m]
        n_wrong += count[m] * (similarity[m] <= threshold)
    n_total, start, total, limit, m = n_left, 0.0, 0.0, 0, 0
    while m < len(count) and limit < len(limits):
        height = n_wrong / n_left if n_left > 0 else 0.0
        here = quality[m]
        while m < len(count) and quality[m] == here:
            n_left -= count[m]
            n_wrong -= count[m] * (similarity[m] <= threshold)
            m += 1
        end = (n_total - n_left) / n_total
        while limit < len(limits) and (limits[limit] <= end or n_left == 0):
            area[limit] = total + (limits[limit] - start) * height
            limit += 1
        total += (end - start) * height
        start = end
