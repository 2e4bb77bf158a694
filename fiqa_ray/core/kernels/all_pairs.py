"""Compiled loop of the comparison of all images with all: counts of similarities, and a list of the mated pairs."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.jit import compiled

N_KEYS = 2 * SIMILARITY_STEPS + 1
"""Similarities from -1 to 1 in steps of 2^-23; key k stands for (k - 2^23) / 2^23."""


@compiled
def add_rows(
    products: np.ndarray,
    first: int,
    person: np.ndarray,
    counts: np.ndarray,
    mated_key: np.ndarray,
    mated_image: np.ndarray,
    n_mated: int,
) -> int:
    """Count the pairs of some images with all that follow them; return the number of mated pairs so far.

    Images are taken from the last to the first. In numpy, for each of them:

        key = np.rint(products[r, r + 1:] * 2**23).astype(int) + 2**23
        is_mated = person[first + r + 1:] == person[first + r]
        np.add.at(counts, key[~is_mated], 1)
        mated_key.append(key[is_mated])

    Args:
        products: `(R, I - first) float32` products of the unit vectors of images first .. first + R with those from `first`.
        first: place of the first of them.
        person: `(I,) int64`.
        counts: `(N_KEYS,) int32`, changed: non-mated pairs by key.
        mated_key: `(M,) int32`, changed from `n_mated` on.
        mated_image: `(M,) int32`, changed likewise: place of the pair's first image.
        n_mated: mated pairs that are listed already.
    """
    for r in range(products.shape[0] - 1, -1, -1):
        row, mine = products[r], person[first + r]
        for c in range(r + 1, products.shape[1]):
            nearest = int(np.rint(row[c] * SIMILARITY_STEPS)) + SIMILARITY_STEPS
            key = min(max(nearest, 0), N_KEYS - 1)
            if person[first + c] == mine:
                mated_key[n_mated], mated_image[n_mated] = key, first + r
                n_mated += 1
            else:
                counts[key] += 1
    return n_mated


@compiled
def top_keys(counts: np.ndarray, n_wanted: int, keys: np.ndarray) -> int:
    """Fill `keys` with the keys that occur, from the largest; return how many there are.

    They stop with the second key after `n_wanted` pairs are reached, or at the last.

    Args:
        counts: `(N_KEYS,) int32` pairs by key.
        n_wanted: pairs.
        keys: `(n_wanted + 2,) int64`, filled.
    """
    n_pairs, n, n_more = 0, 0, 0
    for i in range(len(counts)):
        key = len(counts) - 1 - i
        if counts[key] == 0:
            continue
        n_more += n_pairs >= n_wanted
        n_pairs += counts[key]
        keys[n] = key
        n += 1
        if n_more == 2:
            break
    return n
