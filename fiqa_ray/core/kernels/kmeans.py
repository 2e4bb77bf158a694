"""Compiled K-Means of many identities: the images that it starts from, and Lloyd's algorithm on Gram matrices."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.draws import GOLDEN_GAMMA, mix
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.jit import compiled

MAX_ITERATIONS = 50
FULL_KEY = float(SIMILARITY_STEPS)
"""Key of two equal directions."""


@compiled
def choose_starts(sizes: np.ndarray, state: np.ndarray, starts: np.ndarray) -> None:
    """Choose the images that K-Means starts from: those with the smallest draws, in their order.

    In numpy, for identity k of `n = sizes[k]` images:

        draws = mix((state[k] ^ np.arange(n)) + GOLDEN_GAMMA)
        starts[k, :min(n, C)] = np.argsort(draws, kind="stable")[:C]

    Args:
        sizes: `(K,)` images of each identity.
        state: `(K,) uint64`, `counter_draws` up to the identity's row; the image's position is the last counter.
        starts: `(K, C) int32`, filled with positions in the identity, as many as it has images.
    """
    for k in range(len(sizes)):
        # 1. one draw for each image
        draws = np.empty(sizes[k], np.uint64)
        for i in range(sizes[k]):
            draws[i] = mix((state[k] ^ np.uint64(i)) + GOLDEN_GAMMA)
        # 2. insert each image among the smallest draws so far; most images are not among them
        n_starts = min(sizes[k], starts.shape[1])
        n = 0
        for i in range(sizes[k]):
            if n == n_starts and draws[i] >= draws[starts[k, n - 1]]:
                continue
            n = min(n + 1, n_starts)
            c = n - 1
            while c > 0 and draws[i] < draws[starts[k, c - 1]]:
                starts[k, c] = starts[k, c - 1]
                c -= 1
            starts[k, c] = i


@compiled
def spread_starts(keys: np.ndarray, bounds: np.ndarray, state: np.ndarray, starts: np.ndarray) -> None:
    """Choose the images that K-Means starts from by greedy k-means++, on the Gram matrices of some identities.

    The first is the image with the smallest draw. For each further one, T images are drawn in proportion to their squared
    distance to the nearest start so far; the one that leaves the smallest sum of these distances is taken. Distances are
    whole numbers, half the squared distance in steps of 2^-23, so their sums are exact.

    In numpy, for identity k of n images with the `(n, n)` keys `gram`, and with S = 2^23:

        gap = S - gram.astype(float)                               # (n, n), 0 on the diagonal
        starts[k, 0] = mix((state[k] ^ np.arange(n)) + GOLDEN_GAMMA).argmin()
        nearest = gap[starts[k, 0]]
        for c in range(1, min(n, C)):
            words = mix((state[k] ^ (n + c * T + np.arange(T))) + GOLDEN_GAMMA)
            target = np.floor((words >> 11) * 2.0**-53 * nearest.sum())
            drawn = np.searchsorted(nearest.cumsum(), target, side="right")
            left = np.minimum(nearest, gap[drawn])                 # (T, n)
            starts[k, c] = drawn[left.sum(1).argmin()]
            nearest = left[left.sum(1).argmin()]

    Where all images coincide with starts, the first image that is no start follows.

    Args:
        keys: flat `cosine_keys` of the identities.
        bounds: `(K + 1,)` their images.
        state: `(K,) uint64`, as for `choose_starts`.
        starts: `(K, C) int32`, filled as `choose_starts` does.
    """
    n_trials = 2 + int(np.log(starts.shape[1]))  # T, as in scikit-learn
    first = 0
    for k in range(len(starts)):
        n = bounds[k + 1] - bounds[k]
        gram = keys[first : first + n * n].reshape(n, n)
        first += n * n
        if n == 0:
            continue
        # 1. the image with the smallest draw
        best = 0
        smallest = mix((state[k] ^ np.uint64(0)) + GOLDEN_GAMMA)
        for i in range(1, n):
            word = mix((state[k] ^ np.uint64(i)) + GOLDEN_GAMMA)
            if word < smallest:
                best, smallest = i, word
        nearest = np.full(n, np.inf)
        is_start = np.zeros(n, np.bool_)
        left, best_left = np.empty(n), np.empty(n)
        for c in range(min(n, starts.shape[1])):
            # 2. draw candidates, and keep the one that leaves least
            if c > 0:
                total = nearest.sum()
                best, smallest_left = -1, np.inf
                for t in range(n_trials if total > 0 else 0):
                    word = mix((state[k] ^ np.uint64(n + c * n_trials + t)) + GOLDEN_GAMMA)
                    target = np.floor(np.float64(word >> np.uint64(11)) * 2.0**-53 * total)
                    drawn, reached = 0, nearest[0]
                    while reached <= target:
                        drawn += 1
                        reached += nearest[drawn]
                    n_left = _gaps_left(gram, drawn, nearest, left)
                    if n_left < smallest_left:
                        best, smallest_left = drawn, n_left
                        best_left[:] = left
                if best < 0:  # all images coincide with starts
                    best = 0
                    while is_start[best]:
                        best += 1
                else:
                    nearest[:] = best_left
            else:
                _gaps_left(gram, best, nearest, left)
                nearest[:] = left
            starts[k, c] = best
            is_start[best] = True


@compiled
def _gaps_left(gram: np.ndarray, start: int, nearest: np.ndarray, left: np.ndarray) -> float:
    """Fill `left` with the distances to the nearest start once `start` is one too; return their sum."""
    total = 0.0
    for i in range(len(nearest)):
        gap = 0.0 if i == start else FULL_KEY - np.float64(gram[start, i])
        left[i] = min(gap, nearest[i])
        total += left[i]
    return total


@compiled
def lloyd(
    keys: np.ndarray, bounds: np.ndarray, starts: np.ndarray, cluster: np.ndarray, cluster_counts: np.ndarray
) -> None:
    """Run Lloyd's algorithm on the Gram matrices of some identities.

    In numpy, for one identity with the `(N, N)` matrix `gram` and the `(N, C)` membership `member`
    (`core.paper.cluster_identity` is the whole of it):

        T = gram @ member                                          # sums to each cluster
        m = member.sum(0)
        distance = T * (-2 / m) + (T * member).sum(0) / m**2       # squared, up to a constant
        member = np.eye(C)[distance.argmin(1)]                     # until nothing changes

    Args:
        keys: flat `cosine_keys` of the identities.
        bounds: `(K + 1,)` their images in `cluster`.
        starts: `(K, C) int32` of `choose_starts` or `spread_starts`.
        cluster: `(I,) int32`, filled with numbers from 0 within each identity, without gaps.
        cluster_counts: `(K,)`, filled with the number of clusters: fewer than it started from where one lost all its
            images (only duplicates do that).
    """
    first = 0
    for b in range(len(cluster_counts)):
        low, n = bounds[b], bounds[b + 1] - bounds[b]
        gram = keys[first : first + n * n].reshape(n, n)
        first += n * n
        member = cluster[low : low + n]
        k = min(starts.shape[1], n)
        # 1. round the keys: n numbers of up to 2^23 / 2^shift sum to at most 2^24, which float32 holds exactly
        shift = 0
        while (1 << (shift + 1)) < n:
            shift += 1
        rounding = np.float32(0.5**shift)
        # 2. the first members are the starts
        nearest = np.full(n, -1, np.int32)
        for c in range(k):
            nearest[starts[b, c]] = c
        member[:] = -1
        sum_to_cluster = np.zeros((k, n), np.float32)  # T
        distance = np.empty(n, np.float32)
        size = np.zeros(k, np.int64)
        cluster_self_sum = np.empty(k, np.float64)
        for _ in range(MAX_ITERATIONS + 1):
            # 3. move each image that changed: add its row to the sums of its new cluster, take it from the old one
            n_changed = 0
            for j in range(n):
                before, after = member[j], nearest[j]
                if before == after:
                    continue
                n_changed += 1
                member[j] = after
                row, gains = gram[j], sum_to_cluster[after]
                size[after] += 1
                if before >= 0:
                    size[before] -= 1
                    loses = sum_to_cluster[before]
                    for i in range(n):
                        entry = np.rint(row[i] * rounding)
                        gains[i] += entry
                        loses[i] -= entry
                else:  # it was in no cluster yet
                    for i in range(n):
                        gains[i] += np.rint(row[i] * rounding)
            if n_changed == 0:
                break
            # 4. the sums within each cluster
            cluster_self_sum[:] = 0.0
            for i in range(n):
                if member[i] >= 0:
                    cluster_self_sum[member[i]] += sum_to_cluster[member[i], i]
            # 5. the nearest cluster of each image: the first of several
            distance[:] = np.inf
            for c in range(k):
                if size[c] == 0:
                    continue
                m = np.float64(size[c])
                offset, slope = np.float32(cluster_self_sum[c] / (m * m)), np.float32(-2.0 / m)
                sums = sum_to_cluster[c]
                for i in range(n):
                    d = sums[i] * slope + offset
                    is_less = d < distance[i]
                    distance[i] = d if is_less else distance[i]
                    nearest[i] = c if is_less else nearest[i]
        # 6. close the gaps that empty clusters leave
        n_used = 0
        for c in range(k):
            if size[c] > 0:
                if n_used < c:
                    for i in range(n):
                        if member[i] == c:
                            member[i] = n_used
                n_used += 1
        cluster_counts[b] = n_used
