"""Loading of FIQA methods and regressors: a method of the table, an ONNX file, a user's own scorer, a saved regressor.

A method works on a recogniser (FaceQAN, SER-FIQ, PCNet, the embedding norm) or has its own network (CR-FIQA, MagFace,
SDD-FIQA, the paper's regressor, SER-FIQ's released network). The methods themselves are in `fiqa_ray.models.methods`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiqa_ray.documents import read_document
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.devices import find_device
from fiqa_ray.models.formats.export import load_exported
from fiqa_ray.models.method_table import METHODS, MethodRow
from fiqa_ray.models.methods.forward import build_network_output
from fiqa_ray.models.options import check_options, near_name, options_of
from fiqa_ray.models.quality_scale import card_scale
from fiqa_ray.models.recognition import load_onnx, load_recognizer, load_released
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.reference import CARD_FILE, ModelRef
from fiqa_ray.models.regressor import load_regressor
from fiqa_ray.models.scorer import ScoreFaces, Scorer
from fiqa_ray.models.user_code import call_function
from fiqa_ray.storage import content_hash, exists, join


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

            - a name of the table `METHODS`. Methods without a network in the table need `recognizer`, the others
              `weights` of their own network. Among the options: faceqan has `epsilon`, `n_iterations`, `n_samples`,
              `exponent`, `images_per_pass`; serfiq and serfiq_mxnet have `n_passes` (T), `drop`, `stretched`,
              `alpha`, `r`;
            - a path or URL ending in `.onnx`: with options `mean`, `scale` and `colour` as in `load_recognizer`, a
              network with one number per face, larger is better; without options, a regressor of `fiqa-ray export`;
            - `module:function` or `file.py:function`: a function that maps faces `(N, 3, 112, 112)`, float32 RGB in [0, 1]
              on `device`, to `(N,)` scores, larger is better; or a factory, called as
              `function(weights=weights, **options)`, that returns such a function;
            - the path or URL of a regressor's folder; options `allow_import` and `expected`, see `load_regressor`.
        recognizer: a loaded one, or the name of one, which is then loaded with `weights`.
        weights: path or URL of the checkpoint of the method's own network or of pcnet's head, or `random:SEED`; or a
            value for the user's own function; or the checkpoint of the named recogniser.
        device: as torch names it.
        seed: for methods that draw random numbers.
        **options: as `name` says.

    Raises:
        FiqaRayError: unknown name or option, missing or unfitting files, a recogniser without what the method needs.
    """
    torch_device = find_device(device)
    reference = ModelRef.parse(name)
    if reference.method is not None:
        return _load_method(name, reference.method, recognizer, weights, torch_device, seed, options)
    if reference.kind == "table":
        raise UsageError(
            f"{name!r} is a recogniser, not a FIQA method: use --recognizer {name} (recognizer: in a job), with a method "
            "such as faceqan"
        )
    if reference.kind == "onnx":
        return _load_onnx(name, weights, torch_device, seed, options)
    if reference.kind == "function":
        return _load_function(name, weights, torch_device, options)
    return _load_folder(name, weights, torch_device, options)


def _load_method(
    name: str,
    row: MethodRow,
    recognizer: Recognizer | str | None,
    weights: str | None,
    device: torch.device,
    seed: int,
    options: dict[str, Any],
) -> Scorer:
    check_options(name, options, allowed=options_of(row.build))
    network, heads = _networks(name, row, recognizer, weights, str(device))
    score_faces = row.build(network.to(device), seed, *(head.to(device) for head in heads), **options)
    return Scorer(name, score_faces, device, random=not row.deterministic, network=network, scale=row.quality_scale)


