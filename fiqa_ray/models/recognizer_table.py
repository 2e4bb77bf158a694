"""The table of released face recognisers. No import of torch: a network's code loads when the network is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fiqa_ray.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkRow:
    """One released network: a recogniser, a quality network or a quality head.

    Attributes:
        builder: class or function that builds the network, as `module:name` below `fiqa_ray.models`.
        arguments: keyword arguments of the builder.
        macs: multiply-accumulates of convolutions and linear layers per face.
        source: repository of the authors.
        released_file: name that the authors gave the checkpoint.
        licence: what the authors state for code and weights.
        sha256: hash of the released file; None if none is published.
        preprocessing: scaling and colour order of the input.
        dim: values per face; 1 for a quality.
        file_format: format of the checkpoint.
        fetch_uri: where `fiqa-ray models fetch` gets the released file; None where it must be fetched by hand.
    """

    builder: str
    macs: int
    source: str
    released_file: str
    licence: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    dim: int = 512
    file_format: Literal["torch", "mxnet", "onnx"] = "torch"
    fetch_uri: str | None = None

    def build(self) -> nn.Module:
        """Return the network with torch's initial weights."""
        return models_attribute(self.builder)(**self.arguments)


def models_attribute(path: str) -> Any:
    """Import `module:name` below `fiqa_ray.models` and return it; the tables name code in this way."""
    module, _, name = path.partition(":")
    return getattr(import_module(f"fiqa_ray.models.{module}"), name)


MAGFACE = "IrvingMeng/MagFace"
ADAFACE, CVLFACE = "mk-minchul/AdaFace", "mk-minchul/CVLface"
IR_MACS = {18: 2_597_109_760, 50: 6_296_485_888, 101: 12_076_761_088}
IRESNET_MACS = {18: 2_609_954_816, 34: 4_459_642_880, 50: 6_309_330_944, 100: 12_089_606_144}


def _arcface_torch(depth: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        builder="networks.iresnet:IResNet",
        arguments={"depth": depth},
        macs=IRESNET_MACS[depth],
        source="deepinsight/insightface recognition/arcface_torch",
        released_file=released_file,
        licence="code MIT; weights: non-commercial research only",
    )


def _magface(depth: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        builder="networks.iresnet:IResNet",
        arguments={"depth": depth, "eps": 2e-5, "dropout": 0.4, "fixed_scale": False},
        macs=IRESNET_MACS[depth],
        source=MAGFACE,
        released_file=released_file,
        licence="code Apache-2.0; weights: not stated",
        preprocessing=Preprocessing("BGR", mean=0.0, scale=255.0),
    )


def _adaface(depth: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        builder="networks.ir:adaface_ir",
        arguments={"depth": depth},
        macs=IR_MACS[depth],
        source=ADAFACE,
        released_file=released_file,
        licence="code MIT; weights: not stated",
        preprocessing=Preprocessing("BGR"),
    )


def _cvlface(repository: str, builder: str, macs: int, **arguments: Any) -> NetworkRow:
    """Return a network of CVLface, whose authors keep its files in a repository on the Hugging Face Hub."""
    return NetworkRow(
        builder=builder,
        arguments=arguments,
        macs=macs,
        source=CVLFACE,
        released_file=f"model.safetensors of minchul/{repository} on the Hugging Face Hub, or its model.pt",
        licence="code MIT; weights: MIT, and the licence of the training set",
        fetch_uri=f"hf://minchul/{repository}/model.safetensors",
    )


def _arcface_vit(dim: int, depth: int, macs: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        builder="networks.vit:arcface_vit",
        arguments={"dim": dim, "depth": depth},
        macs=macs,
        source="deepinsight/insightface recognition/arcface_torch",
        released_file=released_file,
        licence="code MIT; weights: non-commercial research only",
    )


