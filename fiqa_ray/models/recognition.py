"""Loading of face recognisers: a released network of the table, a user's own network, or an ONNX file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.devices import find_device
from fiqa_ray.models.formats.checkpoints import (
    ADAFACE_PREFIX,
    CVLFACE_PREFIXES,
    MAGFACE_PREFIXES,
    State,
    fill_randomly,
    load_strictly,
    read_checkpoint,
    sha256_of,
    sha256_of_state,
)
from fiqa_ray.models.formats.mxnet_params import load_mxnet_iresnet
from fiqa_ray.models.formats.onnx_file import read_onnx
from fiqa_ray.models.formats.onnx_network import one_output
from fiqa_ray.models.formats.onnx_scaling import find_scaling
from fiqa_ray.models.formats.wrappings import find_backbone
from fiqa_ray.models.options import check_options, near_name
from fiqa_ray.models.preprocessing import UNIT_PIXELS, Preprocessing
from fiqa_ray.models.probe import probe_faces
from fiqa_ray.models.recognizer import FACE_SHAPE, Recognizer, check_embeddings
from fiqa_ray.models.recognizer_table import ADAFACE, CVLFACE, MAGFACE, RECOGNIZERS, NetworkRow
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.models.user_code import as_network, call_function
from fiqa_ray.storage import public_uri, read_bytes

logger = logging.getLogger(__name__)

INSIGHTFACE_PACKS = {
    "buffalo_l": "w600k_r50.onnx",
    "buffalo_m": "w600k_r50.onnx",
    "buffalo_s": "w600k_mbf.onnx",
    "buffalo_sc": "w600k_mbf.onnx",
    "antelopev2": "glintr100.onnx",
}
"""Recognisers of InsightFace's model packs."""


def load_recognizer(
    name: str, weights: str | os.PathLike[str] | None = None, device: str = "cpu", **options: Any
) -> Recognizer:
    """Load a face recogniser, frozen and in evaluation mode.

    Args:
        name: one of

            - a name of the table `RECOGNIZERS`; `weights` is then the released checkpoint, or `random:SEED` for
              reproducible random weights (for tests and trial runs; such embeddings mean nothing);
            - `module:function`: called as `function(weights=weights, **options)`, returns a torch module that maps
              RGB faces `(N, 3, 112, 112)` float in [0, 1] to `(N, D)`; as a `SplitNetwork` it also serves SER-FIQ;
            - a path or URL ending in `.onnx`, which onnxruntime runs, with options `mean` and `scale` (input =
              (v - mean) / scale for v in 0..255; not needed where the file shows them), `colour` (RGB by default, or
              BGR) and `output` (name of the output; needed where several could be the embedding).
        weights: path or any fsspec URL.
        device: as torch names it: cpu, cuda, cuda:1.
        **options: as `name` says.

    Raises:
        FiqaRayError: unknown name, missing or unfitting weights, an import that fails, an unsupported ONNX operator.
    """
    torch_device = find_device(device)
    kind = ModelRef.parse(name).kind
    if name in RECOGNIZERS:
        check_options(name, options, allowed=())
        recognizer = load_released(f"recogniser {name}", name, RECOGNIZERS[name], weights)
    elif kind == "onnx":
        recognizer = load_onnx(name, weights, options)
    elif kind == "function":
        recognizer = _load_function(name, weights, options, torch_device)
    else:
        raise UsageError(
            _name_elsewhere(name)
            or f"recogniser {name!r} is unknown{near_name(name, RECOGNIZERS)}; use one of {', '.join(RECOGNIZERS)}, "
            "a path ending in .onnx, or module:function"
        )
    return recognizer.to(torch_device)


def _name_elsewhere(name: str) -> str | None:
    """Return what to write for a name that another project uses; None if it is none that is known."""
    pack = next((pack for pack in INSIGHTFACE_PACKS if name.rstrip("/").endswith(pack)), None)
    if pack is not None:
        return f"{name} is a pack of InsightFace; give its file: {name.rstrip('/')}/{INSIGHTFACE_PACKS[pack]}"
    row = "timm_vit_small_gap" if "gap" in name else "timm_vit_tiny"
    if "vit_" in name and "patch8" in name and "112" in name:
        return f"{name} is a network of timm; name it {row}, with its file as weights: {RECOGNIZERS[row].released_file}"
    return None


