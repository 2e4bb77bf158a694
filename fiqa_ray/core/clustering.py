"""Clusters of one identity's images (paper III-C, "Selecting mated image pairs"): K-Means in the embedding space.

Lloyd's algorithm runs on the Gram matrix of the identity's unit vectors; centroids are never formed. With members j, l of
cluster c and its size m, the squared distance of image i to the cluster's mean is

    G_ii - 2/m * sum_j G_ij + 1/m^2 * sum_jl G_jl .

The Gram matrix is rounded to multiples of 2^-23 and held as whole numbers in float64, so every sum above is exact and the
clusters depend on the identity's own embeddings alone: not on its batch, on padding, on threads or on the order of summing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fiqa_ray.core.draws import counter_draws

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: float32's own resolution just below 1."""

TIE_STEPS = 1 << 10
"""Distances that agree to 1/TIE_STEPS of a similarity step tie; the image joins the cluster of the lower number."""

MAX_ITERATIONS = 50
_BATCH_BYTES = 128 << 20
_INIT_STREAM = 0x1217


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """``(n_images, dim)`` float32 embeddings scaled to length 1 (equation 1's denominators); a zero vector stays zero.

    Zeros fill the vectors up to a multiple of 16 values, so that every row is aligned alike.
    """
    x = np.asarray(embeddings, dtype=np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    units = np.zeros((len(x), -(-x.shape[1] // 16) * 16), np.float32)
    units[:, : x.shape[1]] = x / np.where(norm > 0, norm, 1.0)[:, None]
    return units


def gram_keys(units: torch.Tensor) -> torch.Tensor:
    """Cosines of one identity as whole numbers: ``(n, dim)`` float32 unit vectors -> ``(n, n)`` int32 in [-2^23, 2^23].

    Symmetric to the bit, so a pair and its mirror always tie. Memory: 12 bytes per matrix entry while it runs.
    """
    gram = units @ units.T
    gram = (gram + gram.T) * (SIMILARITY_STEPS / 2)
    return gram.round_().clamp_(-SIMILARITY_STEPS, SIMILARITY_STEPS).to(torch.int32)


def lloyd_batch(
    grams: Sequence[torch.Tensor], identity_rows: Sequence[int], n_clusters: int, *, seed: int, repeat: int = 0
) -> list[np.ndarray]:
    """K-Means of several identities at once, on the device where their Gram matrices lie.

    ``grams``: one ``(n, n)`` int32 matrix of `gram_keys` per identity. Starts from min(n_clusters, n) of the identity's own
    images, drawn by (seed, repeat, identity row). Returns ``(n,)`` int32 cluster numbers per identity, dense from 0: a
    cluster that loses all its images (only duplicates do that) is dropped. Memory: 28 bytes per padded matrix entry.
    """
    device = grams[0].device
    sizes = torch.tensor([g.shape[0] for g in grams], device=device)
    n_max = int(sizes.max())
    gram = torch.zeros((len(grams), n_max, n_max), dtype=torch.float64, device=device)
    start = torch.full((len(grams), n_max), -1, dtype=torch.int64)
    for b, (g, row) in enumerate(zip(grams, identity_rows, strict=True)):
        n = g.shape[0]
        gram[b, :n, :n] = g.double()
        order = np.argsort(counter_draws(seed, _INIT_STREAM, repeat, row, np.arange(n)), kind="stable")
        chosen = order[: min(n_clusters, n)]
        start[b, torch.from_numpy(chosen)] = torch.arange(len(chosen))
    member = start.to(device)  # the starting "clusters" hold one image each
    valid = torch.arange(n_max, device=device) < sizes[:, None]
    clusters = torch.arange(n_clusters, device=device)
    for _ in range(MAX_ITERATIONS):
        one_hot = (member[:, :, None] == clusters).double()
        count = one_hot.sum(1)
        to_cluster = gram @ one_hot
        within = (one_hot * to_cluster).sum(1)
        size = count.clamp(min=1)
        distance = (within / size / size)[:, None, :] - 2 * to_cluster / size[:, None, :]
        # equal distances of clusters of different sizes may differ in the last bit of a division: here they tie
        distance = (distance * TIE_STEPS).round_()
        distance.masked_fill_((count == 0)[:, None, :], torch.inf)
        new = torch.where(valid, distance.argmin(2), -1)
        if torch.equal(new, member):
            break
        member = new
    labels = member.cpu().numpy()
    return [np.unique(labels[b, : g.shape[0]], return_inverse=True)[1].astype(np.int32) for b, g in enumerate(grams)]


def faiss_clusters(units: np.ndarray, identity_row: int, n_clusters: int, *, seed: int, repeat: int = 0) -> np.ndarray:
    """K-Means of one identity by faiss: for identities too large for a Gram matrix, and where a run asks for it.

    ``(n, dim)`` float32 -> ``(n,)`` int32, dense from 0. Same start rule as `lloyd_batch`. Memory: linear in n.
    """
    import faiss

    n = len(units)
    k = min(n_clusters, n)
    order = np.argsort(counter_draws(seed, _INIT_STREAM, repeat, identity_row, np.arange(n)), kind="stable")
    kmeans = faiss.Kmeans(
        units.shape[1], k, niter=MAX_ITERATIONS, seed=1, min_points_per_centroid=1, max_points_per_centroid=n
    )
    kmeans.train(units, init_centroids=np.ascontiguousarray(units[order[:k]]))
    nearest = kmeans.index.search(units, 1)[1][:, 0]
    return np.unique(nearest, return_inverse=True)[1].astype(np.int32)


def batches_by_size(sizes: np.ndarray, bytes_per_entry: int = 28, batch_bytes: int = _BATCH_BYTES) -> list[np.ndarray]:
    """Groups identities of like size so that a padded batch of Gram matrices stays within ``batch_bytes``."""
    groups: list[np.ndarray] = []
    order = np.argsort(sizes, kind="stable")
    at = 0
    while at < len(order):
        # sizes ascend, so the last of a group sets its padding
        n = np.maximum(sizes[order[at:]].astype(np.int64), 1)
        fits = (np.arange(1, len(n) + 1) * n * n * bytes_per_entry <= batch_bytes) & (n <= 1.25 * n[0] + 8)
        take = max(1, int(np.argmin(fits)) if not fits.all() else len(fits))
        groups.append(order[at : at + take])
        at += take
    return groups
