"""ViTNT-FIQA (`gurayozgur/ViTNT-FIQA backbones/vit/vit.py`): how little a face's patches move from block to block.

Each patch's token, after a block and the last layer norm, has unit length u_t. With d the mean of |u_t - u_(t+1)| over
neighbouring blocks, the patch's quality is 2 / (1 + exp(8 d)). The score is their mean, weighted by the attention that the
patch receives in the last block used. The released script uses 20 of 24 blocks; what follows them is not computed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fiqa_ray.errors import UsageError
from fiqa_ray.models.networks.vit import Block, FaceViT, ViTFIQA
from fiqa_ray.models.options import check_whole
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces


def build_vitnt(
    recognizer: Recognizer, seed: int, *, n_blocks: int | None = None, attention: bool = True
) -> ScoreFaces:
    """Build ViTNT-FIQA on a vision transformer; `seed` is not used.

    Args:
        recognizer: its backbone must be a `FaceViT`.
        seed: not used.
        n_blocks: blocks from the first on that are used, at least 2; default: five sixths of them, 20 of 24.
        attention: weight patches by the attention they receive; False: take their plain mean.

    Raises:
        UsageError: an option is out of range, or the recogniser is no such transformer.
    """
    backbone = recognizer.backbone
    if not isinstance(backbone, FaceViT) or isinstance(backbone, ViTFIQA):
        raise UsageError(
            f"vitnt_fiqa works on the blocks of a vision transformer, and {recognizer.name} has none that fiqa_ray knows; "
            "take cvlface_vit_b or an arcface_vit"
        )
    depth = len(backbone.blocks)
    n_used = n_blocks if n_blocks is not None else depth * 5 // 6
    check_whole("vitnt_fiqa", 2, n_blocks=n_used)
    if n_used > depth:
        raise UsageError(f"vitnt_fiqa: n_blocks={n_blocks} is more than the {depth} blocks of {recognizer.name}")

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():
            return vitnt_scores(
                backbone, recognizer.preprocess(clean.faces.to(torch.float32) / 255), n_used, attention=attention
            )

    return score_faces


def vitnt_scores(backbone: FaceViT, x: Tensor, n_blocks: int, *, attention: bool, scaling: float = 8.0) -> Tensor:
    """Return the scores of preprocessed faces `(N, 3, 112, 112)`, `(N,)` in (0, 1]."""
    tokens, distance, before = backbone.first_tokens(x), torch.zeros((), dtype=x.dtype), None
    for block in backbone.blocks[:n_blocks]:
        given, tokens = tokens, block(tokens)
        unit = functional.normalize(backbone.norm(tokens), dim=-1)
        if before is not None:
            distance = distance + (unit - before).norm(dim=-1) / (n_blocks - 1)
        before = unit
    patch_quality = 2 * torch.sigmoid(-scaling * distance)
    if not attention:
        return patch_quality.mean(dim=1)
    assert isinstance(block, Block)
    received = block.attn.weights(block.norm1(given)).mean(dim=1).sum(dim=1)
    return (patch_quality * received).sum(dim=1) / received.sum(dim=1)
