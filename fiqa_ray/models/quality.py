"""FIQA methods: a table, quality networks, a user's own scorer, and trained regressors. Larger is better everywhere.

A method works on a recogniser (FaceQAN, SER-FIQ, PCNet, the embedding norm) or brings a network of its own (CR-FIQA,
MagFace, SDD-FIQA, the paper's regressor, SER-FIQ's). Methods on one recogniser that start from the same layer of the
clean face share that pass, see ``score_together``.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.formats.export import load_exported
from fiqa_ray.models.methods.faceqan import faceqan_noise, faceqan_scores
from fiqa_ray.models.methods.pcnet import PCNetHead
from fiqa_ray.models.methods.serfiq import dropout_masks, serfiq_distance, serfiq_raw, serfiq_stretched
from fiqa_ray.models.networks.ir import sddfiqa_r50
from fiqa_ray.models.networks.iresnet import CRFIQA, EMBEDDING_DIM, MAP_DIM, IResNet
from fiqa_ray.models.networks.mobilefacenet import sddfiqa_mobilefacenet
from fiqa_ray.models.recognition import (
    IMPORTED,
    IRESNET_MACS,
    RECOGNIZERS,
    CleanPass,
    NetworkRow,
    Recognizer,
    call_imported,
    check_faces,
    check_options,
    find_device,
    from_onnx,
    load_recognizer,
    load_row,
    near_name,
    options_of,
)
from fiqa_ray.models.regressor import CARD_FILE, load_regressor
from fiqa_ray.storage import exists, join, read_bytes

ScoreFaces = Callable[[CleanPass, np.ndarray], Any]
"""A batch of b faces on the device and (b,) int64 image rows -> (b,) scores."""


@dataclass(frozen=True)
class Scorer:
    """A loaded FIQA method or regressor.

    ``random``: draws random numbers, as a pure function of (seed, image_row). ``network``: the FR model that it works
    on, or its own network. ``card``: that of a trained regressor.
    """

    name: str
    score_faces: ScoreFaces
    device: torch.device
    random: bool = False
    network: Recognizer | None = None
    card: dict[str, Any] | None = None

    def __call__(self, faces: Tensor | np.ndarray, image_row: Tensor | np.ndarray | None = None) -> np.ndarray:
        """Score aligned RGB faces.

        Args:
            faces: ``(b, 3, 112, 112)`` uint8.
            image_row: ``(b,)`` int64; needed only if ``random``. Rows below 0 are padding, whose score means nothing.

        Returns:
            ``(b,)`` float32, larger is better; not finite where the method broke down on that face.

        Raises:
            FiqaRayError: if faces, rows or the method's output have another shape or dtype.
        """
        return score_together([self], faces, image_row)[0]


def score_together(
    scorers: Sequence[Scorer], faces: Tensor | np.ndarray, image_row: Tensor | np.ndarray | None = None
) -> list[np.ndarray]:
    """Score faces by several methods; those on one loaded network share its pass over the clean faces.

    Each score has the bits that its scorer gives alone. Arguments, results and errors as in ``Scorer.__call__``, one
    array per scorer.
    """
    faces = torch.as_tensor(faces)
    check_faces(faces)
    rows = np.zeros(len(faces), np.int64) if image_row is None else np.asarray(image_row)
    if rows.shape != (len(faces),) or not np.issubdtype(rows.dtype, np.integer):
        raise UsageError(f"image_row is {rows.shape} {rows.dtype}; wanted ({len(faces)},) integers, one per face")
    passes: dict[tuple[int, torch.device], CleanPass] = {}
    found = []
    for scorer in scorers:
        if image_row is None and scorer.random:
            raise UsageError(f"{scorer.name} draws random numbers per image: give image_row, (b,) integers")
        key = (id(scorer.network), scorer.device)
        if key not in passes:
            passes[key] = CleanPass(scorer.network, faces.to(scorer.device))
        scores = scorer.score_faces(passes[key], rows.astype(np.int64))
        values = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
        if values.shape != (len(faces),) or not np.issubdtype(values.dtype, np.number):
            raise FiqaRayError(
                f"{scorer.name}: returned scores of shape {values.shape}, {values.dtype} for {len(faces)} faces; "
                f"wanted ({len(faces)},) numbers"
            )
        found.append(values.astype(np.float32))
    return found


# --- methods on a recogniser ---


def _check_whole(method: str, least: int, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{method}: {name}={value!r} must be a whole number of at least {least}")


def _check_number(method: str, name: str, value: Any, low: float, high: float, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise UsageError(f"{method}: {name}={value!r} must lie {where}")


def _faceqan(
    recognizer: Recognizer,
    seed: int,
    *,
    epsilon: float = 0.001,
    n_iterations: int = 5,
    n_samples: int = 10,
    exponent: int = 5,
    images_per_pass: int | None = None,
) -> ScoreFaces:
    """FaceQAN in passes of ``images_per_pass * n_samples`` copies, always full, so that neighbours do not matter.

    By default 1 image a pass on a CPU and 8 on a GPU. Memory: 0.15 GB a copy with IResNet-100 (measured on a CPU).
    The clean face goes with its mirror image, not with the batch's shared pass: it is one of 52 forwards, and the sign of
    a gradient would carry that pass's last bits, which depend on the batch size, into the score.
    """
    if not recognizer.differentiable:
        raise UsageError(f"faceqan needs gradients, and {recognizer.name} has none; give it as torch operations")
    _check_whole("faceqan", 1, n_iterations=n_iterations, n_samples=n_samples, exponent=exponent)
    if images_per_pass is not None:
        _check_whole("faceqan", 1, images_per_pass=images_per_pass)
    _check_number("faceqan", "epsilon", epsilon, math.ulp(0.0), 1, "between 0 and 1 (the image's scale)")
    _check_whole("faceqan", 0, seed=seed)

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> np.ndarray:
        faces = clean.faces
        scores = np.full(len(faces), np.nan)
        wanted = np.flatnonzero(image_row >= 0)
        n_together = images_per_pass or (8 if faces.is_cuda else 1)
        for at in range(0, len(wanted), n_together):
            batch = wanted[at : at + n_together]
            padded = np.concatenate([batch, np.repeat(batch[:1], n_together - len(batch))])
            noise = np.stack([faceqan_noise(seed, int(image_row[i]), n_samples) for i in padded])
            # A caller's inference mode would forbid gradients.
            with torch.inference_mode(False), torch.enable_grad():
                x = faces[torch.from_numpy(padded).to(faces.device)].to(torch.float32) / 255
                found = faceqan_scores(
                    recognizer.embed_unit,
                    x,
                    torch.from_numpy(noise).to(faces.device),
                    epsilon=epsilon,
                    n_iterations=n_iterations,
                    exponent=exponent,
                )
            scores[batch] = found.cpu().numpy()[: len(batch)]
        return scores

    return score_faces


def _serfiq(
    recognizer: Recognizer,
    seed: int,
    *,
    n_passes: int = 100,
    drop: float = 0.5,
    stretched: bool = True,
    alpha: float = 130.0,
    r: float = 0.88,
) -> ScoreFaces:
    """SER-FIQ, one image's ``n_passes`` heads as one product: some 60 MB at T = 100, whatever the batch.

    ``stretched=False`` returns raw, as the paper of 2020 has it.
    """
    network = recognizer.split("serfiq")
    _check_whole("serfiq", 2, n_passes=n_passes)
    _check_whole("serfiq", 0, seed=seed)
    _check_number("serfiq", "drop", drop, 0, 1, "in [0, 1)")
    _check_number("serfiq", "alpha", alpha, math.ulp(0.0), math.inf, "above 0")
    _check_number("serfiq", "r", r, 0, math.nextafter(1, 2), "between 0 and 1")
    if not isinstance(stretched, bool):
        raise UsageError(f"serfiq: stretched={stretched!r} must be true or false")

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> np.ndarray:
        scores = np.full(len(clean.faces), np.nan)
        with torch.inference_mode():
            for i in np.flatnonzero(image_row >= 0):
                features = clean.features[i]
                masks = dropout_masks(seed, int(image_row[i]), n_passes, len(features), drop, features.device)
                raw = serfiq_raw(serfiq_distance(network.tail, features, masks, drop))
                scores[i] = float(serfiq_stretched(raw, alpha, r) if stretched else raw)
        return scores

    return score_faces


def _pcnet(recognizer: Recognizer, seed: int, head: Recognizer) -> ScoreFaces:
    """PCNet: 1 minus the head's uncertainty on the recogniser's trunk."""
    recognizer.split("pcnet")

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> Tensor:
        n_features = clean.features.shape[1]
        if n_features != MAP_DIM:
            raise FiqaRayError(
                f"pcnet: {recognizer.name} has {n_features} features before its dropout, wanted {MAP_DIM}"
            )
        with torch.inference_mode():
            return 1 - head.backbone(clean.features.to(torch.float32))[:, 0]

    return score_faces


def embedding_norm(embeddings: np.ndarray) -> np.ndarray:
    """Return the Euclidean length of raw embeddings, ``(n_images, dim)`` to ``(n_images,)`` float32.

    MagFace's score (``IrvingMeng/MagFace inference/gen_feat.py``: no clamp, no scaling); for any other recogniser the
    score that costs nothing.
    """
    return np.linalg.norm(embeddings.astype(np.float64), axis=1).astype(np.float32)


def _embedding_norm(recognizer: Recognizer, seed: int) -> ScoreFaces:
    def score_faces(clean: CleanPass, image_row: np.ndarray) -> np.ndarray:
        return embedding_norm(clean.output.cpu().numpy())

    return score_faces


def _own_output(network: Recognizer, seed: int) -> ScoreFaces:
    """The quality network's one number per face, as it is."""

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> Tensor:
        return clean.output[:, 0]

    return score_faces


