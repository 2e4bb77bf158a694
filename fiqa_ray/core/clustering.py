"""Clusters of one identity's images (paper III-C, "Selecting mated image pairs"): K-Means in the embedding space.

Lloyd's algorithm runs on the Gram matrix of the identity's unit vectors; centroids are never formed. With members j, l of
cluster c, its size m and T_ic = sum_j G_ij, the squared distance of image i to the cluster's mean is, up to G_ii,

    1/m^2 * sum_j T_jc  -  2/m * T_ic .

For the sums T the matrix is rounded to whole numbers small enough that float32 holds every sum exactly. So the clusters
depend on the identity's own embeddings alone: not on its batch, on padding, on threads or on the order of summing; and when
images change their cluster, T is mended by what changed, with no error to pile up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from fiqa_ray.core.draws import counter_draws

SIMILARITY_STEPS = 1 << 23
"""Similarities are multiples of 1/SIMILARITY_STEPS: float32's own resolution just below 1."""

MAX_ITERATIONS = 50
_INIT_STREAM = 0x1217


def unit_vectors(embeddings: np.ndarray) -> np.ndarray:
    """``(n_images, dim)`` float32 embeddings scaled to length 1 (equation 1's denominators); a zero vector stays zero.

    A new array, filled up with zeros to a multiple of 16 values, so that every row is aligned alike.
    """
    x = np.asarray(embeddings, dtype=np.float32)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x).astype(np.float64))
    inverse = (1.0 / np.where(norm > 0, norm, 1.0)).astype(np.float32)
    if x.shape[1] % 16 == 0:
        return x * inverse[:, None]
    units = np.zeros((len(x), -(-x.shape[1] // 16) * 16), np.float32)
    np.multiply(x, inverse[:, None], out=units[:, : x.shape[1]])
    return units


def gram_keys(units: np.ndarray, out: torch.Tensor) -> None:
    """Cosines of one identity in steps of 2^-23: ``(n, dim)`` float32 unit vectors -> ``(n, n)`` float32 whole numbers.

    Fills ``out`` on the device where it lies. Symmetric to the bit, so a pair and its mirror always tie.
    """
    if out.device.type == "cpu":
        gram = out.numpy()
        np.matmul(units, units.T, out=gram)  # numpy computes one triangle of a matrix times its own transpose
        symmetric = numpy_mirrors()
    else:
        x = torch.from_numpy(units).to(out.device)
        torch.matmul(x, x.T, out=out)
        symmetric = False
    if not symmetric:
        out.copy_((out + out.T).mul_(0.5))
    out.mul_(SIMILARITY_STEPS).round_().clamp_(-SIMILARITY_STEPS, SIMILARITY_STEPS)


@lru_cache(maxsize=1)
def numpy_mirrors() -> bool:
    """Whether this numpy computes a matrix times its own transpose as one triangle and its mirror."""
    x = np.random.default_rng(0).normal(size=(141, 96)).astype(np.float32)
    gram = x @ x.T
    return bool((gram == gram.T).all())


def lloyd_batch(
    grams: Sequence[torch.Tensor], identity_rows: Sequence[int], n_clusters: int, *, seed: int, repeat: int = 0
) -> list[np.ndarray]:
    """K-Means of several identities at once, on the device where their Gram matrices lie.

    ``grams``: one ``(n, n)`` matrix of `gram_keys` per identity. Starts from min(n_clusters, n) of the identity's own
    images, drawn by (seed, repeat, identity row). Returns ``(n,)`` int32 cluster numbers per identity, dense from 0: a
    cluster that loses all its images (only duplicates do that) is dropped. Memory: 8 bytes per padded matrix entry.
    """
    device = grams[0].device
    n_identities, sizes = len(grams), [g.shape[0] for g in grams]
    n_max = max(sizes)
    if n_max <= 1 or n_clusters == 1:
        return [np.zeros(n, np.int32) for n in sizes]
    gram = torch.zeros((n_identities, n_max, n_max), device=device)
    nobody = n_clusters  # the number that stands for "in no cluster": padding, and images before the first step
    start = np.full((n_identities, n_max), nobody, np.int64)
    draws = counter_draws(seed, _INIT_STREAM, repeat, np.asarray(identity_rows)[:, None], np.arange(n_max))
    for b, (g, n) in enumerate(zip(grams, sizes, strict=True)):
        # n numbers of up to 2^23 / 2^shift sum to no more than 2^24, which float32 holds exactly
        shift = max(0, (n - 1).bit_length() - 1)
        torch.mul(g, 0.5**shift, out=gram[b, :n, :n])
        chosen = np.argsort(draws[b, :n], kind="stable")[:n_clusters]
        start[b, chosen] = np.arange(len(chosen))
    gram.round_()
    padding = (torch.arange(n_max) >= torch.tensor(sizes)[:, None]).to(device)
    first_row = (torch.arange(n_identities, device=device) * n_max)[:, None]
    first_cell = (torch.arange(n_identities, device=device) * (n_clusters + 1))[:, None]
    clusters = torch.arange(n_clusters, device=device)[:, None]
    member = torch.full((n_identities, n_max), nobody, device=device)
    new = torch.from_numpy(start).to(device)
    to_cluster = torch.zeros((n_identities, n_clusters, n_max), device=device)  # T
    for _ in range(MAX_ITERATIONS + 1):
        changed = new != member
        n_changed = int(changed.sum(1).max())
        if n_changed == 0:
            break
        if 2 * n_changed > n_max:
            joins = (new[:, None, :] == clusters).float() - (member[:, None, :] == clusters).float()
            to_cluster.baddbmm_(joins, gram)
        else:  # the rows of the images that changed, filled up with some that did not and count as 0
            at = changed.to(torch.uint8).topk(n_changed, sorted=False).indices
            joins = (new.gather(1, at)[:, None, :] == clusters).float()
            joins -= (member.gather(1, at)[:, None, :] == clusters).float()
            rows = gram.view(-1, n_max).index_select(0, (at + first_row).view(-1)).view(n_identities, -1, n_max)
            to_cluster.baddbmm_(joins, rows)
        member = new
        cell = (member + first_cell).view(-1)
        count = torch.bincount(cell, minlength=n_identities * (n_clusters + 1)).view(n_identities, -1)[:, :n_clusters]
        own = to_cluster.gather(1, member.clamp(max=n_clusters - 1)[:, None, :]).view(-1).double()
        within = torch.bincount(cell, weights=own, minlength=n_identities * (n_clusters + 1))
        within = within.view(n_identities, -1)[:, :n_clusters]
        size = count.clamp(min=1).double()
        offset = (within / (size * size)).masked_fill_(count == 0, torch.inf).float()
        # two steps, each rounded by itself: the same on every device
        distance = to_cluster * (-2.0 / size).float()[:, :, None]
        distance += offset[:, :, None]
        new = distance.min(1).indices
        new.masked_fill_(padding, nobody)
    used = count > 0
    if not bool(used.all()):  # numbers without images are closed up
        dense = torch.cumsum(used, 1) - 1
        member = dense.gather(1, member.clamp(max=n_clusters - 1))
    labels = member.to("cpu", torch.int32).numpy()
    return [labels[b, :n] for b, n in enumerate(sizes)]


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
