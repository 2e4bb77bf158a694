"""CLIB-FIQA (`oufuzhao/CLIB-FIQA inference.py`): CLIP's image tower, and how well a face fits 360 sentences about quality.

The sentences name blur, occlusion, pose, expression, light and one of five qualities; their text features do not depend on
the face, so a checkpoint for this network holds them in place of the text tower. The score is the mean of .1, .3, .5, .7
and .9, weighted by the softmax of the cosines, summed over all but the quality. The tower is `openai/CLIP`'s ResNet-50.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

FACE, IMAGE = 112, 224
N_SENTENCES, N_QUALITIES, TEXT_DIM = 360, 5, 1024
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_HEADS, _WIDTH = 32, 2048


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.stride = stride
        self.downsample = None
        if stride > 1 or c_in != c_out:
            layers = {"0": nn.Conv2d(c_in, c_out, 1, bias=False), "1": nn.BatchNorm2d(c_out)}
            self.downsample = nn.Sequential(OrderedDict(layers))

    def _pool(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else functional.avg_pool2d(x, self.stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self._pool(functional.relu(self.bn2(self.conv2(y))))
        shortcut = x if self.downsample is None else self.downsample(self._pool(x))
        return functional.relu(self.bn3(self.conv3(y)) + shortcut)


class _AttentionPool(nn.Module):
    """One attention of the mean of all positions over the positions and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros((IMAGE // 32) ** 2 + 1, _WIDTH))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(_WIDTH, _WIDTH) for _ in range(3))
        self.c_proj = nn.Linear(_WIDTH, TEXT_DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        q, k, v = (
            y.unflatten(2, (_HEADS, -1)).transpose(1, 2)
            for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.c_proj(y.transpose(1, 2).flatten(1))


class ClipResNet50(nn.Module):
    """CLIP's image tower: normalised images `(N, 3, 224, 224)` to features `(N, 1024)`, not of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        stages, c_in = [], 64
        for n_blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
            blocks = [_Bottleneck(c_in, width, stride)]
            blocks += [_Bottleneck(4 * width, width, 1) for _ in range(n_blocks - 1)]
            stages.append(nn.Sequential(*blocks))
            c_in = 4 * width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = _AttentionPool()

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images `(N, 3, 224, 224)` to features `(N, 1024)`."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = functional.relu(norm(conv(x)))
        x = functional.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class ClibFIQA(nn.Module):
    """CLIB-FIQA: faces `(N, 3, 112, 112)` in [0, 1] to quality `(N, 1)` in 0.1 to 0.9, larger is better.

    Entries: `logit_scale`, the logarithm of the scale, as CLIP has it; `text_features` `(360, 1024)`, in whose order quality
    changes fastest; `visual.*`, CLIP's image tower.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.text_features = nn.Parameter(torch.ones(N_SENTENCES, TEXT_DIM))
        self.visual = ClipResNet50()

    def forward(self, x: Tensor) -> Tensor:
        """Map faces `(N, 3, 112, 112)` in [0, 1] to quality `(N, 1)`."""
        x = functional.interpolate(x, size=(IMAGE, IMAGE), mode="bilinear", align_corners=False)
        mean, deviation = (x.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return expected_quality(self.visual((x - mean) / deviation), self.text_features, self.logit_scale.exp())


def expected_quality(features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Return the quality of image features `(N, 1024)` by text features `(360, 1024)`, `(N, 1)`."""
    cosine = functional.normalize(features, dim=1) @ functional.normalize(text_features, dim=1).T
    share = (scale * cosine).softmax(dim=1).unflatten(1, (-1, N_QUALITIES)).sum(dim=1)
    return share @ torch.linspace(0.1, 0.9, N_QUALITIES, dtype=share.dtype, device=share.device)[:, None]
