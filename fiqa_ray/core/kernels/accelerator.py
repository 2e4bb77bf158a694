"""Pairs on an accelerator (paper III-C): what `gram`, `kmeans` and `mates` compute on a CPU, as torch operations.

Many identities are computed at once, on the device that holds them. The rules are the same; clusters and mates agree with a
CPU's wherever the rounded Gram entries do.

Shapes: B identities of a batch, padded to N images each, C clusters, L pairs.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from fiqa_ray.core.kernels.draws import WORD_STEP
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.kmeans import MAX_ITERATIONS, choose_starts, spread_starts
from fiqa_ray.errors import UsageError


def check_device(device: str) -> None:
    """Raise `UsageError` if torch cannot use the device on this machine."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device={device!r}: torch sees no GPU on {platform.node()}; run the step on a machine with a GPU and a CUDA "
            "build of torch, or set pair.device: cpu"
        )


def gram_matrices(units: np.ndarray, bounds: np.ndarray, device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return `gram.cosine_keys` on a device: the flat array, and a `(N, N)` view of it per identity."""
    sizes = np.diff(bounds)
    flat = torch.empty(int((sizes**2).sum()), device=device)
    pieces = torch.split(flat, (sizes**2).tolist())
    grams = [g.view(n, n) for g, n in zip(pieces, sizes.tolist(), strict=True)]
    x = torch.from_numpy(units).to(device)
    for gram, (low, high) in zip(grams, pairwise(bounds.tolist()), strict=True):
        torch.matmul(x[low:high], x[low:high].T, out=gram)
        gram.copy_((gram + gram.T).mul_(0.5))  # so that a pair and its mirror tie
    flat.mul_(SIMILARITY_STEPS).round_().clamp_(-SIMILARITY_STEPS, SIMILARITY_STEPS)
    return flat, grams


def cluster_all(grams: Sequence[torch.Tensor], states: np.ndarray, n_clusters: int, init: str = "random") -> np.ndarray:
    """Run `kmeans.lloyd` on the device of the `(N, N)` Gram matrices; return `(I,) int32` clusters, dense per identity.

    `states` are the `(K,)` random states of the starts, and `init` says how those are chosen: `random` or `k-means++`.
    Identities of similar size share a batch, so padding stays small.
    """
    clusters: list[np.ndarray] = [np.empty(0, np.int32)] * len(grams)
    sizes = np.array([g.shape[0] for g in grams])
    order = np.argsort(sizes, kind="stable")
    while len(order):
        together = order[sizes[order] <= 1.5 * sizes[order[0]] + 8]
        order = order[len(together) :]
        labels = lloyd_batch([grams[k] for k in together], states[together], n_clusters, init)
        for k, cluster in zip(together, labels, strict=True):
            clusters[k] = cluster
    return np.concatenate(clusters)


def lloyd_batch(
    grams: Sequence[torch.Tensor], states: np.ndarray, n_clusters: int, init: str = "random"
) -> list[np.ndarray]:
    """Run K-Means of several identities at once; return `(N,) int32` cluster numbers per identity.

    Memory: 8 bytes per padded matrix entry.
    """
    sizes = [g.shape[0] for g in grams]
    if max(sizes) <= 1 or n_clusters == 1:
        return [np.zeros(n, np.int32) for n in sizes]
    gram = _rounded_batch(grams)  # (B, N, N)
    n_identities, n_images, device = len(grams), gram.shape[1], gram.device
    nobody = n_clusters  # stands for "in no cluster": padding, and images before the first step
    padding = (torch.arange(n_images) >= torch.tensor(sizes)[:, None]).to(device)  # (B, N)
    nearest = _start_clusters(grams, states, n_clusters, n_images, init).to(device)  # (B, N)
    member = torch.full((n_identities, n_images), nobody, device=device)  # (B, N)
    sum_to_cluster = torch.zeros((n_identities, n_clusters, n_images), device=device)  # (B, C, N)
    for _ in range(MAX_ITERATIONS + 1):
        if not _move_changed(gram, sum_to_cluster, member, nearest):
            break
        member = nearest
        distance, count = _distances(sum_to_cluster, member)  # (B, C, N), (B, C)
        nearest = distance.min(1).indices.masked_fill_(padding, nobody)
    is_used = count > 0
    if not bool(is_used.all()):  # close the gaps that empty clusters leave
        dense = torch.cumsum(is_used, 1) - 1  # (B, C)
        member = dense.gather(1, member.clamp(max=n_clusters - 1))
    labels = member.to("cpu", torch.int32).numpy()
    return [labels[b, :n] for b, n in enumerate(sizes)]


def _rounded_batch(grams: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the matrices in one `(B, N, N)` batch, rounded so that float32 holds the sum of every row exactly."""
    sizes = [g.shape[0] for g in grams]
    gram = torch.zeros((len(grams), max(sizes), max(sizes)), device=grams[0].device)
    for b, (g, n) in enumerate(zip(grams, sizes, strict=True)):
        shift = max(0, (n - 1).bit_length() - 1)  # n numbers of up to 2^23 / 2^shift sum to at most 2^24
        torch.mul(g, 0.5**shift, out=gram[b, :n, :n])
    return gram.round_()


def _start_clusters(
    grams: Sequence[torch.Tensor], states: np.ndarray, n_clusters: int, n_images: int, init: str
) -> torch.Tensor:
    """Return `(B, N) int64`: 0 to C - 1 for the images that K-Means starts from, C for all others.

    They are chosen on the processor, for k-means++ from a copy of the matrices.
    """
    sizes = [g.shape[0] for g in grams]
    chosen = np.zeros((len(sizes), n_clusters), np.int32)
    if init == "k-means++":
        keys = torch.cat([g.reshape(-1) for g in grams]).cpu().numpy()
        spread_starts(keys, np.cumsum([0, *sizes]), states, chosen)
    else:
        choose_starts(np.array(sizes), states, chosen)
    start = np.full((len(sizes), n_images), n_clusters, np.int64)
    for b, n in enumerate(sizes):
        k = min(n, n_clusters)
        start[b, chosen[b, :k]] = np.arange(k)
    return torch.from_numpy(start)


def _move_changed(
    gram: torch.Tensor, sum_to_cluster: torch.Tensor, member: torch.Tensor, nearest: torch.Tensor
) -> bool:
    """Update the sums `(B, C, N)` by the rows of the images that change their cluster; return whether any does."""
    n_identities, n_clusters, n_images = sum_to_cluster.shape
    clusters = torch.arange(n_clusters, device=gram.device)[:, None]  # (C, 1)
    changed = nearest != member  # (B, N)
    n_changed = int(changed.sum(1).max())
    if n_changed == 0:
        return False
    if 2 * n_changed > n_images:
        joins = (nearest[:, None, :] == clusters).float() - (member[:, None, :] == clusters).float()  # (B, C, N)
        sum_to_cluster.baddbmm_(joins, gram)
        return True
    # the rows of the images that changed, and of some that did not and count as 0: (B, M), M = n_changed
    at = changed.to(torch.uint8).topk(n_changed, sorted=False).indices
    joins = (nearest.gather(1, at)[:, None, :] == clusters).float()  # (B, C, M)
    joins -= (member.gather(1, at)[:, None, :] == clusters).float()
    first_row = (torch.arange(n_identities, device=gram.device) * n_images)[:, None]  # (B, 1)
    rows = gram.view(-1, n_images).index_select(0, (at + first_row).view(-1))  # (B * M, N)
    sum_to_cluster.baddbmm_(joins, rows.view(n_identities, -1, n_images))
    return True


def _distances(sum_to_cluster: torch.Tensor, member: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the squared distances `(B, C, N)` up to a constant, and the images `(B, C)` of each cluster."""
    n_identities, n_clusters, _ = sum_to_cluster.shape
    first_cluster = (torch.arange(n_identities, device=member.device) * (n_clusters + 1))[:, None]  # (B, 1)
    cluster = (member + first_cluster).view(-1)  # (B * N,)
    n_bins = n_identities * (n_clusters + 1)
    count = torch.bincount(cluster, minlength=n_bins).view(n_identities, -1)[:, :n_clusters]  # (B, C)
    to_own = sum_to_cluster.gather(1, member.clamp(max=n_clusters - 1)[:, None, :]).view(-1).double()  # (B * N,)
    self_sum = torch.bincount(cluster, weights=to_own, minlength=n_bins).view(n_identities, -1)[:, :n_clusters]
    size = count.clamp(min=1).double()
    offset = (self_sum / (size * size)).masked_fill_(count == 0, torch.inf).float()
    # two steps, each rounded by itself: the same on every device
    distance = sum_to_cluster * (-2.0 / size).float()[:, :, None]
    distance += offset[:, :, None]
    return distance, count


@dataclass(frozen=True)
class MateCandidates:
    """Candidate lists: for each pair, the image and the cluster that its mate is drawn from.

    They serve all repeats that share clusters.

    Attributes:
        image: `(L,) int32`.
        word_step: `(L,) int32`, the mate's cluster times `WORD_STEP`.
        first: `(L,) int32`, where the mate's cluster starts in `by_cluster`.
        size: `(L,) float32`, images of the mate's cluster, times 2^-24.
        by_cluster: `(I,) int32`, the images, cluster by cluster.
    """

    image: torch.Tensor
    word_step: torch.Tensor
    first: torch.Tensor
    size: torch.Tensor
    by_cluster: torch.Tensor

    def draw(self, bits: np.ndarray) -> torch.Tensor:
        """Return the mates `(L,) int32` by the images' random words `(I,) uint64`, as `mates.draw_mates` does."""
        words = torch.from_numpy((bits >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(self.image.device)
        bits24 = random_bits(words.index_select(0, self.image) + self.word_step)
        # 24 bits times a size below 2^24, rounded once, stays below the size
        drawn = (bits24.float() * self.size).int()
        return self.by_cluster.index_select(0, drawn.add_(self.first))


def list_candidates(cluster: np.ndarray, bounds: np.ndarray, cluster_counts: np.ndarray, device: str) -> MateCandidates:
    """List the candidates of all pairs of neighbouring identities.

    Takes `cluster` `(I,)`, dense from 0 within each identity; identity k holds images bounds[k]:bounds[k+1] in
    cluster_counts[k] clusters.
    """
    sizes, cluster_counts = np.diff(bounds), np.asarray(cluster_counts, np.int64)  # (K,)
    identity = np.repeat(np.arange(len(sizes)), sizes)  # (I,)
    first_cluster = np.cumsum(cluster_counts) - cluster_counts  # (K,) clusters numbered through all identities
    number = first_cluster[identity] + cluster  # (I,)
    cluster_size = np.bincount(number, minlength=int(cluster_counts.sum()))
    by_cluster = np.argsort(number, kind="stable").astype(np.int32)  # (I,)
    n_candidates = cluster_counts[identity] - 1  # (I,)
    n_pairs = int(n_candidates.sum())

    put = partial(_put, device)
    image = torch.repeat_interleave(
        torch.arange(len(identity), dtype=torch.int32, device=device),
        put(n_candidates, torch.int64),
        output_size=n_pairs,
    )
    at = torch.arange(n_pairs, dtype=torch.int32, device=device)
    other = at - put(np.cumsum(n_candidates) - n_candidates).index_select(0, image)
    other += other >= put(cluster).index_select(0, image)  # skips the image's own cluster
    cluster_of_pair = put(first_cluster[identity]).index_select(0, image) + other  # (L,)
    return MateCandidates(
        image,
        other * WORD_STEP,
        put(np.cumsum(cluster_size) - cluster_size).index_select(0, cluster_of_pair),
        put(cluster_size * 0.5**24, torch.float32).index_select(0, cluster_of_pair),
        put(by_cluster),
    )


def gram_rows(candidates: MateCandidates, bounds: np.ndarray) -> torch.Tensor:
    """Return `(L,)` where each pair's Gram row starts in the flat array, less the identity's first image.

    Adding the mate gives the position of the pair's entry.
    """
    sizes = np.diff(bounds)
    row_at = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)
    row_at = np.repeat(np.cumsum(sizes**2) - sizes**2 - bounds[:-1], sizes) + row_at * np.repeat(sizes, sizes)
    return torch.from_numpy(row_at).to(candidates.image.device, torch.int32).index_select(0, candidates.image)


def _put(device: str, values: np.ndarray, kind: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.from_numpy(values).to(device, kind)


def random_bits(words: torch.Tensor) -> torch.Tensor:
    """Return 24 uniform random bits of each int32 word (an image's word plus its cluster's step); works in place.

    `draws.uniform_below` is the specification.
    """
    x = words
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        # torch shifts signed words: the mask makes it a shift of unsigned ones
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        x *= factor
    x ^= (x >> 15).bitwise_and_((1 << 17) - 1)
    x >>= 8
    return x.bitwise_and_((1 << 24) - 1)
