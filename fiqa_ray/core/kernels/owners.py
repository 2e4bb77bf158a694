"""Compiled loops of equations 2 and 3: rank sums by pair owner, the update over repeats, the reassignment of scores."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled


@compiled
def sum_ranks_by_owner(
    index: np.ndarray,
    n_opened: np.ndarray,
    mate: np.ndarray,
    doubled_rank: np.ndarray,
    rank_sum: np.ndarray,
    n_owned: np.ndarray,
) -> None:
    """Add each pair's doubled rank, and 1, to the image with the lower index: the pair's owner.

    In numpy, for images that all have a score:

        image = np.repeat(np.arange(I), n_opened)
        owner = np.where(index[mate] < index[image], mate, image)
        rank_sum += np.bincount(owner, doubled_rank, I)
        n_owned += np.bincount(owner, minlength=I)

    Args:
        index: `(I,) int64` quality indices, negative without a score: a pair with such an image has no owner.
        n_opened: `(I,)` pairs that each image opens.
        mate: `(L,) int32` positions.
        doubled_rank: `(L,)` integers.
        rank_sum: `(I,) int64`, zeros before.
        n_owned: `(I,) int64`, zeros before.
    """
    p = np.uint64(0)
    for i in range(len(n_opened)):
        my_index, my_sum, my_count = index[i], np.int64(0), np.int64(0)
        for _ in range(n_opened[i]):
            # 1. whose pair is it? the mask is -1 (all bits) where it is the mate's
            j = np.uint32(mate[p])
            rank, is_mates = np.int64(doubled_rank[p]), np.int64(index[j] < my_index)
            p += np.uint64(1)
            # 2. add to both, what is not theirs as 0
            my_sum += rank & (is_mates - 1)
            my_count += 1 - is_mates
            rank_sum[j] += rank & -is_mates
            n_owned[j] += is_mates
        rank_sum[i] += my_sum
        n_owned[i] += my_count
    # 3. an image without a score has a negative index, so it got all its pairs: they have no owner
    for i in range(len(index)):
        if index[i] < 0:
            rank_sum[i] = n_owned[i] = 0


@compiled
def add_repeat(
    index: np.ndarray,
    rank_sum: np.ndarray,
    n_owned: np.ndarray,
    scale: float,
    shift_sum: np.ndarray,
    mean_rank_sum: np.ndarray,
    n_owning_repeats: np.ndarray,
    n_owned_pairs: np.ndarray,
) -> None:
    """Add one repeat to the sums of equation 3.

    In numpy, with `owns = n_owned > 0` and `mean = rank_sum[owns] / (2 * n_owned[owns])`:

        shift_sum[owns] += mean * scale - index[owns]
        mean_rank_sum[owns] += mean
        n_owning_repeats += owns
        n_owned_pairs += n_owned

    All four are sums over the repeats added so far; `IndexUpdate` divides them.
    """
    for i in range(len(index)):
        n = n_owned[i]
        if n > 0:
            mean = rank_sum[i] / (2 * n)
            shift_sum[i] += mean * scale - index[i]
            mean_rank_sum[i] += mean
            n_owning_repeats[i] += 1
            n_owned_pairs[i] += n


@compiled
def assign_sorted_scores(
    prior: np.ndarray, index: np.ndarray, order: np.ndarray, ascending: np.ndarray, score: np.ndarray
) -> int:
    """Give the i-th image of `order` the i-th lowest prior score; return by how many ranks all images moved.

    In numpy:

        ascending[index] = prior
        score[order] = ascending
        return np.abs(np.arange(I) - index[order]).sum()

    Args:
        prior: `(I,)` prior scores.
        index: `(I,) int64` their quality indices.
        order: `(I,) int64` images by optimized index.
        ascending: `(I,)`, filled with the prior scores in ascending order.
        score: `(I,)`, filled.
    """
    for i in range(len(index)):
        ascending[np.uint64(index[i])] = prior[i]
    total_move = 0
    for rank in range(len(order)):
        image = np.uint64(order[rank])
        score[image] = ascending[rank]
        total_move += abs(rank - index[image])
    return total_move
