"""Mated pairs (paper III-C): every image with one random image of each other cluster of its identity.

L = sum over identities of N_k * (C_k - 1) ordered pairs; (a, b) and (b, a) may both occur and count twice. Released code:
LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques src/iterative_optimization/optimize.py.

Identities are taken in blocks that fit a core's own cache: their Gram matrices are formed once, serve K-Means, and yield the
similarities of all repeats by look-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fiqa_ray.core.clustering import faiss_clusters, lloyd, start_images, start_states
from fiqa_ray.core.kernels.draws import counter_draws, draw_mates
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS, cosine_keys, unit_vectors
from fiqa_ray.core.kernels.jit import compiled
from fiqa_ray.core.kernels.threads import one_thread

MAX_GRAM_IMAGES = 4096
"""Identities with more images than this go without a Gram matrix: faiss, several times faster there, clusters them."""

_PARTNER_STREAM = 0x9A17
_BLOCK_IMAGES = 4096
_BLOCK_ENTRIES = 1 << 17
_DEVICE_BLOCK_ENTRIES = 1 << 21
_CHUNK_PAIRS = 1 << 13
_STEP = np.float32(1 / SIMILARITY_STEPS)


@dataclass(frozen=True)
class Pairs:
    """The pairs of one repeat, ordered by (image, mate's cluster).

    ``cluster`` (n_images,) int32, dense from 0 within each identity; ``n_opened`` (n_images,) int32: the pairs that each
    image opens, one per other cluster; ``mate`` (n_pairs,) int32 positions; ``similarity`` (n_pairs,) float32, cosines in
    multiples of 2^-23.
    """

    repeat: int
    cluster: np.ndarray
    n_opened: np.ndarray
    mate: np.ndarray
    similarity: np.ndarray

    @property
    def image(self) -> np.ndarray:
        """(n_pairs,) int32 positions of the images that open the pairs."""
        return np.repeat(np.arange(len(self.n_opened), dtype=np.int32), self.n_opened)


@dataclass(frozen=True)
class _Layout:
    """Identities that lie one behind the other, and the room for what is found of them.

    ``cluster`` (n_fits, n_images) and ``n_cells`` (n_fits, n_identities), int32; ``mate`` int32 and ``similarity`` float32,
    (n_repeats, room), where identity k's pairs begin at first_pair[k] as if it had as many clusters as it may have;
    (n_fits, n_identities) `start_states` and (n_repeats, n_identities) `partner_states`.
    """

    bounds: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    first_pair: np.ndarray
    start_states: np.ndarray
    partner_states: np.ndarray
    n_clusters: int
    seed: int
    cluster: np.ndarray
    n_cells: np.ndarray
    mate: np.ndarray
    similarity: np.ndarray

    @staticmethod
    def of(bounds: np.ndarray, rows: np.ndarray, n_clusters: int, n_repeats: int, n_fits: int, seed: int) -> _Layout:
        """Room for so many repeats."""
        sizes = np.diff(bounds)
        n_pairs = sizes * (np.minimum(sizes, n_clusters) - 1)
        room = int(n_pairs.sum())
        return _Layout(
            bounds,
            sizes,
            rows,
            np.cumsum(n_pairs) - n_pairs,
            start_states(rows, range(n_fits), seed=seed),
            partner_states(rows, range(n_repeats), seed=seed),
            n_clusters,
            seed,
            np.empty((n_fits, int(bounds[-1])), np.int32),
            np.empty((n_fits, len(rows)), np.int32),
            np.empty((n_repeats, room), np.int32),
            np.empty((n_repeats, room), np.float32),
        )

    def set_clusters(self, clusters: Sequence[np.ndarray]) -> None:
        """Takes clusters that are known; `ValueError` for more of them than there is room for."""
        for fit, cluster in enumerate(clusters):
            self.cluster[fit] = cluster
            self.n_cells[fit] = count_cells(self.cluster[fit], self.sizes)
            if (self.n_cells[fit] > np.minimum(self.sizes, self.n_clusters)).any():
                raise ValueError(f"an identity has more than {self.n_clusters} clusters, or more than it has images")

    def pairs(self, repeat: int) -> Pairs:
        """What was found in one repeat; copies only where an identity has fewer clusters than it may have."""
        fit = repeat if len(self.cluster) > 1 else 0  # the clusters that the repeat drew from
        sizes, opened = self.sizes, self.n_cells[fit] - 1
        mate, similarity = self.mate[repeat], self.similarity[repeat]
        length = sizes * opened
        if length.sum() < len(mate):
            own = np.repeat(self.first_pair - (np.cumsum(length) - length), length) + np.arange(length.sum())
            mate, similarity = mate[own], similarity[own]
        return Pairs(repeat, self.cluster[fit], np.repeat(opened, sizes), mate, similarity)


def mated_pairs(
    embeddings: np.ndarray,
    bounds: np.ndarray,
    identity_rows: np.ndarray,
    *,
    n_clusters: int = 20,
    n_repeats: int = 10,
    seed: int = 0,
    recluster: bool = False,
    clustering: str = "lloyd",
    clusters: Sequence[np.ndarray] = (),
    device: str = "cpu",
    n_threads: int = 1,
) -> list[Pairs]:
    """Clusters every identity and draws the pairs of all repeats.

    ``embeddings``: (n_images, dim) float32, identity k in rows bounds[k]:bounds[k+1]. ``recluster`` fits the clusters anew
    for each repeat (the paper's text); the default fits them once (its authors' code). ``clustering``: "lloyd" or "faiss".
    ``clusters``: what an earlier call found, one array (n_images,) per fit; nothing is fitted then. A vector without
    direction, of length 0 or beyond float32, has similarity 0 to all.
    Memory: the pairs, 8 bytes each, and per thread 4 bytes per Gram entry of up to 131,072 or of one identity of up to
    `MAX_GRAM_IMAGES`; on a device 12 bytes per entry of up to 2 million.
    """
    room = _Layout.of(
        np.asarray(bounds, np.int64),
        np.asarray(identity_rows, np.int64),
        n_clusters,
        n_repeats,
        n_repeats if recluster else 1,
        seed,
    )
    room.set_clusters(clusters)
    engine = None if len(clusters) else clustering
    blocks = list(identity_blocks(room.sizes, _BLOCK_ENTRIES if device == "cpu" else _DEVICE_BLOCK_ENTRIES))

    def run(share: list[slice]) -> None:
        entries = max((int((room.sizes[b] ** 2).sum()) for b in share if not _is_large(room, b)), default=0)
        flat = np.empty(entries if device == "cpu" else 0, np.float32)
        for block in share:
            low, high = room.bounds[block.start], room.bounds[block.stop]
            x = embeddings[low:high]
            if _is_large(room, block):
                _pair_large(room, block, unit_vectors(x), engine is not None)
            elif device == "cpu":
                _pair_block(room, block, x, engine, flat)
            else:
                _pair_on_device(room, block, unit_vectors(x), engine, device)

    with one_thread():
        if n_threads > 1 and len(blocks) > 1:
            n_shares = min(len(blocks), 8 * n_threads)
            shares = [list(s) for s in np.array_split(np.array(blocks, object), n_shares)]
            with ThreadPoolExecutor(n_threads) as pool:
                list(pool.map(run, shares))
        else:
            run(blocks)
    return [room.pairs(r) for r in range(n_repeats)]


def draw_again(
    cluster: np.ndarray, bounds: np.ndarray, identity_rows: np.ndarray, repeats: Sequence[int], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of some repeats without their similarities, from (n_images,) int32 clusters that are known.

    Returns ``n_opened`` (n_images,) int32 and ``mate`` (n_repeats, n_pairs) int32, as `Pairs` has them.
    """
    sizes = np.diff(bounds)
    n_cells = count_cells(cluster, sizes)
    length = sizes * (n_cells - 1)
    mate = np.empty((len(repeats), int(length.sum())), np.int32)
    state = partner_states(identity_rows, repeats, seed=seed)
    draw_mates(cluster, np.asarray(bounds, np.int64), n_cells, state, np.cumsum(length) - length, mate)
    return np.repeat(n_cells - 1, sizes), mate


def count_cells(cluster: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(n_identities,) int32 clusters of identities of these ``sizes``; `ValueError` for an image without one."""
    n_cells = np.zeros(len(sizes), np.int32)
    fits = len(cluster) == sizes.sum() and not (sizes < 0).any()
    if not (fits and _count_cells(cluster, sizes, n_cells)):
        raise ValueError("every image must have a cluster, a number from 0")
    return n_cells


@compiled
def _count_cells(cluster: np.ndarray, sizes: np.ndarray, n_cells: np.ndarray) -> bool:
    """Fills ``n_cells``, zeros before; False for a negative cluster."""
    i, least = 0, 0
    for k in range(len(sizes)):
        most = -1
        for _ in range(sizes[k]):
            least, most = min(least, cluster[i]), max(most, cluster[i])
            i += 1
        n_cells[k] = most + 1
    return least >= 0


def partner_states(identity_rows: np.ndarray, repeats: Sequence[int], *, seed: int) -> np.ndarray:
    """(n_repeats, n_identities) uint64: the counters before an image's own place."""
    return counter_draws(seed, _PARTNER_STREAM, np.asarray(repeats)[:, None], np.asarray(identity_rows))


def identity_blocks(sizes: np.ndarray, most_entries: int) -> Iterator[slice]:
    """Runs of neighbouring identities: up to 4,096 images and so many Gram entries, or one identity that is larger."""
    first = n_images = n_entries = 0
    for k, n in enumerate(sizes.tolist()):
        entries = n * n if n <= MAX_GRAM_IMAGES else most_entries + 1
        if k > first and (n_images + n > _BLOCK_IMAGES or n_entries + entries > most_entries):
            yield slice(first, k)
            first, n_images, n_entries = k, 0, 0
        n_images += n
        n_entries += entries
    if first < len(sizes):
        yield slice(first, len(sizes))


def _is_large(room: _Layout, block: slice) -> bool:
    return bool(room.sizes[block.start] > MAX_GRAM_IMAGES)  # and is then alone in its block


def _repeats_by_fit(room: _Layout) -> Iterator[tuple[int, slice]]:
    """Fits and the repeats that draw from each."""
    n_fits = len(room.cluster)
    yield from ((f, slice(f, f + 1)) for f in range(n_fits)) if n_fits > 1 else [(0, slice(0, len(room.mate)))]


def _pair_block(room: _Layout, block: slice, x: np.ndarray, engine: str | None, flat: np.ndarray) -> None:
    own = room.bounds[block.start : block.stop + 1]
    first_pair = room.first_pair[block]
    cosine_keys(x, own, flat)
    for fit, repeats in _repeats_by_fit(room):
        cluster, n_cells = room.cluster[fit], room.n_cells[fit, block]
        if engine == "lloyd":
            starts = start_images(room.sizes[block], room.start_states[fit, block], room.n_clusters)
            lloyd(flat, own, starts, cluster, n_cells)
        elif engine == "faiss":
            _fit_faiss(room, block, unit_vectors(x), fit)
        states = np.ascontiguousarray(room.partner_states[repeats, block])
        draw_mates(cluster, own, n_cells, states, first_pair, room.mate[repeats])
        _look_up(flat, own, n_cells, first_pair, room.mate[repeats], room.similarity[repeats])


@compiled
def _look_up(
    flat: np.ndarray,
    bounds: np.ndarray,
    n_cells: np.ndarray,
    first_pair: np.ndarray,
    mate: np.ndarray,
    similarity: np.ndarray,
) -> None:
    """Similarities (n_repeats, room) of the mates from the identities' Gram matrices."""
    first = 0
    for k in range(len(n_cells)):
        low, n, opened = bounds[k], bounds[k + 1] - bounds[k], n_cells[k] - 1
        for r in range(len(mate)):
            mates, found = mate[r], similarity[r]
            p = np.uint64(first_pair[k])
            for i in range(n):
                row = flat[first + i * n : first + (i + 1) * n]
                for _ in range(opened):
                    found[p] = row[np.uint32(mates[p] - low)] * _STEP
                    p += np.uint64(1)
        first += n * n


def _pair_large(room: _Layout, block: slice, units: np.ndarray, to_fit: bool) -> None:
    """An identity without Gram matrix: similarities are multiplied out pair by pair, 32 MB at a time."""
    own = room.bounds[block.start : block.stop + 1]
    first_pair = room.first_pair[block]
    for fit, repeats in _repeats_by_fit(room):
        if to_fit:
            _fit_faiss(room, block, units, fit)
        n_cells, states = room.n_cells[fit, block], np.ascontiguousarray(room.partner_states[repeats, block])
        draw_mates(room.cluster[fit], own, n_cells, states, first_pair, room.mate[repeats])
        opened = int(n_cells[0]) - 1
        image = np.repeat(np.arange(len(units), dtype=np.int32), opened)
        for r in range(repeats.start, repeats.stop):
            for at in range(0, len(image), _CHUNK_PAIRS):
                pairs = slice(int(first_pair[0]) + at, int(first_pair[0]) + min(at + _CHUNK_PAIRS, len(image)))
                mate = room.mate[r, pairs] - np.int32(own[0])
                dot = np.einsum("ij,ij->i", units[image[at : at + _CHUNK_PAIRS]], units[mate])
                room.similarity[r, pairs] = round_similarity(dot)


def _fit_faiss(room: _Layout, block: slice, units: np.ndarray, fit: int) -> None:
    first = room.bounds[block.start]
    for k in range(block.start, block.stop):
        low, high = room.bounds[k], room.bounds[k + 1]
        own = units[low - first : high - first]
        cluster = faiss_clusters(own, int(room.rows[k]), room.n_clusters, seed=room.seed, repeat=fit)
        room.cluster[fit, low:high] = cluster
        room.n_cells[fit, k] = cluster.max() + 1


def _pair_on_device(room: _Layout, block: slice, units: np.ndarray, engine: str | None, device: str) -> None:
    from fiqa_ray.core.kernels import accelerator  # torch is for accelerators alone

    own = room.bounds[block.start : block.stop + 1]
    bounds, rows, sizes = own - own[0], room.rows[block], room.sizes[block]
    flat, grams = accelerator.gram_matrices(units, bounds, device)
    for fit, repeats in _repeats_by_fit(room):
        cluster = room.cluster[fit, own[0] : own[-1]]
        if engine == "lloyd":
            cluster[:] = accelerator.cluster_all(grams, rows, room.n_clusters, seed=room.seed, repeat=fit)
            room.n_cells[fit, block] = np.maximum.reduceat(cluster, bounds[:-1]) + 1
        elif engine == "faiss":
            _fit_faiss(room, block, units, fit)
        partners = accelerator.list_partners(cluster, bounds, room.n_cells[fit, block], device)
        entry = accelerator.gram_rows(partners, bounds)
        image = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)
        # the pairs of an identity stand where it would have all its clusters
        length = sizes * (room.n_cells[fit, block] - 1)
        place = np.repeat(room.first_pair[block] - (np.cumsum(length) - length), length) + np.arange(length.sum())
        for r in range(repeats.start, repeats.stop):
            mate = partners.draw(counter_draws(room.seed, _PARTNER_STREAM, r, np.repeat(rows, sizes), image))
            room.mate[r, place] = mate.cpu().numpy() + np.int32(own[0])
            room.similarity[r, place] = flat.index_select(0, entry + mate).mul_(_STEP.item()).cpu().numpy()


def round_similarity(cosine: np.ndarray) -> np.ndarray:
    """Cosines rounded to multiples of 2^-23 and clipped to [-1, 1], as float32 (exact)."""
    key = np.clip(np.rint(np.asarray(cosine, np.float64) * SIMILARITY_STEPS), -SIMILARITY_STEPS, SIMILARITY_STEPS)
    return (key / SIMILARITY_STEPS).astype(np.float32)
