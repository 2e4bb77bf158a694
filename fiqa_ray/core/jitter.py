"""Small random moves of aligned crops, to see how much results depend on the alignment."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

JITTER_VERSION = 1
"""Raise it when the same image is moved otherwise."""
MOST_PX, MOST_DEGREES, MOST_SCALE = 4.0, 5.0, 0.05
"""Bounds of the uniform draws: shift along each axis, rotation, and relative change of the size."""


def jitter_matrix(image_id: str, size: int) -> NDArray[np.float64]:
    """Return the `(2, 3)` matrix that moves a crop: a rotation and scaling about its centre, then a shift.

    The draws depend on the name of the image alone, so that they are equal in any order and on any machine.

    Args:
        image_id: Name of the image.
        size: Width and height of the crop in px.
    """
    seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little")
    x, y, angle, scale = np.random.default_rng(seed).uniform(-1, 1, size=4)
    turn = np.deg2rad(MOST_DEGREES * angle)
    factor = 1 + MOST_SCALE * scale
    rotation = factor * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.full(2, (size - 1) / 2)
    shift = centre - rotation @ centre + MOST_PX * np.array([x, y])
    return np.column_stack([rotation, shift])
