"""The quality regressor H on M (paper III-D): a linear head on a recogniser's raw embedding, or on it and its norm.

The groups of parameters and the saved names follow
`LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques src/transfer_learning`.
A saved regressor is `weights.pt` and `card.json`; the card names the network, so that loading needs nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.documents import SUM_KEY, document_bytes, parse_document, parse_object
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.devices import find_device
from fiqa_ray.models.formats.checkpoints import load_state_dict, load_strictly, sha256_of, state_bytes
from fiqa_ray.models.formats.onnx_network import FILE_ENTRY, OnnxNetwork
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.probe import probe_faces
from fiqa_ray.models.recognizer import Recognizer, check_faces
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.models.reference import CARD_FILE, ModelRef
from fiqa_ray.models.user_code import as_network, call_function
from fiqa_ray.public_uri import public_uri, public_values
from fiqa_ray.storage import join, read_bytes

WEIGHTS_FILE = "weights.pt"
CARD_VERSION = 4
"""Version of the card's format; raise it when saved regressors change."""
_TRUSTED = frozenset({"fiqa_ray.synthetic.compact:build"})
"""Every function that a card may name, beside the tables' networks. Other code runs only if allowed."""
_CARD_REMEDY = "copy the regressor's folder again, or remove this file in its run and run again"
N_QUANTILES = 1001
"""Quantiles in a card's table of scores: one per tenth of a percent."""

# (name, tensors from the end of the backbone, learning rate, weight decay); what lies before keeps its weights.
RELEASED_GROUPS = (("last_10", 10, 1e-3, 1e-5), ("40_before", 40, 1e-4, 1e-6), ("50_before", 50, 1e-5, 1e-6))
HEAD_RATE, HEAD_DECAY = 1e-3, 1e-4


HEADS = ("linear", "norm")
"""Kinds of `QualityHead`."""


class QualityHead(nn.Linear):
    """H: linear maps of the raw embedding, one per training seed; no sigmoid. A face's score is the mean over the seeds.

    A linear map cannot see the length of an embedding, which many networks make longer for better faces.

    Args:
        dim: numbers of an embedding.
        kind: `linear`, the paper's; `norm`: the embedding's length is one more input.
        n_seeds: trainings that the head holds.
    """

    def __init__(self, dim: int, kind: str = "linear", n_seeds: int = 1) -> None:
        super().__init__(dim + (kind == "norm"), n_seeds)
        self.dim, self.kind = dim, kind

    def forward(self, embedding: Tensor) -> Tensor:
        """Map `(N, D)` embeddings to `(N, n_seeds)` scores.

        Without gradients it computes in float64 and rounds, so that a face's score has the same bits in any batch.
        """
        is_exact = not torch.is_grad_enabled()
        x = embedding.double() if is_exact else embedding
        if self.kind == "norm":
            x = torch.cat([x, torch.linalg.vector_norm(x, dim=1, keepdim=True)], dim=1)
        if not is_exact:
            return super().forward(x)
        return nn.functional.linear(x, self.weight.double(), self.bias.double()).to(embedding.dtype)


