"""The floor of every comparison: what a quality that knows nothing is worth, in expectation.

One random order is itself a draw: on a hard benchmark its area differs from that of the next order by more than many methods
differ. So the floor is the expectation.

    levels at each quality  exact: every order of the pairs being equally likely, FNMR is expected to stay what it is
                            before anything is discarded, at every level.
    other conventions       the mean over `N_ORDERS` random orders of the images. An image's rank depends on its id alone,
                            so it is the same in whatever order images are listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fiqa_ray.core.conventions import Pool
from fiqa_ray.core.edc import EDC
from fiqa_ray.core.kernels.draws import counter_draws
from fiqa_ray.core.orders import PairOrder, QualityOrder
from fiqa_ray.core.verification import FloatArray

RANDOM = "random"
"""Name of the floor among the scorers."""
N_ORDERS = 100
"""Orders of up to `N_ORDERED` / `N_ORDERS` pairs; in larger sets one order differs less from the next."""
N_ORDERED = 20_000_000
"""Pairs that all orders together may hold: 320 MB."""

_STREAM = 0x4A2D


def n_random_orders(n_pairs: int) -> int:
    """Return the number of random orders for a benchmark of this size: from 4 to `N_ORDERS`."""
    return max(4, min(N_ORDERS, N_ORDERED // n_pairs))


def random_qualities(image_ids: Sequence[str], seed: int, n_orders: int = N_ORDERS) -> FloatArray:
    """Return random qualities in [0, 1), (n_orders, n_images), a function of each image's id and the seed."""
    digests = [hashlib.blake2b(image_id.encode(), digest_size=8).digest() for image_id in image_ids]
    words = np.frombuffer(b"".join(digests), dtype="<i8")
    return counter_draws(seed, _STREAM, np.arange(n_orders)[:, None], words).astype(np.float64) / 2.0**64


def expected_curve(curves: Sequence[EDC]) -> EDC:
    """Return the mean of curves with common levels: FNMR and counts, these rounded; thresholds where all agree."""
    if len(curves) == 1:
        return curves[0]
    mean = {
        name: np.rint(np.mean([getattr(curve, name) for curve in curves], axis=0)).astype(np.int64)
        for name in ("n_mated", "n_nonmated", "n_false_nonmatches", "n_false_matches", "n_allowed")
    }
    fnmr = np.mean([curve.fnmr for curve in curves], axis=0)
    thresholds = np.array([curve.threshold for curve in curves])
    threshold = np.where((thresholds == thresholds[0]).all(axis=0), thresholds[0], np.nan)
    return replace(curves[0], fnmr=fnmr, threshold=threshold, **mean)


def flat_order(pairs: PairOrder, pool: Pool) -> QualityOrder:
    """Return the order in which all pairs of a pool have one quality: equal qualities go together, so the rate stays."""
    return QualityOrder.of(np.zeros(pairs.mated.size), pairs.mated, pool)
