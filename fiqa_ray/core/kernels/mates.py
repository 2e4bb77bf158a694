"""Compiled loops over mated pairs: who is paired with whom, and how similar they are."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.draws import GOLDEN_GAMMA, WORD_STEP, mix
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.jit import compiled

_VECTOR_WIDTH = 16
"""Draws that are made side by side: a fixed number of turns, which the compiler makes into vector operations."""
_STEP = np.float32(1 / SIMILARITY_STEPS)


@compiled
def draw_mates(
    cluster: np.ndarray,
    bounds: np.ndarray,
    cluster_counts: np.ndarray,
    state: np.ndarray,
    first_pair: np.ndarray,
    mate: np.ndarray,
) -> None:
    """Draw one mate for every image from each other cluster of its identity.

    Every member of a cluster is equally likely, within 2^-24. For image i of identity k it does what `core.paper.draw_mates`
    does; `word` is `counter_draws` with the image as its last counter:

        word = mix((state[r, k] ^ i) + GOLDEN_GAMMA)
        mates = [members[c][uniform_below(len(members[c]), word, c)] for c in range(C) if c != cluster[i]]

    Args:
        cluster: `(I,) int32`, dense from 0 within each identity.
        bounds: `(K + 1,)`; identity k holds images bounds[k]:bounds[k+1].
        cluster_counts: `(K,)` clusters of each identity.
        state: `(R, K) uint64`, `counter_draws` up to the identity's row; the image's position is the last counter.
        first_pair: `(K,)` where the pairs of each identity start in `mate`.
        mate: `(R, space for all pairs) int32`, filled with positions in `cluster`, by image and then by mate's cluster.
    """
    max_clusters = 1
    for k in range(len(cluster_counts)):
        max_clusters = max(max_clusters, cluster_counts[k])
    width = (
        (max_clusters + _VECTOR_WIDTH - 1) // _VECTOR_WIDTH * _VECTOR_WIDTH
    )  # whole vectors; the surplus is not used
    first = np.zeros(width + 1, np.int32)
    scale = np.zeros(width, np.float32)
    word_step = np.empty(width, np.uint32)
    drawn = np.empty(width, np.uint32)
    for c in range(width):
        word_step[c] = np.uint32((c * WORD_STEP) & 0xFFFFFFFF)
    for k in range(len(cluster_counts)):
        low, n, n_clusters = bounds[k], bounds[k + 1] - bounds[k], cluster_counts[k]
        cluster_of = cluster[low : low + n]
        # 1. the identity's images, cluster by cluster: cluster c is members[first[c]:first[c + 1]]
        first[: n_clusters + 1] = 0
        for i in range(n):
            first[cluster_of[i] + 1] += 1
        for c in range(n_clusters):
            scale[c] = np.float32(first[c + 1]) * np.float32(0.5**24)
            first[c + 1] += first[c]
        next_free = first[:n_clusters].copy()
        members = np.empty(n, np.int32)
        for i in range(n):
            members[next_free[cluster_of[i]]] = low + i
            next_free[cluster_of[i]] += 1
        n_vectors, n_mates = (n_clusters + _VECTOR_WIDTH - 1) // _VECTOR_WIDTH, n_clusters - 1
        for r in range(len(mate)):
            mates_of_repeat, start = mate[r], state[r, k]
            p = first_pair[k]
            for i in range(n):
                # 2. draw a member of every cluster: `draws.uniform_below`
                word = np.uint32(mix((start ^ np.uint64(i)) + GOLDEN_GAMMA) >> np.uint64(32))
                for v in range(n_vectors):
                    for d in range(_VECTOR_WIDTH):
                        at = np.uint32(v * _VECTOR_WIDTH + d)
                        x = np.uint32(word + word_step[at])
                        x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD))
                        x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97))
                        x = np.uint32((x ^ (x >> np.uint32(15))) >> np.uint32(8))
                        drawn[at] = np.uint32(np.int32(np.float32(np.int32(x)) * scale[at]) + first[at])
                # 3. keep those of the other clusters: before the image's own cluster, and after it
                mine, mates = cluster_of[i], mates_of_repeat[p : p + n_mates]
                for c in range(mine):
                    mates[np.uint64(c)] = members[drawn[np.uint64(c)]]
                for c in range(mine, n_mates):
                    mates[np.uint64(c)] = members[drawn[np.uint64(c + 1)]]
                p += n_mates


@compiled
def similarities_of_mates(
    keys: np.ndarray,
    bounds: np.ndarray,
    cluster_counts: np.ndarray,
    first_pair: np.ndarray,
    mate: np.ndarray,
    similarity: np.ndarray,
) -> None:
    """Look the similarities of all pairs up in the identities' Gram matrices.

    In numpy, for the pairs of one identity with the `(N, N)` matrix `gram`:

        similarity[r, pairs] = gram[image, mate[r, pairs] - bounds[k]] / SIMILARITY_STEPS

    Args:
        keys: flat `cosine_keys` of the identities.
        bounds: `(K + 1,)` of the images.
        cluster_counts: `(K,)`; an image opens one pair per other cluster.
        first_pair: `(K,)` where the pairs of each identity start.
        mate: `(R, space) int32` of `draw_mates`.
        similarity: `(R, space) float32`, filled.
    """
    first = 0
    for k in range(len(cluster_counts)):
        low, n, n_mates = bounds[k], bounds[k + 1] - bounds[k], cluster_counts[k] - 1
        for r in range(len(mate)):
            mates, similarities = mate[r], similarity[r]
            p = np.uint64(first_pair[k])
            for i in range(n):
                row = keys[first + i * n : first + (i + 1) * n]
                for _ in range(n_mates):
                    similarities[p] = row[np.uint32(mates[p] - low)] * _STEP
                    p += np.uint64(1)
        first += n * n


@compiled
def count_clusters(cluster: np.ndarray, sizes: np.ndarray, cluster_counts: np.ndarray) -> bool:
    """Count the clusters of each identity: the largest number plus 1. Return False for a negative cluster.

    In numpy: `cluster_counts[:] = np.maximum.reduceat(cluster, first_images) + 1`, but identities may be empty.
    """
    i, lowest = 0, 0
    for k in range(len(sizes)):
        highest = -1
        for _ in range(sizes[k]):
            lowest, highest = min(lowest, cluster[i]), max(highest, cluster[i])
            i += 1
        cluster_counts[k] = highest + 1
    return lowest >= 0
