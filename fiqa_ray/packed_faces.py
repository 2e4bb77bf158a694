"""The stored form of an aligned face: differences of its pixels, compressed by Zstandard.

Green is taken from red and blue, each row of pixels from the next, modulo 256; the bytes in the order (row, colour, column)
are one Zstandard frame. Lossless, a fifth smaller than PNG, and several times as fast (benchmarks/face_files.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.core.align import FACE_SIZE

_FRAME = b"\x28\xb5\x2f\xfd"
"""The first bytes of every Zstandard frame; no image file begins so."""
_SHAPE = (FACE_SIZE, 3, FACE_SIZE)
_N_BYTES = 3 * FACE_SIZE * FACE_SIZE
_CODEC = pa.Codec("zstd", 1)
AT_ONCE = 16
"""Faces whose rows are summed together: enough to hide Python's share, few enough to stay in cache."""
Bytes = bytes | memoryview


def pack_face(face: NDArray[np.uint8]) -> bytes:
    """Return a face `(112, 112, 3) uint8` RGB in the stored form; equal faces give equal bytes."""
    rows = np.ascontiguousarray(face.transpose(0, 2, 1))
    rows[:, 0::2] -= rows[:, 1:2]
    differences = rows.copy()
    differences[1:] -= rows[:-1]
    return bytes(_CODEC.compress(differences, asbytes=True))


def is_packed(face: Bytes) -> bool:
    """Return whether bytes are a face in the stored form, and not an image file."""
    return bytes(face[:4]) == _FRAME


def unpack_faces(faces: Sequence[Bytes]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the pixels of faces in the stored form.

    Returns:
        `(I, 3, 112, 112) uint8` RGB, and `(I,) bool`: False, and the pixels 0, where a face is damaged.
    """
    pixels = np.empty((len(faces), 3, FACE_SIZE, FACE_SIZE), np.uint8)
    ok = np.ones(len(faces), np.bool_)
    space = np.empty((FACE_SIZE, AT_ONCE, *_SHAPE[1:]), np.uint8)
    for first in range(0, len(faces), AT_ONCE):
        some = faces[first : first + AT_ONCE]
        rows = space[:, : len(some)]
        for i, face in enumerate(some):
            try:
                rows[:, i] = np.frombuffer(_CODEC.decompress(face, _N_BYTES), np.uint8).reshape(_SHAPE)
            except (OSError, ValueError):  # pyarrow raises OSError; another length has another shape
                rows[:, i] = 0
                ok[first + i] = False
        for row in range(1, FACE_SIZE):
            rows[row] += rows[row - 1]
        rows[:, :, 0::2] += rows[:, :, 1:2]
        pixels[first : first + len(some)] = rows.transpose(1, 2, 0, 3)
    return pixels, ok
