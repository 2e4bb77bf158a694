"""A face recogniser small enough to train and to attack on two CPU cores within a minute each.

Residual convolutions after He et al. (2016), batch norm throughout, embedding as in IResNet: flatten, linear, batch norm.
The stem cuts the face into 4x4 patches, so that all other layers work at 28x28 and below: 11 million multiply-adds per
112x112 face, a thousandth of IResNet-100. It is meant for the synthetic faces of the demo and knows no real ones.

Named as a user's own recogniser: `fiqa_ray.synthetic.compact:build`, with a state dict as its weights.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.errors import UsageError
from fiqa_ray.models.formats.checkpoints import load_state_dict, load_strictly

EMBEDDING_DIM = 128
WIDTHS = (24, 32, 64)
PATCH = 4


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm; in evaluation mode one convolution with both folded together."""

    def __init__(self, n_in: int, n_out: int, size: int, stride: int) -> None:
        super().__init__()
        padding = 1 if size == 3 else 0
        self.conv = nn.Conv2d(n_in, n_out, size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, n_in, h, w)` to `(b, n_out, h / stride, w / stride)`."""
        if self.training:
            return self.norm(self.conv(x))
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None  # both are kept by default
        assert variance is not None
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        weight = self.conv.weight * scale[:, None, None, None]
        bias = norm.bias - mean * scale
        return functional.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)


class Residual(nn.Module):
    """`x + f(x)` with two 3x3 convolutions, no activation after the sum."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(n_channels, n_channels, 3, 1)
        self.second = ConvNorm(n_channels, n_channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(b, n_channels, h, w)` to the same shape."""
        return x + self.second(functional.relu(self.first(x)))


class CompactFaceNet(nn.Module):
    """Maps `(b, 3, 112, 112)` float RGB in [0, 1] to raw embeddings `(b, 128)`."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.trunk = nn.Sequential(
            ConvNorm(3 * PATCH * PATCH, fine, 1, 1),  # 28x28
            nn.ReLU(),
            ConvNorm(fine, middle, 3, 2),  # 14x14
            nn.ReLU(),
            Residual(middle),
            ConvNorm(middle, coarse, 3, 2),  # 7x7
            nn.ReLU(),
            Residual(coarse),
            nn.BatchNorm2d(coarse),
        )
        self.embed = nn.Linear(coarse * 7 * 7, EMBEDDING_DIM, bias=False)
        self.norm = nn.BatchNorm1d(EMBEDDING_DIM)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster order of pixels on CPUs

    def forward(self, x: Tensor) -> Tensor:
        """Embed faces, shapes as above."""
        b, _, height, width = x.shape
        rows, columns = height // PATCH, width // PATCH
        # A 4x4 convolution with stride 4 written as a 1x1 convolution of patches: its gradient is much faster on CPUs.
        patches = x.reshape(b, 3, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(b, rows, columns, -1)
        return self.norm(self.embed(self.trunk(patches.permute(0, 3, 1, 2)).flatten(1)))


def build(weights: str | os.PathLike[str] | None = None, **options: object) -> CompactFaceNet:
    """Return the network in evaluation mode.

    Args:
        weights: a state dict saved by `torch.save`: a path or any fsspec URL. None leaves random weights, for a caller
            that loads its own.
        options: none are known.

    Raises:
        FiqaRayError: an unreadable or unfitting file, or an option.
    """
    if options:
        raise UsageError(
            f"fiqa_ray.synthetic.compact:build has no options, got {', '.join(sorted(options))}; remove them"
        )
    model = CompactFaceNet()
    if weights is not None:
        load_strictly(model, load_state_dict(weights), os.fspath(weights))
    return model.eval()
