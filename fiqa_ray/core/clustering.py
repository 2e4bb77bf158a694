"""Clusters of one identity's images (paper III-C, "Selecting mated image pairs"): K-Means in the embedding space.

Lloyd's algorithm runs on the Gram matrix of the identity's unit vectors; centroids are never formed. With members j, l of
cluster c, its size m and T_ic = sum_j G_ij, the squared distance of image i to the cluster's mean is, up to G_ii,

    1/m^2 * sum_j T_jc  -  2/m * T_ic .

For the sums T the matrix is rounded to whole numbers small enough that float32 holds every sum exactly. So the clusters
depend on the identity's own embeddings alone: not on its batch, on threads or on the order of summing; and when images
change their cluster, T is mended by what changed, with no error to pile up.

The Gram matrices of a few identities that lie one behind the other fill one flat array, each row by row: identity k, of n_k
images, takes n_k^2 entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fiqa_ray.core.kernels.draws import counter_draws, draw_starts
from fiqa_ray.core.kernels.jit import compiled

MAX_ITERATIONS = 50


_INIT_STREAM = 0x1217


def start_states(identity_rows: np.ndarray, repeats: Sequence[int], *, seed: int) -> np.ndarray:
    """(n_repeats, n_identities) uint64: the counters that decide where K-Means starts, before an image's own place."""
    return counter_draws(seed, _INIT_STREAM, np.asarray(repeats)[:, None], identity_rows)


def start_images(sizes: np.ndarray, state: np.ndarray, n_clusters: int) -> np.ndarray:
    """Places of the images that K-Means starts from: (n_identities, n_clusters) int32, of which the first n_images count.

    ``sizes``: (n_identities,) images; ``state``: (n_identities,) of `start_states`.
    """
    starts = np.zeros((len(sizes), n_clusters), np.int32)
    draw_starts(sizes, state, starts)
    return starts


@compiled
def lloyd(flat: np.ndarray, bounds: np.ndarray, starts: np.ndarray, cluster: np.ndarray, n_cells: np.ndarray) -> None:
    """K-Means of the identities whose `cosine_keys` are in ``flat``.

    ``bounds``: (n_identities + 1,) places of their images in ``cluster``, (n_images,) int32, which is filled: numbers from 0
    within each identity, without gaps. ``starts``: their `start_images`, min(n_clusters, n) of an identity of n images.
    ``n_cells``: (n_identities,) is filled with the number of clusters: fewer than it started from where one lost all its
    images (only duplicates do that).
    """
    first = 0
    for b in range(len(n_cells)):
        low, n = bounds[b], bounds[b + 1] - bounds[b]
        gram = flat[first : first + n * n].reshape(n, n)
        first += n * n
        member = cluster[low : low + n]
        k = min(starts.shape[1], n)
        # n numbers of up to 2^23 / 2^shift sum to no more than 2^24, which float32 holds exactly
        shift = 0
        while (1 << (shift + 1)) < n:
            shift += 1
        coarse = np.float32(0.5**shift)
        new = np.full(n, -1, np.int32)
        for c in range(k):
            new[starts[b, c]] = c
        member[:] = -1
        to_cluster = np.zeros((k, n), np.float32)  # T
        distance = np.empty(n, np.float32)
        size = np.zeros(k, np.int64)
        within = np.empty(k, np.float64)
        for _ in range(MAX_ITERATIONS + 1):
            n_changed = 0
            for j in range(n):
                before, after = member[j], new[j]
                if before == after:
                    continue
                n_changed += 1
                member[j] = after
                row, gains = gram[j], to_cluster[after]
                size[after] += 1
                if before >= 0:
                    size[before] -= 1
                    loses = to_cluster[before]
                    for i in range(n):
                        entry = np.rint(row[i] * coarse)
                        gains[i] += entry
                        loses[i] -= entry
                else:  # was in no cluster yet
                    for i in range(n):
                        gains[i] += np.rint(row[i] * coarse)
            if n_changed == 0:
                break
            within[:] = 0.0
            for i in range(n):
                if member[i] >= 0:
                    within[member[i]] += to_cluster[member[i], i]
            distance[:] = np.inf
            for c in range(k):
                if size[c] == 0:
                    continue
                m = np.float64(size[c])
                offset, slope = np.float32(within[c] / (m * m)), np.float32(-2.0 / m)
                sums = to_cluster[c]
                for i in range(n):
                    d = sums[i] * slope + offset
                    less = d < distance[i]
                    distance[i] = d if less else distance[i]
                    new[i] = c if less else new[i]
        used = 0
        for c in range(k):  # numbers without images are closed up
            if size[c] > 0:
                if used < c:
                    for i in range(n):
                        if member[i] == c:
                            member[i] = used
                used += 1
        n_cells[b] = used


def faiss_clusters(units: np.ndarray, identity_row: int, n_clusters: int, *, seed: int, repeat: int = 0) -> np.ndarray:
    """K-Means of one identity by faiss: for identities too large for a Gram matrix, and where a run asks for it.

    ``(n, dim)`` float32 -> ``(n,)`` int32, dense from 0. Same start rule as `lloyd`. Memory: linear in n.
    """
    import faiss

    n = len(units)
    k = min(n_clusters, n)
    state = start_states(np.array([identity_row]), [repeat], seed=seed)[0]
    start = start_images(np.array([n]), state, k)[0]
    kmeans = faiss.Kmeans(
        units.shape[1], k, niter=MAX_ITERATIONS, seed=1, min_points_per_centroid=1, max_points_per_centroid=n
    )
    kmeans.train(units, init_centroids=np.ascontiguousarray(units[start]))
    nearest = kmeans.index.search(units, 1)[1][:, 0]
    return np.unique(nearest, return_inverse=True)[1].astype(np.int32)
