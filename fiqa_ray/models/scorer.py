"""A FIQA method ready to score faces, and the builders of the methods that work on a recogniser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.methods.faceqan import faceqan_noise, faceqan_scores
from fiqa_ray.models.methods.serfiq import dropout_masks, serfiq_distance, serfiq_raw, serfiq_stretched
from fiqa_ray.models.networks.iresnet import MAP_DIM
from fiqa_ray.models.recognizer import CleanPass, Recognizer, check_faces

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


def _check_whole(method: str, least: int, **values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{method}: {name}={value!r} must be a whole number of at least {least}")


def _check_number(method: str, name: str, value: Any, low: float, high: float, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise UsageError(f"{method}: {name}={value!r} must lie {where}")


def build_faceqan(
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


def build_serfiq(
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


def build_pcnet(recognizer: Recognizer, seed: int, head: Recognizer) -> ScoreFaces:
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


def build_embedding_norm(recognizer: Recognizer, seed: int) -> ScoreFaces:
    """Build the scorer whose score is the embedding's length (MagFace and others)."""

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> np.ndarray:
        return embedding_norm(clean.output.cpu().numpy())

    return score_faces


def build_own_output(network: Recognizer, seed: int) -> ScoreFaces:
    """Build the scorer of a network that outputs the score itself, one number per face."""

    def score_faces(clean: CleanPass, image_row: np.ndarray) -> Tensor:
        return clean.output[:, 0]

    return score_faces
