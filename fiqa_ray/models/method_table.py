"""The table of FIQA methods. No import of torch: a method's code loads when the method is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality_scale import IDENTITY, OFIQ_SIGMOID, QualityScale
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
        negated: whether the authors' number, of which a smaller one is better, is negated.
        quality_scale: how its scores become a quality of 0 to 100, where its authors or a standard say so.
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
    negated: bool = False
    quality_scale: QualityScale | None = None

    @property
    def build(self) -> Callable[..., ScoreFaces]:
        """The function that builds the method: `build(network, seed, *heads, **options)`, with at most one head."""
        return models_attribute(self.builder)

    @property
    def range_text(self) -> str:
        """Range of the formula, in words."""
        low, high = self.native_range
        if math.isinf(low) and math.isinf(high):
            return "any number"
        return (
            f"{low:g} or more"
            if math.isinf(high)
            else f"{high:g} or less"
            if math.isinf(low)
            else f"{low:g} to {high:g}"
        )

    @property
    def direction(self) -> str:
        """Which scores are better, in words."""
        return "larger (the authors' number negated)" if self.negated else "larger"

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
_EDIFFIQA_HEAD_MACS = 512 * 1024 + 1024


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


def _ediffiqa(depth: int | None, macs: int, released_file: str) -> MethodRow:
    network = NetworkRow(
        builder="networks.ediffiqa:EDifFIQA",
        arguments={"depth": depth},
        macs=macs + _EDIFFIQA_HEAD_MACS,
        source="LSIbabnikz/eDifFIQA",
        released_file=released_file,
        licence="code without a licence; weights: not stated",
        dim=1,
    )
    return _with_network(_NETWORK_OUTPUT, network, "about 0 to 1")


def _mrfiqa(builder: str, macs: int, released_file: str, **arguments: Any) -> MethodRow:
    network = NetworkRow(
        builder=builder,
        arguments=arguments,
        macs=macs,
        source="oufuzhao/MR-FIQA",
        released_file=released_file,
        licence="code CC BY-NC 4.0; weights: not stated",
        dim=1,
    )
    return _with_network(_NETWORK_OUTPUT, network, "not published; unbounded")


def _vitfiqa(mode: str, macs: int) -> MethodRow:
    network = NetworkRow(
        builder="networks.vit:ViTFIQA",
        arguments={"mode": mode},
        macs=macs,
        source="atzoriandrea/ViT-FIQA-Assessing-Face-Image-Quality-using-Vision-Transformers",
        released_file=f"model.pt of a training in mode {mode}",
        licence="code CC BY-NC 4.0; weights: not stated",
        dim=1,
    )
    return _with_network(_NETWORK_OUTPUT, network, "not published; unbounded")


def _norm_of(name: str, usual_range: str, **more: Any) -> MethodRow:
    """Return the row of a recogniser whose training makes the length of its embeddings a quality."""
    return _with_network(_EMBEDDING_NORM, RECOGNIZERS[name], usual_range, native_range=(0.0, math.inf), **more)


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
    "magface_r100": _norm_of("magface_r100", "about 20 to 32"),
    "magface_r50": _norm_of("magface_r50", "about 20 to 32", quality_scale=OFIQ_SIGMOID),
    "magface_r18": _norm_of("magface_r18", "about 20 to 32"),
    "adaface_ir18": _norm_of("adaface_ir18", "not published"),
    "adaface_ir50": _norm_of("adaface_ir50", "not published"),
    "adaface_ir101": _norm_of("adaface_ir101", "not published"),
    "ofiq_uqs": _with_network(
        "methods.ofiq:build_ofiq_uqs",
        replace(RECOGNIZERS["magface_r50"], source="BSI-OFIQ/OFIQ-Project UnifiedQualityScore, from ArcFace crops"),
        "0 to 100, whole numbers",
        native_range=(0.0, 100.0),
        quality_scale=IDENTITY,
    ),
    "ediffiqa_l": _ediffiqa(100, IRESNET_MACS[100], "ediffiqaL.pth"),
    "ediffiqa_m": _ediffiqa(50, IRESNET_MACS[50], "ediffiqaM.pth"),
    "ediffiqa_s": _ediffiqa(18, IRESNET_MACS[18], "ediffiqaS.pth"),
    "ediffiqa_t": _ediffiqa(None, RECOGNIZERS["ediffiqa_mobilefacenet"].macs, "ediffiqaT.pth"),
    "ediffiqa_t_onnx": _with_network(
        _NETWORK_OUTPUT,
        NetworkRow(
            builder="",
            macs=RECOGNIZERS["ediffiqa_mobilefacenet"].macs + _EDIFFIQA_HEAD_MACS,
            source="opencv/opencv_zoo models/face_image_quality_assessment_ediffiqa",
            released_file="ediffiqa_tiny_jun2024.onnx",
            licence="code CC BY 4.0; weights: CC BY 4.0",
            sha256="9426c899cc0f01665240cb7d9e7f98e18e24e456c178326c771a43da289bfc6a",
            dim=1,
            file_format="onnx",
            fetch_uri="https://media.githubusercontent.com/media/opencv/opencv_zoo/"
            "85e6d8ff851728d5198efb892f1fdb0c7847d07f/models/face_image_quality_assessment_ediffiqa/"
            "ediffiqa_tiny_jun2024.onnx",
        ),
        "about 0 to 1",
    ),
    "mrfiqa": _mrfiqa("networks.iresnet:CRFIQA", IRESNET_MACS[50] + 512, "any file but SynFIQA++", depth=50),
    "mrfiqa_synfiqapp": _mrfiqa("networks.iresnet:SynFIQAPlusPlus", 6_296_682_752, "the file SynFIQA++"),
    "vitfiqa": _vitfiqa("token", 5_749_838_336),
    "vitfiqa_full": _vitfiqa("full", 5_788_111_360),
    "vitfiqa_crfiqa": _vitfiqa("crfiqa", 5_746_549_248),
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
    "clib_fiqa": _with_network(
        _NETWORK_OUTPUT,
        NetworkRow(
            builder="networks.clib_fiqa:ClibFIQA",
            macs=5_792_948_224,
            source="oufuzhao/CLIB-FIQA on CLIP's ResNet-50",
            released_file="CLIB-FIQA_R50.pth on CLIP's RN50.pt, with the text features in place of the text tower",
            licence="code MIT; weights: not stated",
            preprocessing=Preprocessing(mean=0.0, scale=255.0),
            dim=1,
        ),
        "0.1 to 0.9",
        native_range=(0.1, 0.9),
    ),
    "grafiqs": MethodRow(
        builder="methods.grafiqs:build_grafiqs",
        source="jankolf/GraFIQs, on any recogniser with batch norms; negated, so that larger is better",
        licence="code CC BY-NC 4.0; weights: the FR model's",
        native_range=(-math.inf, 0.0),
        usual_range="depends on the recogniser",
        negated=True,
    ),
    "froq": MethodRow(
        builder="methods.froq:build_froq",
        source="LSIbabnikz/FROQ",
        licence="code MIT; weights: the FR model's",
        native_range=(0.0, math.inf),
        usual_range="depends on the recogniser and the layers",
    ),
    "vitnt_fiqa": MethodRow(
        builder="methods.vitnt:build_vitnt",
        source="gurayozgur/ViTNT-FIQA, on a vision transformer of CVLface or arcface_torch",
        licence="code CC BY-NC-SA 4.0; weights: the FR model's",
        native_range=(0.0, 1.0),
        usual_range="depends on the recogniser",
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
