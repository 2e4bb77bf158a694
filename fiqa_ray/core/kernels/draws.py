"""Random draws as a pure function of their place: (seed, stream, repeat, identity, image, cluster) -> random bits.

No generator state exists, so a draw is the same in whatever order, batch, shard or process it is made. `counter_draws`
mixes its counters by splitmix64's finaliser (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014); one
such word per image is spread over the many draws that the image makes by a 32-bit finaliser (C. Wellons, hash-prospector,
"lowbias32"), which torch computes on any device (`lane_draws`).
"""

from __future__ import annotations

import numpy as np
import torch

from fiqa_ray.core.kernels.jit import compiled

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
LANE_STEP = 0x9E3779B9 - (1 << 32)
"""Distance of neighbouring lanes, as int32."""
_L1, _L2 = np.uint32(0x21F0AAAD), np.uint32(0x735A2D97)
_T16, _T15, _T8 = np.uint32(16), np.uint32(15), np.uint32(8)
_LANES = 16


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


_mix_one = compiled(_mix)


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


@compiled
def draw_starts(sizes: np.ndarray, state: np.ndarray, starts: np.ndarray) -> None:
    """Which images K-Means starts from: those of the least draws, in their order.

    ``sizes``: (n_identities,) images; ``state``: (n_identities,) uint64, `counter_draws` up to the identity's row:
    the image's own place is the last counter. ``starts``: (n_identities, n_clusters) int32 is filled with places in the
    identity, as many as it has images.
    """
    for k in range(len(sizes)):
        draws = np.empty(sizes[k], np.uint64)
        for i in range(sizes[k]):
            draws[i] = _mix_one((state[k] ^ np.uint64(i)) + _GOLDEN)
        most = min(sizes[k], starts.shape[1])
        n = 0
        for i in range(sizes[k]):  # into its place among the least so far; most images are not among them
            if n == most and draws[i] >= draws[starts[k, n - 1]]:
                continue
            n = min(n + 1, most)
            c = n - 1
            while c > 0 and draws[i] < draws[starts[k, c - 1]]:
                starts[k, c] = starts[k, c - 1]
                c -= 1
            starts[k, c] = i


@compiled
def draw_mates(
    cluster: np.ndarray,
    bounds: np.ndarray,
    n_cells: np.ndarray,
    state: np.ndarray,
    first_pair: np.ndarray,
    mate: np.ndarray,
) -> None:
    """One mate for every image from each other cluster of its identity, uniform up to 2^-24 of the cluster's size.

    ``cluster``: (n_images,) int32, dense from 0 within each identity; identity k holds images bounds[k]:bounds[k+1] in
    ``n_cells[k]`` clusters; ``state``: (n_repeats, n_identities) uint64, `counter_draws` up to the identity's row: the
    image's own place is the last counter. Identity k's mates, by image and then by mate's cluster, go to ``mate``,
    (n_repeats, room) int32 positions, from first_pair[k] on.
    """
    most = 1
    for k in range(len(n_cells)):
        most = max(most, n_cells[k])
    wide = (most + _LANES - 1) // _LANES * _LANES  # whole vectors: what lies beyond an identity's clusters is not used
    first = np.zeros(wide + 1, np.int32)
    scale = np.zeros(wide, np.float32)
    lane = np.empty(wide, np.uint32)
    place = np.empty(wide, np.uint32)
    for c in range(wide):
        lane[c] = np.uint32(c * LANE_STEP)
    for k in range(len(n_cells)):
        low, n, cells = bounds[k], bounds[k + 1] - bounds[k], n_cells[k]
        own = cluster[low : low + n]
        # the identity's images, cluster by cluster
        first[: cells + 1] = 0
        for i in range(n):
            first[own[i] + 1] += 1
        for c in range(cells):
            scale[c] = np.float32(first[c + 1]) * np.float32(0.5**24)
            first[c + 1] += first[c]
        filled = first[:cells].copy()
        members = np.empty(n, np.int32)
        for i in range(n):
            members[filled[own[i]]] = low + i
            filled[own[i]] += 1
        n_vectors, n_mates = (cells + _LANES - 1) // _LANES, cells - 1
        for r in range(len(mate)):
            out, start = mate[r], state[r, k]
            p = first_pair[k]
            for i in range(n):
                word = np.uint32(_mix_one((start ^ np.uint64(i)) + _GOLDEN) >> _S32)
                for v in range(n_vectors):
                    for d in range(_LANES):  # a fixed number of turns, which becomes vector operations
                        at = np.uint32(v * _LANES + d)
                        x = np.uint32(word + lane[at])
                        x = np.uint32((x ^ (x >> _T16)) * _L1)
                        x = np.uint32((x ^ (x >> _T15)) * _L2)
                        x = np.uint32((x ^ (x >> _T15)) >> _T8)
                        # 24 bits times a size below 2^24, rounded once, stays below the size
                        place[at] = np.uint32(np.int32(np.float32(np.int32(x)) * scale[at]) + first[at])
                mine, mates = own[i], out[p : p + n_mates]
                for c in range(mine):
                    mates[np.uint64(c)] = members[place[np.uint64(c)]]
                for c in range(mine, n_mates):  # past the image's own cluster
                    mates[np.uint64(c)] = members[place[np.uint64(c + 1)]]
                p += n_mates
