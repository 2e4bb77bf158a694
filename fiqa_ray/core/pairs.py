"""Mated pairs (paper III-C): every image with one random image of each other cluster of its identity.

L = sum over identities of N_k * (C_k - 1) ordered pairs; (a, b) and (b, a) may both occur and count twice. Released code:
LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques src/iterative_optimization/optimize.py.

The mate is drawn in `kernels.mates.draw_mates`, on a device in `kernels.accelerator.MateCandidates.draw`. The specification
of both is `core.paper.draw_mates`.

Identities are taken in blocks that fit a core's own cache. The Gram matrices of a block are formed once; they serve K-Means
and hold the similarities of all repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.clustering import faiss_clusters, lloyd_clusters, start_states
from fiqa_ray.core.kernels.draws import MATE_STREAM, counter_draws
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS, cosine_keys, unit_vectors
from fiqa_ray.core.kernels.mates import count_clusters, draw_mates, similarities_of_mates
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.errors import UsageError

MAX_GRAM_IMAGES = 4096
"""Identities with more images have no Gram matrix: faiss, several times faster there, clusters them."""

_BLOCK_IMAGES = 4096
"""Images of a block of identities, at most, unless one has more."""

_BLOCK_ENTRIES = 1 << 17
"""Entries of a block's Gram matrices: half a megabyte, which a core's cache holds from the products to the mates."""

_DEVICE_BLOCK_ENTRIES = 1 << 21
"""The same on an accelerator, which wants more work per call."""

_CHUNK_PAIRS = 1 << 13
"""Pairs whose embeddings are gathered at a time, where an identity has no Gram matrix."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of one repeat, ordered by (image, mate's cluster).

    Attributes:
        repeat: number of the repeat, from 0.
        cluster: `(I,) int32`, dense from 0 within each identity.
        n_opened: `(I,) int32`, pairs in which each image is the first of the two, one per other cluster. (Who owns a pair
            is another question: see `labels`.)
        mate: `(L,) int32`, positions of the mates.
        similarity: `(L,) float32`, cosines in multiples of 2^-23.
    """

    repeat: int
    cluster: NDArray[np.int32]
    n_opened: NDArray[np.int32]
    mate: NDArray[np.int32]
    similarity: NDArray[np.float32]

    @property
    def image(self) -> NDArray[np.int32]:
        """Return the positions `(L,)` of the images that open the pairs."""
        return np.repeat(np.arange(len(self.n_opened), dtype=np.int32), self.n_opened)


def mated_pairs(
    embeddings: NDArray[np.float32],
    bounds: ArrayLike,
    identity_rows: ArrayLike,
    *,
    n_clusters: int = 20,
    n_repeats: int = 10,
    seed: int = 0,
    recluster: bool = False,
    clustering: str = "lloyd",
    init: str = "random",
    clusters: Sequence[NDArray[np.int32]] = (),
    device: str = "cpu",
    n_threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> list[Pairs]:
    """Cluster every identity and draw the pairs of all repeats.

    Args:
        embeddings: `(I, D) float32`; one without direction (length 0, infinity or NaN) has similarity 0 to all.
        bounds: `(K + 1,)`; identity k holds images bounds[k]:bounds[k+1].
        identity_rows: `(K,)` numbers of the identities, which decide their draws.
        n_clusters: C.
        n_repeats: R.
        seed: of all draws.
        recluster: cluster again for each repeat (the paper's text) instead of once (its authors' code).
        clustering: `lloyd` or `faiss`.
        init: `random` or `k-means++`: how `lloyd` chooses the images that it starts from.
        clusters: stored clusters `(I,)` of an earlier call, one array per clustering; if given, K-Means is left out.
        device: `cpu` for the compiled loops, else a torch device.
        n_threads: threads that share the identities.
        progress: is called with the share of the work that is done, unless all identities make one block.

    Raises:
        ValueError: `clusters` do not fit the identities.
        UsageError: this machine does not have the device, or k-means++ is asked for where faiss clusters.

    Memory: the pairs, 8 bytes each, and in each thread one Gram matrix buffer: 0.5 MB, or 4 N^2 bytes for a larger identity
    (67 MB at `MAX_GRAM_IMAGES`). On a device 12 bytes per entry of up to 2 million.
    """
    buffers = _PairBuffers.allocate(
        np.asarray(bounds, np.int64),
        np.asarray(identity_rows, np.int64),
        n_clusters,
        n_repeats,
        n_clusterings=n_repeats if recluster else 1,
        seed=seed,
        init=init,
    )
    if init != "random" and not len(clusters):
        _refuse_faiss(buffers, clustering)
    if device != "cpu":
        _check_device(device)
    buffers.set_clusters(clusters)
    run = partial(_pair_blocks, buffers, embeddings, None if len(clusters) else clustering, device)
    blocks = list(identity_blocks(buffers.sizes, _BLOCK_ENTRIES if device == "cpu" else _DEVICE_BLOCK_ENTRIES))
    with one_thread():
        if len(blocks) > 1 and (n_threads > 1 or progress):
            n_shares = min(len(blocks), 8 * n_threads)
            shares = [list(s) for s in np.array_split(np.array(blocks, object), n_shares)]
            with ThreadPoolExecutor(n_threads) as pool:
                for n_done, _ in enumerate(pool.map(run, shares), 1):
                    if progress:
                        progress(n_done / n_shares)
        else:
            run(blocks)
    return [buffers.pairs(r) for r in range(n_repeats)]


def redraw_mates(
    cluster: NDArray[np.int32], bounds: ArrayLike, identity_rows: ArrayLike, repeats: Sequence[int], *, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw the pairs of some repeats from stored clusters `(I,)`, without their similarities.

    Returns:
        `n_opened` `(I,) int32` and `mate` `(R, L) int32`, as in `Pairs`.

    Raises:
        ValueError: the clusters do not fit the identities.
    """
    bounds = np.asarray(bounds, np.int64)
    sizes = np.diff(bounds)  # (K,)
    counts = count_clusters_of(cluster, sizes)  # (K,)
    n_pairs = sizes * (counts - 1)  # (K,)
    mate = np.empty((len(repeats), int(n_pairs.sum())), np.int32)
    draw_mates(
        cluster, bounds, counts, mate_states(identity_rows, repeats, seed=seed), np.cumsum(n_pairs) - n_pairs, mate
    )
    return np.repeat(counts - 1, sizes), mate


