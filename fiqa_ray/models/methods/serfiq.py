"""SER-FIQ (``pterhoer/FaceImageQuality``): how far dropout moves the embedding of one image.

T embeddings e_t of one image, each with its own dropout mask before the last linear layer, have the mean distance d over
their T (T - 1) / 2 pairs, Euclidean after normalisation to unit length. Then

    raw = 2 / (1 + exp(d)),    q = 1 / (1 + exp(-alpha (raw - r))).

The released code runs the network on T copies of the image. Only what follows the dropout is random, so one pass of the
trunk and T products with the last layer give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fiqa_ray.core.kernels.accelerator import lane_draws
from fiqa_ray.core.kernels.draws import LANE_STEP, counter_draws

STREAM = 0x5E4F19
"""Keeps these draws apart from others of the same seed."""


def dropout_masks(
    seed: int, image_row: int, n_passes: int, n_features: int, drop: float, device: torch.device
) -> Tensor:
    """Return which features survive, ``(n_passes, n_features)`` bool; each is dropped with probability ``drop``.

    A pure function of its arguments, the same on every device and in every batch. ``drop`` is resolved to 2^-24.
    """
    words = counter_draws(seed, STREAM, image_row, np.arange(n_passes)).astype(np.uint32).view(np.int32)
    lanes = torch.arange(n_features, dtype=torch.int32, device=device) * LANE_STEP
    draws = lane_draws(torch.from_numpy(words).to(device)[:, None] + lanes)
    return draws >= round(drop * (1 << 24))


def serfiq_distance(tail: Callable[[Tensor], Tensor], features: Tensor, masks: Tensor, drop: float) -> Tensor:
    """Return the mean distance d of one image's stochastic embeddings.

    Args:
        tail: what follows the dropout, ``(n_passes, n_features)`` to embeddings ``(n_passes, dim)``.
        features: ``(n_features,)``, what dropout works on.
        masks: ``(n_passes, n_features)`` bool, True where a feature survives; survivors grow by 1 / (1 - drop).
        drop: in [0, 1).

    Returns:
        A float64 scalar in [0, 2].
    """
    embeddings = tail(features / (1 - drop) * masks)
    return functional.pdist(functional.normalize(embeddings.double(), dim=1)).mean()


def serfiq_raw(distance: Tensor) -> Tensor:
    """Return ``2 / (1 + exp(d))``, in (0, 1] for d >= 0; about 0.86 to 0.90 for faces."""
    return 2 * torch.sigmoid(-distance)


def serfiq_stretched(raw: Tensor, alpha: float, r: float) -> Tensor:
    """Return ``1 / (1 + exp(-alpha (raw - r)))``, in (0, 1): the same order, spread out around ``r``."""
    return torch.sigmoid(alpha * (raw - r))