def _transface(dim: int, depth: int, macs: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        builder="networks.vit:TransFace",
        arguments={"dim": dim, "depth": depth},
        macs=macs,
        source="DanJun6737/TransFace",
        released_file=released_file,
        licence="code without a licence; weights: not stated",
    )


def _timm_vit(macs: int, repository: str, fetch_uri: str | None = None, **arguments: Any) -> NetworkRow:
    return NetworkRow(
        builder="networks.timm_vit:timm_vit",
        arguments=arguments,
        macs=macs,
        source="gau-nernst/timm-face",
        released_file=f"model.safetensors of {repository} on the Hugging Face Hub",
        licence="code without a licence; weights: not stated",
        fetch_uri=fetch_uri,
    )


RECOGNIZERS: dict[str, NetworkRow] = {
    "arcface_r18": _arcface_torch(18, "ms1mv3_arcface_r18_fp16/backbone.pth"),
    "arcface_r34": _arcface_torch(34, "ms1mv3_arcface_r34_fp16/backbone.pth"),
    "arcface_r50": _arcface_torch(50, "ms1mv3_arcface_r50_fp16/backbone.pth"),
    "arcface_r100": _arcface_torch(100, "ms1mv3_arcface_r100_fp16/backbone.pth"),
    "elasticface_r100": NetworkRow(
        builder="networks.iresnet:IResNet",
        arguments={"depth": 100},
        macs=IRESNET_MACS[100],
        source="fdbtrs/ElasticFace",
        # The four variants share this name; the entries of a file do not tell which variant it holds.
        released_file="295672backbone.pth",
        licence="code CC BY-NC-SA 4.0; weights: not stated",
    ),
    "curricularface_ir101": NetworkRow(
        builder="networks.ir:curricularface_ir101",
        macs=12_076_761_088,
        source="HuangYG123/CurricularFace",
        released_file="CurricularFace_Backbone.pth",
        licence="code MIT; weights: not stated",
    ),
    "faceqan_cosface_r100": _arcface_torch(100, "glint360k_cosface_r100_fp16_0.1/backbone.pth"),
    "pcnet_cosface_r50": _arcface_torch(50, "glint360k_cosface_r50_fp16_0.1/backbone.pth"),
    "magface_r100": _magface(100, "magface_epoch_00025.pth"),
    "magface_r50": _magface(50, "a checkpoint of training with arch iresnet50"),
    "magface_r18": _magface(18, "a checkpoint of training with arch iresnet18"),
    "serfiq_lresnet100e": NetworkRow(
        builder="networks.iresnet:IResNet",
        arguments={"depth": 100, "eps": 2e-5},
        macs=IRESNET_MACS[100],
        source="pterhoer/FaceImageQuality",
        released_file="insightface/model/insightface-0000.params",
        licence="code CC BY-NC-SA 4.0; weights: non-commercial research only",
        sha256="8acca797c0a0649f8b00e698349462ebd81f467cbe2012df56cfa30794655e45",
        preprocessing=Preprocessing(mean=127.5, scale=128.0),
        file_format="mxnet",
    ),
    "sddfiqa_r50_recognition": NetworkRow(
        builder="networks.ir:sddfiqa_r50_recognition",
        macs=6_296_485_888,
        source="Tencent/TFace quality/",
        released_file="a checkpoint of training with backbone R50",
        licence="code Apache-2.0; weights: not stated",
    ),
    "arcface_torch_mobilefacenet": NetworkRow(
        builder="networks.mobilefacenet:arcface_torch_mobilefacenet",
        macs=437_520_896,
        source="deepinsight/insightface recognition/arcface_torch",
        released_file="model.pt (older: backbone.pth) of a training with network mbf",
        licence="code MIT; weights: non-commercial research only",
    ),
    "curricularface_mobilefacenet": NetworkRow(
        builder="networks.mobilefacenet:curricularface_mobilefacenet",
        macs=221_161_984,
        source="HuangYG123/CurricularFace or Tencent/TFace quality/",
        released_file="a checkpoint of training with backbone MobileFaceNet",
        licence="code MIT (CurricularFace), Apache-2.0 (TFace); weights: not stated",
    ),
    "ediffiqa_mobilefacenet": NetworkRow(
        builder="networks.mobilefacenet:ediffiqa_mobilefacenet",
        macs=221_161_984,
        source="LSIbabnikz/eDifFIQA",
        released_file="a checkpoint of training with its MobileFaceNet",
        licence="no licence stated",
    ),
    "adaface_ir18": _adaface(18, "adaface_ir18_webface4m.ckpt, or that of vgg2 or casia"),
    "adaface_ir50": _adaface(50, "adaface_ir50_ms1mv2.ckpt, or that of webface4m or casia"),
    "adaface_ir101": _adaface(101, "adaface_ir101_webface12m.ckpt, or that of webface4m, ms1mv3 or ms1mv2"),
    "cvlface_ir18": _cvlface("cvlface_adaface_ir18_webface4m", "networks.ir:adaface_ir", IR_MACS[18], depth=18),
    "cvlface_ir50": _cvlface("cvlface_adaface_ir50_ms1mv2", "networks.ir:adaface_ir", IR_MACS[50], depth=50),
    "cvlface_ir101": _cvlface("cvlface_adaface_ir101_webface12m", "networks.ir:adaface_ir", IR_MACS[101], depth=101),
    "cvlface_iresnet100": _cvlface(
        "cvlface_arcface_ir101_webface4m", "networks.iresnet:IResNet", IRESNET_MACS[100], depth=100
    ),
    "cvlface_vit_s": NetworkRow(
        builder="networks.vit:cvlface_vit",
        arguments={"depth": 12, "n_heads": 8, "mlp_ratio": 5},
        macs=9_174_843_392,
        source=CVLFACE,
        released_file="a checkpoint of training with its vit small",
        licence="code MIT; weights: not released",
    ),
    "cvlface_vit_b": _cvlface(
        "cvlface_adaface_vit_base_webface4m",
        "networks.vit:cvlface_vit",
        13_346_275_328,
        depth=24,
        n_heads=16,
        mlp_ratio=3,
    ),
    "arcface_vit_t": _arcface_vit(256, 12, 1_504_882_688, "model.pt of a training with network vit_t"),
    "arcface_vit_s": _arcface_vit(512, 12, 5_746_548_736, "model.pt of a training with network vit_s"),
    "arcface_vit_b": _arcface_vit(512, 24, 11_437_170_688, "model.pt of a training with network vit_b"),
    "arcface_vit_l": _arcface_vit(768, 24, 25_337_794_560, "model.pt of a training with network vit_l"),
    "transface_s": _transface(512, 12, 5_757_186_304, "ms1mv2_model_TransFace_S.pt or glint360k_model_TransFace_S.pt"),
    "transface_b": _transface(512, 24, 11_447_808_256, "ms1mv2_model_TransFace_B.pt or glint360k_model_TransFace_B.pt"),
    "transface_l": _transface(768, 24, 25_353_740_544, "ms1mv2_model_TransFace_L.pt or glint360k_model_TransFace_L.pt"),
    "swinface": NetworkRow(
        builder="networks.swin:SwinFace",
        macs=4_339_802_112,
        source="lxq1000/SwinFace",
        released_file="checkpoint_step_79999_gpu_0.pt",
        licence="code MIT; weights: not stated",
    ),
    "timm_vit_tiny": _timm_vit(
        1_231_913_472,
        "gaunernst/vit_tiny_patch8_112.arcface_ms1mv3 (or cosface, adaface)",
        "hf://gaunernst/vit_tiny_patch8_112.arcface_ms1mv3/model.safetensors",
        name="vit_tiny_patch16_224",
    ),
    "timm_vit_small_gap": _timm_vit(
        4_530_487_296,
        "a vit_small_patch8_gap_112",
        name="vit_small_patch16_224",
        class_token=False,
        global_pool="avg",
    ),
}
