"""Equation 1 for all pairs of an identity at once: the Gram matrix that clustering and pairs share.

The matrices of neighbouring identities fill one flat array, each row by row: identity k, of n images, takes n^2 entries.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address

from fiqa_ray.core.kernels.jit import compiled

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: float32's own resolution just below 1."""


_MAX_KEY = float(SIMILARITY_STEPS)
_TILE = 8


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
        bounds: `(K + 1,)`; identity k holds images bounds[k]:bounds[k+1].
        keys: flat float32 array of at least `sum(N^2)` entries.
    """
    syrk, number = _syrk(), ctypes.c_int
    dim, one, zero = number(embeddings.shape[1]), ctypes.c_float(1.0), ctypes.c_float(0.0)
    x = np.ascontiguousarray(embeddings, np.float32)
    source, target = x.ctypes.data, keys.ctypes.data
    sizes = np.diff(bounds)
    for n in sizes[sizes > 0].tolist():
        syrk(b"U", b"T", number(n), dim, one, source, dim, zero, target, number(n))
        source += n * x.strides[0]
        target += 4 * n * n
    _finish_keys(keys, sizes)


@lru_cache(maxsize=1)
def _syrk() -> Any:
    """Return BLAS ssyrk, one triangle of a matrix times its own transpose, as a C function that lets other threads run."""
    pointer, by_reference = ctypes.c_void_p, ctypes.POINTER
    whole, real = by_reference(ctypes.c_int), by_reference(ctypes.c_float)
    arguments: list[Any] = [ctypes.c_char_p, ctypes.c_char_p, whole, whole, real, pointer, whole, real, pointer, whole]
    address = get_cython_function_address("scipy.linalg.cython_blas", "ssyrk")
    return ctypes.CFUNCTYPE(None, *arguments)(address)


@compiled
def _finish_keys(keys: np.ndarray, sizes: np.ndarray) -> None:
    """Turn products in the lower triangles into keys of the whole matrices.

    In numpy, for one matrix of products:

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
        # 2. keys of the lower triangle, in float64, so that the division adds no error
        for i in range(n):
            row, row_scale = matrix[i], inverse[i] * SIMILARITY_STEPS
            for j in range(i + 1):
                scale = row_scale * inverse[j]
                key = min(max(np.rint(row[j] * scale), -_MAX_KEY), _MAX_KEY)
                row[j] = np.float32(key if scale > 0 else 0.0)  # an overflow is no number
        # 3. the upper triangle: mirrored tile by tile, so that neither reading nor writing leaves the cache's lines
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
