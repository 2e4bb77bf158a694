"""IR networks: CurricularFace's and SDD-FIQA's with two batch norms per block, AdaFace's and CVLface's with three.

Layer order and names follow `HuangYG123/CurricularFace backbone/model_irse.py`, `Tencent/TFace quality/
generate_pseudo_labels/extract_embedding/model/model.py` and `mk-minchul/AdaFace net.py`. In the first two no batch norm
stands between a block's first convolution and its PReLU: the released weights were trained so.
"""

from __future__ import annotations

from torch import Tensor, nn

from fiqa_ray.models.networks.iresnet import EMBEDDING_DIM, MAP_DIM, STAGE_CHANNELS, SplitNetwork
from fiqa_ray.models.networks.mobilefacenet import sddfiqa_head


class IRBlock(nn.Module):
    """BN, 3x3 convolution, PReLU, 3x3 convolution with the stride, BN, plus the shortcut; nothing follows the sum.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        stride: of the second convolution and of the shortcut.
        n_norms: 2, or 3 with a batch norm before the PReLU.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, n_norms: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if c_in != c_out:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        else:
            self.shortcut_layer = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()  # plain subsampling
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            *([nn.BatchNorm2d(c_out)] if n_norms == 3 else []),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, c_in, h, w)` to `(N, c_out, h / stride, w / stride)`."""
        return self.res_layer(x) + self.shortcut_layer(x)


class IR(SplitNetwork):
    """Input layer, blocks, and a head named as released, which is split at its dropout.

    Args:
        n_blocks: of the four stages.
        head_name: `output_layer` or `quality`.
        head: maps 512 maps of 7x7 to `(N, n)`; holds one Dropout.
        n_norms: batch norms of a block, 2 or 3.
    """

    def __init__(
        self, n_blocks: tuple[int, int, int, int], head_name: str, head: nn.Sequential, n_norms: int = 2
    ) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.add_module(head_name, head)
        self._head_name = head_name
        self.n_blocks = n_blocks
        self._dropout_at = next(i for i, layer in enumerate(head) if isinstance(layer, nn.Dropout))
        c_in, blocks = 64, []
        for n, c_out in zip(n_blocks, STAGE_CHANNELS, strict=True):
            blocks += [IRBlock(c_in, c_out, 2, n_norms), *(IRBlock(c_out, c_out, 1, n_norms) for _ in range(n - 1))]
            c_in = c_out
        self.body = nn.Sequential(*blocks)

    @property
    def head(self) -> nn.Sequential:
        """The head, under whichever name it is stored."""
        return getattr(self, self._head_name)

    def maps(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to what the head starts from, `(N, 512, 7, 7)`."""
        return self.body(self.input_layer(x))

    def trunk(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the flat map `(N, 25088)` that dropout works on."""
        return self.head[: self._dropout_at](self.maps(x)).flatten(1)

    def tail(self, features: Tensor) -> Tensor:
        """Map flat maps `(N, 25088)` to the head's output `(N, n)`."""
        return self.head[self._dropout_at + 1 :](features)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised faces `(N, 3, 112, 112)` to the head's output `(N, n)`."""
        return self.head(self.maps(x))


IR_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3), 101: (3, 13, 30, 3)}


def _embedding_head() -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(512),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(MAP_DIM, EMBEDDING_DIM),
        nn.BatchNorm1d(EMBEDDING_DIM, affine=False),
    )


def adaface_ir(depth: int) -> IR:
    """IR of AdaFace and CVLface: raw embeddings `(N, 512)`; AdaFace's forward divides them by their length.

    Args:
        depth: 18, 50 or 101.
    """
    return IR(IR_BLOCKS[depth], "output_layer", _embedding_head(), n_norms=3)


def curricularface_ir101() -> IR:
    """CurricularFace's IR-101: raw embeddings `(N, 512)`. The released forward also returns the flattened `maps`."""
    return IR(IR_BLOCKS[101], "output_layer", _embedding_head())


def sddfiqa_r50() -> IR:
    """SDD-FIQA's R50: quality `(N, 1)`, about 0..100, not clamped, larger is better."""
    return IR(IR_BLOCKS[50], "quality", sddfiqa_head(1))


def sddfiqa_r50_recognition() -> IR:
    """Return the recognition form of SDD-FIQA's R50: raw embeddings `(N, 512)`."""
    return IR(IR_BLOCKS[50], "output_layer", sddfiqa_head(EMBEDDING_DIM))