# --- the table ---


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
    return _own(_own_output, network, "0.36 to 0.52 on LFW")


def _sddfiqa(build: Callable[[], nn.Module], macs: int, released_file: str) -> MethodRow:
    network = NetworkRow(
        build=build,
        macs=macs,
        source="Tencent/TFace quality/",
        released_file=released_file,
        licence="code Apache-2.0; weights: not stated",
        dim=1,
    )
    return _own(_own_output, network, "about 0 to 100")


def _magface(name: str) -> MethodRow:
    return _own(_embedding_norm, RECOGNIZERS[name], "about 20 to 32", native_range=(0.0, math.inf))


def _paper_regressor() -> nn.Module:
    return nn.Sequential(OrderedDict(base_model=IResNet(100), regressor=nn.Linear(EMBEDDING_DIM, 1)))


METHODS: dict[str, MethodRow] = {
    "faceqan": MethodRow(
        build=_faceqan,
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
        build=_serfiq,
        source="pterhoer/FaceImageQuality, on any recogniser with a dropout before its last layer",
        licence="code CC BY-NC-SA 4.0; weights: the FR model's",
        native_range=(0.0, 1.0),
        usual_range="0 to 1; raw: 0.86 to 0.90",
        head_macs=SERFIQ_PASSES_MACS,
        deterministic=False,
        from_trunk=True,
    ),
    "serfiq_mxnet": _own(
        _serfiq,
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
        build=_pcnet,
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
        _own_output,
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
        build=_embedding_norm,
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
        return Scorer(name, _own_output(network, seed), place, network=network)
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
