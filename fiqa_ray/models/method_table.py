"""The table of FIQA methods. No import of torch: a method's code loads when the method is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fiqa_ray.models.recognizer_table import IRESNET_MACS, RECOGNIZERS, NetworkRow, models_attribute

if TYPE_CHECKING:
    from fiqa_ray.models.scorer import ScoreFaces


@dataclass(frozen=True)
class MethodRow:
    """One FIQA method.

    Attributes:
        builder: function that builds the method, as `module:name` below `fiqa_ray.models`; see `build`.
        source: whose code or formula it is.
        licence: what its authors state.
        native_range: range of the formula.
        usual_range: range of the scores of faces.
        network: network of the method, with its checkpoint, hash, licence and preprocessing; None if the method works on
            a recogniser.
        head: network on that recogniser's trunk, if the method needs one.
        n_forwards: forward passes per image through the network or recogniser, at the default options.
        n_backwards: backward passes per image to the input, at the default options.
        head_macs: multiply-accumulates per image beside these passes.
        needs_gradient: whether the recogniser must be differentiable.
        deterministic: whether the method draws no random numbers.
        from_embedding: whether stored embeddings suffice.
        from_trunk: whether it starts from the trunk's output for the clean face, so that such methods share one pass.
    """

    builder: str
    source: str
    licence: str
    native_range: tuple[float, float]
    usual_range: str
    network: NetworkRow | None = None
    head: NetworkRow | None = None
    n_forwards: int = 1
    n_backwards: int = 0
    head_macs: int = 0
    needs_gradient: bool = False
    deterministic: bool = True
    from_embedding: bool = False
    from_trunk: bool = False

    @property
    def build(self) -> Callable[..., ScoreFaces]:
        """The function that builds the method: `build(network, seed, *heads, **options)`, with at most one head."""
        return models_attribute(self.builder)

    @property
    def cost(self) -> str:
        """Cost per image, in words.

        GMAC if the method has a network; else forward (F) and backward (B) passes of the recogniser, and GMAC beside them.
        """
        if self.network is not None:
            return f"{(self.n_forwards * self.network.macs + self.head_macs) / 1e9:.2f} GMAC"
        parts = [f"{self.n_forwards} F"]
        parts += [f"{self.n_backwards} B"] if self.n_backwards else []
        parts += [f"{self.head_macs / 1e9:.2g} GMAC"] if self.head_macs else []
        return " + ".join(parts)


_ANY = (-math.inf, math.inf)
_NETWORK_OUTPUT = "methods.forward:build_network_output"
_EMBEDDING_NORM = "methods.forward:build_embedding_norm"
_SERFIQ = "methods.serfiq:build_serfiq"
_SERFIQ_MACS = 99 * 25_088 * 512
"""What 100 products with the last layer cost beyond the one product of a plain forward pass."""


def _with_network(builder: str, network: NetworkRow, usual_range: str, **more: Any) -> MethodRow:
    native_range = more.pop("native_range", _ANY)
    return MethodRow(builder, network.source, network.licence, native_range, usual_range, network=network, **more)


def _crfiqa(depth: int, released_file: str, sha256: str) -> MethodRow:
    network = NetworkRow(
        builder="networks.iresnet:CRFIQA",
        arguments={"depth": depth},
        macs=IRESNET_MACS[depth] + 512,
        source="fdbtrs/CR-FIQA",
        released_file=released_file,
        licence="code CC BY-NC 4.0; weights: not stated",
        sha256=sha256,
        dim=1,
    )
    return _with_network(_NETWORK_OUTPUT, network, "0.36 to 0.52 on LFW")


def _sddfiqa(builder: str, macs: int, released_file: str) -> MethodRow:
    network = NetworkRow(
        builder=builder,
        macs=macs,
        source="Tencent/TFace quality/",
        released_file=released_file,
        licence="code Apache-2.0; weights: not stated",
        dim=1,
    )
    return _with_network(_NETWORK_OUTPUT, network, "about 0 to 100")


def _magface(name: str) -> MethodRow:
    return _with_network(_EMBEDDING_NORM, RECOGNIZERS[name], "about 20 to 32", native_range=(0.0, math.inf))


METHODS: dict[str, MethodRow] = {
    "faceqan": MethodRow(
        builder="methods.faceqan:build_faceqan",
        source="LSIbabnikz/FaceQAN",
        licence="code MIT; weights: the FR model's",
        native_range=(-1.0, 1.0),
        usual_range="0 to about 0.75",
        n_forwards=52,
        n_backwards=40,
        needs_gradient=True,
        deterministic=False,
    ),
    "serfiq": MethodRow(
        builder=_SERFIQ,
        source="pterhoer/FaceImageQuality, on any recogniser with a dropout before its last layer",
        licence="code CC BY-NC-SA 4.0; weights: the FR model's",
        native_range=(0.0, 1.0),
        usual_range="0 to 1; raw: 0.86 to 0.90",
        head_macs=_SERFIQ_MACS,
        deterministic=False,
        from_trunk=True,
    ),
    "serfiq_mxnet": _with_network(
        _SERFIQ,
        RECOGNIZERS["serfiq_lresnet100e"],
        "0 to 1; raw: 0.86 to 0.90",
        native_range=(0.0, 1.0),
        head_macs=_SERFIQ_MACS,
        deterministic=False,
    ),
    "crfiqa_l": _crfiqa(100, "181952backbone.pth", "5fca24736e4f8df5fbfc0f31ca533fbcca5eb119e2bad8fff751fe72c4c4d0fd"),
    "crfiqa_s": _crfiqa(50, "32572backbone.pth", "b9f457a6f00e0363a0cfb47ba4075e866d29e4e03c7989afe84faa61054dc8d4"),
    "magface_r100": _magface("magface_r100"),
    "magface_r50": _magface("magface_r50"),
    "magface_r18": _magface("magface_r18"),
    "sddfiqa_r50": _sddfiqa("networks.ir:sddfiqa_r50", 6_283_665_920, "SDD_FIQA_checkpoints_r50.pth"),
    "sddfiqa_mobilefacenet": _sddfiqa(
        "networks.mobilefacenet:sddfiqa_mobilefacenet",
        220_899_840,
        "a checkpoint of training with backbone MobileFaceNet",
    ),
    "pcnet": MethodRow(
        builder="methods.pcnet:build_pcnet",
        source="Xie et al., BMVC 2020; head of KaenChan/face-uncertainty-pytorch, a re-implementation",
        licence="code MIT; weights: the FR model's",
        native_range=(0.0, 1.0),
        usual_range="0 to 1",
        head=NetworkRow(
            builder="methods.pcnet:PCNetHead",
            macs=6_422_784,
            source="KaenChan/face-uncertainty-pytorch",
            released_file="a trained head; none is released",
            licence="code MIT",
            dim=1,
        ),
        head_macs=6_422_784,
        from_trunk=True,
    ),
    "paper_regressor_r100": _with_network(
        _NETWORK_OUTPUT,
        NetworkRow(
            builder="networks.iresnet:iresnet100_with_regressor",
            macs=IRESNET_MACS[100] + 512,
            source="LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques",
            released_file="the state dict that its transfer learning saves",
            licence="code MIT; weights: not stated",
            dim=1,
        ),
        "about 0 to 1",
    ),
    "embedding_norm": MethodRow(
        builder=_EMBEDDING_NORM,
        source="IrvingMeng/MagFace inference/gen_feat.py, for any recogniser",
        licence="a formula; weights: the FR model's",
        native_range=(0.0, math.inf),
        usual_range="depends on the recogniser",
        from_embedding=True,
    ),
}
