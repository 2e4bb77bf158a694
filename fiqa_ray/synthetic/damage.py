"""Damage to images: blur, noise, compression and more, each of a given strength."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fiqa_ray.synthetic.render import fill, stroke

DEGRADATION_KINDS = ("blur", "low_resolution", "noise", "occlusion", "compression", "darkness")


@dataclass(frozen=True)
class Degradation:
    """One kind of damage: `kind` is "none" or one of `DEGRADATION_KINDS`; `strength` lies in [0, 1]."""

    kind: str
    strength: float


def degrade(image: np.ndarray, landmarks: np.ndarray, degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """Damage one crop by one kind.

    Lengths scale with the distance between the eyes, so equal strengths look alike in crops of any size.

    Args:
        image: (height, width, 3) uint8 RGB.
        landmarks: (5, 2) pixels.
        degradation: kind and strength in [0, 1]; "none" and strength 0 return the image as it is.
        rng: the noise, and the position and colour of an occluder.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    strength, kind = degradation.strength, degradation.kind
    if kind == "none" or strength == 0:
        return image
    height, width = image.shape[:2]
    # From between the eyes to between the mouth's corners, which turning the head hardly changes.
    face = float(np.linalg.norm(landmarks[:2].mean(axis=0) - landmarks[3:].mean(axis=0)))
    if kind == "blur":
        return cv2.GaussianBlur(image, (0, 0), 0.34 * face * strength**0.85 + 1e-3)
    if kind == "low_resolution":
        small = _resized(image, 16.0 * (1.8 / 16.0) ** strength**0.75 / face)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if kind == "noise":
        grain = rng.standard_normal((max(2, int(height * 28 / face)), max(2, int(width * 28 / face)), 3), np.float32)
        noise = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(image + np.float32(160 * strength) * noise, 0, 255).astype(np.uint8)
    if kind == "compression":
        quality = [cv2.IMWRITE_JPEG_QUALITY, round(50 * (1 / 50) ** strength)]
        _, coded = cv2.imencode(".jpg", _resized(image, 24.0 / face), quality)
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        assert decoded is not None  # encoded just above
        return cv2.resize(decoded, (width, height), interpolation=cv2.INTER_LINEAR)
    if kind == "darkness":
        grain = rng.standard_normal(image.shape, np.float32)
        return np.clip(image * np.float32(0.03**strength**0.7) + np.float32(4 * strength) * grain, 0, 255).astype(
            np.uint8
        )
    return _occlude(image, landmarks, face, strength, rng)


def _resized(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = image.shape[:2]
    size = max(2, round(width * factor)), max(2, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _occlude(
    image: np.ndarray, landmarks: np.ndarray, face: float, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Cover the face from one side with a patterned cloth, the further the stronger."""
    out = image.copy()
    across = (landmarks[1] - landmarks[0]) / max(float(np.linalg.norm(landmarks[1] - landmarks[0])), 1e-6)
    down = np.array([-across[1], across[0]])
    ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    angle = rng.choice([0.0, np.pi]) + rng.uniform(-0.7, 0.7)
    toward, along = np.cos(angle) * across + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * across
    # From just outside the features' box (strength 0) to nearly all of it (strength 1).
    reach, colour = 1.6 * face, rng.uniform(20, 220) + rng.normal(0, 25, 3)
    centre = landmarks.mean(axis=0) + toward * (reach + face * (0.95 - 1.6 * strength))
    bumps = reach * (1 + 0.06 * np.sin(rng.integers(3, 7) * ring + rng.uniform(0, 6)))
    shape = (bumps * np.cos(ring))[:, None] * toward + (bumps * np.sin(ring))[:, None] * along
    fill(out, centre + shape, colour)
    for level in np.arange(-reach, reach, face * rng.uniform(0.2, 0.5)):
        half = np.sqrt(max(reach**2 - level**2, 0.0)) * 0.97
        stripe = np.stack([centre + level * along - half * toward, centre + level * along + half * toward])
        stroke(out, stripe, colour * 0.6, max(1, round(0.06 * face)))
    return out
