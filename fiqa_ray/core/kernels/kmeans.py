"""Compiled K-Means of many identities: the images that it starts from, and Lloyd's algorithm on Gram matrices."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.draws import GOLDEN_GAMMA, mix
from fiqa_ray.core.kernels.jit import compiled

MAX_ITERATIONS = 50


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
        starts: `(K, C) int32` of `choose_starts`.
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
