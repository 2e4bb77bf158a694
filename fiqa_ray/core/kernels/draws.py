"""Random draws as a pure function of where they are used: (seed, stream, repeat, identity, image, cluster) -> random bits.

No generator state exists, so a draw is the same in whatever order, batch, shard or process it is made. `counter_draws`
mixes its counters by splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). One
such word per image is spread over the image's many mates by a 32-bit finaliser (C. Wellons, hash-prospector, "lowbias32"):
`uniform_below`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.kernels.jit import compiled

START_STREAM = 0x1217
"""Second counter of the draws that choose where K-Means starts."""
MATE_STREAM = 0x9A17
"""Second counter of the draws that choose mates."""

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""splitmix64's increment: 2^64 divided by the golden ratio."""
WORD_STEP = 0x9E3779B9 - (1 << 32)
"""Distance between the words of two neighbouring clusters, as int32."""


def counter_draws(*counters: int | np.ndarray) -> NDArray[np.uint64]:
    """Return 64 uniform random bits for every combination of the broadcast integer `counters`."""
    with np.errstate(over="ignore"):
        state = np.asarray(0, dtype=np.uint64)
        for counter in counters:
            word = np.asarray(counter).astype(np.int64).view(np.uint64) if not np.isscalar(counter) else _word(counter)
            state = _mix((state ^ word) + GOLDEN_GAMMA)
    return state


def uniform_below(size: int, word: np.uint64, cluster: int) -> int:
    """Return a whole number in [0, size), uniform up to 2^-24, from an image's random word and a cluster's number.

    This is the specification of the draw inside `mates.draw_mates`: lowbias32 of the word's upper half plus the cluster's
    step, of which 24 bits are multiplied by the size. Rounded once to float32, the product stays below a size under 2^24.
    """
    x = (int(word >> np.uint64(32)) + cluster * WORD_STEP) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    bits = (x ^ (x >> 15)) >> 8
    return int(np.float32(bits) * np.float32(size * 0.5**24))


def _mix(z: Any) -> Any:
    """Mix 64 bits of a word or of an array: splitmix64's finaliser, with its published constants.

    `Any`, since an `np.asarray` here, to please mypy, allocates an array for each word where this is compiled.
    """
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


mix = compiled(_mix)
"""`_mix` of one word, inside kernels."""


def _word(value: object) -> NDArray[np.uint64]:
    return np.asarray(int(value) & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)  # type: ignore[call-overload]
