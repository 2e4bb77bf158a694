"""Equation 1 for all pairs of an identity at once: the Gram matrix that clustering and pairs share.

The matrices of neighbouring identities fill one flat array, each row by row: identity k, of n images, takes n^2 entries.
"""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: the spacing of float32 in [1, 2)."""


_MAX_KEY = float(SIMILARITY_STEPS)


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """Return `(I, D) float32` embeddings scaled to length 1; a zero vector stays zero."""
    x = np.asarray(embeddings, dtype=np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x).astype(np.float64))
    inverse = (1.0 / np.where(norm > 0, norm, 1.0)).astype(np.float32)
    return x * inverse[:, None]


def cosine_keys(embeddings: np.ndarray, bounds: np.ndarray, keys: np.ndarray) -> None:
    """Fill `keys` with the cosines of all pairs of each identity, times 2^23 and rounded.

    Every identity gets its own matrix product, so its result does not depend on the batch. The matrix is symmetric bit for
    bit: cos(i, j) == cos(j, i).

    Args:
        embeddings: `(I, D) float32`, of any length; one of length 0 or beyond float32 has similarity 0 to all.
        bounds: `(K + 1,)`; identity k has bounds[k+1] - bounds[k] images, which follow those of the one before.
        keys: flat float32 array of at least `sum(N^2)` entries.
    """
    x = np.ascontiguousarray(embeddings, np.float32)
    sizes = np.diff(bounds)
    image = entry = 0
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes similarity 0 below
        for n in sizes.tolist():
            identity, matrix = x[image : image + n], keys[entry : entry + n * n].reshape(n, n)
            np.matmul(identity, identity.T, out=matrix)  # numpy computes one triangle and mirrors it
            image, entry = image + n, entry + n * n
    _finish_keys(keys, sizes)


@compiled
def _finish_keys(keys: np.ndarray, sizes: np.ndarray) -> None:
    """Turn matrices of products into matrices of keys.

    In numpy, for one matrix:

        norm = np.sqrt(np.diag(product))
        key = np.rint(product / np.outer(norm, norm) * 2**23).clip(-(2**23), 2**23)
    """
    first = 0
    for n in sizes:
        matrix = keys[first : first + n * n].reshape(n, n)
        # 1. inverse lengths, from the diagonal
        inverse = np.empty(n, np.float64)
        for i in range(n):
            norm2 = np.float64(matrix[i, i])
            inverse[i] = 1.0 / np.sqrt(norm2) if norm2 > 0 else 0.0
        # 2. keys, in float64, so that the division adds no error; the scale is the same for (i, j) and (j, i)
        for i in range(n):
            row = matrix[i]
            for j in range(n):
                scale = inverse[i] * inverse[j] * SIMILARITY_STEPS
                key = min(max(np.rint(row[j] * scale), -_MAX_KEY), _MAX_KEY)
                row[j] = np.float32(key if scale > 0 else 0.0)  # an overflow is no number
        first += n * n
