"""A loaded FIQA method or regressor, and scoring by several of them at once. Larger is better everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.quality_scale import QualityScale
from fiqa_ray.models.recognizer import CleanPass, Recognizer, check_faces
from fiqa_ray.public_uri import public_uri

ScoreFaces = Callable[[CleanPass, NDArray[np.int64]], Any]
"""Maps a batch of N faces on the device and their `(N,) int64` image rows to `(N,)` scores."""


@dataclass(frozen=True, repr=False)
class Scorer:
    """A loaded FIQA method or regressor.

    Attributes:
        name: name of the method, or location of the regressor.
        score_faces: computes the scores of a batch.
        device: device that it runs on.
        random: whether it draws random numbers, as a pure function of (seed, image_row).
        network: the recogniser that it works on, or its own network.
        card: the card of a trained regressor.
        scale: how scores become a quality of 0 to 100; None if nobody says so.
    """

    name: str
    score_faces: ScoreFaces
    device: torch.device
    random: bool = False
    network: Recognizer | None = None
    card: dict[str, Any] | None = None
    scale: QualityScale | None = None

    def __repr__(self) -> str:
        on = "" if self.network is None or self.network.name == self.name else f" on {public_uri(self.network.name)}"
        return f"<Scorer {public_uri(self.name)}{on}, {self.device}>"

    def __call__(
        self, faces: Tensor | NDArray[np.uint8], image_row: Tensor | NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Score aligned RGB faces.

        Args:
            faces: `(N, 3, 112, 112) uint8`.
            image_row: `(N,) int64`; needed only if `random`. Rows below 0 are padding, whose score means nothing.

        Returns:
            `(N,) float32`, larger is better; not finite where the method broke down on that face.

        Raises:
            FiqaRayError: faces, rows or the method's output have another shape or dtype.
        """
        return score_together([self], faces, image_row)[0]


def score_together(
    scorers: Sequence[Scorer],
    faces: Tensor | NDArray[np.uint8],
    image_row: Tensor | NDArray[np.int64] | None = None,
) -> list[NDArray[np.float32]]:
    """Score faces by several methods; methods on the same loaded network share its pass over the clean faces.

    Each score has the same bits as if its scorer were called alone.

    Args:
        scorers: the methods.
        faces: as in `Scorer.__call__`.
        image_row: as in `Scorer.__call__`.

    Returns:
        One array per scorer, as from `Scorer.__call__`.

    Raises:
        FiqaRayError: as `Scorer.__call__`.
    """
    faces = torch.as_tensor(faces)
    check_faces(faces)
    rows = np.zeros(len(faces), np.int64) if image_row is None else np.asarray(image_row)
    if rows.shape != (len(faces),) or not np.issubdtype(rows.dtype, np.integer):
        raise UsageError(f"image_row is {rows.shape} {rows.dtype}; wanted ({len(faces)},) integers, one per face")
    passes: dict[tuple[int, torch.device], CleanPass] = {}
    results = []
    for scorer in scorers:
        if image_row is None and scorer.random:
            raise UsageError(f"{scorer.name} draws random numbers per image: give image_row, (b,) integers")
        key = (id(scorer.network), scorer.device)
        if key not in passes:
            passes[key] = CleanPass(scorer.network, faces.to(scorer.device))
        scores = scorer.score_faces(passes[key], rows.astype(np.int64))
        values = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
        if values.shape != (len(faces),) or not np.issubdtype(values.dtype, np.number):
            raise FiqaRayError(
                f"{scorer.name}: returned scores of shape {values.shape}, {values.dtype} for {len(faces)} faces; "
                f"wanted ({len(faces)},) numbers"
            )
        results.append(values.astype(np.float32))
    return results
