"""Clusters of one identity's images (paper III-C, "Selecting mated image pairs"): K-Means in the embedding space.

Lloyd's algorithm runs on the Gram matrix of the identity's unit vectors; centroids are never formed. With members j of
cluster c, its size m and T_ic = sum_j G_ij, the squared distance of image i to the cluster's mean is, without
G_ii, which is the same for all clusters,

    1/m^2 * sum_j T_jc  -  2/m * T_ic .

For the sums T the matrix is rounded to whole numbers small enough that float32 holds every sum exactly. So the clusters
depend on the identity's own embeddings alone: not on its batch, on threads or on the order of summing. When images change
their cluster, T is updated by their rows, and no error accumulates.

`core.paper.cluster_identity` is the specification, this rounding included; the loops are `kernels.kmeans`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.kernels.draws import START_STREAM, counter_draws
from fiqa_ray.core.kernels.kmeans import MAX_ITERATIONS, choose_starts, lloyd, spread_starts


def lloyd_clusters(
    keys: NDArray[np.float32],
    bounds: NDArray[np.int64],
    states: NDArray[np.uint64],
    n_clusters: int,
    cluster: NDArray[np.int32],
    cluster_counts: NDArray[np.int32],
    init: str = "random",
) -> None:
    """Cluster neighbouring identities by Lloyd's algorithm on their Gram matrices.

    Args:
        keys: flat `cosine_keys` of the identities.
        bounds: `(K + 1,)`; identity k holds images bounds[k]:bounds[k+1] of `cluster`.
        states: `(K,)`, one row of `start_states`.
        n_clusters: C; an identity of fewer images starts from all of them.
        cluster: `(I,) int32`, filled with cluster numbers from 0 within each identity, without gaps.
        cluster_counts: `(K,) int32`, filled with the number of clusters.
        init: `random` or `k-means++`: how the images that it starts from are chosen.
    """
    if init == "k-means++":
        starts = np.zeros((len(states), n_clusters), np.int32)
        spread_starts(keys, bounds, states, starts)
    else:
        starts = start_images(np.diff(bounds), states, n_clusters)
    lloyd(keys, bounds, starts, cluster, cluster_counts)


def faiss_clusters(
    units: NDArray[np.float32], identity_row: int, n_clusters: int, *, seed: int, clustering: int = 0
) -> NDArray[np.int32]:
    """Cluster one identity by faiss: for identities too large for a Gram matrix, and with `clustering: faiss`.

    It starts from the same random images as `lloyd_clusters` with `init="random"`. Takes `(N, D) float32`; returns
    `(N,) int32`, dense from 0.

    Memory: linear in N.
    """
    import faiss

    n = len(units)
    k = min(n_clusters, n)
    states = start_states(np.array([identity_row]), [clustering], seed=seed)[0]
    start = start_images(np.array([n]), states, k)[0]
    kmeans = faiss.Kmeans(
        units.shape[1], k, niter=MAX_ITERATIONS, seed=1, min_points_per_centroid=1, max_points_per_centroid=n
    )
    kmeans.train(units, init_centroids=np.ascontiguousarray(units[start]))
    nearest = kmeans.index.search(units, 1)[1][:, 0]
    return np.unique(nearest, return_inverse=True)[1].astype(np.int32)


def start_states(identity_rows: NDArray[np.int64], clusterings: Sequence[int], *, seed: int) -> NDArray[np.uint64]:
    """Return random states `(G, K)` of G clusterings; a state mixed with an image's position is the image's draw."""
    return counter_draws(seed, START_STREAM, np.asarray(clusterings)[:, None], identity_rows)


def start_images(sizes: NDArray[np.int64], states: NDArray[np.uint64], n_clusters: int) -> NDArray[np.int32]:
    """Return the positions `(K, C)` of the images that K-Means starts from: the first min(N, C) of each row count.

    Takes `sizes` `(K,)`, the images of each identity, and `states` `(K,)` of `start_states`.
    """
    starts = np.zeros((len(sizes), n_clusters), np.int32)
    choose_starts(sizes, states, starts)
    return starts
