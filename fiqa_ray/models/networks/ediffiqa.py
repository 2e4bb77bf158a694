"""eDifFIQA (`LSIbabnikz/eDifFIQA model/`): a recogniser and a perceptron from its embedding to a quality."""

from __future__ import annotations

from torch import Tensor, nn

from fiqa_ray.models.networks.iresnet import EMBEDDING_DIM, IResNet
from fiqa_ray.models.networks.mobilefacenet import ediffiqa_mobilefacenet


class _Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Linear(EMBEDDING_DIM, 1024)
        self.l2 = nn.Linear(1024, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.l2(nn.functional.gelu(self.l1(x)))


class EDifFIQA(nn.Module):
    """Quality `(N, 1)`: trained on 0 to 1, not clamped, larger is better.

    Args:
        depth: of the IResNet, 100 (L), 50 (M) or 18 (S); None: MobileFaceNet with embeddings of unit length (T).
    """

    def __init__(self, depth: int | None) -> None:
        super().__init__()
        self.base_model: nn.Module = ediffiqa_mobilefacenet() if depth is None else IResNet(depth)
        self.mlp = _Perceptron()

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to quality `(N, 1)`."""
        return self.mlp(self.base_model(x))
