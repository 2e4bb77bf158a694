"""Drawn faces on which networks are tried: what they return, and whether two ways to compute it agree."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from fiqa_ray.core.align import FACE_SIZE, TEMPLATE


def probe_faces(n_faces: int = 3) -> Tensor:
    """Draw unlike aligned faces, `(n_faces, 3, 112, 112)` RGB float32 in [0, 1]; always the same ones."""
    return torch.from_numpy(np.stack([_draw(i) for i in range(n_faces)])).permute(0, 3, 1, 2).contiguous()


def _draw(number: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=number))
    face = np.tile(rng.uniform(20, 235, 3), (FACE_SIZE, FACE_SIZE, 1)).astype(np.float32)
    skin, hair = rng.uniform(0.3, 1.0) * np.array([235, 190, 160]), rng.uniform(10, 120, 3)
    centre = (FACE_SIZE // 2, 66)
    cv2.ellipse(face, (centre[0], 52), (50, 56), 0, 0, 360, hair.tolist(), -1)
    cv2.ellipse(face, centre, (int(rng.integers(34, 42)), int(rng.integers(44, 52))), 0, 0, 360, skin.tolist(), -1)
    points = np.rint(TEMPLATE + rng.normal(0, 1.5, TEMPLATE.shape)).astype(int)
    for x, y in points[:2].tolist():
        cv2.ellipse(face, (x, y), (int(rng.integers(5, 8)), 3), 0, 0, 360, [240.0] * 3, -1)
        cv2.circle(face, (x, y), 3, rng.uniform(20, 120, 3).tolist(), -1)
        cv2.ellipse(face, (x, y - 8), (8, 2), 0, 0, 360, hair.tolist(), -1)
    cv2.line(face, (points[2][0], 55), points[2].tolist(), (0.75 * skin).tolist(), 3)
    cv2.line(face, points[3].tolist(), points[4].tolist(), [170.0, 70.0, 80.0], int(rng.integers(3, 7)))
    light = np.linspace(rng.uniform(0.7, 1.2), rng.uniform(0.7, 1.2), FACE_SIZE, dtype=np.float32)[None, :, None]
    noise = rng.normal(0, 4, face.shape).astype(np.float32)
    return np.clip(cv2.GaussianBlur(face, (0, 0), 1.0) * light + noise, 0, 255) / np.float32(255)
