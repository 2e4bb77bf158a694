"""MobileFaceNet in the released layouts: small networks, useful where an IResNet is too slow.

`curricularface_mobilefacenet`: `HuangYG123/CurricularFace backbone/model_mobilefacenet.py` (the same names and
shapes as the recognition MobileFaceNet in `Tencent/TFace quality/`). On the same trunk, `sddfiqa_mobilefacenet`
(`Tencent/TFace quality/`) returns a quality and `ediffiqa_mobilefacenet` (`LSIbabnikz/eDifFIQA`) an embedding of
unit length. `arcface_torch_mobilefacenet`: `deepinsight/insightface recognition/arcface_torch/backbones/
mobilefacenet.py`, twice as wide. Embeddings have 512 values and are raw unless said otherwise. The nets are nested
`Sequential` modules whose names are the released parameter names.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.models.networks.iresnet import EMBEDDING_DIM, MAP_DIM


class _UnitLength(nn.Module):
    """Divides every row by its length."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1)


class _Residual(nn.Sequential):
    """A chain whose input is added to its output."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _unit(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, prelu: bool = True) -> list[nn.Module]:
    """Convolution without bias, BN and, by default, PReLU. Padding 1 for 3x3 kernels, else 0."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=int(kernel == 3), groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out), *([nn.PReLU(c_out)] if prelu else [])]


def _named_unit(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, prelu: bool = True
) -> nn.Sequential:
    names = ("conv", "bn", "prelu")
    return nn.Sequential(OrderedDict(zip(names, _unit(c_in, c_out, kernel, stride, groups, prelu), strict=False)))


def _with_curricularface_trunk(**head: nn.Module) -> nn.Sequential:
    """Return the layers that three released networks share, up to 512 maps of 7x7, and what follows them."""

    def bottleneck(c_in: int, c_out: int, width: int, stride: int = 1) -> OrderedDict[str, nn.Module]:
        return OrderedDict(
            conv=_named_unit(c_in, width, 1),
            conv_dw=_named_unit(width, width, 3, stride, width),
            project=_named_unit(width, c_out, 1, prelu=False),
        )

    def residuals(n_blocks: int, channels: int, width: int) -> nn.Sequential:
        return _named(model=nn.Sequential(*(_Residual(bottleneck(channels, channels, width)) for _ in range(n_blocks))))

    return _named(
        conv1=_named_unit(3, 64, 3, 2),
        conv2_dw=_named_unit(64, 64, 3, 1, 64),
        conv_23=nn.Sequential(bottleneck(64, 64, 128, 2)),
        conv_3=residuals(4, 64, 128),
        conv_34=nn.Sequential(bottleneck(64, 128, 256, 2)),
        conv_4=residuals(6, 128, 256),
        conv_45=nn.Sequential(bottleneck(128, 128, 512, 2)),
        conv_5=residuals(2, 128, 256),
        conv_6_sep=_named_unit(128, 512, 1),
        **head,
    )


def _curricularface_head() -> dict[str, nn.Module]:
    return {
        "conv_6_dw": _named_unit(512, 512, 7, groups=512, prelu=False),
        "flatten": nn.Flatten(),
        "linear": nn.Linear(512, EMBEDDING_DIM, bias=False),
        "bn": nn.BatchNorm1d(EMBEDDING_DIM),
    }


def curricularface_mobilefacenet() -> nn.Sequential:
    """MobileFaceNet of CurricularFace: `(N, 3, 112, 112)` normalised to `(N, 512)`; 1.2 M parameters, 221 MMAC."""
    return _with_curricularface_trunk(output_layer=_named(**_curricularface_head()))


def ediffiqa_mobilefacenet() -> nn.Sequential:
    """MobileFaceNet of eDifFIQA: `(N, 3, 112, 112)` normalised to `(N, 512)` of unit length; 221 MMAC."""
    return _with_curricularface_trunk(**_curricularface_head(), normalise=_UnitLength())


def sddfiqa_mobilefacenet() -> nn.Sequential:
    """MobileFaceNet of SDD-FIQA: `(N, 3, 112, 112)` normalised to quality `(N, 1)`, about 0..100; 221 MMAC."""
    return _with_curricularface_trunk(quality=sddfiqa_head(1))


def sddfiqa_head(n_outputs: int) -> nn.Sequential:
    """SDD-FIQA's last layers: 512 maps of 7x7, one PReLU slope per position, to `(N, n_outputs)`."""
    return nn.Sequential(nn.Flatten(), nn.PReLU(MAP_DIM), nn.Dropout(0.5), nn.Linear(MAP_DIM, n_outputs))


def arcface_torch_mobilefacenet() -> nn.Sequential:
    """MobileFaceNet of arcface_torch: `(N, 3, 112, 112)` normalised to `(N, 512)`; 2.1 M parameters, 437 MMAC."""

    def unit(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, prelu: bool = True) -> nn.Sequential:
        return _named(layers=nn.Sequential(*_unit(c_in, c_out, kernel, stride, groups, prelu)))

    def bottleneck(c_in: int, c_out: int, width: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            unit(c_in, width, 1), unit(width, width, 3, stride, width), unit(width, c_out, 1, prelu=False)
        )

    def residuals(n_blocks: int, channels: int) -> nn.Sequential:
        blocks = (_Residual(OrderedDict(layers=bottleneck(channels, channels, channels))) for _ in range(n_blocks))
        return _named(layers=nn.Sequential(*blocks))

    return _named(
        layers=nn.Sequential(
            unit(3, 128, 3, 2),
            unit(128, 128, 3, 1, 64),
            _named(layers=bottleneck(128, 128, 128, 2)),
            residuals(4, 128),
            _named(layers=bottleneck(128, 256, 256, 2)),
            residuals(6, 256),
            _named(layers=bottleneck(256, 256, 512, 2)),
            residuals(2, 256),
        ),
        conv_sep=unit(256, 512, 1),
        features=_named(
            layers=nn.Sequential(
                unit(512, 512, 7, groups=512, prelu=False),
                nn.Flatten(),
                nn.Linear(512, EMBEDDING_DIM, bias=False),
                nn.BatchNorm1d(EMBEDDING_DIM),
            )
        ),
    )
