"""Similarities of listed pairs, without a copy of their embeddings.

Each pair's sum is taken in one fixed order, so that its similarity depends on no other pair, nor on the order of the list.
"""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled


@compiled
def pair_cosines(units: np.ndarray, row_a: np.ndarray, row_b: np.ndarray, similarity: np.ndarray) -> None:
    """Fill `similarity` with the products of unit vectors, cut to [-1, 1].

    In numpy:

        similarity[:] = np.einsum("ij,ij->i", units[row_a], units[row_b]).clip(-1, 1)

    Args:
        units: `(I, D) float32` vectors of length 1.
        row_a: `(L,)` int, rows of the first vectors.
        row_b: `(L,)` int, rows of the second ones.
        similarity: `(L,) float32 | float64`, filled.
    """
    dim = units.shape[1]
    whole = dim - dim % 4
    for k in range(len(row_a)):
        a, b = units[row_a[k]], units[row_b[k]]
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0  # four sums, so that no addition waits for the one before
        for d in range(0, whole, 4):
            s0 += np.float64(a[d]) * np.float64(b[d])
            s1 += np.float64(a[d + 1]) * np.float64(b[d + 1])
            s2 += np.float64(a[d + 2]) * np.float64(b[d + 2])
            s3 += np.float64(a[d + 3]) * np.float64(b[d + 3])
        for d in range(whole, dim):
            s0 += np.float64(a[d]) * np.float64(b[d])
        similarity[k] = min(max((s0 + s1) + (s2 + s3), -1.0), 1.0)
