"""Compiled loops of the index update: sums of ranks per pair owner, and the assignment of sorted scores."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled


@compiled
def _sum_owned(
    index: np.ndarray,
    n_opened: np.ndarray,
    mate: np.ndarray,
    rank2: np.ndarray,
    total: np.ndarray,
    count: np.ndarray,
) -> None:
    """Adds each pair's rank and the pair itself to the image with the lower index."""
    p = np.uint64(0)
    for i in range(len(n_opened)):
        place, mine, n_mine = index[i], np.int64(0), np.int64(0)
        for _ in range(n_opened[i]):  # masks instead of branches, which no processor could foresee
            j = np.uint32(mate[p])
            rank, is_other = np.int64(rank2[p]), np.int64(index[j] < place)
            p += np.uint64(1)
            mine += rank & (is_other - 1)
            n_mine += 1 - is_other
            total[j] += rank & -is_other
            count[j] += is_other
        total[i] += mine
        count[i] += n_mine
    for i in range(len(index)):  # an image without a score has a lower index than any: it took all its pairs
        if index[i] < 0:
            total[i] = count[i] = 0


@compiled
def _add_repeat(
    index: np.ndarray,
    rank2_sum: np.ndarray,
    n_owned: np.ndarray,
    scale: float,
    shift: np.ndarray,
    mean_rank: np.ndarray,
    n_owning_repeats: np.ndarray,
    n_owned_pairs: np.ndarray,
) -> None:
    for i in range(len(index)):
        n = n_owned[i]
        if n > 0:
            mean = rank2_sum[i] / (2 * n)
            shift[i] += mean * scale - index[i]
            mean_rank[i] += mean
            n_owning_repeats[i] += 1
            n_owned_pairs[i] += n


@compiled
def _deal(prior: np.ndarray, index: np.ndarray, order: np.ndarray, ascending: np.ndarray, score: np.ndarray) -> int:
    """Fills ``ascending``, the prior scores by quality index, and ``score``; returns by how many places all images moved."""
    for i in range(len(index)):
        ascending[np.uint64(index[i])] = prior[i]
    n_moves = 0
    for place in range(len(order)):
        image = np.uint64(order[place])
        score[image] = ascending[place]
        n_moves += abs(place - index[image])
    return n_moves
