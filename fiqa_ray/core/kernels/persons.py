"""How often each pair stands in a sample of persons."""

from __future__ import annotations

import numpy as np

from fiqa_ray.core.kernels.jit import compiled


@compiled
def count_pairs(
    rng: np.random.Generator,
    drawn: np.ndarray,
    weight: np.ndarray,
    row_a: np.ndarray,
    row_b: np.ndarray,
    mated: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Fill `counts`: a mated pair as often as its person was drawn, a non-mated one by a Poisson draw.

    In numpy, from whose generator numba draws the same values:

        counts[mated] = drawn[row_a[mated]]
        counts[~mated] = rng.poisson(weight[row_a[~mated]] * weight[row_b[~mated]])

    Args:
        rng: generator.
        drawn: `(P,) int64` how often each person was drawn.
        weight: `(P,) float64` of each person in non-mated pairs; the product is a pair's mean.
        row_a: `(n_pairs,)` int, persons of the first images.
        row_b: `(n_pairs,)` int, persons of the second ones.
        mated: `(n_pairs,) bool`.
        counts: `(n_pairs,) int32`, filled.
    """
    for i in range(len(mated)):
        a, b = np.uint64(row_a[i]), np.uint64(row_b[i])
        if mated[i]:
            counts[i] = drawn[a]
        else:
            counts[i] = rng.poisson(weight[a] * weight[b])