def count_clusters_of(cluster: NDArray[np.int32], sizes: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the number of clusters `(K,)` of identities of these `sizes`; ValueError for an image without one."""
    counts = np.zeros(len(sizes), np.int32)
    is_fit = len(cluster) == sizes.sum() and not (sizes < 0).any()
    if not (is_fit and count_clusters(cluster, sizes, counts)):
        raise ValueError("every image must have a cluster, a number from 0")
    return counts


def mate_states(identity_rows: ArrayLike, repeats: Sequence[int], *, seed: int) -> NDArray[np.uint64]:
    """Return random states `(R, K)`; a state mixed with an image's position is the word that draws the image's mates."""
    return counter_draws(seed, MATE_STREAM, np.asarray(repeats)[:, None], np.asarray(identity_rows))


def round_similarity(cosine: ArrayLike) -> NDArray[np.float32]:
    """Round cosines to multiples of 2^-23 and clip them to [-1, 1]: exact in float32."""
    key = np.clip(np.rint(np.asarray(cosine, np.float64) * SIMILARITY_STEPS), -SIMILARITY_STEPS, SIMILARITY_STEPS)
    return (key / SIMILARITY_STEPS).astype(np.float32)


def identity_blocks(sizes: NDArray[np.int64], max_entries: int) -> Iterator[slice]:
    """Yield neighbouring identities of up to 4,096 images and `max_entries` Gram entries together, or a larger one alone."""
    first = n_images = n_entries = 0
    for k, n in enumerate(sizes.tolist()):
        entries = n * n if n <= MAX_GRAM_IMAGES else max_entries + 1
        if k > first and (n_images + n > _BLOCK_IMAGES or n_entries + entries > max_entries):
            yield slice(first, k)
            first, n_images, n_entries = k, 0, 0
        n_images += n
        n_entries += entries
    if first < len(sizes):
        yield slice(first, len(sizes))


@dataclass(frozen=True)
class _PairBuffers:
    """Preallocated results of neighbouring identities.

    Pairs of identity k start at first_pair[k]. Space is reserved for min(C, N_k) clusters; the method `pairs` cuts out the
    space that was not used. G is the number of clusterings: R where each repeat has its own, else 1.

    Attributes:
        bounds: `(K + 1,)`.
        sizes: `(K,)` images.
        rows: `(K,)` identity rows.
        first_pair: `(K,)`.
        start_states: `(G, K) uint64`.
        mate_states: `(R, K) uint64`.
        cluster: `(G, I) int32`.
        cluster_counts: `(G, K) int32`.
        mate: `(R, space) int32`.
        similarity: `(R, space) float32`.
    """

    bounds: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.int64]
    first_pair: NDArray[np.int64]
    start_states: NDArray[np.uint64]
    mate_states: NDArray[np.uint64]
    n_clusters: int
    seed: int
    init: str
    cluster: NDArray[np.int32]
    cluster_counts: NDArray[np.int32]
    mate: NDArray[np.int32]
    similarity: NDArray[np.float32]

    @staticmethod
    def allocate(
        bounds: NDArray[np.int64],
        rows: NDArray[np.int64],
        n_clusters: int,
        n_repeats: int,
        *,
        n_clusterings: int,
        seed: int,
        init: str = "random",
    ) -> _PairBuffers:
        """Reserve space for all repeats."""
        sizes = np.diff(bounds)  # (K,)
        n_pairs = sizes * (np.minimum(sizes, n_clusters) - 1)  # (K,)
        space = int(n_pairs.sum())
        return _PairBuffers(
            bounds,
            sizes,
            rows,
            np.cumsum(n_pairs) - n_pairs,
            start_states(rows, range(n_clusterings), seed=seed),
            mate_states(rows, range(n_repeats), seed=seed),
            n_clusters,
            seed,
            init,
            np.empty((n_clusterings, int(bounds[-1])), np.int32),
            np.empty((n_clusterings, len(rows)), np.int32),
            np.empty((n_repeats, space), np.int32),
            np.empty((n_repeats, space), np.float32),
        )

    def set_clusters(self, clusters: Sequence[NDArray[np.int32]]) -> None:
        """Take stored clusters; ValueError for more of them than there is space for."""
        for g, cluster in enumerate(clusters):
            self.cluster[g] = cluster
            self.cluster_counts[g] = count_clusters_of(self.cluster[g], self.sizes)
            if (self.cluster_counts[g] > np.minimum(self.sizes, self.n_clusters)).any():
                raise ValueError(f"an identity has more than {self.n_clusters} clusters, or more than it has images")

    def clusterings(self) -> Iterator[tuple[int, slice]]:
        """Yield each clustering and the repeats that draw from it."""
        n_clusterings, n_repeats = len(self.cluster), len(self.mate)
        if n_clusterings == 1:
            yield 0, slice(0, n_repeats)
        else:
            yield from ((g, slice(g, g + 1)) for g in range(n_clusterings))

    def pairs(self, repeat: int) -> Pairs:
        """Return the pairs of one repeat: a view, unless some identity ended with fewer clusters than reserved."""
        g = repeat if len(self.cluster) > 1 else 0
        sizes, n_opened = self.sizes, self.cluster_counts[g] - 1  # (K,)
        mate, similarity = self.mate[repeat], self.similarity[repeat]
        n_pairs = sizes * n_opened
        if n_pairs.sum() < len(mate):
            used = self.used_space(n_pairs, slice(None))
            mate, similarity = mate[used], similarity[used]
        return Pairs(repeat, self.cluster[g], np.repeat(n_opened, sizes), mate, similarity)

    def used_space(self, n_pairs: NDArray[np.int64], block: slice) -> NDArray[np.int64]:
        """Return the positions of the block's pairs in the buffers, from the pairs `(K,)` of each of its identities."""
        # start of the identity's space + number of the pair within its identity
        first_of_pair = np.repeat(self.first_pair[block] - (np.cumsum(n_pairs) - n_pairs), n_pairs)
        return first_of_pair + np.arange(n_pairs.sum())


def _pair_blocks(
    buffers: _PairBuffers, embeddings: NDArray[np.float32], clustering: str | None, device: str, blocks: list[slice]
) -> None:
    """Pair some blocks of identities, each in the way that its size and the device ask for."""
    n_entries = max((int((buffers.sizes[b] ** 2).sum()) for b in blocks if not _is_large(buffers, b)), default=0)
    keys = np.empty(n_entries if device == "cpu" else 0, np.float32)
    for block in blocks:
        x = embeddings[buffers.bounds[block.start] : buffers.bounds[block.stop]]
        if _is_large(buffers, block):
            _pair_large_identity(buffers, block, unit_vectors(x), clustering is not None)
        elif device == "cpu":
            _pair_block(buffers, block, x, clustering, keys)
        else:
            _pair_on_device(buffers, block, unit_vectors(x), clustering, device)


def _is_large(buffers: _PairBuffers, block: slice) -> bool:
    return bool(buffers.sizes[block.start] > MAX_GRAM_IMAGES)  # and is then alone in its block


def _pair_block(
    buffers: _PairBuffers, block: slice, x: NDArray[np.float32], clustering: str | None, keys: NDArray[np.float32]
) -> None:
    """Pair the identities of a block by compiled loops; `keys` is space for their Gram matrices."""
    bounds, first_pair = buffers.bounds[block.start : block.stop + 1], buffers.first_pair[block]
    cosine_keys(x, bounds, keys)
    for g, repeats in buffers.clusterings():
        cluster, counts = buffers.cluster[g], buffers.cluster_counts[g, block]
        if clustering == "lloyd":
            lloyd_clusters(
                keys, bounds, buffers.start_states[g, block], buffers.n_clusters, cluster, counts, buffers.init
            )
        elif clustering == "faiss":
            _cluster_by_faiss(buffers, block, unit_vectors(x), g)
        states = np.ascontiguousarray(buffers.mate_states[repeats, block])
        draw_mates(cluster, bounds, counts, states, first_pair, buffers.mate[repeats])
        similarities_of_mates(keys, bounds, counts, first_pair, buffers.mate[repeats], buffers.similarity[repeats])


def _pair_large_identity(buffers: _PairBuffers, block: slice, units: NDArray[np.float32], to_cluster: bool) -> None:
    """Pair an identity without a Gram matrix: similarities are computed pair by pair, `_CHUNK_PAIRS` at a time."""
    bounds, first_pair = buffers.bounds[block.start : block.stop + 1], buffers.first_pair[block]
    for g, repeats in buffers.clusterings():
        if to_cluster:
            _cluster_by_faiss(buffers, block, units, g)
        counts, states = buffers.cluster_counts[g, block], np.ascontiguousarray(buffers.mate_states[repeats, block])
        draw_mates(buffers.cluster[g], bounds, counts, states, first_pair, buffers.mate[repeats])
        image = np.repeat(np.arange(len(units), dtype=np.int32), int(counts[0]) - 1)  # (L,)
        for r in range(repeats.start, repeats.stop):
            for at in range(0, len(image), _CHUNK_PAIRS):
                chunk = image[at : at + _CHUNK_PAIRS]
                pairs = slice(int(first_pair[0]) + at, int(first_pair[0]) + at + len(chunk))
                mate = buffers.mate[r, pairs] - np.int32(bounds[0])
                buffers.similarity[r, pairs] = round_similarity(np.einsum("ij,ij->i", units[chunk], units[mate]))


def _cluster_by_faiss(buffers: _PairBuffers, block: slice, units: NDArray[np.float32], g: int) -> None:
    first = buffers.bounds[block.start]
    for k in range(block.start, block.stop):
        low, high = buffers.bounds[k], buffers.bounds[k + 1]
        identity = units[low - first : high - first]  # (N, D)
        cluster = faiss_clusters(identity, int(buffers.rows[k]), buffers.n_clusters, seed=buffers.seed, clustering=g)
        buffers.cluster[g, low:high] = cluster
        buffers.cluster_counts[g, k] = cluster.max() + 1


def _refuse_faiss(buffers: _PairBuffers, clustering: str) -> None:
    """Raise UsageError if faiss would cluster an identity, which starts from random images only."""
    largest = int(buffers.sizes.max(initial=0))
    if clustering != "lloyd" or largest > MAX_GRAM_IMAGES:
        what = "clustering is faiss" if clustering != "lloyd" else f"a person has {largest:,} images"
        raise UsageError(
            f"init {buffers.init} works on Gram matrices of up to {MAX_GRAM_IMAGES:,} images, and {what}; use "
            "init random"
        )


def _check_device(device: str) -> None:
    from fiqa_ray.core.kernels import accelerator

    accelerator.check_device(device)


def _pair_on_device(
    buffers: _PairBuffers, block: slice, units: NDArray[np.float32], clustering: str | None, device: str
) -> None:
    """Pair the identities of a block by torch operations on a device."""
    from fiqa_ray.core.kernels import accelerator  # late: a CPU needs no torch here

    first, last = buffers.bounds[block.start], buffers.bounds[block.stop]
    bounds = buffers.bounds[block.start : block.stop + 1] - first
    rows, sizes = buffers.rows[block], buffers.sizes[block]
    keys, grams = accelerator.gram_matrices(units, bounds, device)
    for g, repeats in buffers.clusterings():
        cluster, counts = buffers.cluster[g, first:last], buffers.cluster_counts[g, block]
        if clustering == "lloyd":
            starts = buffers.start_states[g, block]
            cluster[:] = accelerator.cluster_all(grams, starts, buffers.n_clusters, buffers.init)
            counts[:] = np.maximum.reduceat(cluster, bounds[:-1]) + 1
        elif clustering == "faiss":
            _cluster_by_faiss(buffers, block, units, g)
        candidates = accelerator.list_candidates(cluster, bounds, counts, device)
        row_start = accelerator.gram_rows(candidates, bounds)  # (L,)
        image = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)  # (I,) position in the identity
        used = buffers.used_space(sizes * (counts - 1), block)
        for r in range(repeats.start, repeats.stop):
            mate = candidates.draw(counter_draws(buffers.seed, MATE_STREAM, r, np.repeat(rows, sizes), image))
            buffers.mate[r, used] = mate.cpu().numpy() + np.int32(first)
            similarity = keys.index_select(0, row_start + mate).mul_(1 / SIMILARITY_STEPS)
            buffers.similarity[r, used] = similarity.cpu().numpy()
