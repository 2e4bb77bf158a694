"""Face recognisers: a table of released networks, a user's own network, and ONNX files.

A recogniser M maps an aligned face to a raw embedding e = M(I), the paper's FR model. Normalisation to unit length is
left to whoever compares embeddings. A quality network of its own (``quality``) is loaded and run by the same code: its
"embedding" is one number.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
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
from fiqa_ray.models.networks.ir import curricularface_ir101, sddfiqa_r50_recognition
from fiqa_ray.models.networks.iresnet import IResNet, SplitNetwork
from fiqa_ray.models.networks.mobilefacenet import (
    arcface_torch_mobilefacenet,
    curricularface_mobilefacenet,
    ediffiqa_mobilefacenet,
)
from fiqa_ray.storage import read_bytes

logger = logging.getLogger(__name__)

FACE_SHAPE = (3, 112, 112)
IMPORTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pixels: ``(v - mean) / scale`` for v in 0..255, channels in the order ``colour``.

    Raises:
        UsageError: if ``colour`` is not RGB or BGR, or ``mean`` and ``scale`` are not numbers, ``scale`` not positive.
    """

    colour: str = "RGB"
    mean: float = 127.5
    scale: float = 127.5

    def __post_init__(self) -> None:
        if self.colour not in ("RGB", "BGR"):
            raise UsageError(f"colour={self.colour!r}: must be RGB or BGR")
        for name in ("mean", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(f"{name}={value!r}: must be a number on the scale 0..255")
        if self.scale <= 0:
            raise UsageError(f"scale={self.scale!r}: must be positive")

    def __call__(self, x: Tensor) -> Tensor:
        """Map RGB faces ``(b, 3, h, w)`` float in [0, 1] to the network's input; differentiable."""
        x = x.flip(1) if self.colour == "BGR" else x
        # For 127.5 and 127.5 this is bit for bit the released (x - 0.5) / 0.5.
        return (x - self.mean / 255) * (255 / self.scale)


UNIT_PIXELS = Preprocessing(mean=0.0, scale=255.0)


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
    preprocessing: Preprocessing = Preprocessing()
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


class Recognizer(nn.Module):
    """A frozen network with its preprocessing, in evaluation mode.

    Attributes:
        name: table name, ``module:function`` or ONNX location it was loaded by.
        options: the options it was loaded with.
        dim: number of values of an embedding.
        weights_sha256: of the weights file, or of the values where there is no single file.
        is_random: whether the weights are those of ``random:SEED``.
        differentiable: whether a gradient reaches the input (FaceQAN needs it).
        backbone: the bare network; takes preprocessed float faces.
        preprocessing: what turns faces in [0, 1] into the backbone's input.
        trainable_names: the backbone's parameters that were trainable before freezing.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        preprocessing: Preprocessing,
        dim: int,
        weights_sha256: str,
        *,
        options: Mapping[str, Any] | None = None,
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.is_random = False
        self.options = dict(options or {})
        self.dim = dim
        self.weights_sha256 = weights_sha256
        self.differentiable = differentiable
        self.preprocessing = preprocessing
        self.trainable_names = tuple(key for key, value in backbone.named_parameters() if value.requires_grad)
        self.backbone = backbone
        self.requires_grad_(False).eval()

    def embed_unit(self, x: Tensor) -> Tensor:
        """Embed RGB faces given as numbers in [0, 1]; differentiable with respect to ``x``.

        Args:
            x: ``(b, 3, 112, 112)``, any float dtype; computed in the network's own.

        Returns:
            ``(b, dim)`` raw embeddings in the network's dtype.

        Raises:
            FiqaRayError: if the network returns anything else.
        """
        embeddings = self.backbone(self._input(x))
        check_embeddings(embeddings, self.dim, self.name, n_images=len(x))
        return embeddings

    def _input(self, x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.backbone.parameters()), torch.float32)
        return self.preprocessing(x.to(dtype))

    def forward(self, faces: Tensor) -> Tensor:
        """Embed aligned RGB faces.

        Args:
            faces: ``(b, 3, 112, 112)`` uint8.

        Returns:
            ``(b, dim)`` float32 raw embeddings. A row is not finite where the network broke down on that face. On a CPU
            with one torch thread a face's bits depend on the batch size, but not on its place or its neighbours.

        Raises:
            FiqaRayError: if ``faces`` or the network's output has another shape or dtype.
        """
        check_faces(faces)
        return self.embed_unit(faces.to(torch.float32) / 255).to(torch.float32)

    def split(self, method: str) -> SplitNetwork:
        """Return the backbone as trunk and tail.

        Raises:
            UsageError: naming ``method``, which needs them, if the backbone has none.
        """
        if not isinstance(self.backbone, SplitNetwork):
            raise UsageError(
                f"{method} starts from the layer before a recogniser's dropout, and {self.name} does not say where that "
                "is; take an IResNet or IR network, or make yours a fiqa_ray.models.iresnet.SplitNetwork"
            )
        return self.backbone


class CleanPass:
    """A batch of faces on its way through a network; what several methods start from is made once, when first asked for.

    Attributes:
        faces: ``(b, 3, 112, 112)`` uint8, on the network's device.
    """

    def __init__(self, network: Recognizer | None, faces: Tensor) -> None:
        self._network, self.faces = network, faces

    @cached_property
    def features(self) -> Tensor:
        """The trunk's output, ``(b, n_features)`` in the network's dtype; only for a ``SplitNetwork``."""
        assert self._network is not None
        assert isinstance(self._network.backbone, SplitNetwork)
        with torch.inference_mode():
            return self._network.backbone.trunk(self._network._input(self.faces.to(torch.float32) / 255))

    @cached_property
    def output(self) -> Tensor:
        """The network's output, ``(b, dim)`` float32."""
        assert self._network is not None
        with torch.inference_mode():
            if isinstance(self._network.backbone, SplitNetwork):
                return self._network.backbone.tail(self.features).to(torch.float32)
            return self._network(self.faces)


def check_faces(faces: Tensor) -> None:
    """Raise FiqaRayError unless ``faces`` is ``(b, 3, 112, 112)`` uint8."""
    if faces.dtype != torch.uint8 or faces.shape[1:] != FACE_SHAPE:
        raise FiqaRayError(
            f"faces are {tuple(faces.shape)} {faces.dtype}; wanted (b, 3, 112, 112) uint8, RGB, aligned to the template"
        )


def check_embeddings(embeddings: Any, dim: int | None, name: str, *, n_images: int | None = None) -> None:
    """Check what a recogniser returned: ``(n_images, dim)`` floats, as a tensor or an array; None leaves a size open.

    Values that are not finite pass: they are a fault of single images, see ``finite_rows``.

    Raises:
        FiqaRayError: naming the recogniser, and the shape or dtype got and wanted.
    """
    wanted = f"({'b' if n_images is None else n_images}, {'dim' if dim is None else dim}) floats"
    if not isinstance(embeddings, Tensor | np.ndarray):
        kind = type(embeddings).__name__
        raise FiqaRayError(f"{name}: returned {kind}, wanted {wanted}; return the embeddings alone, as one tensor")
    if isinstance(embeddings, Tensor):
        floating = embeddings.is_floating_point()
    else:
        floating = np.issubdtype(embeddings.dtype, np.floating)
    shape = tuple(embeddings.shape)
    sizes_agree = len(shape) == 2 and n_images in (None, shape[0]) and dim in (None, shape[1])
    if not floating or not sizes_agree:
        raise FiqaRayError(
            f"{name}: returned embeddings of shape {shape}, {embeddings.dtype}; wanted {wanted}, one row per face"
        )


def finite_rows(array: np.ndarray) -> np.ndarray:
    """Return ``(n_images,)`` bool: which rows of ``(n_images, ...)`` hold finite numbers only."""
    return np.isfinite(array).reshape(len(array), -1).all(axis=1)


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
            _called(name, backbone, preprocessing(probe)),
            _called(name, backbone, preprocessing(probe[:1])),
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
        output = _called(name, backbone, x)
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


def _called(name: str, network: nn.Module, x: Tensor) -> Any:
    try:
        return network(x)
    except FiqaRayError:
        raise
    except Exception as error:  # a user's network may raise anything
        raise FiqaRayError(
            f"{name}: fails on faces of shape {tuple(x.shape)}, {x.dtype}: {type(error).__name__}: {error}. "
            "It must take (b, 3, 112, 112) floats for any b"
        ) from error


def call_imported(name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Any:
    """Import ``module:function`` and return ``function(weights=weights, **options)``.

    Raises:
        FiqaRayError: one message for whatever goes wrong on the way, with the user's own error in it.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise FiqaRayError(
                f"{name}: there is no module {error.name!r}; its folder must be on PYTHONPATH, on every machine"
            ) from error
        raise FiqaRayError(f"{name}: importing {module_name} fails: {error}") from error
    except Exception as error:  # the user's module may raise anything
        raise FiqaRayError(f"{name}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise FiqaRayError(f"{name}: {module_name} has no function {function_name!r}{near_name(function_name, names)}")
    try:
        return function(weights=weights, **options)
    except FiqaRayError:
        raise
    except Exception as error:  # likewise
        given = ", ".join(f"{key}={value!r}" for key, value in {"weights": weights, **options}.items())
        raise FiqaRayError(f"{name}({given}) fails: {type(error).__name__}: {error}") from error


def check_options(name: str, options: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise UsageError if ``options`` holds a name that ``name`` does not know."""
    for option in options:
        if option not in allowed:
            known = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise UsageError(f"{name}: no option {option!r}{near_name(option, allowed)}; {known}")


def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def resolve_device(device: str) -> str:
    """Return the device that a setting names; `auto` is cuda if this machine has it, else cpu."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def near_name(name: str, known: Any) -> str:
    """Return `` (did you mean ...?)`` if a known name is close, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def find_device(device: str) -> torch.device:
    """Return the torch device of that name.

    Raises:
        FiqaRayError: if the name is unknown or the machine has no such device.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FiqaRayError(f"device {device!r} is not to be had here ({reason}); use cpu") from error
    return place
