"""Compiled loops of the error-versus-discard curve: wrong decisions among the pairs that are left at each level.

A sample holds pair i `counts[i]` times. Its copies stand in one row, from the worst pair quality to the best, and a level
discards the first `cut` of them. So a copy is left where its number in that row is above the level's cut: nothing is sorted
for a sample, the order of the pairs by quality and their order by similarity serve all samples.
"""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled


@compiled
def number_copies(order: np.ndarray, counts: np.ndarray, ends: np.ndarray) -> None:
    """Count up the copies of a sample by rising quality.

    In numpy:

        ends[:] = np.cumsum(counts[order])

    Args:
        order: `(n,) int64` pairs by rising quality.
        counts: `(n_pairs,) int32` copies of each pair.
        ends: `(n,) int64`, filled: copies up to and including those of each pair of `order`.
    """
    total = np.int64(0)
    for p in range(len(order)):
        total += counts[np.uint64(order[p])]
        ends[p] = total


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
    is_all: bool,
) -> tuple[float, int]:
    """Return the lowest similarity left whose count of non-mated pairs at or above it is nearest to the target.

    The second value is the number of non-mated pairs above that similarity. Arguments as in `threshold_below`; the mated
    pairs by rising similarity; the target is doubled_target / 2 / denominator. Of two nearest counts the larger is taken.
    `is_all` says whether there are no units beyond the given ones; NaN where those would decide.
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
        if not is_all:
            return np.nan, 0
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
def recomputed_thresholds(
    units: tuple[np.ndarray, np.ndarray, np.ndarray],
    late_units: tuple[np.ndarray, np.ndarray, np.ndarray],
    mated_pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    n_pairs: int,
    cuts: np.ndarray,
    n_mated: np.ndarray,
    n_nonmated: np.ndarray,
    n_allowed: np.ndarray,
    target: tuple[int, int],
    is_nearest: bool,
    is_all: bool,
    threshold: np.ndarray,
    n_false_matches: np.ndarray,
) -> bool:
    """Fill the two arrays at the end: a threshold for each level, set by the pairs that it leaves.

    Stop and return False where further units, less similar than the given ones, would decide.

    Args:
        units: last, count, similarity of the non-mated pairs by falling similarity, for levels that leave more than half.
        late_units: the same for the other levels.
        mated_pairs: the same of the mated pairs by rising similarity.
        n_pairs: copies in the sample.
        cuts: `(K,) int64`, rising: copies that each level discards.
        n_mated: `(K,) int64` mated copies left.
        n_nonmated: `(K,) int64` non-mated copies left.
        n_allowed: `(K,) int64` false matches that may be made; not used if `is_nearest`.
        target: numerator and denominator of the false match rate.
        is_nearest: whether the count nearest to the target is wanted.
        is_all: whether there are no further units.
        threshold: `(K,) float64`, filled; NaN where a kind of pair ran out.
        n_false_matches: `(K,) int64` non-mated copies left above the threshold, filled.
    """
    last, count, similarity = mated_pairs
    for k in range(len(cuts)):
        threshold[k], n_false_matches[k] = np.nan, 0
        if n_mated[k] == 0 or n_nonmated[k] == 0:
            continue
        u_last, u_count, u_similarity = units if 2 * cuts[k] < n_pairs else late_units
        if is_nearest:
            wanted = 2 * target[0] * n_nonmated[k]
            threshold[k], n_false_matches[k] = threshold_nearest(
                u_last, u_count, u_similarity, last, count, similarity, cuts[k], wanted, target[1], is_all
            )
        else:
            threshold[k], n_false_matches[k] = threshold_below(u_last, u_count, u_similarity, cuts[k], n_allowed[k])
        if np.isnan(threshold[k]):
            return False
    return True


@compiled
def left_thresholds(
    units: tuple[np.ndarray, np.ndarray, np.ndarray],
    mated_pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    cuts: np.ndarray,
    fixed: float,
    is_all: bool,
    threshold: np.ndarray,
) -> bool:
    """Fill `threshold`: of the similarities that each level leaves the nearest to `fixed`, the lower of two.

    Arguments and result as in `recomputed_thresholds`. NaN where a kind of pair ran out.
    """
    u_last, u_count, u_similarity = units
    m_last, m_count, m_similarity = mated_pairs
    above = np.searchsorted(-u_similarity, -fixed, side="right")  # so many units are not below `fixed`
    first = np.searchsorted(m_similarity, fixed, side="left")
    for k in range(len(cuts)):
        low, high = -np.inf, np.inf
        for u in range(above, len(u_last)):
            if copies_left(u_last[u], u_count[u], cuts[k]) > 0:
                low = u_similarity[u]
                break
        for u in range(above - 1, -1, -1):
            if copies_left(u_last[u], u_count[u], cuts[k]) > 0:
                high = u_similarity[u]
                break
        if low == -np.inf and not is_all:
            return False
        no_unit, no_mated = low == -np.inf and high == np.inf, True
        for m in range(first - 1, -1, -1):
            if copies_left(m_last[m], m_count[m], cuts[k]) > 0:
                low, no_mated = max(low, m_similarity[m]), False
                break
        for m in range(first, len(m_last)):
            if copies_left(m_last[m], m_count[m], cuts[k]) > 0:
                high, no_mated = min(high, m_similarity[m]), False
                break
        threshold[k] = np.nan if no_unit or no_mated else low if fixed - low <= high - fixed else high
    return True


@compiled
def count_errors(
    mated_pairs: tuple[np.ndarray, np.ndarray, np.ndarray], cuts: np.ndarray, highest: np.ndarray, n_errors: np.ndarray
) -> None:
    """Count the mated copies left at each level whose similarity is `highest[k]` or lower.

    Args:
        mated_pairs: last, count, similarity of the mated pairs by rising similarity.
        cuts: `(K,) int64`, rising: copies that each level discards.
        highest: `(K,) float64`; NaN: none is counted.
        n_errors: `(K,) int64`, filled.
    """
    last, count, similarity = mated_pairs
    n_errors[:] = 0
    end = -np.inf
    for k in range(len(cuts)):
        if highest[k] > end:
            end = highest[k]
    for m in range(len(last)):
        if similarity[m] > end:
            break
        for k in range(len(cuts)):
            left = copies_left(last[m], count[m], cuts[k])
            if left == 0:
                break
            if similarity[m] <= highest[k]:
                n_errors[k] += left


@compiled
def count_matches(
    units: tuple[np.ndarray, np.ndarray, np.ndarray], cuts: np.ndarray, highest: np.ndarray, n_matches: np.ndarray
) -> None:
    """Count the non-mated copies left at each level whose similarity is above `highest[k]`.

    Args:
        units: last, count, similarity of the non-mated pairs by falling similarity.
        cuts: `(K,) int64`, rising: copies that each level discards.
        highest: `(K,) float64`; NaN: none is counted.
        n_matches: `(K,) int64`, filled.
    """
    last, count, similarity = units
    n_matches[:] = 0
    end = np.inf
    for k in range(len(cuts)):
        if highest[k] < end:
            end = highest[k]
    for m in range(len(last)):
        if similarity[m] <= end:
            break
        for k in range(len(cuts)):
            left = copies_left(last[m], count[m], cuts[k])
            if left == 0:
                break
            if similarity[m] > highest[k]:
                n_matches[k] += left


@compiled
def step_areas(
    quality: np.ndarray, is_wrong: np.ndarray, count: np.ndarray, limits: np.ndarray, area: np.ndarray
) -> None:
    """Fill `area`: the areas up to each limit below the step curve that has a level at each quality.

    Args:
        quality: `(n,) float64`, rising; equal qualities are discarded together.
        is_wrong: `(n,) bool`, in that order.
        count: `(n,) int64` copies.
        limits: `(n_limits,) float64`, rising, in (0, 1].
        area: `(n_limits,) float64`, filled.
    """
    n_left, n_wrong = 0, 0
    for m in range(len(count)):
        n_left += count[m]
        n_wrong += count[m] * is_wrong[m]
    n_total, start, total, limit, m = n_left, 0.0, 0.0, 0, 0
    while m < len(count) and limit < len(limits):
        height = n_wrong / n_left if n_left > 0 else 0.0
        here = quality[m]
        while m < len(count) and quality[m] == here:
            n_left -= count[m]
            n_wrong -= count[m] * is_wrong[m]
            m += 1
        end = (n_total - n_left) / n_total
        while limit < len(limits) and (limits[limit] <= end or n_left == 0):
            area[limit] = total + (limits[limit] - start) * height
            limit += 1
        total += (end - start) * height
        start = end
