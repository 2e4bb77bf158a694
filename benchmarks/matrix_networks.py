"""Tiny networks with random weights for `matrix.py`, which copies this file beside its job."""

from __future__ import annotations

import torch
from torch import nn

from fiqa_ray.models.networks.iresnet import SplitNetwork


class Network(SplitNetwork):
    """A recogniser of one random layer; its trunk has as many features as that of released networks."""

    def __init__(self, number: int) -> None:
        """Draw the layer."""
        super().__init__()
        self.layer = nn.Linear(512, 64, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(64, 512, generator=torch.Generator().manual_seed(number)))

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Return two colours of each pixel, `(N, 25088)`."""
        return x[:, :2].flatten(1)

    def tail(self, features: torch.Tensor) -> torch.Tensor:
        """Return embeddings `(N, 64)`."""
        pooled = nn.functional.avg_pool2d(features.view(-1, 2, 112, 112), 7).flatten(1)
        embeddings: torch.Tensor = self.layer(pooled - pooled.mean(dim=1, keepdim=True))
        return embeddings


def network(weights: str | None = None, number: int = 0) -> Network:
    """Build the recogniser."""
    return Network(number)


class Score(nn.Module):
    """A FIQA method: how far a random layer's output is from its mean."""

    def __init__(self, number: int) -> None:
        """Draw the layer."""
        super().__init__()
        self.network = Network(number)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Return scores `(N,)`."""
        embeddings: torch.Tensor = self.network(faces)
        return embeddings.std(dim=1)


def score(weights: str | None = None, number: int = 0) -> Score:
    """Build the method."""
    return Score(number)
