"""Cosine similarities of all pairs of an identity as whole numbers: the Gram matrix that clustering and pairs share."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address

from fiqa_ray.core.kernels.jit import compiled

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: float32's own resolution just below 1."""


_MOST = float(SIMILARITY_STEPS)


_TILE = 8


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """``(n_images, dim)`` float32 embeddings scaled to length 1; a zero vector stays zero."""
    x = np.asarray(embeddings, dtype=np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x).astype(np.float64))
    inverse = (1.0 / np.where(norm > 0, norm, 1.0)).astype(np.float32)
    return x * inverse[:, None]


def cosine_keys(embeddings: np.ndarray, bounds: np.ndarray, flat: np.ndarray) -> None:
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
