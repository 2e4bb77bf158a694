"""Random draws as a pure function of their place: (seed, stream, repeat, identity, image, cluster) -> random bits.

No generator state exists, so a draw is the same in whatever order, batch, shard or process it is made. `counter_draws`
mixes its counters by splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014);
`lane_draws` spreads one such word over the many draws that an image makes, by a 32-bit finaliser (C. Wellons,
hash-prospector, "lowbias32"), which torch computes on any device.
"""

from __future__ import annotations

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * _M1
    z = (z ^ (z >> np.uint64(27))) * _M2
    return z ^ (z >> np.uint64(31))


def counter_draws(*counters: int | np.ndarray) -> np.ndarray:
    """64 uniform random bits (uint64) for every combination of the broadcast integer ``counters``."""
    with np.errstate(over="ignore"):
        state = np.asarray(0, dtype=np.uint64)
        for counter in counters:
            word = np.asarray(counter).astype(np.int64).view(np.uint64) if not np.isscalar(counter) else _word(counter)
            state = _mix((state ^ word) + _GOLDEN)
    return state


def _word(value: object) -> np.ndarray:
    return np.asarray(int(value) & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)  # type: ignore[call-overload]


LANE_STEP = 0x9E3779B9 - (1 << 32)
"""Distance of neighbouring lanes, as int32."""


def lane_draws(words: torch.Tensor) -> torch.Tensor:
    """24 uniform random bits of each int32 word (an image's word plus lane * LANE_STEP); works in place, int32."""
    x = words
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        # torch shifts signed words: the mask makes it a shift of unsigned ones
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        x *= factor
    x ^= (x >> 15).bitwise_and_((1 << 17) - 1)
    x >>= 8
    return x.bitwise_and_((1 << 24) - 1)