class QualityRegressor(nn.Module):
    """A trainable copy of a recogniser's network with a quality head.

    State dict: `base_model.<name in the backbone>` and `regressor.{weight,bias}`; 927 entries for IResNet-100. Weight and
    bias have one row per training seed.

    Args:
        recognizer: is not changed. The copy's parameters are trainable where the recogniser's were before freezing.
        head: takes the recogniser's `dim`.
    """

    def __init__(self, recognizer: Recognizer, head: QualityHead) -> None:
        super().__init__()
        self.base_model = copy.deepcopy(recognizer.backbone)
        self.regressor = head
        self.preprocessing = recognizer.preprocessing
        for name, parameter in self.base_model.named_parameters():
            parameter.requires_grad_(name in recognizer.trainable_names)
        self.origin: dict[str, Any] = {
            "recognizer": public_uri(recognizer.name),
            "options": public_values(recognizer.options),
            "dim": recognizer.dim,
            "head": head.kind,
            "preprocessing": asdict(recognizer.preprocessing),
            "recognizer_sha256": recognizer.weights_sha256,
        }

    def forward(self, faces: Tensor) -> Tensor:
        """Predict the quality of aligned RGB faces.

        Args:
            faces: `(N, 3, 112, 112) uint8`.

        Returns:
            `(N,)` quality in the dtype computed in, larger is better; about 0..1 as the labels, not clamped.
        """
        return self.score_and_embedding(faces)[0]

    def score_and_embedding(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores as from `forward` and the raw embeddings that they come from, `(N, D)`."""
        check_faces(faces)
        x = (faces.to(torch.float32) / 255).to(self.regressor.weight.dtype)
        embedding = self.base_model(self.preprocessing(x)).to(self.regressor.weight.dtype)
        by_seed = self.regressor(embedding)
        return (by_seed[:, 0] if by_seed.shape[1] == 1 else by_seed.double().mean(dim=1)), embedding


def parameter_groups(model: QualityRegressor, *, freeze_rest: bool = True) -> list[dict[str, Any]]:
    """Return the released groups for Adam, by position in the backbone's list of parameter tensors.

    The head (rate 1e-3, decay 1e-4), the last 10 tensors (1e-3, 1e-5), the 40 before (1e-4, 1e-6) and the 50 before
    (1e-5, 1e-6). The cuts run through batch norms: position counts, not modules. A shorter network fills as many groups
    as it can. Tensors that were fixed at construction stay in their group and get no gradient.

    Args:
        model: its remaining tensors lose `requires_grad` if `freeze_rest`.
        freeze_rest: False as in the released code, where the rest is not trained, but its gradients are computed and
            count in the clipping norm.
    """
    groups = [
        {"name": "head", "params": list(model.regressor.parameters()), "lr": HEAD_RATE, "weight_decay": HEAD_DECAY}
    ]
    rest = list(model.base_model.parameters())
    for name, n_tensors, rate, decay in RELEASED_GROUPS:
        rest, params = rest[:-n_tensors], rest[-n_tensors:]
        if params:
            groups.append({"name": name, "params": params, "lr": rate, "weight_decay": decay})
    if freeze_rest:
        for parameter in rest:
            parameter.requires_grad_(False)
    return groups


def score_table(scores: np.ndarray) -> dict[str, Any]:
    """Return the card's entry `validation_scores`: how a regressor's own scores are distributed.

    Its scores, not its labels: a regressor draws its predictions towards the middle, so labels lie on another scale. Of
    validation images, not of those trained on, which it knows better than any image that is to come.

    Args:
        scores: `(N,)` finite.
    """
    quantiles = np.quantile(scores.astype(np.float64), np.linspace(0, 1, N_QUANTILES))
    return {"n_images": len(scores), "quantiles": [float(f"{q:.7g}") for q in quantiles]}


def check_score_table(table: Any, uri: str) -> None:
    """Raise FiqaRayError, with `uri` in its text, unless `table` is None or has the form of `score_table`."""
    if table is None:
        return
    values = table.get("quantiles") if isinstance(table, dict) else None
    quantiles = np.array([q for q in values if type(q) in (int, float)] if isinstance(values, list) else [])
    if values is None or len(quantiles) != len(values) or len(values) < 2 or not (np.diff(quantiles) >= 0).all():
        raise FiqaRayError(f"{uri}: validation_scores holds no ascending quantiles; copy the file again")


def save_regressor(model: QualityRegressor, card: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the regressor's files by name: `weights.pt`, then `card.json`.

    Args:
        model: its state is saved in float32 on the CPU.
        card: further JSON-ready entries for the card: method, labels, metrics and the like. The network's own entries
            (recogniser, options, dim, preprocessing, hashes, schema version) are added.

    Raises:
        FiqaRayError: if the card cannot be written as JSON.
    """
    state = model.state_dict()
    weights = state_bytes(
        {k: (v.float() if v.is_floating_point() else v).detach().cpu().clone() for k, v in state.items()}
    )
    network_entries = {**model.origin, "weights_sha256": sha256_of(weights), "schema_version": CARD_VERSION}
    try:
        card_data = document_bytes({**card, **network_entries})
    except (TypeError, ValueError) as error:
        raise FiqaRayError(
            f"the regressor's card cannot be written as JSON: {error}; give plain values only"
        ) from error
    return {WEIGHTS_FILE: weights, CARD_FILE: card_data}


def load_regressor(
    uri: str, device: str = "cpu", *, allow_import: bool = False, expected: Mapping[str, Any] | None = None
) -> tuple[QualityRegressor, dict[str, Any]]:
    """Load a saved regressor, frozen and in evaluation mode, and its card.

    Args:
        uri: folder of `weights.pt` and `card.json`: a path or any fsspec URL.
        device: as torch names it.
        allow_import: let the card of a regressor on `module:function` have that function imported and called. A card
            is data, perhaps somebody else's; it must not run code unasked.
        expected: what the job that trained the regressor says of it: `recognizer` and `options` of its FR model, whose
            code may then run, and `files`, the records of its files (`n_bytes` and `crc32` by name).

    Raises:
        FiqaRayError: a file is missing, damaged or of another version, or does not fit the network.
    """
    torch_device = find_device(device)
    card_uri, weights_uri = join(uri, CARD_FILE), join(uri, WEIGHTS_FILE)
    card, state = _read_files(uri, expected["files"] if expected else {})
    if expected is not None:
        _check_origin(card, expected, card_uri)
        allow_import = True
    code = card["recognizer"] if expected is None else expected["recognizer"]
    backbone = _backbone(card, state, card_uri, allow_import, code)
    recognizer = Recognizer(
        card["recognizer"],
        backbone,
        Preprocessing(**card["preprocessing"]),
        card["dim"],
        card["recognizer_sha256"],
        options=card["options"],
    )
    model = QualityRegressor(recognizer, _empty_head(card, state))
    load_strictly(model, state, weights_uri)
    return model.requires_grad_(False).eval().to(torch_device), card


def load_head(uri: str, expected: Mapping[str, Any]) -> QualityHead:
    """Load the head of a saved regressor alone, to score embeddings that were stored before.

    Args:
        uri: folder of the regressor.
        expected: what the job that trained the regressor says of it, as in `load_regressor`.

    Raises:
        FiqaRayError: a file is missing, damaged or of another version, or belongs to another FR model.
    """
    card, state = _read_files(uri, expected["files"])
    _check_origin(card, expected, join(uri, CARD_FILE))
    head = _empty_head(card, state)
    weights = {k.removeprefix("regressor."): v for k, v in state.items() if k.startswith("regressor.")}
    load_strictly(head, weights, join(uri, WEIGHTS_FILE))
    return head.requires_grad_(False).eval()


def _read_files(uri: str, records: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a regressor's card and its state, both checked."""
    card_uri, weights_uri = join(uri, CARD_FILE), join(uri, WEIGHTS_FILE)
    card = _parse_card(_read_recorded(card_uri, records.get(CARD_FILE)), card_uri)
    data = _read_recorded(weights_uri, records.get(WEIGHTS_FILE))
    if sha256_of(data) != card["weights_sha256"]:
        raise FiqaRayError(f"{weights_uri}: not the file that {card_uri} belongs to (SHA-256 differs); copy both again")
    return card, load_state_dict(data, name=weights_uri)


def _empty_head(card: Mapping[str, Any], state: Mapping[str, Tensor]) -> QualityHead:
    """Return a head of the card's kind with as many seeds as the state has."""
    weight = state.get("regressor.weight")
    return QualityHead(card["dim"], card["head"], 1 if weight is None or weight.ndim == 0 else len(weight))


def _read_recorded(uri: str, record: Mapping[str, Any] | None) -> bytes:
    """Read a file and, if a job recorded its checksum, compare it."""
    data = read_bytes(uri)
    if record is not None and f"{crc32(data):08x}" != record["crc32"]:
        raise FiqaRayError(
            f"{uri}: not the file that the job wrote: its checksum differs from its record; remove this file and run again: "
            "the regressor is then trained again"
        )
    return data


def _check_origin(card: Mapping[str, Any], expected: Mapping[str, Any], card_uri: str) -> None:
    """Check that a card names the FR model of the job's settings; an ONNX file and a file of code may have moved."""
    kind = ModelRef.parse(card["recognizer"]).kind
    same = kind == ModelRef.parse(expected["recognizer"]).kind
    if kind != "onnx":
        in_card, in_settings = (public_uri(v["recognizer"]).rpartition("/")[2] for v in (card, expected))
        same = same and in_card == in_settings
        same = same and card["options"] == public_values(dict(expected["options"]))
    if not same:
        raise FiqaRayError(
            f"{card_uri}: names the recogniser {card['recognizer']!r} with options {card['options']!r}, and the job's "
            f"settings say {expected['recognizer']!r} with {dict(expected['options'])!r}; the card was exchanged. Remove "
            f"{card_uri.rpartition('/')[0]} and run again: the regressor is then trained again"
        )


def _parse_card(data: bytes, card_uri: str) -> dict[str, Any]:
    card = parse_object(data, card_uri, _CARD_REMEDY)
    if SUM_KEY in card:
        card = parse_document(data, card_uri, _CARD_REMEDY)
    _check_version(card, card_uri)
    card = parse_document(data, card_uri, _CARD_REMEDY)
    wanted = {
        "recognizer": str,
        "options": dict,
        "dim": int,
        "head": str,
        "preprocessing": dict,
        "recognizer_sha256": str,
        "weights_sha256": str,
    }
    for key, kind in wanted.items():
        if not isinstance(card.get(key), kind):
            raise FiqaRayError(f"{card_uri}: {key} is {card.get(key)!r}, wanted {kind.__name__}; copy the card again")
    check_score_table(card.get("validation_scores"), card_uri)
    if card["head"] not in HEADS:
        raise FiqaRayError(f"{card_uri}: head is {card['head']!r}, wanted {' or '.join(HEADS)}; copy the card again")
    if set(card["preprocessing"]) != {"colour", "mean", "scale"}:
        raise FiqaRayError(f"{card_uri}: preprocessing {card['preprocessing']!r} must have colour, mean and scale")
    return card


def _check_version(card: dict[str, Any], card_uri: str) -> None:
    version = card.get("schema_version")
    if version == CARD_VERSION:
        return
    is_newer = isinstance(version, int) and version > CARD_VERSION
    raise FiqaRayError(
        f"{card_uri}: the regressor was saved by {'a newer' if is_newer else 'an earlier'} version of fiqa_ray "
        f"(schema_version {version!r}, this one reads {CARD_VERSION}); train it again with this version, or install the "
        "version that saved it"
    )


def _backbone(
    card: dict[str, Any], state: Mapping[str, Tensor], card_uri: str, allow_import: bool, code: str
) -> nn.Module:
    name = card["recognizer"]
    if ModelRef.parse(name).kind == "onnx":
        return _onnx_backbone(card, state, card_uri)
    if name in RECOGNIZERS:
        return RECOGNIZERS[name].build()
    if not allow_import and name not in _TRUSTED:
        raise FiqaRayError(
            f"{card_uri}: this regressor uses the network {name!r}, whose code would have to be imported and run; "
            "if you trust it, pass allow_import=True (fiqa-ray score: --allow-import)"
        )
    try:
        return as_network(code, call_function(code, None, card["options"]))
    except FiqaRayError as error:
        raise FiqaRayError(f"{card_uri}: {error}") from error


def _onnx_backbone(card: dict[str, Any], state: Mapping[str, Tensor], card_uri: str) -> nn.Module:
    """Return the ONNX network that a regressor's weights hold: as its file was, or converted where it was trained."""
    name, file = card["recognizer"], state.get(f"base_model.{FILE_ENTRY}")
    if file is None:
        raise FiqaRayError(
            f"{card_uri}: the regressor on {name} was saved by an earlier version of fiqa_ray, which computed ONNX networks "
            "in another way; train it again with this version"
        )
    network = OnnxNetwork(file.numpy().tobytes(), f"{card_uri}: the network of {name}")
    if len([key for key in state if key.startswith("base_model.")]) == 1:
        return network
    from fiqa_ray.models.formats.onnx_gradients import ConvertedNetwork  # a package that only this needs

    return ConvertedNetwork(network, Preprocessing(**card["preprocessing"])(probe_faces()).numpy())
