"""PCNet: predictive confidence, a head on a recogniser's frozen trunk.

Xie, Byrne, Zisserman: Inducing Predictive Uncertainty Estimation for Face Verification, BMVC 2020.

The authors published neither code nor weights. Head and loss follow the re-implementation in
``KaenChan/face-uncertainty-pytorch`` (``head_fc2_prob``, ``config_ir50_ms_pcloss_glint360k.py``), whose trunk is the
IResNet-50 of ``glint360k_cosface_r50_fp16_0.1``: name results a re-implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.errors import UsageError
from fiqa_ray.models.networks.iresnet import MAP_DIM

HIDDEN_DIM = 256


class PCNetHead(nn.Module):
    """Flat maps of a recogniser's trunk ``(b, 25088)`` to uncertainty ``(b, 1)`` in (0, 1); confidence is 1 minus it."""

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
    """Return the mean over the ordered mated pairs i != j of a batch of ``(cos(e_i, e_j) - min(p_i, p_j))^2``, p = 1 - u.

    Args:
        embeddings: ``(b, dim)`` float; gets no gradient.
        uncertainty: ``(b, 1)`` or ``(b,)`` float in (0, 1).
        identity: ``(b,)`` integers.

    Raises:
        UsageError: if no two images of the batch show the same person.
    """
    unit = functional.normalize(embeddings.detach(), dim=1)
    confidence = 1 - uncertainty.reshape(-1)
    mated = identity[:, None] == identity[None]
    mated.fill_diagonal_(False)
    if not mated.any():
        raise UsageError("pc_loss: no mated pair in the batch; draw several images per person")
    deviation = unit @ unit.T - torch.minimum(confidence[:, None], confidence[None])
    return deviation[mated].square().mean()