def load_released(what: str, name: str, row: NetworkRow, weights: str | os.PathLike[str] | None) -> Recognizer:
    """Build a released network and load its checkpoint strictly, or give it random weights.

    Args:
        what: kind and name of the model, for messages.
        name: name that the recogniser gets.
        row: the network's row.
        weights: path or URL of the checkpoint, or `random:SEED`.

    Raises:
        FiqaRayError: the weights are missing, unreadable or do not fit, or they belong to a network that has the same
            entries but another preprocessing.
    """
    if weights is None:
        raise UsageError(
            f"{what}: weights are missing. Give the path of {row.released_file} from {row.source} "
            f"({row.licence}); for a trial without meaning, weights=random:0"
        )
    uri = os.fspath(weights)
    if row.file_format == "onnx":
        return _load_released_onnx(name, row, uri)
    backbone = row.build()
    is_random = uri.startswith("random:")
    sha256 = _fill_with_seed(backbone, uri) if is_random else _load_checkpoint(backbone, name, row, uri)
    return Recognizer(name, backbone, row.preprocessing, row.dim, sha256, is_random=is_random)


def _load_released_onnx(name: str, row: NetworkRow, uri: str) -> Recognizer:
    """Load a row whose released file is an ONNX quality network."""
    if uri.startswith("random:"):
        raise UsageError(f"{name}: an ONNX file holds its own weights; give {row.released_file} instead of {uri!r}")
    network = load_onnx(uri, None, asdict(row.preprocessing), quality=row.dim == 1)
    _warn_of_hash(row, uri, network.weights_sha256)
    network.name = name
    return network


def _warn_of_hash(row: NetworkRow, uri: str, sha256: str) -> None:
    if row.sha256 is not None and sha256 != row.sha256:
        logger.warning(
            "%s: SHA-256 %s is not that of the released %s (%s)", public_uri(uri), sha256, row.released_file, row.sha256
        )


def _fill_with_seed(backbone: nn.Module, weights: str) -> str:
    """Give a network the weights of `random:SEED` and return their hash."""
    seed = weights.removeprefix("random:")
    if not seed.isdecimal():
        raise UsageError(f"weights={weights!r}: after 'random:' comes a whole number, as in random:0")
    fill_randomly(backbone, int(seed))
    return sha256_of_state(backbone.state_dict())


def _load_checkpoint(backbone: nn.Module, name: str, row: NetworkRow, uri: str) -> str:
    """Load a checkpoint into a network and return the file's hash."""
    data = read_bytes(uri)
    sha256 = sha256_of(data)
    _warn_of_hash(row, uri, sha256)
    state: Mapping[str, Tensor]
    if row.file_format == "mxnet":
        state = load_mxnet_iresnet(data, name=uri)
    else:
        state = find_backbone(read_checkpoint(data, uri), backbone.state_dict(), uri)
    load_strictly(backbone, state, uri)
    if isinstance(state, State):
        _check_colours(name, row, uri, state.wrapping)
    return sha256


def _check_colours(name: str, row: NetworkRow, uri: str, wrapping: str) -> None:
    """Refuse a file whose wrapping shows that its network has the same entries and wants other pixels."""
    if wrapping in MAGFACE_PREFIXES and row.source != MAGFACE:
        raise FiqaRayError(
            f"{uri}: looks like a MagFace checkpoint (its entries begin with {wrapping!r}), whose pixels are BGR "
            f"from 0 to 1 and whose eps is 2e-5; {name} would load it and be wrong. Choose magface_r100, _r50 or _r18"
        )
    if wrapping in CVLFACE_PREFIXES and row.source == ADAFACE:
        raise FiqaRayError(
            f"{uri}: looks like a file of CVLface (its entries begin with {wrapping!r}), whose pixels are RGB; {name} "
            f"would load it and be wrong. Choose {name.replace('adaface', 'cvlface')}"
        )
    other = name.replace("cvlface", "adaface")
    if wrapping == ADAFACE_PREFIX and row.source == CVLFACE and other in RECOGNIZERS:
        raise FiqaRayError(
            f"{uri}: looks like a checkpoint of AdaFace (its entries begin with {wrapping!r}), whose pixels are BGR; {name} "
            f"would load it and be wrong. Choose {other}"
        )


def load_onnx(
    name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any], *, quality: bool = False
) -> Recognizer:
    """Load an ONNX file as a recogniser.

    Args:
        name: location of the file.
        weights: must be None, because the file holds its own weights.
        options: `mean`, `scale`, `colour`, `output`, as `load_recognizer` has them.
        quality: load a quality network, whose output is one number per face, `(N,)` or `(N, 1)`.

    Raises:
        FiqaRayError: as `load_recognizer`.
    """
    check_options(name, options, allowed=("mean", "scale", "colour", "output"))
    if weights is not None:
        raise UsageError(f"{name}: an ONNX file holds its own weights; leave out weights={os.fspath(weights)!r}")
    if "mean" in options and "scale" in options:
        Preprocessing(**{key: value for key, value in options.items() if key != "output"})  # wrong values end here
    model, sha256 = read_onnx(name)
    preprocessing, source = _onnx_preprocessing(name, model, options)
    probe = preprocessing(probe_faces())
    network = one_output(model, name, probe.numpy(), quality=quality, output=options.get("output"))
    backbone = _Column(network) if quality else network
    together = _call_network(name, backbone, probe)
    check_embeddings(together, 1 if quality else None, name, n_images=len(probe))
    alone = torch.cat([_call_network(name, backbone, face) for face in probe.split(1)])
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())):
        raise FiqaRayError(f"{name}: one face's output depends on the others in its batch; export it for inference")
    return Recognizer(name, backbone, preprocessing, together.shape[1], sha256, options=options, scaling_source=source)


