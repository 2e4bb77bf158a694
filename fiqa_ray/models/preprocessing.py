"""How a network wants its pixels. No import of torch: the tables of models use it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fiqa_ray.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Scaling and colour order of a network's input: `(v - mean) / scale` for pixels v in 0..255.

    Attributes:
        colour: order of the channels, RGB or BGR.
        mean: a number on the scale 0..255.
        scale: a positive number on the scale 0..255.

    Raises:
        UsageError: an attribute has another value.
    """

    colour: str = "RGB"
    mean: float = 127.5
    scale: float = 127.5

    def __post_init__(self) -> None:
        if self.colour not in ("RGB", "BGR"):
            raise UsageError(f"colour={self.colour!r}: must be RGB or BGR")
        for name in ("mean", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(f"{name}={value!r}: must be a number on the scale 0..255")
        if self.scale <= 0:
            raise UsageError(f"scale={self.scale!r}: must be positive")

    def __str__(self) -> str:
        """Say how pixels go in."""
        return f"pixels go in as (v - {self.mean:g}) / {self.scale:g}, {self.colour}"

    def __call__(self, x: Tensor) -> Tensor:
        """Map RGB faces `(N, 3, h, w)` float in [0, 1] to the network's input; differentiable."""
        x = x.flip(1) if self.colour == "BGR" else x
        # For 127.5 and 127.5 this is bit for bit the released (x - 0.5) / 0.5.
        return (x - self.mean / 255) * (255 / self.scale)


UNIT_PIXELS = Preprocessing(mean=0.0, scale=255.0)
"""Leaves pixels in [0, 1]."""
