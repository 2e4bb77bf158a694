"""Mated pairs (paper III-C): every image with one random image of each other cluster of its identity.

L = sum over identities of N_k * (C_k - 1) ordered pairs; (a, b) and (b, a) may both occur and count twice. Released code:
LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques src/iterative_optimization/optimize.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fiqa_ray.core.clustering import (
    SIMILARITY_STEPS,
    batches_by_size,
    faiss_clusters,
    gram_keys,
    lloyd_batch,
    unit_vectors,
)
from fiqa_ray.core.draws import counter_draws, draw_below

MAX_GRAM_IMAGES = 16_384
"""Identities with more images than this are clustered by faiss: their Gram matrix would not fit comfortably."""

_PARTNER_STREAM = 0x9A17


@dataclass(frozen=True)
class Pairs:
    """The pairs of one repeat: ``image`` and ``mate`` positions (n_pairs,) int64, ``similarity`` (n_pairs,) float32."""

    repeat: int
    image: np.ndarray
    mate: np.ndarray
    similarity: np.ndarray


def sample_partners(
    cluster: np.ndarray, bounds: np.ndarray, identity_rows: np.ndarray, *, seed: int, repeat: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all pairs of one repeat, for identities that lie one behind the other.

    ``cluster``: (n_images,) int, dense from 0 within each identity; identity k holds images bounds[k]:bounds[k+1].
    Returns ``image`` and ``mate``, (n_pairs,) int64, ordered by (image, mate's cluster). The partner is uniform among the
    other cluster's images and a pure function of (seed, repeat, identity row, place in the identity, cluster).
    """
    sizes = np.diff(bounds)
    n_images = int(bounds[-1])
    if n_images == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(n_images) - np.repeat(bounds[:-1], sizes)
    n_cells = np.zeros(len(sizes), np.int64)
    np.maximum.at(n_cells, identity, cluster.astype(np.int64) + 1)
    first_cell = np.concatenate([[0], np.cumsum(n_cells)])
    cell = first_cell[identity] + cluster
    cell_size = np.bincount(cell, minlength=first_cell[-1])
    cell_start = np.concatenate([[0], np.cumsum(cell_size)])
    by_cell = np.argsort(cell, kind="stable")

    n_partners = n_cells[identity] - 1
    image = np.repeat(np.arange(n_images), n_partners)
    slot = np.arange(len(image)) - np.repeat(np.cumsum(n_partners) - n_partners, n_partners)
    other = slot + (slot >= cluster[image])  # skips the image's own cluster
    bits = counter_draws(seed, _PARTNER_STREAM, repeat, identity_rows[identity[image]], place[image], other)
    other_cell = first_cell[identity[image]] + other
    mate = by_cell[cell_start[other_cell] + draw_below(bits, cell_size[other_cell])]
    return image, mate


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
    device: str = "cpu",
) -> Iterator[Pairs]:
    """Clusters every identity and draws the pairs of all repeats; yields one `Pairs` per repeat, in order.

    ``embeddings``: (n_images, dim) float32, identity k in rows bounds[k]:bounds[k+1]. ``recluster`` fits the clusters anew
    for each repeat (the paper's text); the default fits them once (its authors' code). ``clustering``: "lloyd" or "faiss".
    Similarities are cosines rounded to multiples of 2^-23. Memory: the Gram matrices of all identities up to
    `MAX_GRAM_IMAGES` images (4 bytes per entry), so shards should hold a few thousand images; then about 60 bytes per pair
    of one repeat.
    """
    units = unit_vectors(embeddings)
    sizes = np.diff(bounds)
    grams: dict[int, torch.Tensor] = {}
    for k in np.flatnonzero((sizes > 1) & (sizes <= MAX_GRAM_IMAGES)):
        # one product per identity, of its own shape and in memory of its own (a product's bits may depend on the
        # alignment of its rows): an identity's similarities cannot depend on its neighbours
        grams[int(k)] = gram_keys(torch.from_numpy(units[bounds[k] : bounds[k + 1]]).clone().to(device))

    cluster = np.zeros(len(units), np.int32)
    for repeat in range(n_repeats):
        if repeat == 0 or recluster:
            _fit(cluster, units, grams, bounds, identity_rows, n_clusters, seed, repeat, clustering)
        image, mate = sample_partners(cluster, bounds, identity_rows, seed=seed, repeat=repeat)
        yield Pairs(repeat, image, mate, _similarity(units, grams, bounds, image, mate))


def _fit(
    cluster: np.ndarray,
    units: np.ndarray,
    grams: dict[int, torch.Tensor],
    bounds: np.ndarray,
    identity_rows: np.ndarray,
    n_clusters: int,
    seed: int,
    repeat: int,
    clustering: str,
) -> None:
    sizes = np.diff(bounds)
    by_gram = np.array([k for k in grams if clustering == "lloyd"], dtype=np.int64)
    for group in batches_by_size(sizes[by_gram]) if len(by_gram) else []:
        ks = by_gram[group]
        fitted = lloyd_batch(
            [grams[int(k)] for k in ks], [int(identity_rows[k]) for k in ks], n_clusters, seed=seed, repeat=repeat
        )
        for k, labels in zip(ks, fitted, strict=True):
            cluster[bounds[k] : bounds[k + 1]] = labels
    for k in np.flatnonzero(sizes > 1):
        if clustering == "faiss" or int(k) not in grams:
            part = np.ascontiguousarray(units[bounds[k] : bounds[k + 1]])
            cluster[bounds[k] : bounds[k + 1]] = faiss_clusters(
                part, int(identity_rows[k]), n_clusters, seed=seed, repeat=repeat
            )


def _similarity(
    units: np.ndarray, grams: dict[int, torch.Tensor], bounds: np.ndarray, image: np.ndarray, mate: np.ndarray
) -> np.ndarray:
    """Looks pairs up in the Gram matrices; identities without one (too large) are multiplied out in blocks."""
    similarity = np.empty(len(image), np.float32)
    cut = np.searchsorted(image, bounds)  # pairs are ordered by image, hence by identity
    for k in np.flatnonzero(np.diff(cut)):
        lo, hi, first = cut[k], cut[k + 1], bounds[k]
        gram = grams.get(int(k))
        if gram is not None:
            a = torch.from_numpy(image[lo:hi] - first).to(gram.device)
            b = torch.from_numpy(mate[lo:hi] - first).to(gram.device)
            key = gram[a, b].cpu().numpy()
            similarity[lo:hi] = key.astype(np.float32) / np.float32(SIMILARITY_STEPS)
            continue
        for at in range(lo, hi, 65_536):
            end = min(at + 65_536, hi)
            dot = np.einsum("ij,ij->i", units[image[at:end]], units[mate[at:end]], dtype=np.float64)
            similarity[at:end] = round_similarity(dot)
    return similarity


def round_similarity(cosine: np.ndarray) -> np.ndarray:
    """Cosines rounded to multiples of 2^-23 and clipped to [-1, 1], as float32 (exact)."""
    key = np.clip(np.rint(np.asarray(cosine, np.float64) * SIMILARITY_STEPS), -SIMILARITY_STEPS, SIMILARITY_STEPS)
    return (key / SIMILARITY_STEPS).astype(np.float32)
