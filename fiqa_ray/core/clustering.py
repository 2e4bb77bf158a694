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

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address

from fiqa_ray.core.compiled import compiled
from fiqa_ray.core.draws import counter_draws, draw_starts

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: float32's own resolution just below 1."""

MAX_ITERATIONS = 50
_INIT_STREAM = 0x1217
_MOST = float(SIMILARITY_STEPS)
_TILE = 8


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """``(n_images, dim)`` float32 embeddings scaled to length 1; a zero vector stays zero."""
    x = np.asarray(embeddings, dtype=np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x).astype(np.float64))
    inverse = (1.0 / np.where(norm > 0, norm, 1.0)).astype(np.float32)
    return x * inverse[:, None]


def gram_keys(embeddings: np.ndarray, bounds: np.ndarray, flat: np.ndarray) -> None:
    """Cosines (equation 1) in steps of 2^-23: ``(n_images, dim)`` float32 -> whole numbers in ``flat``, float32.

    Identity k holds images bounds[k]:bounds[k+1]. Each identity is a product of its own shape, so that its bits cannot
    depend on its neighbours; only one triangle is computed, so a pair and its mirror always tie.
    """
    syrk, number = _syrk(), ctypes.c_int
    dim, one, zero = number(embeddings.shape[1]), ctypes.c_float(1.0), ctypes.c_float(0.0)
    x = np.ascontiguousarray(embeddings, np.float32)
    source, target = x.ctypes.data, flat.ctypes.data
    sizes = np.diff(bounds)
    for n in sizes[sizes > 0].tolist():
        syrk(b"U", b"T", number(n), dim, one, source, dim, zero, target, number(n))
        source += n * x.strides[0]
        target += 4 * n * n
    _finish_keys(flat, sizes)


@lru_cache(maxsize=1)
def _syrk() -> Any:
    """BLAS: one triangle of a matrix times its own transpose. As a C function, which lets other threads run meanwhile."""
    pointer, by_reference = ctypes.c_void_p, ctypes.POINTER
    whole, real = by_reference(ctypes.c_int), by_reference(ctypes.c_float)
    arguments: list[Any] = [ctypes.c_char_p, ctypes.c_char_p, whole, whole, real, pointer, whole, real, pointer, whole]
    address = get_cython_function_address("scipy.linalg.cython_blas", "ssyrk")
    return ctypes.CFUNCTYPE(None, *arguments)(address)


@compiled
def _finish_keys(flat: np.ndarray, sizes: np.ndarray) -> None:
    """Products of the lower triangles to keys of the whole matrices.

    A vector without direction, of length zero or beyond float32, has similarity 0 to every other.
    """
    first = 0
    for n in sizes:
        matrix = flat[first : first + n * n].reshape(n, n)
        inverse = np.empty(n, np.float64)
        for i in range(n):
            norm2 = np.float64(matrix[i, i])
            inverse[i] = 1.0 / np.sqrt(norm2) if norm2 > 0 else 0.0
        for i in range(n):
            row, own = matrix[i], inverse[i] * SIMILARITY_STEPS
            for j in range(i + 1):  # in float64, so that the division adds no error
                scale = own * inverse[j]
                key = min(max(np.rint(row[j] * scale), -_MOST), _MOST)
                row[j] = np.float32(key if scale > 0 else 0.0)  # what overflowed is no number
        # mirrored tile by tile, so that neither reading nor writing leaves the cache's lines
        whole = n // _TILE * _TILE
        for top in range(0, whole, _TILE):
            for left in range(0, top, _TILE):
                for j in range(_TILE):
                    for i in range(_TILE):
                        matrix[left + j, top + i] = matrix[top + i, left + j]
            for i in range(top, top + _TILE):
                for j in range(top, i):
                    matrix[j, i] = matrix[i, j]
        for i in range(whole, n):
            for j in range(i):
                matrix[j, i] = matrix[i, j]
        first += n * n


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
    """K-Means of the identities whose `gram_keys` are in ``flat``.

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
