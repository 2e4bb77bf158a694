"""Label optimization (paper III-C, equations 2 and 3): from prior scores and ranked mated pairs to optimized labels.

    id*(i) = id(i) + theta * (mean similarity rank of the pairs that i owns - id(i)),   averaged over the repeats,

then the images, sorted by id*, receive the original scores in ascending order. A pair belongs to its lower-quality image;
an image that owns no pair keeps its index. Released code: LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques
src/iterative_optimization/optimize.py. Ranks run over L pairs, indices over N images; "raw" mixes them as published,
"normalized" scales the ranks by N/L first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fiqa_ray.core.kernels.owners import _add_repeat, _deal, _sum_owned
from fiqa_ray.core.kernels.sorting import stable_order
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.pairs import Pairs, mated_pairs, round_similarity
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.errors import UsageError

INDEX_SCALES = ("raw", "normalized")


@dataclass(frozen=True)
class OptimizedLabels:
    """The labels of one FIQA method, in the caller's image order; all arrays are (n_images,).

    ``label``: float32 in [0, 1]; ``score``: float64, the prior scores dealt out anew; ``optimized_index``: float64;
    ``quality_index``: int64, place of the prior score; ``mean_similarity_rank``: float64, mean over the repeats in which
    the image owned a pair, NaN where it never did; ``n_owned_pairs``: int64 over all repeats.
    """

    label: np.ndarray
    score: np.ndarray
    optimized_index: np.ndarray
    quality_index: np.ndarray
    mean_similarity_rank: np.ndarray
    n_owned_pairs: np.ndarray


def quality_index(prior_scores: np.ndarray) -> np.ndarray:
    """Place of each score in the ascending stable order, int64 from 0 (the worst image); ties keep their row order."""
    order = stable_order(prior_scores)
    index = np.empty(len(order), np.int64)
    index[order] = np.arange(len(order))
    return index


def sum_owned_ranks(
    indices: Mapping[str, np.ndarray],
    n_opened: np.ndarray,
    mate: np.ndarray,
    similarity: np.ndarray,
    ranks: RankTable | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Doubled rank sums and pair counts of the pair owners, both (n_images,) int64, for every FIQA method.

    ``indices``: (n_images,) int quality indices by method, negative where the image has no score: a pair with such an image
    has no owner. ``n_opened``: (n_images,) int, the pairs that each image opens, one behind the other; ``mate``:
    (n_pairs,) int32 positions; ``similarity``: (n_pairs,) float32, multiples of 2^-23. ``ranks``: those of a repeat that
    holds more than these pairs; without, they are ranked among themselves. Sums are whole numbers: independent of order.
    Memory: 4 bytes per pair, 8 where ranks need int64; without ``ranks`` 4 more, and 100 MB.
    """
    n_images = len(n_opened)
    if not len(mate) == len(similarity) == int(n_opened.sum()) or (n_images and n_opened.min() < 0):
        raise ValueError(
            f"{len(mate)} mates, {len(similarity)} similarities and {int(n_opened.sum())} pairs opened: pairs and clusters "
            "are of different runs"
        )
    if len(mate) and not 0 <= mate.min() <= mate.max() < n_images:
        raise ValueError(f"mates must be rows below {n_images}, the number of images")
    rank2 = (ranks or RankTable.among(similarity)).rank2(similarity)
    found = {}
    for method, index in indices.items():
        if len(index) != n_images:
            raise ValueError(f"{len(index)} quality indices {method!r} for {n_images} images")
        total, count = np.zeros(n_images, np.int64), np.zeros(n_images, np.int64)
        _sum_owned(np.asarray(index, np.int64), n_opened, mate, rank2, total, count)
        found[method] = total, count
    return found


class IndexUpdate:
    """Averages equation 3 over the repeats, for one method and any theta: feed `add` in repeat order."""

    def __init__(self, index: np.ndarray) -> None:
        """``index``: (n_images,) int64 quality indices."""
        self.index = index
        self._shift = np.zeros(len(index))
        self._mean_rank = np.zeros(len(index))
        self._n_owning_repeats = np.zeros(len(index), np.int64)
        self.n_owned_pairs = np.zeros(len(index), np.int64)
        self._n_repeats = 0

    def add(self, rank2_sum: np.ndarray, n_owned: np.ndarray, scale: float = 1.0) -> None:
        """Takes one repeat's `sum_owned_ranks` and its `rank_scale`."""
        if not len(rank2_sum) == len(n_owned) == len(self.index):
            raise ValueError(f"{len(rank2_sum)} rank sums and {len(n_owned)} counts for {len(self.index)} images")
        kept = self._shift, self._mean_rank, self._n_owning_repeats, self.n_owned_pairs
        _add_repeat(self.index, rank2_sum, n_owned, scale, *kept)
        self._n_repeats += 1

    def optimized_index(self, theta: float) -> np.ndarray:
        """(n_images,) float64: the mean over the repeats of id + theta * (mean rank - id)."""
        return self.index + theta * (self._shift / max(self._n_repeats, 1))

    @property
    def mean_similarity_rank(self) -> np.ndarray:
        """(n_images,) float64, NaN where no repeat gave the image a pair."""
        n = self._n_owning_repeats
        return np.where(n > 0, self._mean_rank / np.maximum(n, 1), np.nan)


