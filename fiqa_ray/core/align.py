"""Alignment of a face to the 112x112 crop that every recogniser and quality network here expects.

Five landmarks z (as complex numbers x + iy) are mapped to the template w by the least-squares similarity w = a z + b:

    a = sum((w - mean w) conj(z - mean z)) / sum(|z - mean z|^2),    b = mean w - a mean z

which is Umeyama's estimate without reflection (scikit-image `SimilarityTransform`, used by deepinsight/insightface
`python-package/insightface/utils/face_align.py`) in closed form. The template is the one of that file.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

FACE_SIZE = 112
"""Width and height of an aligned face, px."""

TEMPLATE: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) x, y in px of the crop: left eye, right eye, nose tip, left and right mouth corner ("left" = smaller x)."""
TEMPLATE.setflags(write=False)

MIN_SPREAD_PX = 1.0
"""Root-mean-square distance from their centre below which five landmarks count as one point."""

MIN_CORRELATION = 0.5
"""Smallest correlation of landmarks with the template, up to rotation and scale.

A frontal face reaches about 1, a full profile about 0.8, a face whose left and right points are exchanged 0.2.
"""

_TARGETS = [complex(x, y) for x, y in (TEMPLATE - TEMPLATE.mean(axis=0)).tolist()]
_TARGETS_SPREAD = math.sqrt(sum(abs(target) ** 2 for target in _TARGETS) / len(_TARGETS))


def _centred(points: NDArray[np.float64]) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return points `(..., 5, 2)` as complex numbers about their mean, `(..., 5)`, and the mean, `(..., 1)`."""
    z = points[..., 0] + 1j * points[..., 1]
    mean = z.mean(axis=-1, keepdims=True)
    return z - mean, mean


def _landmark_array(landmarks: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(landmarks, dtype=np.float64)
    if points.ndim not in (2, 3) or points.shape[-2:] != (5, 2):
        raise ValueError(f"landmarks must have shape (5, 2) or (n_images, 5, 2), not {points.shape}")
    return points


def _scale_and_turn(z: NDArray[np.complex128], w: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the complex factor a `(...)` that carries centred points z to w; NaN where z coincide or are not finite."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.asarray((w * z.conj()).sum(axis=-1) / (z.real**2 + z.imag**2).sum(axis=-1))


def similarity_matrix(landmarks: ArrayLike) -> NDArray[np.float64]:
    """Return the similarity transform that carries landmarks to `TEMPLATE`, for `cv2.warpAffine`.

    Args:
        landmarks: `(5, 2)` or `(I, 5, 2)`, x and y in px of the source image, in the order of `TEMPLATE`.

    Returns:
        `(2, 3)` or `(I, 2, 3) float64`: `[[Re a, -Im a, Re b], [Im a, Re a, Im b]]`. NaN if the landmarks coincide or are
        not finite; `degenerate_reason` tells.

    Raises:
        ValueError: another shape.
    """
    z, z_mean = _centred(_landmark_array(landmarks))
    w, w_mean = _centred(TEMPLATE)
    a = _scale_and_turn(z, w)
    with np.errstate(invalid="ignore", over="ignore"):
        b = w_mean[..., 0] - a * z_mean[..., 0]
    rows = [np.stack([a.real, -a.imag, b.real], axis=-1), np.stack([a.imag, a.real, b.imag], axis=-1)]
    return np.stack(rows, axis=-2)


def fit_residual(landmarks: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far aligned landmarks lie from `TEMPLATE`, and by how much faces are turned to get there.

    Args:
        landmarks: `(5, 2)` or `(I, 5, 2)`, in the order of `TEMPLATE`, in any unit.

    Returns:
        The root-mean-square distance of the five points in px of the crop, and the roll in degrees; scalars or `(I,)`.
        Infinite and 0 if the landmarks coincide or are not finite.
    """
    z, _ = _centred(_landmark_array(landmarks))
    w, _ = _centred(TEMPLATE)
    a = _scale_and_turn(z, w)
    with np.errstate(invalid="ignore", over="ignore"):
        residual = np.sqrt((np.abs(a[..., None] * z - w) ** 2).mean(axis=-1))
    bad = ~np.isfinite(residual)
    return np.where(bad, np.inf, residual), np.where(bad, 0.0, np.degrees(np.angle(a)))


def degenerate_reason(landmarks: ArrayLike) -> str | None:
    """Return why five landmarks cannot align a face, or None if they can.

    Reasons are a coordinate that is not finite, points that all (nearly) coincide, and points that resemble no face
    (exchanged or shuffled points, coordinates in the wrong columns), whose fitted scale would be near zero.

    Args:
        landmarks: `(5, 2)` in px.
    """
    points = _landmark_array(landmarks)
    if points.ndim != 2:
        raise ValueError(f"degenerate_reason takes one face, (5, 2), not {points.shape}")
    numbers = points.ravel().tolist()
    if not all(map(math.isfinite, numbers)):
        return "a landmark coordinate is not finite"
    magnitude = max(map(abs, numbers))
    if magnitude > 1e6:
        return f"a landmark coordinate of {magnitude:.3g} px lies outside any image"
    z = [complex(x, y) for x, y in points.tolist()]  # for five points Python is faster than numpy
    mean = sum(z) / len(z)
    centred = [point - mean for point in z]
    spread = math.sqrt(sum(abs(point) ** 2 for point in centred) / len(z))
    if spread < MIN_SPREAD_PX:
        return f"the five landmarks coincide (spread {spread:.3g} px)"
    product = sum(target * point.conjugate() for target, point in zip(_TARGETS, centred, strict=True))
    correlation = abs(product) / len(z) / (spread * _TARGETS_SPREAD)
    if correlation < MIN_CORRELATION:
        return f"the five landmarks do not form a face (correlation with the template {correlation:.2f})"
    return None