def _networks(
    name: str, row: MethodRow, recognizer: Recognizer | str | None, weights: str | None, device: str
) -> tuple[Recognizer, list[Recognizer]]:
    """Return the network that a method of the table works on, and its head if it has one."""
    if row.network is not None:
        if recognizer is not None:
            raise UsageError(f"{name} has a network of its own: leave out the recogniser and give weights")
        return load_released(name, name, row.network, weights), []
    if recognizer is None:
        raise UsageError(f"{name} works on a recogniser: give one (--recognizer, or recognizer=load_recognizer(...))")
    if row.head is not None:
        if isinstance(recognizer, str):
            raise UsageError(f"{name} takes weights of its head: give recognizer=load_recognizer({recognizer!r}, ...)")
        _check_trunk(name, recognizer, weights)
        return recognizer, [load_released(name, name, row.head, weights)]
    if isinstance(recognizer, str):
        return load_recognizer(recognizer, weights, device), []
    if weights is not None:
        raise UsageError(f"{name} has no weights of its own; leave out weights={weights!r}, the recogniser has them")
    return recognizer, []


def _check_trunk(name: str, recognizer: Recognizer, weights: str | None) -> None:
    """Check that a head of `fiqa-ray train-pcnet` was trained on this recogniser; the card beside the head names it."""
    if weights is None or weights.startswith("random:"):
        return
    card = read_document(f"{weights}.json", "copy head and card again or train the head again: fiqa-ray train-pcnet")
    if card is None:
        return
    if card.get("weights_sha256") != content_hash(weights):
        raise FiqaRayError(f"{name}: {weights} is not the head that {weights}.json belongs to; copy both again")
    trained_on = card.get("recognizer_sha256")
    if trained_on != recognizer.weights_sha256:
        raise FiqaRayError(
            f"{name}: {weights} was trained on a recogniser with the SHA-256 {trained_on}, and {recognizer.name} has "
            f"{recognizer.weights_sha256}; give that recogniser, or train a head on this one: fiqa-ray train-pcnet"
        )


def _load_onnx(name: str, weights: str | None, device: torch.device, seed: int, options: dict[str, Any]) -> Scorer:
    """Load a user's quality network, which needs options, or an exported regressor, which has none."""
    if options:
        network = load_onnx(name, weights, options, quality=True).to(device)
        return Scorer(name, build_network_output(network, seed), device, network=network)
    if weights is not None:
        raise UsageError(f"{name}: an ONNX file holds its own weights; leave out weights={weights!r}")
    graph, card = load_exported(name)
    return Scorer(name, _score_by_module(graph.to(device)), device, card=card, scale=card_scale(card))


def _load_function(name: str, weights: str | None, device: torch.device, options: dict[str, Any]) -> Scorer:
    score = call_function(name, weights, options)
    if not callable(score):
        raise FiqaRayError(f"{name}: returned {type(score).__name__}, wanted a callable from faces to scores")
    if isinstance(score, torch.nn.Module):
        score = score.to(device).eval()

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Any:
        faces = clean.faces.to(torch.float32) / 255
        try:
            return score(faces)
        except FiqaRayError:
            raise
        except Exception as error:  # a user's method may raise anything
            raise FiqaRayError(
                f"{name}: fails on faces of shape {tuple(faces.shape)}, float32 in [0, 1]: {type(error).__name__}: {error}"
            ) from error

    return Scorer(name, score_faces, device)


def _load_folder(name: str, weights: str | None, device: torch.device, options: dict[str, Any]) -> Scorer:
    if not exists(join(name, CARD_FILE)):
        raise UsageError(
            f"{name!r} is no FIQA method{near_name(name, METHODS)}, and no regressor's folder (no {CARD_FILE} there); "
            f"use one of {', '.join(METHODS)}, a path ending in .onnx, module:function, or the folder of a trained "
            "regressor"
        )
    check_options(name, options, allowed=options_of(load_regressor))
    if weights is not None:
        raise UsageError(f"{name}: a regressor's folder holds its weights; leave out weights={weights!r}")
    model, card = load_regressor(name, str(device), **options)
    network = Recognizer(name, model.base_model, model.preprocessing, model.regressor.dim, card["weights_sha256"])
    return Scorer(name, _score_by_module(model), device, network=network, card=card, scale=card_scale(card))


def _score_by_module(model: torch.nn.Module) -> ScoreFaces:
    """Return the scoring of a module that maps `uint8` faces to scores."""

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
        with torch.inference_mode():
            return model(clean.faces)

    return score_faces