def reassign_scores(
    prior_scores: np.ndarray, index: np.ndarray, optimized_index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Deals the prior scores out anew by ascending optimized index (ties: by quality index).

    ``index``: (n_images,) int64, the quality indices. Returns ``score`` (n_images,) float64, a permutation of the prior
    scores; ``label`` (n_images,) float32: the score scaled to [0, 1] over all images (0 where all scores are equal); and how
    many places an image moved on average.
    """
    prior = np.asarray(prior_scores, np.float64)
    order = stable_order(optimized_index, index)
    ascending, score = np.empty_like(prior), np.empty_like(prior)
    n_moves = _deal(prior, np.asarray(index, np.int64), order, ascending, score)
    return score, scale_to_unit(score), n_moves / max(len(prior), 1)


def scale_to_unit(score: np.ndarray) -> np.ndarray:
    """(n,) scores to float32 labels: min-max over all of them (released transfer-learning code); 0 where all are equal."""
    low, high = (score.min(), score.max()) if len(score) else (0.0, 0.0)
    return ((score - low) / (high - low if high > low else 1.0)).astype(np.float32)


def optimize_from_pairs(
    prior_scores: np.ndarray,
    repeats: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    theta: float = 1e-3,
    index_scale: str = "raw",
) -> OptimizedLabels:
    """Label optimization on the caller's own pairs.

    ``prior_scores``: (n_images,) finite floats, larger is better. ``repeats``: one triple per repeat of ``image_row`` and
    ``mate_row`` (n_pairs,) int and ``similarity`` (n_pairs,) in [-1, 1] (rounded here to multiples of 2^-23).
    Errors: `UsageError` for scores that are not finite, rows out of range, theta outside [0, 1], an unknown index scale.
    """
    prior = checked_scores(prior_scores)
    check_theta(theta, index_scale)
    index = quality_index(prior)
    update = IndexUpdate(index)
    for r, (image, mate, similarity) in enumerate(repeats):
        image, mate = np.asarray(image, np.int64), np.asarray(mate, np.int64)
        for name, rows in (("image_row", image), ("mate_row", mate)):
            if len(rows) and (rows.min() < 0 or rows.max() >= len(prior)):
                raise UsageError(
                    f"repeat {r}: {name} runs from {rows.min()} to {rows.max()}, but there are {len(prior)} prior scores; "
                    "rows count from 0"
                )
        if not np.isfinite(similarity).all():
            raise UsageError(f"repeat {r}: a similarity is NaN or infinite; drop the pairs of images without embedding")
        order = np.argsort(image, kind="stable")
        n_opened, mate = np.bincount(image, minlength=len(prior)), mate[order].astype(np.int32)
        rounded = round_similarity(np.asarray(similarity)[order])
        owned = sum_owned_ranks({"": index}, n_opened, mate, rounded)
        update.add(*owned[""], rank_scale(index_scale, len(prior), len(image)))
    return _deal_out(prior, update, theta)


def _deal_out(prior: np.ndarray, update: IndexUpdate, theta: float) -> OptimizedLabels:
    optimized = update.optimized_index(theta)
    score, label, _ = reassign_scores(prior, update.index, optimized)
    return OptimizedLabels(label, score, optimized, update.index, update.mean_similarity_rank, update.n_owned_pairs)


def optimize_labels(
    embeddings: np.ndarray,
    identities: Sequence[Any] | np.ndarray,
    prior_scores: np.ndarray | Mapping[str, np.ndarray],
    *,
    n_clusters: int = 20,
    theta: float = 1e-3,
    n_repeats: int = 10,
    seed: int = 0,
    index_scale: str = "raw",
    device: str = "cpu",
) -> OptimizedLabels | dict[str, OptimizedLabels]:
    """The whole of section III-C in memory: no Ray, no files.

    ``embeddings``: (n_images, dim) float32; ``identities``: (n_images,) of anything hashable, in any order;
    ``prior_scores``: (n_images,) floats, larger is better, or {method: (n_images,)}, which gives {method: labels}.
    Identity rows count in order of first appearance. Errors: `UsageError` for arrays that do not fit together or values
    that are not finite. Uses all of this process's torch threads. Memory: the pairs of all repeats, 8 bytes each (1.5 kB per
    image at the defaults), 40 bytes more per pair of one repeat and thread, one copy of the embeddings where identities are
    scattered.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or not np.isfinite(embeddings).all():
        raise UsageError(f"embeddings must be finite and of shape (n_images, dim), got {embeddings.shape}")
    if len(identities) != len(embeddings):
        raise UsageError(f"{len(embeddings)} embeddings but {len(identities)} identities: one identity per embedding")
    if n_clusters < 1 or n_repeats < 1:
        raise UsageError(f"n_clusters={n_clusters} and n_repeats={n_repeats} must be at least 1")
    check_theta(theta, index_scale)
    methods = prior_scores if isinstance(prior_scores, Mapping) else {"": prior_scores}
    priors = {}
    for name, scores in methods.items():
        if len(scores) != len(embeddings):
            raise UsageError(
                f"{len(scores)} prior scores {name!r} for {len(embeddings)} embeddings: one score per image"
            )
        priors[name] = checked_scores(np.asarray(scores))
    row, n_identities = _identity_rows(identities)
    order = np.argsort(row, kind="stable")
    together = bool((np.diff(row) >= 0).all())  # identities lie one behind the other
    n_threads = torch.get_num_threads()
    repeats = mated_pairs(
        embeddings if together else embeddings[order],
        np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n_identities))]),
        np.arange(n_identities),
        n_clusters=n_clusters,
        n_repeats=n_repeats,
        seed=seed,
        device=device,
        n_threads=n_threads,
    )
    updates = {name: IndexUpdate(quality_index(prior)) for name, prior in priors.items()}
    places = {name: update.index[order] for name, update in updates.items()}

    def owned(pairs: Pairs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return sum_owned_ranks(places, pairs.n_opened, pairs.mate, pairs.similarity)

    with one_thread(), ThreadPoolExecutor(n_threads) as pool:
        for pairs, found in zip(repeats, pool.map(owned, repeats), strict=True):
            for name, (total, count) in found.items():
                scale = rank_scale(index_scale, len(row), len(pairs.mate))
                rank2_sum, n_owned = np.empty_like(total), np.empty_like(count)
                rank2_sum[order], n_owned[order] = total, count
                updates[name].add(rank2_sum, n_owned, scale)
    results = {name: _deal_out(priors[name], update, theta) for name, update in updates.items()}
    return results if isinstance(prior_scores, Mapping) else results[""]


def _identity_rows(identities: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, int]:
    """(n_images,) int64 identity rows in order of first appearance, and their number."""
    if isinstance(identities, np.ndarray) and identities.dtype != object and len(identities):
        _, first, inverse = np.unique(identities, return_index=True, return_inverse=True)
        by_appearance = np.empty(len(first), np.int64)
        by_appearance[np.argsort(first)] = np.arange(len(first))
        return by_appearance[inverse], len(first)
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(identity, len(seen)) for identity in identities], np.int64), len(seen)


def rank_scale(index_scale: str, n_images: int, n_pairs: int) -> float:
    """Factor on similarity ranks: 1 for "raw", N/L for "normalized"."""
    return 1.0 if index_scale == "raw" or n_pairs == 0 else n_images / n_pairs


def check_theta(theta: float, index_scale: str) -> None:
    """Raises `UsageError` for a theta outside [0, 1] or an unknown index scale."""
    if not 0 <= theta <= 1:
        raise UsageError(f"theta={theta} is outside [0, 1]; the paper uses 0.001")
    if index_scale not in INDEX_SCALES:
        raise UsageError(f"index_scale={index_scale!r} is unknown; choose one of {', '.join(INDEX_SCALES)}")


def checked_scores(prior_scores: np.ndarray) -> np.ndarray:
    """(n_images,) float64 prior scores; `UsageError` names the first that is not finite."""
    prior = np.asarray(prior_scores, np.float64)
    if prior.ndim != 1:
        raise UsageError(f"prior scores must be of shape (n_images,), got {prior.shape}")
    bad = np.flatnonzero(~np.isfinite(prior))
    if len(bad):
        raise UsageError(f"prior score of image {bad[0]} is {prior[bad[0]]} ({len(bad)} such): scores must be finite")
    return prior
