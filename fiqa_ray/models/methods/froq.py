"""FROQ (`LSIbabnikz/FROQ observer/`): the mean length of the outputs of a few layers of a recogniser.

Which layers, a calibration decides: the length of each layer's output, flattened, is ranked against a quality of the
calibration faces (Spearman). From the best ten layers, one after the other is added that makes the mean length agree best,
and the first best set is kept. The authors calibrate on a quality of their own, `pseudo_quality`; any other labels do, too,
such as the optimized labels of a job. `fiqa-ray calibrate-froq` does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.layers import recording, watch
from fiqa_ray.models.options import near_name
from fiqa_ray.models.recognizer import FACE_SHAPE, CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces

N_TOP = 10
"""Layers that the selection starts from."""
NOISE_SHARE, N_NOISE, OCCLUSION = 1e-3, 10, 14
"""Of the pseudo quality: share of noise in an image, noise images, and side of the occluded square in pixels."""


def build_froq(recognizer: Recognizer, seed: int, *, layers: Sequence[str] = ()) -> ScoreFaces:
    """Build FROQ on a recogniser; `seed` is not used.

    Args:
        recognizer: a network of torch; an ONNX network is converted.
        seed: not used.
        layers: names of layers, as `fiqa-ray calibrate-froq` prints them.

    Raises:
        UsageError: no layers, or one that the recogniser does not have.
    """
    if isinstance(layers, str) or not layers:
        raise UsageError(
            f"froq: layers={layers!r} must be a list of layers, which a calibration on the recogniser finds: "
            "fiqa-ray calibrate-froq"
        )
    network = recognizer.with_gradients("froq")
    known = dict(network.backbone.named_modules())
    for name in layers:
        if name not in known or not name:
            raise UsageError(f"froq: {recognizer.name} has no layer {name!r}{near_name(str(name), known)}")
    chosen = {name: known[name] for name in layers}

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> Tensor:
        x = network.preprocess(clean.faces.to(torch.float32) / 255)
        norms = layer_norms(network.backbone, x, chosen)
        missing = [name for name in chosen if name not in norms]
        if missing:
            raise UsageError(f"froq: the layer {missing[0]!r} of {recognizer.name} does not run; calibrate again")
        return torch.stack([norms[name] for name in chosen]).mean(dim=0)

    return score_faces


def layer_norms(backbone: nn.Module, x: Tensor, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Return the length of each layer's output, flattened per image, for preprocessed faces `(N, 3, 112, 112)`.

    Returns:
        `(N,) float64` by name, in the order in which the layers ran; a layer that does not run is left out.
    """
    names = {layer: name for name, layer in layers.items()}
    norms: dict[str, Tensor] = {}

    def record(layer: nn.Module, given: Tensor, output: Tensor) -> None:
        if layer in names and len(output) == len(x):
            norms[names[layer]] = output.double().flatten(1).norm(dim=1)

    watch(layers.values())
    with torch.inference_mode(), recording(record):
        backbone(x)
    return norms


def select_layers(norms: NDArray[np.float64], labels: NDArray[np.float64], n_top: int = N_TOP) -> list[int]:
    """Choose layers whose mean length is ordered as the labels.

    Args:
        norms: `(n_layers, I)` lengths.
        labels: `(I,)` qualities.
        n_top: layers to start from.

    Returns:
        Positions of the chosen layers, in the order in which they were added. Layers of constant length are never chosen.

    Raises:
        UsageError: no layer's length grows with the labels.
    """
    agreement = np.array([_spearman(row, labels) for row in norms])
    top = [int(i) for i in np.argsort(-agreement, kind="stable")[:n_top] if np.isfinite(agreement[i])]
    if not top or agreement[top[0]] <= 0:
        raise UsageError("no layer's output grows with the labels; check that a larger label means better quality")
    chosen, utilities = [top[0]], [agreement[top[0]]]
    while len(chosen) < len(top):
        rest = [i for i in top if i not in chosen]
        joint = [_spearman(norms[[*chosen, i]].mean(axis=0), labels) for i in rest]
        best = int(np.argmax(joint))
        chosen.append(rest[best])
        utilities.append(joint[best])
    return chosen[: int(np.argmax(utilities)) + 1]


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the rank correlation; minus infinity where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return -np.inf
    return float(spearmanr(a, b).statistic)


def pseudo_quality(embed: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor) -> Tensor:
    """Return FROQ's own quality: how little a mirror, noise and small occlusions turn an embedding.

    Args:
        embed: maps preprocessed faces to embeddings.
        x: `(N, 3, h, w)` faces whose pixels lie in [-1, 1].
        noise: `(n, 3, h, w)` of the standard normal distribution, the same for all faces.

    Returns:
        `(N,)` means of the cosines of the three kinds.
    """
    clean = embed(x)
    means = [
        torch.stack([functional.cosine_similarity(embed(image), clean, dim=1) for image in images]).mean(dim=0)
        for images in ([x.flip(-1)], noisy(x, noise), occluded(x))
    ]
    return torch.stack(means).mean(dim=0)


def noisy(x: Tensor, noise: Tensor) -> Iterator[Tensor]:
    """Yield the faces mixed with each noise image."""
    for mask in noise:
        yield (1 - NOISE_SHARE) * x + NOISE_SHARE * mask


def occluded(x: Tensor) -> Iterator[Tensor]:
    """Yield the faces with each square of a grid black, row by row."""
    for row in range(0, x.shape[2] - OCCLUSION + 1, OCCLUSION):
        for column in range(0, x.shape[3] - OCCLUSION + 1, OCCLUSION):
            changed = x.clone()
            changed[:, :, row : row + OCCLUSION, column : column + OCCLUSION] = -1
            yield changed


def seeded_noise(seed: int) -> Tensor:
    """Return the noise of `pseudo_quality`, `(10, 3, 112, 112) float32`; the same for the same seed everywhere."""
    draws = np.random.Generator(np.random.Philox(key=seed)).standard_normal((N_NOISE, *FACE_SHAPE), dtype=np.float32)
    return torch.from_numpy(draws)
