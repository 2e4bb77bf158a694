"""FIQA methods: a table, quality networks, a user's own scorer, and trained regressors. Larger is better everywhere.

A method works on a recogniser (FaceQAN, SER-FIQ, PCNet, the embedding norm) or brings a network of its own (CR-FIQA,
MagFace, SDD-FIQA, the paper's regressor, SER-FIQ's). Methods on one recogniser that start from the same layer of the
clean face share that pass, see ``score_together``.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.devices import find_device
from fiqa_ray.models.formats.export import load_exported
from fiqa_ray.models.imported import IMPORTED, call_imported, check_options, near_name, options_of
from fiqa_ray.models.methods.pcnet import PCNetHead
from fiqa_ray.models.networks.ir import sddfiqa_r50
from fiqa_ray.models.networks.iresnet import CRFIQA, EMBEDDING_DIM, MAP_DIM, IResNet
from fiqa_ray.models.networks.mobilefacenet import sddfiqa_mobilefacenet
from fiqa_ray.models.recognition import IRESNET_MACS, RECOGNIZERS, NetworkRow, from_onnx, load_recognizer, load_row
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.regressor import CARD_FILE, load_regressor
from fiqa_ray.models.scorer import (
    ScoreFaces,
    Scorer,
    build_embedding_norm,
    build_faceqan,
    build_own_output,
    build_pcnet,
    build_serfiq,
)
from fiqa_ray.storage import exists, join, read_bytes


@dataclass(frozen=True)
class MethodRow:
    """One FIQA method.

    Attributes:
        build: called as ``build(recognizer or own network, seed, **options)``, with the loaded head third if ``head``.
        source: whose code or formula it is; ``licence``: what its authors state.
        native_range: of the formula; ``usual_range``: what faces get.
        network: the method's own, with its checkpoint, hash, licence, colours and scaling of pixels; None: it works on a
            recogniser. ``head``: a network on that recogniser's trunk.
        n_forwards, n_backwards: per image, of that network, at the default options; a backward reaches the input only.
        head_macs: multiply-accumulates per image beside these passes.
        needs_gradient: the recogniser must be differentiable.
        deterministic: no random draws.
        from_embedding: the stored embeddings suffice.
        from_trunk: it starts from the recogniser's trunk of the clean face, so such methods share one pass.
    """

    build: Callable[..., ScoreFaces]
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
    direction: str = "larger is better"

    @property
    def cost(self) -> str:
        """Per image: GMAC of an own network; else forwards (F) and backwards (B) of the recogniser, and what is added."""
        if self.network is not None:
            return f"{(self.n_forwards * self.network.macs + self.head_macs) / 1e9:.2f} GMAC"
        parts = [f"{self.n_forwards} F"]
        parts += [f"{self.n_backwards} B"] if self.n_backwards else []
        parts += [f"{self.head_macs / 1e9:.2g} GMAC"] if self.head_macs else []
        return " + ".join(parts)


ANY = (-math.inf, math.inf)


SERFIQ_PASSES_MACS = 99 * MAP_DIM * EMBEDDING_DIM
"""What 100 products with the last layer cost beyond the one of a plain forward."""


def _own(build: Callable[..., ScoreFaces], network: NetworkRow, usual_range: str, **more: Any) -> MethodRow:
    return MethodRow(
        build, network.source, network.licence, more.pop("native_range", ANY), usual_range, network=network, **more
    )


def _crfiqa(depth: int, released_file: str, sha256: str) -> MethodRow:
    network = NetworkRow(
        build=partial(CRFIQA, depth),
        macs=IRESNET_MACS[depth] + EMBEDDING_DIM,
        source="fdbtrs/CR-FIQA",
        released_file=released_file,
        licence="code CC BY-NC 4.0; weights: not stated",
        sha256=sha256,
        dim=1,
    )
    return _own(build_own_output, network, "0.36 to 0.52 on LFW")


def _sddfiqa(build: Callable[[], nn.Module], macs: int, released_file: str) -> MethodRow:
    network = NetworkRow(
        build=build,
        macs=macs,
        source="Tencent/TFace quality/",
        released_file=released_file,
        licence="code Apache-2.0; weights: not stated",
        dim=1,
    )
    return _own(build_own_output, network, "about 0 to 100")


def _magface(name: str) -> MethodRow:
    return _own(build_embedding_norm, RECOGNIZERS[name], "about 20 to 32", native_range=(0.0, math.inf))


def _paper_regressor() -> nn.Module:
    return nn.Sequential(OrderedDict(base_model=IResNet(100), regressor=nn.Linear(EMBEDDING_DIM, 1)))


METHODS: dict[str, MethodRow] = {
    "faceqan": MethodRow(
        build=build_faceqan,
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
        build=build_serfiq,
        source="pterhoer/FaceImageQuality, on any recogniser with a dropout before its last layer",
        licence="code CC BY-NC-SA 4.0; weights: the FR model's",
        native_range=(0.0, 1.0),
        usual_range="0 to 1; raw: 0.86 to 0.90",
        head_macs=SERFIQ_PASSES_MACS,
        deterministic=False,
        from_trunk=True,
    ),
    "serfiq_mxnet": _own(
        build_serfiq,
        RECOGNIZERS["serfiq_lresnet100e"],
        "0 to 1; raw: 0.86 to 0.90",
        native_range=(0.0, 1.0),
        head_macs=SERFIQ_PASSES_MACS,
        deterministic=False,
    ),
    "crfiqa_l": _crfiqa(100, "181952backbone.pth", "5fca24736e4f8df5fbfc0f31ca533fbcca5eb119e2bad8fff751fe72c4c4d0fd"),
    "crfiqa_s": _crfiqa(50, "32572backbone.pth", "b9f457a6f00e0363a0cfb47ba4075e866d29e4e03c7989afe84faa61054dc8d4"),
    "magface_r100": _magface("magface_r100"),
    "magface_r50": _magface("magface_r50"),
    "magface_r18": _magface("magface_r18"),
    "sddfiqa_r50": _sddfiqa(sddfiqa_r50, 6_283_665_920, "SDD_FIQA_checkpoints_r50.pth"),
    "sddfiqa_mobilefacenet": _sddfiqa(
        sddfiqa_mobilefacenet, 220_899_840, "a checkpoint of training with backbone MobileFaceNet"
    ),
    "pcnet": MethodRow(
        build=build_pcnet,
        source="Xie et al., BMVC 2020; head of KaenChan/face-uncertainty-pytorch, a re-implementation",
        licence="code MIT; weights: the FR model's",
        native_range=(0.0, 1.0),
        usual_range="0 to 1",
        head=NetworkRow(
            build=PCNetHead,
            macs=6_422_784,
            source="KaenChan/face-uncertainty-pytorch",
            released_file="a trained head; none is released",
            licence="code MIT",
            dim=1,
        ),
        head_macs=6_422_784,
        from_trunk=True,
    ),
    "paper_regressor_r100": _own(
        build_own_output,
        NetworkRow(
            build=_paper_regressor,
            macs=IRESNET_MACS[100] + EMBEDDING_DIM,
            source="LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques",
            released_file="the state dict that its transfer learning saves",
            licence="code MIT; weights: not stated",
            dim=1,
        ),
        "about 0 to 1",
    ),
    "embedding_norm": MethodRow(
        build=build_embedding_norm,
        source="IrvingMeng/MagFace inference/gen_feat.py, for any recogniser",
        licence="a formula; weights: the FR model's",
        native_range=(0.0, math.inf),
        usual_range="depends on the recogniser",
        from_embedding=True,
    ),
}


def is_folder(name: str) -> bool:
    """Return whether a method of that name can only be the folder of a trained regressor."""
    return name not in METHODS and not IMPORTED.fullmatch(name) and not name.lower().endswith(".onnx")


def needs_recognizer(name: str) -> bool:
    """Return whether the method of that name works on a recogniser, rather than on a network or code of its own."""
    return name in METHODS and METHODS[name].network is None


def load_scorer(
    name: str,
    recognizer: Recognizer | str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    **options: Any,
) -> Scorer:
    """Load a FIQA method or a trained regressor.

    Args:
        name: one of

            - a name of the table ``METHODS``. faceqan, serfiq, pcnet and embedding_norm need ``recognizer``, the others
              ``weights`` of their own network. Options: faceqan has ``epsilon``, ``n_iterations``, ``n_samples``,
              ``exponent``, ``images_per_pass``; serfiq and serfiq_mxnet have ``n_passes`` (T), ``drop``, ``stretched``,
              ``alpha``, ``r``;
            - a path or URL ending in ``.onnx``: with options ``mean``, ``scale`` and ``colour`` as in ``load_recognizer`` a
              network with one number per face, larger is better; without, a regressor of ``fiqa-ray export``;
            - ``module:function``: called as ``function(weights=weights, **options)``, returns a callable that maps
              ``(b, 3, 112, 112)`` uint8 RGB faces on ``device`` to ``(b,)`` scores, larger is better;
            - the path or URL of a regressor's folder; option ``allow_import``, see ``load_regressor``.
        recognizer: a loaded one, or the name of one, which is then loaded with ``weights``.
        weights: path or URL of the checkpoint of the method's own network or of pcnet's head, ``random:SEED`` for random
            ones; a user's own method's; or the named recogniser's.
        device: as torch names it.
        seed: of methods that draw random numbers.
        **options: of the method, as above.

    Raises:
        FiqaRayError: unknown name or option, missing or unfitting files, a recogniser without what the method needs.
    """
    place = find_device(device)
    if name in METHODS:
        row = METHODS[name]
        check_options(name, options, allowed=options_of(row.build))
        network, heads = _networks(name, row, recognizer, weights, device)
        build = row.build(network.to(place), seed, *(head.to(place) for head in heads), **options)
        return Scorer(name, build, place, random=not row.deterministic, network=network)
    if name.lower().endswith(".onnx") and options:
        network = from_onnx(name, weights, options, quality=True).to(place)
        return Scorer(name, build_own_output(network, seed), place, network=network)
    if name.lower().endswith(".onnx"):
        if weights is not None:
            raise UsageError(f"{name}: an ONNX file holds its own weights; leave out weights={weights!r}")
        graph, card = load_exported(name)
        return Scorer(name, _predict_with(graph.to(place)), place, card=card)
    if IMPORTED.fullmatch(name):
        return _imported_scorer(name, weights, place, options)
    if not exists(join(name, CARD_FILE)):
        raise UsageError(
            f"{name!r} is no FIQA method{near_name(name, METHODS)}, and no regressor's folder (no {CARD_FILE} there); "
            f"use one of {', '.join(METHODS)}, a path ending in .onnx, module:function, or the folder of a trained "
            "regressor"
        )
    check_options(name, options, allowed=options_of(load_regressor))
    if weights is not None:
        raise UsageError(f"{name}: a regressor's folder holds its weights; leave out weights={weights!r}")
    model, card = load_regressor(name, device, **options)
    base = Recognizer(name, model.base_model, model.preprocessing, model.regressor.in_features, card["weights_sha256"])
    return Scorer(name, _predict_with(model), place, network=base, card=card)


def _predict_with(model: torch.nn.Module) -> ScoreFaces:
    def predict(clean: CleanPass, image_row: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return model(clean.faces)

    return predict


def _networks(
    name: str, row: MethodRow, recognizer: Recognizer | str | None, weights: str | None, device: str
) -> tuple[Recognizer, list[Recognizer]]:
    """The network that a method of the table works on, and its head if it has one."""
    if row.network is not None:
        if recognizer is not None:
            raise UsageError(f"{name} has a network of its own: leave out the recogniser and give weights")
        return load_row(name, name, row.network, weights), []
    if recognizer is None:
        raise UsageError(f"{name} works on a recogniser: give one (--recognizer, or recognizer=load_recognizer(...))")
    if row.head is not None:
        if isinstance(recognizer, str):
            raise UsageError(f"{name} takes weights of its head: give recognizer=load_recognizer({recognizer!r}, ...)")
        _refuse_another_trunk(name, recognizer, weights)
        return recognizer, [load_row(name, name, row.head, weights)]
    if isinstance(recognizer, str):
        return load_recognizer(recognizer, weights, device), []
    if weights is not None:
        raise UsageError(f"{name} has no weights of its own; leave out weights={weights!r}, the recogniser has them")
    return recognizer, []


def _refuse_another_trunk(name: str, recognizer: Recognizer, weights: str | None) -> None:
    """A head of ``fiqa-ray train-pcnet`` has a card beside it that names the recogniser it was trained on."""
    card_uri = f"{weights}.json"
    if weights is None or weights.startswith("random:") or not exists(card_uri):
        return
    trained_on = json.loads(read_bytes(card_uri)).get("recognizer_sha256")
    if trained_on != recognizer.weights_sha256:
        raise FiqaRayError(
            f"{name}: {weights} was trained on a recogniser with the SHA-256 {trained_on}, and {recognizer.name} has "
            f"{recognizer.weights_sha256}; give that recogniser, or train a head on this one: fiqa-ray train-pcnet"
        )


def _imported_scorer(name: str, weights: str | None, place: torch.device, options: dict[str, Any]) -> Scorer:
    score = call_imported(name, weights, options)
    if not callable(score):
        raise FiqaRayError(f"{name}: returned {type(score).__name__}, wanted a callable from faces to scores")
    if isinstance(score, torch.nn.Module):
        score = score.to(place).eval()

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> Any:
        faces = clean.faces
        try:
            return score(faces)
        except FiqaRayError:
            raise
        except Exception as error:  # a user's method may raise anything
            raise FiqaRayError(
                f"{name}: fails on faces of shape {tuple(faces.shape)}, uint8: {type(error).__name__}: {error}"
            ) from error

    return Scorer(name, score_faces, place)
