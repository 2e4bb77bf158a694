"""IResNet, the face-recognition backbone of ArcFace, ElasticFace, CR-FIQA, FaceQAN and MagFace.

Layer order and parameter names follow `deepinsight/insightface recognition/arcface_torch/backbones/iresnet.py`, so
that released checkpoints load strictly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

from torch import Tensor, nn

EMBEDDING_DIM = 512
MAP_DIM = 512 * 7 * 7
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
STAGE_CHANNELS = (64, 128, 256, 512)


class SplitNetwork(nn.Module, ABC):
    """A network in two parts with dropout between them: `tail(trunk(x))` is its output in evaluation mode."""

    @abstractmethod
    def trunk(self, x: Tensor) -> Tensor:
        """Map preprocessed faces `(N, 3, 112, 112)` to what dropout works on, `(N, n_features)`."""

    @abstractmethod
    def tail(self, features: Tensor) -> Tensor:
        """Map `(N, n_features)` to the output `(N, D)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map preprocessed faces `(N, 3, 112, 112)` to the output `(N, D)`."""
        return self.tail(self.trunk(x))


class IResNetBlock(nn.Module):
    """BN, 3x3 convolution, BN, PReLU, 3x3 convolution, BN, plus the shortcut; nothing follows the sum.

    The stride sits on the second convolution, and the shortcut leaves before the first BN.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, eps: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, eps=eps)
        self.prelu = nn.PReLU(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out, eps=eps)
        # The first block of every stage has a projection, even where the width stays 64.
        self.downsample = (
            None
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(c_out, eps=eps),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, h, w)` to `(N, c_out, h / stride, w / stride)`."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv2(y)) + shortcut


def _stage(c_in: int, c_out: int, n_blocks: int, eps: float) -> nn.Sequential:
    following = (IResNetBlock(c_out, c_out, 1, eps) for _ in range(n_blocks - 1))
    return nn.Sequential(IResNetBlock(c_in, c_out, 2, eps), *following)


class IResNet(SplitNetwork):
    """IResNet for 112x112 faces; returns the raw 512-d embedding, not normalised.

    Args:
        depth: 18, 34, 50 or 100.
        eps: of every batch norm; 1e-5, but 2e-5 in MagFace. It changes the output by about 1e-4 (relative).
        dropout: before the linear layer while training; 0 in the released ArcFace training.
        fixed_scale: keep the weight of the last batch norm at 1, untrained. True for ArcFace, ElasticFace and FaceQAN;
            False for CR-FIQA and MagFace, whose checkpoints hold learned values there.
    """

    def __init__(self, depth: int, *, eps: float = 1e-5, dropout: float = 0.0, fixed_scale: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=eps)
        self.prelu = nn.PReLU(64)
        stages = [
            _stage(c_in, c_out, n_blocks, eps)
            for c_in, c_out, n_blocks in zip(
                (64, *STAGE_CHANNELS), STAGE_CHANNELS, BLOCKS_PER_STAGE[depth], strict=False
            )
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(512, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(MAP_DIM, EMBEDDING_DIM)
        self.features = nn.BatchNorm1d(EMBEDDING_DIM, eps=eps)
        if fixed_scale:
            self.features.weight.requires_grad_(False)

    def maps(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the output of the last stage, `(N, 512, 7, 7)`."""
        x = self.prelu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def trunk(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the flat map `(N, 25088)`, index = channel * 49 + y * 7 + x."""
        return self.bn2(self.maps(x)).flatten(1)

    def tail(self, features: Tensor) -> Tensor:
        """Map flat maps `(N, 25088)` to embeddings `(N, 512)`."""
        return self.features(self.fc(features))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the tail's output `(N, D)`."""
        return self.tail(self.dropout(self.trunk(x)))


class CRFIQA(IResNet):
    """CR-FIQA (`fdbtrs/CR-FIQA`): quality as a linear map of the raw embedding.

    Args:
        depth: 50 for CR-FIQA(S), 100 for CR-FIQA(L).
    """

    def __init__(self, depth: int) -> None:
        super().__init__(depth, dropout=0.4, fixed_scale=False)
        self.qs = nn.Linear(EMBEDDING_DIM, 1)

    def embed(self, features: Tensor) -> Tensor:
        """Map flat maps `(N, 25088)` to raw embeddings `(N, 512)`, those of a recogniser."""
        return super().tail(features)

    def tail(self, features: Tensor) -> Tensor:
        """Map flat maps `(N, 25088)` to quality `(N, 1)`, unbounded, larger is better."""
        return self.qs(self.embed(features))


class SynFIQAPlusPlus(IResNet):
    """SynFIQA++ of MR-FIQA (`oufuzhao/MR-FIQA Utilities/cr_model.py`): quality from the mean of the last stage's maps.

    Quality needs neither the last batch norm nor the embedding, whose layers are in the file.
    """

    def __init__(self) -> None:
        super().__init__(50, dropout=0.4, fixed_scale=False)
        self.qs = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 1),
        )

    def trunk(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to what the head's dropout works on, `(N, 256)`."""
        return self.qs[:5](self.maps(x))

    def tail(self, features: Tensor) -> Tensor:
        """Map `(N, 256)` to quality `(N, 1)`, unbounded, larger is better."""
        return self.qs[6:](features)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to quality `(N, 1)`."""
        return self.qs(self.maps(x))


def iresnet100_with_regressor() -> nn.Sequential:
    """IResNet-100 and a linear quality head, under the names of the paper's transfer learning: quality `(N, 1)`."""
    return nn.Sequential(OrderedDict(base_model=IResNet(100), regressor=nn.Linear(EMBEDDING_DIM, 1)))
