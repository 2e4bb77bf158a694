"""SER-FIQ (`pterhoer/FaceImageQuality`): how far dropout moves the embedding of one image.

T embeddings e_t of one image, each with its own dropout mask before the last linear layer, have the mean distance d over
their T (T - 1) / 2 pairs, Euclidean after normalisation to unit length. Then

    raw = 2 / (1 + exp(d)),    q = 1 / (1 + exp(-alpha (raw - r))).

The released code runs the network on T copies of the image. Only what follows the dropout is random, so one pass of the
trunk and T products with the last layer give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fiqa_ray.core.kernels.accelerator import random_bits
from fiqa_ray.core.kernels.draws import WORD_STEP, counter_draws
from fiqa_ray.errors import UsageError
from fiqa_ray.models.options import check_number, check_whole
from fiqa_ray.models.recognizer import CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces

STREAM = 0x5E4F19
"""Keeps these draws apart from others of the same seed."""


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
    """Build SER-FIQ on a recogniser. The `n_passes` embeddings of one image are one matrix product.

    Memory: about 60 MB at `n_passes=100`, whatever the batch size.

    Args:
        recognizer: its backbone must be a `SplitNetwork`.
        seed: seed of the dropout masks.
        n_passes: stochastic embeddings per image, T.
        drop: dropout probability.
        stretched: return q; False: return raw, as in the paper of 2020.
        alpha: slope of the stretching.
        r: centre of the stretching.

    Raises:
        UsageError: an option is out of range, or the recogniser is not split at its dropout.
    """
    network = recognizer.split("serfiq")
    check_whole("serfiq", 2, n_passes=n_passes)
    check_whole("serfiq", 0, seed=seed)
    check_number("serfiq", "drop", drop, 0, 1, "in [0, 1)")
    check_number("serfiq", "alpha", alpha, math.ulp(0.0), math.inf, "above 0")
    check_number("serfiq", "r", r, 0, math.nextafter(1, 2), "between 0 and 1")
    if not isinstance(stretched, bool):
        raise UsageError(f"serfiq: stretched={stretched!r} must be true or false")

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = np.full(len(clean.faces), np.nan)
        with torch.inference_mode():
            for i in np.flatnonzero(image_row >= 0):
                features = clean.features[i]
                masks = dropout_masks(seed, int(image_row[i]), n_passes, len(features), drop, features.device)
                raw = serfiq_raw(serfiq_distance(network.tail, features, masks, drop))
                scores[i] = float(serfiq_stretched(raw, alpha, r) if stretched else raw)
        return scores

    return score_faces


def dropout_masks(
    seed: int, image_row: int, n_passes: int, n_features: int, drop: float, device: torch.device
) -> Tensor:
    """Return which features survive, `(n_passes, n_features) bool`; each is dropped with probability `drop`.

    The masks depend on the arguments alone, so they are the same on every device and in every batch. `drop` is rounded to
    a multiple of 2^-24.
    """
    words = counter_draws(seed, STREAM, image_row, np.arange(n_passes)).astype(np.uint32).view(np.int32)
    steps = torch.arange(n_features, dtype=torch.int32, device=device) * WORD_STEP
    draws = random_bits(torch.from_numpy(words).to(device)[:, None] + steps)
    return draws >= round(drop * (1 << 24))


def serfiq_distance(tail: Callable[[Tensor], Tensor], features: Tensor, masks: Tensor, drop: float) -> Tensor:
    """Return the mean distance d of one image's stochastic embeddings.

    Args:
        tail: the layers after the dropout, `(n_passes, n_features)` to embeddings `(n_passes, D)`.
        features: `(n_features,)`, the input of the dropout.
        masks: `(n_passes, n_features) bool`, True where a feature survives; survivors are divided by 1 - drop.
        drop: dropout probability in [0, 1).

    Returns:
        A float64 scalar in [0, 2].
    """
    embeddings = tail(features / (1 - drop) * masks)
    return functional.pdist(functional.normalize(embeddings.double(), dim=1)).mean()


def serfiq_raw(distance: Tensor) -> Tensor:
    """Return `2 / (1 + exp(d))`, in (0, 1] for d >= 0; about 0.86 to 0.90 for faces."""
    return 2 * torch.sigmoid(-distance)


def serfiq_stretched(raw: Tensor, alpha: float, r: float) -> Tensor:
    """Return `1 / (1 + exp(-alpha (raw - r)))`, in (0, 1): the same order as `raw`, spread out around `r`."""
    return torch.sigmoid(alpha * (raw - r))
