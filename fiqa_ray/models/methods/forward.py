"""FIQA methods that need one forward pass: the length of the embedding, and the output of a quality network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces

UNIT_TOLERANCE = 1e-3
"""Embeddings whose lengths differ from 1 by less than this were normalised by the network."""


def embedding_norm(embeddings: NDArray[Any]) -> NDArray[np.float32]:
    """Return the Euclidean length of raw embeddings, `(N, D)` to `(N,) float32`.

    It is MagFace's score (`IrvingMeng/MagFace inference/gen_feat.py`: no clamp, no scaling). For any other recogniser it
    is a score without further cost.

    Raises:
        FiqaRayError: all embeddings have length 1, so that every face would get the same score.
    """
    norm = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if len(norm) and np.all(np.abs(norm - 1) < UNIT_TOLERANCE):
        raise FiqaRayError(
            "embedding_norm: all embeddings have length 1, because the network normalises them: every face would get the "
            "same score. Take another method; an ONNX file that also returns the length is one: {name: FILE.onnx, "
            "options: {output: NAME}}"
        )
    return norm.astype(np.float32)


def build_embedding_norm(recognizer: Recognizer, seed: int) -> ScoreFaces:
    """Build the embedding norm of a recogniser; `seed` is not used."""

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> NDArray[np.float32]:
        return embedding_norm(clean.output.cpu().numpy())

    return score_faces


def build_network_output(network: Recognizer, seed: int) -> ScoreFaces:
    """Build the score of a quality network, its one number per face without change; `seed` is not used."""

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
        return clean.output[:, 0]

    return score_faces
