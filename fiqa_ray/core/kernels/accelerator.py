"""Pairs on an accelerator (paper III-C): what `clustering` and `pairs` compute on a processor, as torch operations over many
identities at once, on the device where they lie. The same clusters, mates and rules; only the bits of the Gram products are
the device's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from fiqa_ray.core.clustering import MAX_ITERATIONS, start_images, start_states
from fiqa_ray.core.kernels.draws import LANE_STEP, lane_draws
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS


def gram_matrices(units: np.ndarray, bounds: np.ndarray, device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`cosine_keys` on a device: the flat array and a ``(n, n)`` view of it per identity."""
    sizes = np.diff(bounds)
    flat = torch.empty(int((sizes**2).sum()), device=device)
    grams = [g.view(n, n) for g, n in zip(flat.split((sizes**2).tolist()), sizes.tolist(), strict=True)]
    x = torch.from_numpy(units).to(device)
    for gram, (low, high) in zip(grams, pairwise(bounds.tolist()), strict=True):
        torch.matmul(x[low:high], x[low:high].T, out=gram)
        gram.copy_((gram + gram.T).mul_(0.5))  # so that a pair and its mirror tie
    flat.mul_(SIMILARITY_STEPS).round_().clamp_(-SIMILARITY_STEPS, SIMILARITY_STEPS)
    return flat, grams


def cluster_all(
    grams: Sequence[torch.Tensor], identity_rows: np.ndarray, n_clusters: int, *, seed: int, repeat: int = 0
) -> np.ndarray:
    """`lloyd` on the device of the ``(n, n)`` Gram matrices: (n_images,) int32, dense from 0 within each identity.

    Identities of like size share a batch, whose padding then stays small.
    """
    fitted: list[np.ndarray] = [np.empty(0, np.int32)] * len(grams)
    sizes = np.array([g.shape[0] for g in grams])
    order = np.argsort(sizes, kind="stable")
    while len(order):
        together = order[sizes[order] <= 1.5 * sizes[order[0]] + 8]
        order = order[len(together) :]
        rows = identity_rows[together]
        labels = lloyd_batch([grams[k] for k in together], rows, n_clusters, seed=seed, repeat=repeat)
        for k, own in zip(together, labels, strict=True):
            fitted[k] = own
    return np.concatenate(fitted)


def lloyd_batch(
    grams: Sequence[torch.Tensor], identity_rows: np.ndarray, n_clusters: int, *, seed: int, repeat: int = 0
) -> list[np.ndarray]:
    """K-Means of several identities at once: ``(n,)`` int32 cluster numbers per identity.

    Memory: 8 bytes per padded matrix entry.
    """
    device = grams[0].device
    n_identities, sizes = len(grams), [g.shape[0] for g in grams]
    n_max = max(sizes)
    if n_max <= 1 or n_clusters == 1:
        return [np.zeros(n, np.int32) for n in sizes]
    gram = torch.zeros((n_identities, n_max, n_max), device=device)
    nobody = n_clusters  # the number that stands for "in no cluster": padding, and images before the first step
    start = np.full((n_identities, n_max), nobody, np.int64)
    chosen = start_images(np.array(sizes), start_states(identity_rows, [repeat], seed=seed)[0], n_clusters)
    for b, (g, n) in enumerate(zip(grams, sizes, strict=True)):
        # n numbers of up to 2^23 / 2^shift sum to no more than 2^24, which float32 holds exactly
        shift = max(0, (n - 1).bit_length() - 1)
        torch.mul(g, 0.5**shift, out=gram[b, :n, :n])
        k = min(n, n_clusters)
        start[b, chosen[b, :k]] = np.arange(k)
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

    def draw(self, bits: np.ndarray) -> torch.Tensor:
        """Mates (n_pairs,) int32 by the images' (n_images,) uint64 random bits: uniform in each cluster up to 2^-24 n."""
        words = torch.from_numpy((bits >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(self.image.device)
        lanes = lane_draws(words.index_select(0, self.image) + self.lane)
        # 24 bits times a size below 2^24, rounded once, stays below the size
        place = (lanes.float() * self.size).int()
        return self.by_cluster.index_select(0, place.add_(self.first))


def list_partners(cluster: np.ndarray, bounds: np.ndarray, n_cells: np.ndarray, device: str) -> Partners:
    """Lays out all pairs of identities that lie one behind the other.

    ``cluster``: (n_images,) int, dense from 0 within each identity; identity k holds images bounds[k]:bounds[k+1] in
    ``n_cells[k]`` clusters.
    """
    sizes, n_cells = np.diff(bounds), np.asarray(n_cells, np.int64)
    identity = np.repeat(np.arange(len(sizes)), sizes)
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


def gram_rows(partners: Partners, bounds: np.ndarray) -> torch.Tensor:
    """Where each pair's Gram row begins in the flat array, less the identity's first image: plus the mate, its entry."""
    sizes = np.diff(bounds)
    row_at = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)
    row_at = np.repeat(np.cumsum(sizes**2) - sizes**2 - bounds[:-1], sizes) + row_at * np.repeat(sizes, sizes)
    return torch.from_numpy(row_at).to(partners.image.device, torch.int32).index_select(0, partners.image)


def _put(device: str, values: np.ndarray, kind: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.from_numpy(values).to(device, kind)
