"""Mated pairs (paper III-C): every image with one random image of each other cluster of its identity.

L = sum over identities of N_k * (C_k - 1) ordered pairs; (a, b) and (b, a) may both occur and count twice. Released code:
LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques src/iterative_optimization/optimize.py.

Identities are taken in blocks that fit a processor's cache: their Gram matrices are formed once, serve K-Means, and yield
the similarities of all repeats by look-up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from fiqa_ray.core.clustering import SIMILARITY_STEPS, faiss_clusters, gram_keys, lloyd_batch, unit_vectors
from fiqa_ray.core.draws import LANE_STEP, counter_draws, lane_draws
from fiqa_ray.core.threads import one_thread

MAX_GRAM_IMAGES = 4096
"""Identities with more images than this go without a Gram matrix: faiss, several times faster there, clusters them."""

_PARTNER_STREAM = 0x9A17
_BLOCK_IMAGES = 4096
_BLOCK_ENTRIES = 1 << 21
_CHUNK_PAIRS = 1 << 13


@dataclass(frozen=True)
class Pairs:
    """The pairs of one repeat, ordered by (image, mate's cluster).

    ``cluster`` (n_images,) int32, dense from 0 within each identity; ``image`` and ``mate`` (n_pairs,) int32 positions;
    ``similarity`` (n_pairs,) float32, cosines in multiples of 2^-23.
    """

    repeat: int
    cluster: np.ndarray
    image: np.ndarray
    mate: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class Partners:
    """Who may meet whom: one entry per pair of a repeat, the same in every repeat as long as the clusters are.

    ``image`` (n_pairs,) int32; ``lane`` int32, the mate's cluster times `LANE_STEP`; ``first`` and ``size``: the mate's
    cluster's place in ``by_cluster`` and its images, scaled by 2^-24.
    """

    image: torch.Tensor
    lane: torch.Tensor
    first: torch.Tensor
    size: torch.Tensor
    by_cluster: torch.Tensor

    def draw(self, words: torch.Tensor) -> torch.Tensor:
        """Mates (n_pairs,) int32 by the images' (n_images,) int32 random words: uniform in each cluster up to 2^-24 n."""
        bits = lane_draws(words.index_select(0, self.image) + self.lane)
        # 24 bits times a size below 2^24, rounded once, stays below the size
        place = (bits.float() * self.size).int()
        return self.by_cluster.index_select(0, place.add_(self.first))


def list_partners(cluster: np.ndarray, bounds: np.ndarray, device: str = "cpu") -> Partners:
    """Lays out all pairs of identities that lie one behind the other.

    ``cluster``: (n_images,) int, dense from 0 within each identity; identity k holds images bounds[k]:bounds[k+1].
    """
    sizes = np.diff(bounds)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    n_cells = np.zeros(len(sizes), np.int64)
    np.maximum.at(n_cells, identity, cluster.astype(np.int64) + 1)
    first_cell = np.cumsum(n_cells) - n_cells
    cell = first_cell[identity] + cluster
    cell_size = np.bincount(cell, minlength=int(n_cells.sum()))
    by_cluster = np.argsort(cell, kind="stable").astype(np.int32)
    n_partners = n_cells[identity] - 1
    n_pairs = int(n_partners.sum())

    put = partial(_put, device)
    image = torch.repeat_interleave(
        torch.arange(len(identity), dtype=torch.int32, device=device), put(n_partners, torch.int64), output_size=n_pairs
    )
    at = torch.arange(n_pairs, dtype=torch.int32, device=device)
    other = at - put(np.cumsum(n_partners) - n_partners).index_select(0, image)
    other += other >= put(cluster).index_select(0, image)  # skips the image's own cluster
    cell_of_pair = put(first_cell[identity]).index_select(0, image) + other
    return Partners(
        image,
        other * LANE_STEP,
        put(np.cumsum(cell_size) - cell_size).index_select(0, cell_of_pair),
        put(cell_size * 0.5**24, torch.float32).index_select(0, cell_of_pair),
        put(by_cluster),
    )


def partner_words(bounds: np.ndarray, identity_rows: np.ndarray, *, seed: int, repeat: int) -> np.ndarray:
    """The images' random words (n_images,) int32: pure functions of (seed, repeat, identity row, place in the identity)."""
    sizes = np.diff(bounds)
    place = np.arange(int(bounds[-1] - bounds[0])) - np.repeat(bounds[:-1] - bounds[0], sizes)
    bits = counter_draws(seed, _PARTNER_STREAM, repeat, np.repeat(identity_rows, sizes), place)
    return (bits >> np.uint64(32)).astype(np.uint32).view(np.int32)


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
    ``clusters``: what an earlier call found, one array (n_images,) per fit; nothing is fitted then.
    Memory: the pairs, 8 bytes each (12 with ``recluster``), twice that while blocks are put together, and per thread a
    block: 12 bytes per Gram entry of 4,096 images or of one identity of up to `MAX_GRAM_IMAGES`.
    """
    bounds = np.asarray(bounds, np.int64)
    call = partial(
        _block_pairs,
        n_clusters=n_clusters,
        n_repeats=n_repeats,
        seed=seed,
        recluster=recluster,
        clustering=clustering,
        device=device,
    )

    def run(block: slice) -> list[Pairs]:
        own = bounds[block.start : block.stop + 1]
        known = [c[own[0] : own[-1]] for c in clusters]
        return call(embeddings[own[0] : own[-1]], own - own[0], identity_rows[block], known)

    blocks = list(identity_blocks(np.diff(bounds)))
    with one_thread():
        if n_threads > 1:
            with ThreadPoolExecutor(n_threads) as pool:
                found = list(pool.map(run, blocks))
        else:
            found = [run(block) for block in blocks]
    return _joined(found, [int(bounds[b.start]) for b in blocks], n_repeats)


def identity_blocks(sizes: np.ndarray) -> Iterator[slice]:
    """Runs of neighbouring identities: up to 4,096 images and 2M Gram entries, or one identity that is larger."""
    first = n_images = n_entries = 0
    for k, n in enumerate(sizes.tolist()):
        entries = n * n if n <= MAX_GRAM_IMAGES else _BLOCK_ENTRIES + 1
        if k > first and (n_images + n > _BLOCK_IMAGES or n_entries + entries > _BLOCK_ENTRIES):
            yield slice(first, k)
            first, n_images, n_entries = k, 0, 0
        n_images += n
        n_entries += entries
    if first < len(sizes):
        yield slice(first, len(sizes))


def _joined(blocks: list[list[Pairs]], firsts: list[int], n_repeats: int) -> list[Pairs]:
    empty = np.empty(0, np.int32)
    joined: list[Pairs] = []
    for r in range(n_repeats):
        own = [b[r] for b in blocks]
        # the clusters of the first repeat serve all, unless they were fitted anew
        shared = r > 0 and all(b[r].image is b[0].image for b in blocks)
        cluster = joined[0].cluster if shared else np.concatenate([p.cluster for p in own] or [empty])
        image = (
            joined[0].image
            if shared
            else np.concatenate([p.image + np.int32(f) for p, f in zip(own, firsts, strict=True)] or [empty])
        )
        mate = np.concatenate([p.mate + np.int32(f) for p, f in zip(own, firsts, strict=True)] or [empty])
        similarity = np.concatenate([p.similarity for p in own] or [np.empty(0, np.float32)])
        joined.append(Pairs(r, cluster, image, mate, similarity))
    return joined


def _block_pairs(
    embeddings: np.ndarray,
    bounds: np.ndarray,
    identity_rows: np.ndarray,
    clusters: list[np.ndarray],
    *,
    n_clusters: int,
    n_repeats: int,
    seed: int,
    recluster: bool,
    clustering: str,
    device: str,
) -> list[Pairs]:
    units = [unit_vectors(embeddings[a:b]) for a, b in pairwise(bounds)]
    # one product per identity, of its own shape and in memory of its own (a product's bits may depend on the alignment
    # of its rows): an identity's similarities cannot depend on its neighbours
    grams: list[torch.Tensor] = []
    sizes = np.diff(bounds)
    large = bool((sizes > MAX_GRAM_IMAGES).any())  # is then alone in its block
    flat = torch.empty(0 if large else int((sizes**2).sum()), device=device)
    if not large:
        grams = [g.view(n, n) for g, n in zip(flat.split((sizes**2).tolist()), sizes.tolist(), strict=True)]
        for unit, gram in zip(units, grams, strict=True):
            gram_keys(unit, gram)
    found: list[Pairs] = []
    for repeat in range(n_repeats):
        if repeat == 0 or recluster:
            by_faiss = large or clustering == "faiss"
            fit = partial(_fit_faiss, units) if by_faiss else partial(_fit_lloyd, grams)
            cluster = clusters[repeat] if clusters else np.concatenate(fit(identity_rows, n_clusters, seed, repeat))
            partners = list_partners(cluster, bounds, device)
            image = partners.image.cpu().numpy()
            # the Gram row of each pair's image: its first entry, less the identity's first image
            row_at = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)
            row_at = np.repeat(np.cumsum(sizes**2) - sizes**2 - bounds[:-1], sizes) + row_at * np.repeat(sizes, sizes)
            gram_row = None if large else _put(device, row_at).index_select(0, partners.image)
        words = torch.from_numpy(partner_words(bounds, identity_rows, seed=seed, repeat=repeat)).to(device)
        mate = partners.draw(words)
        if gram_row is None:
            similarity = _multiply_out(units[0], image, mate.cpu().numpy())
        else:
            similarity = flat.index_select(0, gram_row + mate).mul_(1 / SIMILARITY_STEPS).cpu().numpy()
        found.append(Pairs(repeat, cluster, image, mate.cpu().numpy(), similarity))
    return found


def _fit_lloyd(
    grams: list[torch.Tensor], identity_rows: np.ndarray, n_clusters: int, seed: int, repeat: int
) -> list[np.ndarray]:
    """Identities of like size share a batch, whose padding then stays small."""
    fitted: list[np.ndarray] = [np.empty(0, np.int32)] * len(grams)
    sizes = np.array([g.shape[0] for g in grams])
    order = np.argsort(sizes, kind="stable")
    while len(order):
        together = order[sizes[order] <= 1.5 * sizes[order[0]] + 8]
        order = order[len(together) :]
        rows = [int(identity_rows[k]) for k in together]
        labels = lloyd_batch([grams[k] for k in together], rows, n_clusters, seed=seed, repeat=repeat)
        for k, own in zip(together, labels, strict=True):
            fitted[k] = own
    return fitted


def _fit_faiss(
    units: list[np.ndarray], identity_rows: np.ndarray, n_clusters: int, seed: int, repeat: int
) -> list[np.ndarray]:
    return [
        faiss_clusters(u, int(row), n_clusters, seed=seed, repeat=repeat)
        for u, row in zip(units, identity_rows, strict=True)
    ]


def _multiply_out(units: np.ndarray, image: np.ndarray, mate: np.ndarray) -> np.ndarray:
    """Similarities of an identity without Gram matrix, 32 MB at a time."""
    similarity = np.empty(len(image), np.float32)
    for at in range(0, len(image), _CHUNK_PAIRS):
        chunk = slice(at, at + _CHUNK_PAIRS)
        dot = np.einsum("ij,ij->i", units[image[chunk]], units[mate[chunk]])
        similarity[chunk] = round_similarity(dot)
    return similarity


def _put(device: str, values: np.ndarray, kind: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.from_numpy(values).to(device, kind)


def round_similarity(cosine: np.ndarray) -> np.ndarray:
    """Cosines rounded to multiples of 2^-23 and clipped to [-1, 1], as float32 (exact)."""
    key = np.clip(np.rint(np.asarray(cosine, np.float64) * SIMILARITY_STEPS), -SIMILARITY_STEPS, SIMILARITY_STEPS)
    return (key / SIMILARITY_STEPS).astype(np.float32)
