"""Random draws as a pure function of their place: (seed, stream, repeat, identity, image, cluster) -> 64 random bits.

No generator state exists, so a draw is the same in whatever order, batch, shard or process it is made. The mixer is
splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), applied per counter.
"""

from __future__ import annotations

import numpy as np

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


def draw_below(bits: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Uniform integers in [0, n) from 64 random bits each; n below 2^32, so the bias is under 2^-32 * n."""
    return ((bits >> np.uint64(32)) * np.asarray(n, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)
