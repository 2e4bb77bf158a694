"""Label optimization (section III-C of the paper) on one page: the specification, in plain numpy.

Read this file first. Given the same arguments, `core.labels.optimize_labels` does the same much faster in one process, and
the job on any number of machines. Both compute cosines in float32, so a similarity can differ from this file's by some
multiples of 2^-23. With exact cosines, as in the tests, all three give equal labels, as long as no identity has more than
4,096 images: larger ones are clustered by faiss there. The algorithm, in the paper's order:

    1. Cluster the images of each identity.                                 `cluster_identity`
    2. Draw mated pairs: each image with one image of each other cluster.   `draw_mates`
    3. Compare the images of each pair.                                     `cosine_similarity`, equation 1
    4. Rank the similarities of all pairs, and rank the prior scores.       `similarity_rank`, `quality_index`
    5. Average, for each image, the ranks of the pairs in which it is the
       worse image: the pairs that it owns.                                 `mean_owned_rank`, equation 2
    6. Move each image's index towards its mean rank.                       `index_shift`, equation 3
    7. Give the prior scores, in ascending order, to the images by index.   `reassign_scores`

CONTRIBUTING.md names the fast version of each step. Random numbers come from the functions that the fast path uses:
`counter_draws` gives 64 random bits, `uniform_below` turns these bits into a whole number below a limit.

Symbols: I images, K identities, N images of one identity, C clusters, R repeats, L pairs of one repeat (of all identities),
D numbers of an embedding. Where the paper leaves a choice open, the docstring of the step says what is done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from fiqa_ray.core.kernels.draws import MATE_STREAM, START_STREAM, counter_draws, uniform_below
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS
from fiqa_ray.core.kernels.kmeans import MAX_ITERATIONS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def optimize_labels(
    embeddings: NDArray[np.float32],
    identity: IntArray,
    prior_scores: FloatArray,
    *,
    n_clusters: int = 20,
    n_repeats: int = 10,
    theta: float = 1e-3,
    index_scale: str = "raw",
    init: str = "random",
    seed: int = 0,
) -> FloatArray:
    """Return the optimized quality scores `(I,)`: the prior scores in another order.

    Args:
        embeddings: `(I, D)`, of any length but zero.
        identity: `(I,)` numbers from 0 to K - 1.
        prior_scores: `(I,)`, larger is better: the FIQA method's scores Q.
        n_clusters: C, which the paper calls N.
        n_repeats: R.
        theta: weight of the update, in [0, 1].
        index_scale: `raw` mixes ranks among L pairs with indices among I images, as published; `normalized` scales the
            ranks by I / L first.
        init: how K-Means chooses the images that it starts from: `random` or `k-means++`.
        seed: of all random draws.
    """
    unit = embeddings / np.linalg.norm(embeddings.astype(float), axis=1, keepdims=True)  # (I, D), of length 1
    images_of = [np.flatnonzero(identity == k) for k in range(identity.max() + 1)]  # K arrays (N,)
    clusters_of = [cluster_identity(unit[rows], k, n_clusters, seed, init) for k, rows in enumerate(images_of)]
    index = quality_index(prior_scores)  # (I,)
    shift = np.zeros(len(index))
    for r in range(n_repeats):
        pairs = [rows[draw_mates(clusters_of[k], k, r, seed)] for k, rows in enumerate(images_of)]
        image, mate = np.concatenate(pairs, axis=1)  # (L,) each
        rank = similarity_rank(cosine_similarity(unit[image], unit[mate]))  # (L,)
        scale = len(index) / len(rank) if index_scale == "normalized" and len(rank) else 1.0
        shift += index_shift(index, scale * mean_owned_rank(index, image, mate, rank))
    optimized_index = index + theta * (shift / n_repeats)  # (I,): equation 3
    return reassign_scores(prior_scores, index, optimized_index)


def cluster_identity(unit: FloatArray, identity: int, n_clusters: int, seed: int, init: str = "random") -> IntArray:
    """Return the cluster `(N,)` of each image of one identity, by K-Means from random images or `spread_starts`.

    An identity of fewer than C images starts from all of them. K-Means can be computed from cosines alone: means are
    never formed. For a cluster c of m
    images, let T_ic be the sum of the cosines of image i to them. The squared distance of image i to their mean is then
    1 - 2 T_ic / m + (sum of T_jc over the members j) / m^2. The 1 is left out: it is the same for all clusters. The cosines
    are rounded so coarsely that float32 adds up N of them without error.
    """
    cosine = cosine_similarity(unit[:, None], unit[None])  # (N, N)
    if init == "k-means++":
        start = spread_starts(cosine, identity, n_clusters, seed)
    else:
        draws = counter_draws(seed, START_STREAM, 0, identity, np.arange(len(unit)))
        start = np.argsort(draws, kind="stable")[:n_clusters]
    step = 2.0 ** max((len(unit) - 1).bit_length() - 1, 0) / SIMILARITY_STEPS
    rounded = np.rint(cosine / step) * step  # (N, N)
    member = np.zeros((len(unit), len(start)))  # (N, C): 1 where image i is in cluster c
    member[start, np.arange(len(start))] = 1
    for _ in range(MAX_ITERATIONS):
        size = member.sum(axis=0)  # (C,)
        total = rounded @ member  # (N, C): T
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = np.where(size > 0, (total * member).sum(axis=0) / size**2, np.inf)
            slope = np.where(size > 0, -2 / size, 0)
        distance = total.astype(np.float32) * slope.astype(np.float32) + offset.astype(np.float32)
        nearest = distance.argmin(axis=1)  # (N,): the first of several
        if member[np.arange(len(unit)), nearest].all():
            break
        member = np.eye(len(start))[nearest]
    return np.unique(member.argmax(axis=1), return_inverse=True)[1]  # clusters that lost all images are left out


def spread_starts(cosine: FloatArray, identity: int, n_clusters: int, seed: int) -> IntArray:
    """Return the images that K-Means starts from by k-means++, scikit-learn's greedy form; `cosine` is `(N, N)`.

    Candidates are drawn in proportion to the squared distance to the nearest start, and the best of them is taken.
    """
    n, n_trials = len(cosine), 2 + int(np.log(n_clusters))
    words = counter_draws(seed, START_STREAM, 0, identity, np.arange(n + n_clusters * n_trials))
    gap = (1 - cosine) * SIMILARITY_STEPS  # (N, N): half the squared distances, as whole numbers
    np.fill_diagonal(gap, 0)
    start = [int(words[:n].argmin())]
    while len(start) < min(n, n_clusters):
        nearest = gap[start].min(axis=0)  # (N,)
        first_word = n + len(start) * n_trials
        target = np.floor((words[first_word : first_word + n_trials] >> np.uint64(11)) * 2.0**-53 * nearest.sum())
        drawn = np.searchsorted(nearest.cumsum(), target, side="right")  # (n_trials,) images
        if nearest.any():
            start.append(int(drawn[np.minimum(nearest, gap[drawn]).sum(axis=1).argmin()]))
        else:  # all images coincide with starts: the first that is none
            start.append(min(set(range(n)) - set(start)))
    return np.array(start)


def draw_mates(cluster: IntArray, identity: int, repeat: int, seed: int) -> IntArray:
    """Return the pairs `(2, N * (C - 1))` of one identity: each image, and a random image of each other cluster."""
    words = counter_draws(seed, MATE_STREAM, repeat, identity, np.arange(len(cluster)))  # (N,) random bits
    members_of = [np.flatnonzero(cluster == c) for c in range(cluster.max() + 1)]  # C arrays of images
    pairs = [
        (image, members[uniform_below(len(members), words[image], other)])
        for image in range(len(cluster))
        for other, members in enumerate(members_of)
        if other != cluster[image]
    ]
    return np.array(pairs, np.int64).reshape(-1, 2).T


def cosine_similarity(unit_a: FloatArray, unit_b: FloatArray) -> FloatArray:
    """Return the cosines of unit vectors (equation 1), rounded to multiples of 2^-23, the spacing of float32 in [1, 2)."""
    cosine: FloatArray = (unit_a * unit_b).sum(axis=-1)
    return np.rint(cosine * SIMILARITY_STEPS) / SIMILARITY_STEPS


def similarity_rank(similarity: FloatArray) -> FloatArray:
    """Return the rank `(L,)` of each pair among all L of a repeat, id^Xs: 0 is the least similar; ties share their mean."""
    rank: FloatArray = rankdata(similarity, method="average") - 1
    return rank


def quality_index(prior_scores: FloatArray) -> IntArray:
    """Return the rank of each prior score, id(i): 0 is the worst image; ties keep their order."""
    index: IntArray = rankdata(prior_scores, method="ordinal") - 1
    return index


def mean_owned_rank(index: IntArray, image: IntArray, mate: IntArray, rank: FloatArray) -> FloatArray:
    """Return the mean rank `(I,)` of the pairs that each image owns (equation 2); NaN where it owns none.

    A pair's owner is its image with the lower quality index, no matter which of the two drew it: a low similarity is taken
    for the fault of the worse image.
    """
    owner = np.where(index[image] <= index[mate], image, mate)  # (L,)
    n_owned = np.bincount(owner, minlength=len(index))  # (I,)
    rank_sum = np.bincount(owner, rank, len(index))
    return np.where(n_owned > 0, rank_sum / np.maximum(n_owned, 1), np.nan)


def index_shift(index: IntArray, mean_rank: FloatArray) -> FloatArray:
    """Return the bracket `(I,)` of equation 3, which `optimize_labels` multiplies by theta; 0 without own pairs."""
    return np.where(np.isnan(mean_rank), 0.0, mean_rank - index)


def reassign_scores(prior_scores: FloatArray, index: IntArray, optimized_index: FloatArray) -> FloatArray:
    """Return the scores `(I,)`: the image with the i-th lowest optimized index gets the i-th lowest prior score.

    Images of equal optimized index keep the order of their quality index.
    """
    score = np.empty(len(prior_scores))
    score[np.lexsort((index, optimized_index))] = np.sort(prior_scores)
    return score
