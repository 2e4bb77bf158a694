"""Vision transformers for faces, as arcface_torch, CVLface, TransFace and ViT-FIQA have them.

Layer order and names follow `deepinsight/insightface recognition/arcface_torch/backbones/vit.py` (9 px patches),
`mk-minchul/CVLface models/vit/vit.py` (8 px patches, no mask token), `DanJun6737/TransFace backbones/vit.py` (a gate per
patch) and `atzoriandrea/ViT-FIQA backbones/vit_qs.py` (a quality token or head). They share the blocks: layer norm,
attention without bias of queries, keys and values, layer norm, and a perceptron with ReLU6, which clips at 6. A grid of
9 px patches uses the first 108 rows and columns of a face.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.core.align import FACE_SIZE
from fiqa_ray.models.networks.iresnet import EMBEDDING_DIM

HEAD_EPS = 2e-5
"""eps of the batch norms of the head; layer norms have torch's 1e-5."""


class Attention(nn.Module):
    """Self-attention with several heads.

    Args:
        dim: numbers of a token.
        n_heads: heads; each has `dim / n_heads` numbers.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens `(N, P, dim)` to queries, keys and values, `(N, n_heads, P, dim / n_heads)` each."""
        n, p, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, p, 3, self.n_heads, dim // self.n_heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def weights(self, x: Tensor) -> Tensor:
        """Return what each token receives from each, `(N, n_heads, P, P)`; rows, the queries, sum to one."""
        q, k, _ = self.heads(x)
        return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(N, P, dim)` to `(N, P, dim)`."""
        y = functional.scaled_dot_product_attention(*self.heads(x))
        return self.proj(y.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear layers with ReLU6 between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., dim)` to `(..., dim)`."""
        return self.fc2(functional.relu6(self.fc1(x)))


class Block(nn.Module):
    """Attention and a perceptron, each after a layer norm and added to its input."""

    def __init__(self, dim: int, n_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim, n_heads)
        self.mlp = Perceptron(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(N, P, dim)` to `(N, P, dim)`."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """One token per square of pixels."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(N, 3, h, w)` to tokens `(N, P, dim)`, row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class FaceViT(nn.Module):
    """A vision transformer from normalised faces `(N, 3, 112, 112)` to raw embeddings `(N, n_outputs)`.

    Args:
        patch_size: side of a patch in pixels.
        dim: numbers of a token.
        depth: number of blocks.
        n_heads: attention heads.
        mlp_ratio: width of the perceptrons, in units of `dim`.
        quality_token: hold one more token, which goes through the blocks before those of the patches.
        mask_token: hold the token that stands for hidden patches in training; evaluation does not use it.
        n_feature_tokens: tokens that the embedding is computed from; by default those of the patches.
        n_outputs: numbers of an embedding.
    """

    def __init__(
        self,
        patch_size: int,
        dim: int,
        depth: int,
        n_heads: int,
        mlp_ratio: int,
        *,
        quality_token: bool = False,
        mask_token: bool = False,
        n_feature_tokens: int | None = None,
        n_outputs: int = EMBEDDING_DIM,
    ) -> None:
        super().__init__()
        self.n_patches = (FACE_SIZE // patch_size) ** 2
        if quality_token:
            self.qs_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.n_patches + quality_token, dim))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbedding(patch_size, dim)
        self.blocks = nn.ModuleList(Block(dim, n_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear((n_feature_tokens or self.n_patches) * dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=HEAD_EPS),
            nn.Linear(dim, n_outputs, bias=False),
            nn.BatchNorm1d(n_outputs, eps=HEAD_EPS),
        )

    def first_tokens(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the tokens that the first block gets, `(N, P, dim)`."""
        tokens = self.patch_embed(x)
        if hasattr(self, "qs_token"):
            tokens = torch.cat([self.qs_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        return tokens + self.pos_embed

    def block_outputs(self, x: Tensor, n_blocks: int | None = None) -> Iterator[Tensor]:
        """Yield what the first blocks return, `(N, P, dim)` each, for normalised faces `(N, 3, 112, 112)`."""
        x = self.first_tokens(x)
        for block in self.blocks[:n_blocks]:
            x = block(x)
            yield x

    def tokens(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the tokens after the last layer norm, `(N, P, dim)`."""
        *_, x = self.block_outputs(x)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to raw embeddings `(N, n_outputs)`."""
        return self.feature(self.tokens(x).flatten(1))


def arcface_vit(dim: int, depth: int) -> FaceViT:
    """ViT of arcface_torch: 144 patches of 9 px, 8 heads."""
    return FaceViT(9, dim, depth, n_heads=8, mlp_ratio=4, mask_token=True)


def cvlface_vit(depth: int, n_heads: int, mlp_ratio: int) -> FaceViT:
    """ViT of CVLface: 196 patches of 8 px, 512 numbers per token."""
    return FaceViT(8, 512, depth, n_heads, mlp_ratio)


class TransFace(FaceViT):
    """TransFace: arcface_torch's ViT whose tokens are weighted before the head, by a gate per patch.

    The released forward also returns the gates and the spread of each patch, which training uses.

    Args:
        dim: numbers of a token.
        depth: number of blocks.
    """

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__(9, dim, depth, n_heads=8, mlp_ratio=4, mask_token=True)
        n = self.n_patches
        self.senet = nn.Sequential(
            nn.Linear(n * dim, n, bias=False), nn.ReLU(), nn.Linear(n, n, bias=False), nn.Sigmoid()
        )

    def gates(self, tokens: Tensor) -> Tensor:
        """Map tokens `(N, P, dim)` to the weight of each patch, `(N, P)` in [0, 1]."""
        return self.senet(tokens.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to raw embeddings `(N, 512)`."""
        tokens = self.tokens(x)
        return self.feature((tokens * self.gates(tokens)[:, :, None]).flatten(1))


class ViTFIQA(FaceViT):
    """ViT-FIQA: a ViT-S that returns a quality `(N, 1)`, unbounded, larger is better.

    Args:
        mode: `token` (the released default): a quality token goes through the blocks before the patches, and quality
            is computed from it; `full`: the embedding is computed from that token too, and quality from the embedding;
            `crfiqa`: there is no such token, and quality is computed from the embedding.
    """

    def __init__(self, mode: Literal["token", "full", "crfiqa"]) -> None:
        super().__init__(
            9, 512, 12, 8, 4, quality_token=mode != "crfiqa", mask_token=True, n_feature_tokens=144 + (mode == "full")
        )
        self.from_token = mode == "token"
        self.head_qs = nn.Sequential(nn.BatchNorm1d(512, eps=HEAD_EPS), nn.Linear(512, 1, bias=False))

    def embedding_and_quality(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised faces `(N, 3, 112, 112)` to embeddings `(N, 512)` and quality `(N, 1)`."""
        tokens = self.tokens(x)
        if self.from_token:
            return self.feature(tokens[:, 1:].flatten(1)), self.head_qs(tokens[:, 0])
        embedding = self.feature(tokens.flatten(1))
        return embedding, self.head_qs(embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to quality `(N, 1)`."""
        return self.head_qs(self.tokens(x)[:, 0]) if self.from_token else self.embedding_and_quality(x)[1]
