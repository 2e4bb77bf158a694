"""A FIQA method of one's own, in one line: the contrast of a face. The demo uses it as an example of a weak method."""

from __future__ import annotations

from torch import Tensor


def contrast(faces: Tensor) -> Tensor:
    """Return how far the grey values of each face `(b, 3, 112, 112)`, float32 RGB in [0, 1], spread, as `(b,)`."""
    return faces.mean(dim=1).std(dim=(1, 2))
