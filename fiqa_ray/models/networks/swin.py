"""SwinFace's backbone (`lxq1000/SwinFace swinface_project/backbones/swin.py`): Swin-T for faces of 112 px.

Patches of 2 px give 56x56 tokens; four stages of blocks with attention in windows of 7x7 tokens follow, with 2x2 tokens
merged between them. Every second block shifts its windows by 3, except where one window is the whole grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fiqa_ray.models.networks.iresnet import EMBEDDING_DIM
from fiqa_ray.models.networks.vit import HEAD_EPS

WINDOW, SHIFT = 7, 3
DEPTHS, HEADS, DIM, GRID = (2, 2, 6, 2), (3, 6, 12, 24), 96, 56
_BLOCKED = -100.0
"""Added to the attention between tokens that a shift brought together from opposite sides."""


def _windows(x: Tensor) -> Tensor:
    """Cut `(N, h, w, d)` into windows, `(N * n_windows, 49, d)`."""
    n, h, w, d = x.shape
    x = x.reshape(n, h // WINDOW, WINDOW, w // WINDOW, WINDOW, d).transpose(2, 3)
    return x.reshape(-1, WINDOW * WINDOW, d)


def _grid(windows: Tensor, side: int) -> Tensor:
    """Join windows `(N * n_windows, 49, d)` to `(N, side, side, d)`."""
    n_windows, d = side // WINDOW, windows.shape[-1]
    x = windows.reshape(-1, n_windows, n_windows, WINDOW, WINDOW, d).transpose(2, 3)
    return x.reshape(-1, side, side, d)


def _position_index() -> Tensor:
    """Return which entry of the bias table belongs to each pair of tokens of a window, `(49, 49) int64`."""
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"))
    row_step, column_step = (x[:, None] - x[None, :] + WINDOW - 1 for x in (rows, columns))
    return row_step * (2 * WINDOW - 1) + column_step


def _shift_mask(side: int) -> Tensor:
    """Return what is added to the attention of each shifted window, `(n_windows, 49, 49)`: 0, or -100 across a border."""
    band = torch.zeros(side)
    band[side - WINDOW :], band[side - SHIFT :] = 1, 2
    region = _windows((3 * band[:, None] + band[None, :])[None, :, :, None])[:, :, 0]
    return torch.where(region[:, None, :] == region[:, :, None], 0.0, _BLOCKED)


class WindowAttention(nn.Module):
    """Self-attention within each window, with a learned bias per relative position."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, n_heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", _position_index())
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map windows `(W, 49, dim)` to `(W, 49, dim)`; `mask` is `(n_windows, 49, 49)`, repeated for each image."""
        n, p, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, p, 3, self.n_heads, dim // self.n_heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        attention = q * (dim // self.n_heads) ** -0.5 @ k.transpose(-2, -1) + bias
        if mask is not None:
            attention = (attention.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        y = attention.softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class _Perceptron(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention in windows and a perceptron, each after a layer norm and added to its input.

    Args:
        dim: numbers of a token.
        n_heads: attention heads.
        side: tokens per row of the grid.
        shifted: shift the windows.
    """

    def __init__(self, dim: int, n_heads: int, side: int, shifted: bool) -> None:
        super().__init__()
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", _shift_mask(side) if shifted else None)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, n_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Perceptron(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, side, side, dim)` to the same shape."""
        shift = 0 if self.attn_mask is None else SHIFT
        windows = _windows(self.norm1(x).roll((-shift, -shift), (1, 2)))
        y = _grid(self.attn(windows, self.attn_mask), x.shape[1])
        x = x + y.roll((shift, shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Joins 2x2 tokens to one of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, side, side, dim)` to `(N, side / 2, side / 2, 2 dim)`."""
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class _Stage(nn.Module):
    def __init__(self, dim: int, depth: int, n_heads: int, side: int, is_last: bool) -> None:
        super().__init__()
        shiftable = side > WINDOW
        self.blocks = nn.Sequential(*(SwinBlock(dim, n_heads, side, shiftable and i % 2 == 1) for i in range(depth)))
        self.downsample = None if is_last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class _PatchEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 2, stride=2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinFace(nn.Module):
    """SwinFace's backbone: normalised faces `(N, 3, 112, 112)` to raw embeddings `(N, 512)`.

    The released forward also returns local and global maps, which serve the project's other tasks.
    """

    def __init__(self) -> None:
        super().__init__()
        n_stages = len(DEPTHS)
        self.patch_embed = _PatchEmbedding(DIM)
        self.layers = nn.Sequential(
            *(_Stage(DIM << i, DEPTHS[i], HEADS[i], GRID >> i, i + 1 == n_stages) for i in range(n_stages))
        )
        dim = DIM << (n_stages - 1)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, EMBEDDING_DIM)  # in the released file; the embedding does not use it
        self.feature = nn.Sequential(
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=HEAD_EPS),
            nn.Linear(dim, EMBEDDING_DIM, bias=False),
            nn.BatchNorm1d(EMBEDDING_DIM, eps=HEAD_EPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to raw embeddings `(N, 512)`."""
        maps = self.norm(self.layers(self.patch_embed(x)))
        return self.feature(maps.mean(dim=(1, 2)))
