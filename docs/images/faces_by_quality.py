"""Draw the README's picture: faces of one synthetic folder, sorted by their recorded quality.

Usage: python docs/images/faces_by_quality.py [FILE.jpg]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from fiqa_ray.images import align_face
from fiqa_ray.synthetic.damage import degrade
from fiqa_ray.synthetic.dataset import HELDOUT_PART, draw_degradation, identity_rng, true_quality
from fiqa_ray.synthetic.render import draw_identity, draw_view, render_face

N_PEOPLE, N_IMAGES, N_SHOWN = 8, 6, 10
SIZE, CAPTION = 112, 22


def faces_with_quality() -> list[tuple[float, np.ndarray]]:
    """Return faces `(112, 112, 3) uint8` BGR of several people, each with its recorded quality."""
    faces = []
    for person in range(N_PEOPLE):
        identity = draw_identity(identity_rng(0, HELDOUT_PART, person))
        for image in range(N_IMAGES):
            rng = identity_rng(0, HELDOUT_PART, person, image)
            view, degradation = draw_view(rng), draw_degradation(rng)
            picture, landmarks = render_face(identity, view, rng)
            face = align_face(degrade(picture, landmarks, degradation, rng), landmarks)
            faces.append((true_quality(view, degradation), cv2.cvtColor(face, cv2.COLOR_RGB2BGR)))
    return faces


def strip(faces: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Return evenly spaced faces in one row, worst first, with their quality below."""
    ordered = sorted(faces, key=lambda pair: pair[0])
    shown = [ordered[i] for i in np.linspace(0, len(ordered) - 1, N_SHOWN).round().astype(int)]
    image = np.full((SIZE + CAPTION, N_SHOWN * (SIZE + 4) - 4, 3), 255, np.uint8)
    for i, (quality, face) in enumerate(shown):
        left = i * (SIZE + 4)
        image[:SIZE, left : left + SIZE] = face
        text = f"{quality:.2f}"
        cv2.putText(image, text, (left + 34, SIZE + 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
    return image


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".jpg")
    cv2.imwrite(str(file), strip(faces_with_quality()), [cv2.IMWRITE_JPEG_QUALITY, 88])