def _onnx_preprocessing(name: str, model: Any, options: Mapping[str, Any]) -> tuple[Preprocessing, str]:
    """Return scaling and colour order of an ONNX network, and by what they were found (empty: the user gave them)."""
    given = {key: value for key, value in options.items() if key != "output"}
    scaling = find_scaling(model)
    if "mean" in given and "scale" in given:
        preprocessing = Preprocessing(**given)
        conflict = _conflict(name, preprocessing, scaling)
        if conflict:
            logger.warning("%s", conflict)
        return preprocessing, ""
    if scaling is None or "mean" in given or "scale" in given:
        raise UsageError(
            f"{name}: the file does not show how pixels are scaled; give mean and scale on 0..255, "
            "input = (v - mean) / scale. Common: 127.5 and 127.5; 0 and 1 where the graph scales by itself"
        )
    preprocessing, source = replace(scaling[0], **given), scaling[1]
    logger.warning("%s: %s (%s); if that is wrong, set mean, scale and colour", name, preprocessing, source)
    return preprocessing, source


def scaling_conflict(name: str, options: Mapping[str, Any]) -> str:
    """Return a warning where a user scales an ONNX recogniser's pixels otherwise than its file wants; else an empty text.

    Args:
        name: a recogniser, as `load_recognizer` names it.
        options: its options.

    Raises:
        FiqaRayError: the file cannot be read.
    """
    if ModelRef.parse(name).kind != "onnx" or not {"mean", "scale"} <= set(options):
        return ""
    preprocessing = Preprocessing(**{key: value for key, value in options.items() if key != "output"})
    return _conflict(name, preprocessing, find_scaling(read_onnx(name)[0]))


def _conflict(name: str, preprocessing: Preprocessing, scaling: tuple[Preprocessing, str] | None) -> str:
    """Return the words of `scaling_conflict`; `scaling` is what `find_scaling` found."""
    if scaling is None or (preprocessing.mean, preprocessing.scale) == (scaling[0].mean, scaling[0].scale):
        return ""
    return (
        f"warning: {name}: mean={preprocessing.mean:g} and scale={preprocessing.scale:g} as you say, but the file wants "
        f"mean={scaling[0].mean:g} and scale={scaling[0].scale:g} ({scaling[1]}); leave both out if these numbers are not "
        "from its authors"
    )


def _load_function(
    name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any], device: torch.device
) -> Recognizer:
    """Load the network that a user's own function returns, and find out its `dim` and whether it has gradients."""
    backbone = as_network(name, call_function(name, weights, options)).to(device).eval()
    x = _probe_faces().to(device)
    with torch.no_grad():
        output = _call_network(name, backbone, x)
    check_embeddings(output, None, name, n_images=len(x))
    differentiable = _has_gradient(backbone, x.requires_grad_())
    return Recognizer(
        name,
        backbone,
        UNIT_PIXELS,
        output.shape[1],
        sha256_of_state(backbone.state_dict()),
        options=options,
        differentiable=differentiable,
    )


def _has_gradient(backbone: nn.Module, x: Tensor) -> bool:
    """Return whether a gradient of the output reaches the input; not so where a function of faces works in numpy."""
    with torch.enable_grad():
        try:
            output = backbone(x)
        except RuntimeError:  # it worked without gradients
            return False
        return output.requires_grad and torch.autograd.grad(output.sum(), x, allow_unused=True)[0] is not None


class _Column(nn.Module):
    """A network whose output of one number per face gets the shape `(N, 1)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        return y[:, None] if isinstance(y, Tensor) and y.ndim == 1 else y


def _probe_faces() -> Tensor:
    """Return two different images in [0, 1], `(2, 3, 112, 112)`, that show what a network returns."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=0)).random((2, *FACE_SHAPE), dtype=np.float32))


def _call_network(name: str, network: nn.Module, x: Tensor) -> Any:
    try:
        return network(x)
    except FiqaRayError:
        raise
    except Exception as error:  # a user's network may raise anything
        raise FiqaRayError(
            f"{name}: fails on faces of shape {tuple(x.shape)}, {x.dtype}: {type(error).__name__}: {error}. "
            f"It must take (b, {', '.join(map(str, FACE_SHAPE))}) floats for any b"
        ) from error
