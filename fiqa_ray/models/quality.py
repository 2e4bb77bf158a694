"""FIQA methods: a table, a user's own scorer, and trained regressors. Larger is better everywhere.

FaceQAN (``LSIbabnikz/FaceQAN src/``): how much the embedding moves under a small adversarial attack, times the
similarity of the face to its mirror image,

    q = [ (1 + mean S) / 2 * clip(1 - sd S, 0, 1) * cos(e(x), e(mirror x)) ]^p,

where S holds the cosines of e(x) to the embeddings of k noisy copies at each of l attack steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.export import load_exported
from fiqa_ray.models.recognition import (
    FACE_SHAPE,
    IMPORTED,
    Recognizer,
    call_imported,
    check_faces,
    check_options,
    find_device,
    load_recognizer,
    near_name,
    options_of,
)
from fiqa_ray.models.regressor import CARD_FILE, load_regressor
from fiqa_ray.storage import exists, join

Embed = Callable[[Tensor], Tensor]
ScoreFaces = Callable[[Tensor, np.ndarray], Any]
"""(b, 3, 112, 112) uint8 faces on the device and (b,) int64 image rows -> (b,) scores."""


@dataclass(frozen=True)
class Scorer:
    """A loaded FIQA method or regressor.

    ``random``: draws random numbers, as a pure function of (seed, image_row). ``recognizer``: the FR model that it works
    on, if any. ``card``: that of a trained regressor.
    """

    name: str
    score_faces: ScoreFaces
    device: torch.device
    random: bool = False
    recognizer: Recognizer | None = None
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
        faces = torch.as_tensor(faces)
        check_faces(faces)
        if image_row is None and self.random:
            raise UsageError(f"{self.name} draws random numbers per image: give image_row, (b,) integers")
        rows = np.zeros(len(faces), np.int64) if image_row is None else np.asarray(image_row)
        if rows.shape != (len(faces),) or not np.issubdtype(rows.dtype, np.integer):
            raise UsageError(f"image_row is {rows.shape} {rows.dtype}; wanted ({len(faces)},) integers, one per face")
        scores = self.score_faces(faces.to(self.device), rows.astype(np.int64))
        values = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
        if values.shape != (len(faces),) or not np.issubdtype(values.dtype, np.number):
            raise FiqaRayError(
                f"{self.name}: returned scores of shape {values.shape}, {values.dtype} for {len(faces)} faces; "
                f"wanted ({len(faces)},) numbers"
            )
        return values.astype(np.float32)


# --- FaceQAN ---


def faceqan_noise(seed: int, image_row: int, n_samples: int) -> np.ndarray:
    """Return the starting noise of one image, ``(n_samples, 3, 112, 112)`` float32, uniform in [-1, 1).

    A pure function of its arguments: the same on every machine, in every batch.
    """
    key = np.array([seed, image_row], dtype=np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key)).random((n_samples, *FACE_SHAPE), dtype=np.float32)
    return 2 * draws - 1


def faceqan_similarities(
    embed: Embed, x: Tensor, noise: Tensor, *, epsilon: float, n_iterations: int
) -> tuple[Tensor, Tensor]:
    """Attack every image and record how similar its copies stay.

    Args:
        embed: maps ``(n, 3, h, w)`` in [0, 1] to ``(n, dim)``, differentiable, each image by itself.
        x: ``(b, 3, h, w)`` float in [0, 1].
        noise: ``(b, k, 3, h, w)`` in [-1, 1], multiplied by ``epsilon`` here.
        epsilon: attack step on the scale [0, 1].
        n_iterations: l; the state after the last recorded step is never embedded, so l - 1 gradients suffice.

    Returns:
        Cosines to the clean embedding, ``(b, l, k)``, and cosine of face and mirror image, ``(b,)``.
    """
    b, k = noise.shape[:2]
    with torch.no_grad():
        clean, mirrored = embed(torch.cat([x, x.flip(-1)])).chunk(2)
        symmetry = functional.cosine_similarity(clean, mirrored, dim=1, eps=1e-8)
        target = clean.repeat_interleave(k, dim=0)
        # The released code clamps to [-1, 1], not to the images' own [0, 1].
        points = (x[:, None] + epsilon * noise).clamp(-1, 1).flatten(0, 1)
    recorded = []
    for step in range(n_iterations):
        attack = step + 1 < n_iterations
        with torch.set_grad_enabled(attack):
            points.requires_grad_(attack)
            cosine = functional.cosine_similarity(embed(points), target, dim=1, eps=1e-8).view(b, k)
        recorded.append(cosine.detach())
        if attack:
            # The loss of each image is its own mean; summed over images, each still gets only its own gradient.
            (gradient,) = torch.autograd.grad((1 - cosine).mean(dim=1).sum(), points)
            points = (points.detach() + epsilon * gradient.sign()).clamp(-1, 1)
    return torch.stack(recorded, dim=1), symmetry


def faceqan_formula(similarities: Tensor, symmetry: Tensor, exponent: int) -> Tensor:
    """Combine ``(b, l, k)`` cosines and ``(b,)`` symmetry to ``(b,)`` float64 scores (population deviation)."""
    s = similarities.double().flatten(1)
    stability = (1 + s.mean(dim=1)) / 2 * (1 - s.std(dim=1, correction=0)).clamp(0, 1)
    return (stability * symmetry.double()) ** exponent


def faceqan_scores(
    embed: Embed, x: Tensor, noise: Tensor, *, epsilon: float, n_iterations: int, exponent: int
) -> Tensor:
    """Return FaceQAN's scores, ``(b,)`` float64; arguments as in ``faceqan_similarities``."""
    found = faceqan_similarities(embed, x, noise, epsilon=epsilon, n_iterations=n_iterations)
    return faceqan_formula(*found, exponent)


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
    """
    if not recognizer.differentiable:
        raise UsageError(f"faceqan needs gradients, and {recognizer.name} has none; give it as torch operations")
    whole = {"n_iterations": n_iterations, "n_samples": n_samples, "exponent": exponent}
    if images_per_pass is not None:
        whole["images_per_pass"] = images_per_pass
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"faceqan: {name}={value!r} must be a whole number of at least 1")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise UsageError(f"faceqan: epsilon={epsilon!r} must lie between 0 and 1 (the image's scale)")
    if not isinstance(seed, int) or seed < 0:
        raise UsageError(f"faceqan: seed={seed!r} must be a whole number of at least 0")

    def score_faces(faces: Tensor, image_row: np.ndarray) -> np.ndarray:
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


# --- embedding norm ---


def embedding_norm(embeddings: np.ndarray) -> np.ndarray:
    """Return the Euclidean length of raw embeddings, ``(n_images, dim)`` to ``(n_images,)`` float32.

    Of the score families of quality-aware recognisers the one that costs nothing; MagFace trains for it.
    """
    return np.linalg.norm(embeddings.astype(np.float64), axis=1).astype(np.float32)


def _embedding_norm(recognizer: Recognizer, seed: int) -> ScoreFaces:
    def score_faces(faces: Tensor, image_row: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return embedding_norm(recognizer(faces).cpu().numpy())

    return score_faces


# --- the table ---


@dataclass(frozen=True)
class MethodRow:
    """One FIQA method.

    ``build(recognizer, seed, **options)``; ``native_range`` is that of the formula, ``usual_range`` what faces get;
    ``from_embedding``: the stored embeddings suffice; ``deterministic``: no random draws.
    """

    build: Callable[..., ScoreFaces]
    source: str
    licence: str
    native_range: tuple[float, float]
    usual_range: str
    needs_gradient: bool = False
    deterministic: bool = True
    from_embedding: bool = False
    direction: str = "larger is better"


METHODS: dict[str, MethodRow] = {
    "faceqan": MethodRow(
        build=_faceqan,
        source="LSIbabnikz/FaceQAN",
        licence="code MIT; the recogniser's own licence for its weights",
        native_range=(-1.0, 1.0),
        usual_range="0 to about 0.75",
        needs_gradient=True,
        deterministic=False,
    ),
    "embedding_norm": MethodRow(
        build=_embedding_norm,
        source="IrvingMeng/MagFace inference/gen_feat.py, for any recogniser",
        licence="a formula; the recogniser's own licence for its weights",
        native_range=(0.0, float("inf")),
        usual_range="depends on the recogniser",
        from_embedding=True,
    ),
}


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

            - a name of the table ``METHODS``; needs ``recognizer``, and takes the method's options: faceqan has
              ``epsilon``, ``n_iterations``, ``n_samples``, ``exponent``, ``images_per_pass``;
            - ``module:function``: called as ``function(weights=weights, **options)``, returns a callable that maps
              ``(b, 3, 112, 112)`` uint8 RGB faces on ``device`` to ``(b,)`` scores, larger is better;
            - the path or URL of a regressor's folder; option ``allow_import``, see ``load_regressor``;
            - a regressor as an ``.onnx`` file of ``fiqa-ray export``.
        recognizer: a loaded one, or the name of one, which is then loaded with ``weights``.
        weights: a user's own method's, or the named recogniser's.
        device: as torch names it.
        seed: of methods that draw random numbers.

    Raises:
        FiqaRayError: unknown name or option, missing or unfitting files, a recogniser without the gradients needed.
    """
    place = find_device(device)
    if name in METHODS:
        row = METHODS[name]
        if recognizer is None:
            raise UsageError(f"{name} works on a recogniser: give recognizer=load_recognizer(...)")
        check_options(name, options, allowed=options_of(row.build))
        if isinstance(recognizer, str):
            recognizer = load_recognizer(recognizer, weights, device)
        elif weights is not None:
            raise UsageError(
                f"{name} has no weights of its own; leave out weights={weights!r}, the recogniser has them"
            )
        build = row.build(recognizer.to(place), seed, **options)
        return Scorer(name, build, place, random=not row.deterministic, recognizer=recognizer)
    if IMPORTED.fullmatch(name):
        return _imported_scorer(name, weights, place, options)
    if name.lower().endswith(".onnx"):
        check_options(name, options, allowed=())
        graph, card = load_exported(name)
        return Scorer(name, _predict_with(graph.to(place)), place, card=card)
    if not exists(join(name, CARD_FILE)):
        raise UsageError(
            f"{name!r} is no FIQA method{near_name(name, METHODS)}, and no regressor's folder (no {CARD_FILE} there); "
            f"use one of {', '.join(METHODS)}, module:function, or the folder or exported .onnx file of a trained regressor"
        )
    check_options(name, options, allowed=options_of(load_regressor))
    model, card = load_regressor(name, device, **options)
    return Scorer(name, _predict_with(model), place, card=card)


def _predict_with(model: torch.nn.Module) -> ScoreFaces:
    def predict(faces: Tensor, image_row: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return model(faces)

    return predict


def _imported_scorer(name: str, weights: str | None, place: torch.device, options: dict[str, Any]) -> Scorer:
    score = call_imported(name, weights, options)
    if not callable(score):
        raise FiqaRayError(f"{name}: returned {type(score).__name__}, wanted a callable from faces to scores")
    if isinstance(score, torch.nn.Module):
        score = score.to(place).eval()

    def score_faces(faces: Tensor, image_row: np.ndarray) -> Any:
        try:
            return score(faces)
        except FiqaRayError:
            raise
        except Exception as error:  # a user's method may raise anything
            raise FiqaRayError(
                f"{name}: fails on faces of shape {tuple(faces.shape)}, uint8: {type(error).__name__}: {error}"
            ) from error

    return Scorer(name, score_faces, place)
