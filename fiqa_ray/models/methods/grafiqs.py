"""GraFIQs (`jankolf/GraFIQs backbones/bn.py`): how strongly an image's statistics pull at a network's inner maps.

Each batch norm compares the mean and the biased variance of its input, per channel over one image, with what it keeps from
training: the loss is the mean over batch norms of the mean squared differences of both. The score is the sum of absolute
values of the loss's gradient with respect to the image or to the output of a stage (block). A large sum is far from the
training faces, so it is negated here: larger is better. The authors' code writes the sum itself and names no direction.

After the last stage stands one batch norm, so block4 needs no backward pass: for a map x with C channels of P positions, and
L batch norms, the gradient is 2 / (L C P) * ((m - rm) + 2 (v - rv) (x - m)).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.layers import recording, watch
from fiqa_ray.models.networks.ir import IR
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces

BLOCKS = ("image", "block1", "block2", "block3", "block4")


def build_grafiqs(recognizer: Recognizer, seed: int, *, block: str = "block4") -> ScoreFaces:
    """Build GraFIQs on a recogniser; `seed` is not used.

    Args:
        recognizer: a network with batch norms over maps; an ONNX network is converted to torch. Blocks other than `image`
            need an IResNet or an IR network.
        seed: not used.
        block: `image`, or `block1` to `block4`: where the gradient is taken. block4 needs no backward pass.

    Raises:
        UsageError: an unknown block, or a recogniser without batch norms or without such blocks.
    """
    if block not in BLOCKS:
        raise UsageError(f"grafiqs: block={block!r} must be one of {', '.join(BLOCKS)}")
    network = recognizer.with_gradients("grafiqs")
    backbone = network.backbone
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    if not norms:
        raise UsageError(f"grafiqs needs the statistics of batch norms, and {recognizer.name} has none; take another")
    if block != "image" and not isinstance(backbone, IResNet | IR):
        raise UsageError(f"grafiqs: {recognizer.name} has no blocks that fiqa_ray knows; set block: image")
    if block == "block4":
        assert isinstance(backbone, IResNet | IR)
        last = backbone.bn2 if isinstance(backbone, IResNet) else backbone.head[0]
        if not isinstance(last, nn.BatchNorm2d):
            raise UsageError(f"grafiqs: {recognizer.name} has no batch norm after its last block; set block: image")

        def score_last(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
            with torch.inference_mode():
                maps = backbone.maps(network.preprocess(clean.faces.to(torch.float32) / 255))
                return -last_block_pull(maps, last, len(norms))

        return score_last
    start = None if block == "image" else _last_of_stage(backbone, int(block[-1]))
    watch([*norms.values(), *([start] if start is not None else [])])

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():  # a caller's inference mode would forbid gradients
            x = network.preprocess(clean.faces.clone().to(torch.float32) / 255)
            return -gradient_pull(backbone, x, len(norms), start)

    return score_faces


def _last_of_stage(backbone: nn.Module, stage: int) -> nn.Module:
    """Return the module whose output is that of a stage, 1 to 3."""
    if isinstance(backbone, IR):
        return backbone.body[sum(backbone.n_blocks[:stage]) - 1]
    return getattr(backbone, f"layer{stage}")


def gradient_pull(backbone: nn.Module, x: Tensor, n_norms: int, start: nn.Module | None = None) -> Tensor:
    """Return each image's sum of absolute gradients of its loss.

    Args:
        backbone: a network whose batch norms and `start` are watched, see `layers.watch`.
        x: `(N, 3, h, w)` preprocessed faces.
        n_norms: number of batch norms.
        start: layer at whose output the gradient is taken; None: at `x`.

    Returns:
        `(N,)`, in the dtype of `x`. Images do not depend on each other.
    """
    leaf = x = x.detach().requires_grad_()
    loss = torch.zeros(len(x), dtype=x.dtype, device=x.device)

    def add(layer: nn.Module, given: Tensor, output: Tensor) -> None:
        nonlocal leaf, loss
        if layer is start:
            leaf, loss = output, torch.zeros_like(loss)  # what came before is constant
        elif isinstance(layer, nn.BatchNorm2d):
            loss = loss + _difference(given, layer) / n_norms

    with recording(add):
        backbone(x)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return gradient.abs().flatten(1).sum(dim=1)


def _difference(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return how far the statistics of maps `(N, C, h, w)` are from those a batch norm keeps, `(N,)`."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return ((mean - norm.running_mean) ** 2).mean(dim=1) + ((variance - norm.running_var) ** 2).mean(dim=1)


def last_block_pull(maps: Tensor, norm: nn.BatchNorm2d, n_norms: int) -> Tensor:
    """Return what `gradient_pull` gives at the last block, without gradients.

    Args:
        maps: `(N, C, h, w)`, the input of the last batch norm.
        norm: the only batch norm over maps that follows.
        n_norms: number of batch norms of the network.
    """
    variance, mean = torch.var_mean(maps, dim=(2, 3), correction=0, keepdim=True)
    kept_mean, kept_variance = (v[:, None, None] for v in (norm.running_mean, norm.running_var) if v is not None)
    gradient = (mean - kept_mean) + 2 * (variance - kept_variance) * (maps - mean)
    return 2 / (n_norms * maps[0].numel()) * gradient.abs().flatten(1).sum(dim=1)
