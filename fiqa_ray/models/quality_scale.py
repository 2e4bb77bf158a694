"""One scale for scores of all methods: a quality of 0 to 100 as ISO/IEC 29794-1 has it; larger is better, -1 is a failure.

How a score becomes a quality is data: quantiles of a regressor's scores, or a sigmoid. No import of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAILED = -1
"""Quality of an image that could not be scored."""


@dataclass(frozen=True)
class Sigmoid:
    """The quality `height / (1 + exp((centre - score) / width))`, as OFIQ maps its measures."""

    centre: float
    width: float
    height: float = 100.0

    def __call__(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Map `(N,)` scores to `(N,) float64` qualities before rounding; NaN stays NaN."""
        with np.errstate(over="ignore"):
            return self.height / (1 + np.exp((self.centre - np.asarray(scores, np.float64)) / self.width))


@dataclass(frozen=True)
class Quantiles:
    """The quality is the share of images that score lower, in percent.

    Attributes:
        scores: ascending scores that these images have; the first is the lowest, the last the highest.
    """

    scores: tuple[float, ...]

    def __call__(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Map `(N,)` scores to `(N,) float64` percentages, linear between quantiles; NaN stays NaN."""
        quantile, first = np.unique(np.asarray(self.scores, np.float64), return_index=True)
        return np.interp(scores, quantile, 100 * first / (len(self.scores) - 1), left=0.0, right=100.0)


@dataclass(frozen=True)
class Identity:
    """Scores are qualities already."""

    def __call__(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """Return `(N,) float64` scores as they are."""
        return np.asarray(scores, np.float64)


QualityScale = Sigmoid | Quantiles | Identity
IDENTITY = Identity()
OFIQ_SIGMOID = Sigmoid(centre=23.0, width=2.6)
"""OFIQ's mapping of the length of MagFace's embedding (`UnifiedQualityScore.cpp`)."""


def whole_quality(values: NDArray[Any]) -> NDArray[np.float64]:
    """Round values to whole numbers, halves up, and clamp them to 0..100; NaN stays NaN.

    `floor(v + 0.5)` would round 0.49999999999999994 up.
    """
    values = np.asarray(values, np.float64)
    floor = np.floor(values)
    return np.clip(floor + (values - floor >= 0.5), 0, 100)


def quality(scores: NDArray[Any], scale: QualityScale) -> NDArray[np.int16]:
    """Return the quality of each score, `(N,) int16` in 0..100; -1 where the score is not finite."""
    scores = np.asarray(scores, np.float64)
    return np.where(np.isfinite(scores), np.nan_to_num(whole_quality(scale(scores))), FAILED).astype(np.int16)


def card_scale(card: Mapping[str, Any] | None) -> QualityScale | None:
    """Return the mapping that a regressor's card holds, its table of validation scores; None if there is none."""
    table = (card or {}).get("validation_scores")
    return Quantiles(tuple(table["quantiles"])) if table else None
