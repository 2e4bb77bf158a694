"""Equation 1 for all pairs of an identity at once: the Gram matrix that clustering and pairs share.

The matrices of neighbouring identities fill one flat array, each row by row: identity k, of n images, takes n^2 entries.
"""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: the spacing of float32 in [1, 2)."""


_MAX_KEY = float(SIMILARITY_STEPS)
_SHORTEST, _LONGEST = 1e-15, 1e15
"""Squares of such lengths, and of numbers some thousand times smaller, are exact enough in float32."""


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """Return `(I, D) float32` embeddings scaled to length 1, whatever their length; a zero vector stays zero."""
    x = np.asarray(embeddings, dtype=np.float32)
    norm = _lengths(x)
    if _is_extreme(norm).any():
        x = moderate_rows(x)
        norm = _lengths(x)
    inverse = (1.0 / np.where(norm > 0, norm, 1.0)).astype(np.float32)
    return x * inverse[:, None]


def _lengths(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        length: np.ndarray = np.sqrt(np.einsum("ij,ij->i", x, x).astype(np.float64))
    return length


def _is_extreme(length: np.ndarray) -> np.ndarray:
    """Tell which lengths have squares that float32 holds badly or not at all, as 0, infinity or fewer digits."""
    return ~((length > _SHORTEST) & (length < _LONGEST))


def moderate_rows(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `(I, D) float32`; those of extreme length times a power of two, which changes no digit of them."""
    largest = np.maximum(vectors.max(axis=1), -vectors.min(axis=1))
    is_extreme = (largest > 0) & _is_extreme(largest)
    if not is_extreme.any():
        return vectors
    _, exponent = np.frexp(largest)
    moderate: np.ndarray = np.ldexp(vectors, np.where(is_extreme, -exponent, 0)[:, None])
    return moderate


def cosine_keys(embeddings: np.ndarray, bounds: np.ndarray, keys: np.ndarray) -> None:
    """Fill `keys` with the cosines of all pairs of each identity, times 2^23 and rounded.

    Every identity gets its own matrix product, so its result does not depend on the batch. The matrix is symmetric bit for
    bit: cos(i, j) == cos(j, i).

    Args:
        embeddings: `(I, D) float32`, of any length; one of length 0 or with infinity or NaN has similarity 0 to all.
        bounds: `(K + 1,)`; identity k has bounds[k+1] - bounds[k] images, which follow those of the one before.
        keys: flat float32 array of at least `sum(N^2)` entries.
    """
    x = np.ascontiguousarray(embeddings, np.float32)
    sizes = np.diff(bounds)
    _fill_products(x, sizes, keys)
    if _finish_keys(keys, sizes):
        moderate = moderate_rows(x)
        if moderate is not x:
            _fill_products(moderate, sizes, keys)
            _finish_keys(keys, sizes)


def _fill_products(x: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> None:
    """Fill `keys` with the products of all pairs of each identity."""
    image = entry = 0
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes similarity 0 in the keys
        for n in sizes.tolist():
            identity, matrix = x[image : image + n], keys[entry : entry + n * n].reshape(n, n)
            np.matmul(identity, identity.T, out=matrix)  # numpy computes one triangle and mirrors it
            image, entry = image + n, entry + n * n


@compiled
def _finish_keys(keys: np.ndarray, sizes: np.ndarray) -> int:
    """Turn matrices of products into matrices of keys; return the number of images of extreme length.

    In numpy, for one matrix:

        norm = np.sqrt(np.diag(product))
        key = np.rint(product / np.outer(norm, norm) * 2**23).clip(-(2**23), 2**23)
    """
    first = n_extreme = 0
    for n in sizes:
        matrix = keys[first : first + n * n].reshape(n, n)
        # 1. inverse lengths, from the diagonal
        inverse = np.empty(n, np.float64)
        for i in range(n):
            norm2 = np.float64(matrix[i, i])
            n_extreme += not _SHORTEST**2 < norm2 < _LONGEST**2
            inverse[i] = 1.0 / np.sqrt(norm2) if norm2 > 0 else 0.0
        # 2. keys, in float64, so that the division adds no error; the scale is the same for (i, j) and (j, i)
        for i in range(n):
            row = matrix[i]
            for j in range(n):
                scale = inverse[i] * inverse[j] * SIMILARITY_STEPS
                key = min(max(np.rint(row[j] * scale), -_MAX_KEY), _MAX_KEY)
                row[j] = np.float32(key if scale > 0 else 0.0)  # an overflow is no number
        first += n * n
    return n_extreme
