"""PCNet: predictive confidence, a head on a recogniser's frozen trunk.

Source: Xie, Byrne, Zisserman: Inducing Predictive Uncertainty Estimation for Face Verification, BMVC 2020. The authors
published neither code nor weights. Head and loss follow the re-implementation in `KaenChan/face-uncertainty-pytorch`
(`head_fc2_prob`, `config_ir50_ms_pcloss_glint360k.py`), whose trunk is the IResNet-50 of
`glint360k_cosface_r50_fp16_0.1`. Call results those of a re-implementation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.networks.iresnet import MAP_DIM
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces

HIDDEN_DIM = 256


def build_pcnet(recognizer: Recognizer, seed: int, head: Recognizer) -> ScoreFaces:
    """Build PCNet's confidence, 1 minus the head's uncertainty on the recogniser's trunk; `seed` is not used.

    Raises:
        UsageError: the recogniser is not split at its dropout.
    """
    recognizer.split("pcnet")

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
        n_features = clean.features.shape[1]
        if n_features != MAP_DIM:
            raise FiqaRayError(
                f"pcnet: {recognizer.name} has {n_features} features before its dropout, wanted {MAP_DIM}"
            )
        with torch.inference_mode():
            return 1 - head.backbone(clean.features.to(torch.float32))[:, 0]

    return score_faces


class PCNetHead(nn.Module):
    """Maps a trunk's flat maps `(N, 25088)` to uncertainty `(N, 1)` in (0, 1); confidence is 1 minus uncertainty."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(MAP_DIM, HIDDEN_DIM),
            nn.BatchNorm1d(HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(HIDDEN_DIM, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Predict the uncertainty, shapes as above."""
        return self.layers(features)


def pc_loss(embeddings: Tensor, uncertainty: Tensor, identity: Tensor) -> Tensor:
    """Return the mean of `(cos(e_i, e_j) - min(p_i, p_j))^2` over the ordered mated pairs i != j of a batch.

    Args:
        embeddings: `(N, D)` float e; gets no gradient.
        uncertainty: `(N, 1)` or `(N,)` float u in (0, 1); the confidence p is 1 - u.
        identity: `(N,)` integers.

    Raises:
        UsageError: no two images of the batch show the same person.
    """
    unit = functional.normalize(embeddings.detach(), dim=1)
    confidence = 1 - uncertainty.reshape(-1)
    mated = identity[:, None] == identity[None]
    mated.fill_diagonal_(False)
    if not mated.any():
        raise UsageError("pc_loss: no mated pair in the batch; draw several images per person")
    deviation = unit @ unit.T - torch.minimum(confidence[:, None], confidence[None])
    return deviation[mated].square().mean()
