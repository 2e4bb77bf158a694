"""Face recognisers: a table of released networks, a user's own network, and ONNX files.

A recogniser M maps an aligned face to a raw embedding e = M(I), the paper's FR model. Normalisation to unit length is
left to whoever compares embeddings. A quality network of its own (``quality``) is loaded and run by the same code: its
"embedding" is one number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.devices import find_device
from fiqa_ray.models.formats.checkpoints import (
    MAGFACE_PREFIXES,
    State,
    fill_randomly,
    load_state_dict,
    load_strictly,
    sha256_of,
    sha256_of_state,
)
from fiqa_ray.models.formats.mxnet_params import load_mxnet_iresnet
from fiqa_ray.models.formats.onnx_graph import parse_onnx
from fiqa_ray.models.imported import IMPORTED, call_imported, call_network, check_options, near_name
from fiqa_ray.models.networks.ir import curricularface_ir101, sddfiqa_r50_recognition
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.networks.mobilefacenet import (
    arcface_torch_mobilefacenet,
    curricularface_mobilefacenet,
    ediffiqa_mobilefacenet,
)
from fiqa_ray.models.recognizer import (
    ARCFACE_PIXELS,
    FACE_SHAPE,
    UNIT_PIXELS,
    Preprocessing,
    Recognizer,
    check_embeddings,
    logger,
)
from fiqa_ray.storage import read_bytes


@dataclass(frozen=True)
class NetworkRow:
    """One released network, a recogniser or a quality network of its own.

    ``released_file`` is the name that its authors gave the checkpoint, ``sha256`` the file's hash where one is
    published (None if not), ``licence`` what the authors state for code and weights, ``read`` what takes the file's
    bytes apart. ``dim`` is the number of values per face (1 for a quality), ``macs`` the multiply-accumulates of
    convolutions and linear layers per face.
    """

    build: Callable[[], nn.Module]
    macs: int
    source: str
    released_file: str
    licence: str
    sha256: str | None = None
    preprocessing: Preprocessing = ARCFACE_PIXELS
    dim: int = 512
    read: Callable[..., Mapping[str, Tensor]] = load_state_dict


MAGFACE = "IrvingMeng/MagFace"


IRESNET_MACS = {18: 2_609_954_816, 34: 4_459_642_880, 50: 6_309_330_944, 100: 12_089_606_144}


def _arcface_torch(depth: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        build=partial(IResNet, depth),
        macs=IRESNET_MACS[depth],
        source="deepinsight/insightface recognition/arcface_torch",
        released_file=released_file,
        licence="code MIT; weights: non-commercial research only",
    )


def _magface(depth: int, released_file: str) -> NetworkRow:
    return NetworkRow(
        build=partial(IResNet, depth, eps=2e-5, dropout=0.4, fixed_scale=False),
        macs=IRESNET_MACS[depth],
        source=MAGFACE,
        released_file=released_file,
        licence="code Apache-2.0; weights: not stated",
        preprocessing=Preprocessing("BGR", mean=0.0, scale=255.0),
    )


RECOGNIZERS: dict[str, NetworkRow] = {
    "arcface_r18": _arcface_torch(18, "ms1mv3_arcface_r18_fp16/backbone.pth"),
    "arcface_r34": _arcface_torch(34, "ms1mv3_arcface_r34_fp16/backbone.pth"),
    "arcface_r50": _arcface_torch(50, "ms1mv3_arcface_r50_fp16/backbone.pth"),
    "arcface_r100": _arcface_torch(100, "ms1mv3_arcface_r100_fp16/backbone.pth"),
    "elasticface_r100": NetworkRow(
        build=partial(IResNet, 100),
        macs=IRESNET_MACS[100],
        source="fdbtrs/ElasticFace",
        # The four variants share this name; which one a file holds cannot be seen from its entries.
        released_file="295672backbone.pth",
        licence="code CC BY-NC-SA 4.0; weights: not stated",
    ),
    "curricularface_ir101": NetworkRow(
        build=curricularface_ir101,
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
        build=partial(IResNet, 100, eps=2e-5),
        macs=IRESNET_MACS[100],
        source="pterhoer/FaceImageQuality",
        released_file="insightface/model/insightface-0000.params",
        licence="code CC BY-NC-SA 4.0; weights: non-commercial research only",
        sha256="8acca797c0a0649f8b00e698349462ebd81f467cbe2012df56cfa30794655e45",
        preprocessing=Preprocessing(mean=127.5, scale=128.0),
        read=load_mxnet_iresnet,
    ),
    "sddfiqa_r50_recognition": NetworkRow(
        build=sddfiqa_r50_recognition,
        macs=6_296_485_888,
        source="Tencent/TFace quality/",
        released_file="a checkpoint of training with backbone R50",
        licence="code Apache-2.0; weights: not stated",
    ),
    "arcface_torch_mobilefacenet": NetworkRow(
        build=arcface_torch_mobilefacenet,
        macs=437_520_896,
        source="deepinsight/insightface recognition/arcface_torch",
        released_file="model.pt (older: backbone.pth) of a training with network mbf",
        licence="code MIT; weights: non-commercial research only",
    ),
    "curricularface_mobilefacenet": NetworkRow(
        build=curricularface_mobilefacenet,
        macs=221_161_984,
        source="HuangYG123/CurricularFace or Tencent/TFace quality/",
        released_file="a checkpoint of training with backbone MobileFaceNet",
        licence="code MIT (CurricularFace), Apache-2.0 (TFace); weights: not stated",
    ),
    "ediffiqa_mobilefacenet": NetworkRow(
        build=ediffiqa_mobilefacenet,
        macs=221_161_984,
        source="LSIbabnikz/eDifFIQA",
        released_file="a checkpoint of training with its MobileFaceNet",
        licence="no licence stated",
    ),
}


def load_recognizer(
    name: str, weights: str | os.PathLike[str] | None = None, device: str = "cpu", **options: Any
) -> Recognizer:
    """Load a face recogniser, frozen and in evaluation mode.

    Args:
        name: one of

            - a name of the table ``RECOGNIZERS``; ``weights`` is then the released checkpoint, or ``random:SEED`` for
              reproducible random weights (tests and trial runs: such embeddings mean nothing);
            - ``module:function``: called as ``function(weights=weights, **options)``, returns a torch module that maps
              RGB faces ``(b, 3, 112, 112)`` float in [0, 1] to ``(b, dim)``; as a ``SplitNetwork`` it also serves SER-FIQ;
            - a path or URL ending in ``.onnx``, with options ``mean`` and ``scale`` (input = (v - mean) / scale for v in
              0..255) and ``colour`` (RGB by default, or BGR).
        weights: path or any fsspec URL.
        device: as torch names it: cpu, cuda, cuda:1.
        **options: of the network, as above.

    Raises:
        FiqaRayError: unknown name, missing or unfitting weights, an import that fails, an unsupported ONNX operator.
    """
    place = find_device(device)
    if name in RECOGNIZERS:
        recognizer = _from_table(name, weights, options)
    elif name.lower().endswith(".onnx"):
        recognizer = from_onnx(name, weights, options)
    elif IMPORTED.fullmatch(name):
        recognizer = _from_function(name, weights, options, place)
    else:
        raise UsageError(
            f"recogniser {name!r} is unknown{near_name(name, RECOGNIZERS)}; use one of {', '.join(RECOGNIZERS)}, "
            "a path ending in .onnx, or module:function"
        )
    return recognizer.to(place)


def _from_table(name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Recognizer:
    check_options(name, options, allowed=())
    return load_row(f"recogniser {name}", name, RECOGNIZERS[name], weights)


def load_row(what: str, name: str, row: NetworkRow, weights: str | os.PathLike[str] | None) -> Recognizer:
    """Build the network of a table's row and load its checkpoint strictly, or give it random weights (``random:SEED``).

    Args:
        what: kind and name for messages.
        name: the recogniser's, which the result keeps.
        row: the table's row.
        weights: path or URL of the checkpoint, or `random:SEED`.

    Raises:
        FiqaRayError: weights are missing, unreadable, do not fit, or belong to a network of the same entries that wants
            other pixels.
    """
    if weights is None:
        raise UsageError(
            f"{what}: weights are missing. Give the path of {row.released_file} from {row.source} "
            f"({row.licence}); for a trial without meaning, weights=random:0"
        )
    uri = os.fspath(weights)
    backbone = row.build()
    if uri.startswith("random:"):
        seed = uri.removeprefix("random:")
        if not seed.isdecimal():
            raise UsageError(f"weights={uri!r}: after 'random:' comes a whole number, as in random:0")
        fill_randomly(backbone, int(seed))
        sha256 = sha256_of_state(backbone.state_dict())
    else:
        data = read_bytes(uri)
        sha256 = sha256_of(data)
        if row.sha256 is not None and sha256 != row.sha256:
            logger.warning(
                "%s: SHA-256 %s is not that of the released %s (%s)", uri, sha256, row.released_file, row.sha256
            )
        state = row.read(data, name=uri)
        load_strictly(backbone, state, uri)
        if isinstance(state, State) and state.wrapping in MAGFACE_PREFIXES and row.source != MAGFACE:
            raise FiqaRayError(
                f"{uri}: looks like a MagFace checkpoint (its entries begin with {state.wrapping!r}), whose pixels are BGR "
                f"from 0 to 1 and whose eps is 2e-5; {name} would load it and be wrong. Choose magface_r100, _r50 or _r18"
            )
    loaded = Recognizer(name, backbone, row.preprocessing, row.dim, sha256)
    loaded.is_random = uri.startswith("random:")
    return loaded


def from_onnx(
    name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any], *, quality: bool = False
) -> Recognizer:
    """Load an ONNX file; as ``quality``, one whose output is one number per face, ``(b,)`` or ``(b, 1)``.

    Raises:
        FiqaRayError: see ``load_recognizer``.
    """
    check_options(name, options, allowed=("mean", "scale", "colour"))
    if weights is not None:
        raise UsageError(f"{name}: an ONNX file holds its own weights; leave out weights={os.fspath(weights)!r}")
    if "mean" not in options or "scale" not in options:
        raise UsageError(
            f"{name}: an ONNX file does not say how pixels are scaled; give mean and scale on 0..255, "
            "input = (v - mean) / scale. Common: 127.5 and 127.5; 0 and 1 where the graph scales by itself"
        )
    preprocessing = Preprocessing(**options)
    data = read_bytes(name)
    backbone: nn.Module = parse_onnx(data, name)
    if quality:
        backbone = _Column(backbone)
    probe = _probe_faces()
    with torch.no_grad():
        together, alone = (
            call_network(name, backbone, preprocessing(probe)),
            call_network(name, backbone, preprocessing(probe[:1])),
        )
    check_embeddings(together, 1 if quality else None, name, n_images=len(probe))
    if not torch.allclose(together[:1], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())):
        raise FiqaRayError(f"{name}: one face's embedding depends on the others in its batch; export it for inference")
    return Recognizer(name, backbone, preprocessing, together.shape[1], sha256_of(data), options=options)


def _from_function(
    name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any], place: torch.device
) -> Recognizer:
    backbone = call_imported(name, weights, options)
    if not isinstance(backbone, nn.Module):
        raise FiqaRayError(f"{name}: returned {type(backbone).__name__}, wanted a torch.nn.Module")
    backbone = backbone.to(place).eval()
    x = _probe_faces().to(place).requires_grad_()
    with torch.enable_grad():
        output = call_network(name, backbone, x)
        check_embeddings(output, None, name, n_images=len(x))
        differentiable = output.requires_grad and torch.autograd.grad(output.sum(), x, allow_unused=True)[0] is not None
    return Recognizer(
        name,
        backbone,
        UNIT_PIXELS,
        output.shape[1],
        sha256_of_state(backbone.state_dict()),
        options=options,
        differentiable=differentiable,
    )


class _Column(nn.Module):
    """Gives one number per face the shape ``(b, 1)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        return y[:, None] if isinstance(y, Tensor) and y.ndim == 1 else y


def _probe_faces() -> Tensor:
    """Two unlike images in [0, 1], ``(2, 3, 112, 112)``, to see what a network returns."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=0)).random((2, *FACE_SHAPE), dtype=np.float32))
