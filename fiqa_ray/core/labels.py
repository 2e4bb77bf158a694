"""Label optimization (paper III-C, equations 2 and 3): from prior scores and ranked mated pairs to optimized labels.

    id*(i) = id(i) + theta * (mean similarity rank of the pairs that i owns - id(i)),   averaged over the repeats,

then the images, sorted by id*, receive the prior scores in ascending order. A pair belongs to its lower-quality image; an
image that owns no pair keeps its index. Released code: LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques
src/iterative_optimization/optimize.py. Ranks run over L pairs, indices over I images; `raw` mixes them as published,
`normalized` scales the ranks by I / L first.

`core.paper` is the specification of the whole; the loops are `kernels.owners`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.candidates import PAPER_THETA, default_scale
from fiqa_ray.core.given_arrays import checked_embeddings, real_array
from fiqa_ray.core.kernels.owners import add_repeat, assign_sorted_scores, sum_ranks_by_owner
from fiqa_ray.core.kernels.sorting import stable_order
from fiqa_ray.core.kernels.threads import available_threads, one_thread
from fiqa_ray.core.label_result import OptimizedLabels as OptimizedLabels
from fiqa_ray.core.label_result import advice, sign_advice, sign_facts
from fiqa_ray.core.pairs import Pairs, mated_pairs, round_similarity
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.errors import UsageError

INDEX_SCALES = ("raw", "normalized")
COSINE_SLACK = 1e-2
"""By so much a given cosine may lie outside [-1, 1], as one of float16 vectors may."""
_PAIRS_SHARE = 0.6
"""Clusters and pairs take about this share of the time (for `progress`)."""


Thetas: TypeAlias = "float | Sequence[float]"


def optimize_labels(
    embeddings: NDArray[np.float32],
    identities: Sequence[Any] | NDArray[Any],
    prior_scores: ArrayLike | Mapping[str, ArrayLike],
    *,
    n_clusters: int = 20,
    theta: Thetas = PAPER_THETA,
    n_repeats: int = 10,
    seed: int = 0,
    index_scale: str | None = None,
    init: str = "random",
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Run the whole of section III-C in memory: no Ray, no files.

    It uses all threads that BLAS may use in this process (OMP_NUM_THREADS limits them).

    Args:
        embeddings: `(I, D) float32`.
        identities: `(I,)` of anything hashable, in any order; they are numbered in order of first appearance.
        prior_scores: `(I,)`, larger is better, or {method: `(I,)`}.
        n_clusters: C, clusters of an identity.
        theta: weight of the update, in [0, 1], or several.
        n_repeats: R.
        seed: of all random draws.
        index_scale: `raw` as published, or `normalized`; None: `raw` where theta is the paper's 0.001 alone.
        init: how K-Means chooses the images that it starts from: `random` or `k-means++`.
        device: `cpu` for the compiled loops, else a torch device such as `cuda`.
        progress: is called with the share of the work that is done, from 0 to 1.

    Returns:
        `OptimizedLabels`. If several thetas are given, {theta: labels}. If several methods are given, {method: these}.

    Raises:
        UsageError: arrays that do not fit together, or values that are not finite.

    Warns:
        UserWarning: people without pairs, more clusters than images, a theta that moves almost nothing, or one that is too
            large for the scale `raw`; scores that are all equal or seem to have the wrong sign; embeddings that are zero.

    Memory: the sum of
        - the pairs of all repeats, 8 bytes each: 1.5 kB per image at the defaults;
        - in each thread, 40 bytes per pair of one repeat;
        - where the images of an identity are not neighbours, a copy of the embeddings.
    """
    embeddings = checked_embeddings(embeddings, len(identities))
    if n_clusters < 1 or n_repeats < 1:
        raise UsageError(f"n_clusters={n_clusters} and n_repeats={n_repeats} must be at least 1")
    if init not in ("random", "k-means++"):
        raise UsageError(f"init={init!r} must be random or k-means++")
    thetas = _thetas(theta)
    index_scale = index_scale or default_scale(thetas)
    for value in thetas:
        check_theta(value, index_scale)
    methods = prior_scores if isinstance(prior_scores, Mapping) else {"": prior_scores}
    priors = {name: _checked_prior(name, scores, len(embeddings)) for name, scores in methods.items()}

    # pairs number the images person by person: their image i is the caller's image order[i]
    identity_row, n_identities = _identity_rows(identities)  # (I,)
    order = np.argsort(identity_row, kind="stable")  # (I,)
    n_images_of = np.bincount(identity_row, minlength=n_identities)  # (K,)
    is_sorted = bool((np.diff(identity_row) >= 0).all())
    n_threads = available_threads()
    repeats = mated_pairs(
        embeddings if is_sorted else embeddings[order],
        np.concatenate([[0], np.cumsum(n_images_of)]),
        np.arange(n_identities),
        n_clusters=n_clusters,
        n_repeats=n_repeats,
        seed=seed,
        init=init,
        device=device,
        n_threads=n_threads,
        progress=progress and (lambda share: progress(_PAIRS_SHARE * share)),
    )
    updates = {name: IndexUpdate(quality_index(prior)) for name, prior in priors.items()}
    for n_done in _add_repeats(updates, repeats, order, index_scale, n_threads):
        if progress:
            progress(_PAIRS_SHARE + (1 - _PAIRS_SHARE) * n_done / n_repeats)
    labels = {name: {t: _labels(priors[name], u, t) for t in thetas} for name, u in updates.items()}
    texts = list(advice(n_images_of, n_clusters, len(repeats[0].mate), index_scale, labels))
    for name, by_theta in labels.items():
        first = by_theta[thetas[0]]
        if len(first.score) > 1 and np.ptp(first.score) == 0:
            of = f"{name}: " if name else ""
            texts.append(f"{of}all {len(first.score):,} scores are equal, so they order nothing")
        else:
            texts += sign_advice(name, sign_facts(first.quality_index, first.mean_similarity_rank))
    for text in texts:
        warnings.warn(text, stacklevel=2)
    has_one_theta, has_one_method = np.ndim(theta) == 0, not isinstance(prior_scores, Mapping)
    by_method = {name: by_theta[thetas[0]] if has_one_theta else by_theta for name, by_theta in labels.items()}
    return by_method[""] if has_one_method else by_method


def _thetas(theta: Thetas) -> list[float]:
    """Return all thetas as floats; `UsageError` where there is none or one is no number."""
    values: list[Any] = [theta] if isinstance(theta, str) or np.ndim(theta) == 0 else list(theta)  # type: ignore[arg-type]
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError) as exc:
        raise UsageError(
            f"theta={theta!r} must be a number or several; fiqa_ray.choose_theta finds the best one on held-out people"
        ) from exc
    if not numbers:
        raise UsageError("theta is an empty list; give at least one number, such as 0.1")
    return numbers


def _add_repeats(
    updates: Mapping[str, IndexUpdate],
    repeats: Sequence[Pairs],
    order: NDArray[np.int64],
    index_scale: str,
    n_threads: int,
) -> Iterator[int]:
    """Add the repeats to each method's update, in their order, and yield how many are added.

    `order` `(I,)`: image i of the pairs is image order[i] of the updates.
    """
    indices = {name: update.index[order] for name, update in updates.items()}

    def sums_of(pairs: Pairs) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        return sum_owned_ranks(indices, pairs.n_opened, pairs.mate, pairs.similarity)

    with one_thread(), ThreadPoolExecutor(n_threads) as pool:
        for n_done, (pairs, sums) in enumerate(zip(repeats, pool.map(sums_of, repeats), strict=True), 1):
            scale = rank_scale(index_scale, len(order), len(pairs.mate))
            for name, (rank_sum, n_owned) in sums.items():
                updates[name].add(_reordered(rank_sum, order), _reordered(n_owned, order), scale)
            yield n_done


def optimize_from_pairs(
    prior_scores: ArrayLike,
    repeats: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    theta: float = PAPER_THETA,
    index_scale: str | None = None,
) -> OptimizedLabels:
    """Run label optimization on the caller's own pairs.

    Args:
        prior_scores: `(I,)` finite, larger is better.
        repeats: per repeat `image_row` and `mate_row`, `(L,)` integers, and `similarity`, `(L,)` in [-1, 1], which is
            rounded to multiples of 2^-23.
        theta: weight of the update, in [0, 1].
        index_scale: as in `optimize_labels`.

    Raises:
        UsageError: scores that are not finite, pairs whose arrays differ in length, rows that are no whole numbers or out
            of range, similarities outside [-1, 1], theta outside [0, 1], or an unknown index scale.
    """
    prior = checked_scores(prior_scores)
    index_scale = index_scale or default_scale([theta])
    check_theta(theta, index_scale)
    index = quality_index(prior)
    update = IndexUpdate(index)
    for r, (image_rows, mate_rows, similarities) in enumerate(repeats):
        image, mate, similarity = _checked_pairs(r, image_rows, mate_rows, similarities, len(prior))
        order = np.argsort(image, kind="stable")  # (L,) pairs by the image that opens them
        n_opened = np.bincount(image, minlength=len(prior))
        sums = sum_owned_ranks({"": index}, n_opened, mate[order].astype(np.int32), round_similarity(similarity[order]))
        update.add(*sums[""], rank_scale(index_scale, len(prior), len(image)))
    return _labels(prior, update, theta)


def _checked_pairs(
    repeat: int, image_rows: ArrayLike, mate_rows: ArrayLike, similarities: ArrayLike, n_images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs of a repeat as arrays; `UsageError` for what cannot be pairs of `n_images` images."""
    image, mate, similarity = (np.asarray(values) for values in (image_rows, mate_rows, similarities))
    shapes = {"image_row": image.shape, "mate_row": mate.shape, "similarity": similarity.shape}
    if image.ndim != 1 or len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UsageError(f"repeat {repeat}: arrays of one length are needed, one entry per pair, got {said}")
    for name, rows in (("image_row", image), ("mate_row", mate)):
        if len(rows) and not np.issubdtype(rows.dtype, np.integer):
            raise UsageError(f"repeat {repeat}: {name} must hold whole numbers, got {rows.dtype}")
        if len(rows) and (rows.min() < 0 or rows.max() >= n_images):
            raise UsageError(
                f"repeat {repeat}: {name} runs from {rows.min()} to {rows.max()}, but there are {n_images} prior scores; "
                "rows count from 0"
            )
    if not np.isfinite(similarity).all():
        raise UsageError(
            f"repeat {repeat}: a similarity is NaN or infinite; drop the pairs of images without embedding"
        )
    if len(similarity) and np.abs(similarity).max() > 1 + COSINE_SLACK:
        worst = similarity[np.abs(similarity).argmax()]
        raise UsageError(f"repeat {repeat}: a similarity is {worst:g}; give cosines, which lie in [-1, 1]")
    return image.astype(np.int64), mate.astype(np.int64), similarity


def quality_index(prior_scores: ArrayLike) -> NDArray[np.int64]:
    """Return the rank of each score: 0 is the worst image; ties keep their row order."""
    order = stable_order(np.asarray(prior_scores))
    index = np.empty(len(order), np.int64)
    index[order] = np.arange(len(order))
    return index


def sum_owned_ranks(
    indices: Mapping[str, NDArray[np.int64]],
    n_opened: NDArray[Any],
    mate: NDArray[np.int32],
    similarity: NDArray[np.float32],
    ranks: RankTable | None = None,
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sum the ranks of the pairs that each image owns, for every FIQA method.

    Args:
        indices: quality indices `(I,)` by method, negative where the image has no score: a pair with such an image has no
            owner.
        n_opened: `(I,)` pairs that each image opens. `mate` and `similarity` hold first the n_opened[0] pairs of image 0,
            then those of image 1, and so on.
        mate: `(L,) int32` positions.
        similarity: `(L,) float32`, multiples of 2^-23.
        ranks: rank table of the whole repeat, if these pairs are only a part of it. Default: rank these pairs among
            themselves.

    Returns:
        By method, the doubled rank sums and the numbers of owned pairs, both `(I,) int64`. Sums of whole numbers do not
        depend on their order.

    Raises:
        ValueError: arrays that do not fit together.

    Memory: 4 bytes per pair, 8 where ranks need int64; without `ranks` 4 more, and 100 MB.
    """
    n_images = len(n_opened)
    if not len(mate) == len(similarity) == int(n_opened.sum()) or (n_images and n_opened.min() < 0):
        raise ValueError(
            f"{len(mate)} mates, {len(similarity)} similarities and {int(n_opened.sum())} pairs opened: pairs and clusters "
            "are of different runs"
        )
    if len(mate) and not 0 <= mate.min() <= mate.max() < n_images:
        raise ValueError(f"mates must be rows below {n_images}, the number of images")
    doubled_rank = (ranks or RankTable.among(similarity)).doubled_ranks(similarity)  # (L,)
    sums = {}
    for method, index in indices.items():
        if len(index) != n_images:
            raise ValueError(f"{len(index)} quality indices {method!r} for {n_images} images")
        rank_sum, n_owned = np.zeros(n_images, np.int64), np.zeros(n_images, np.int64)
        sum_ranks_by_owner(np.asarray(index, np.int64), n_opened, mate, doubled_rank, rank_sum, n_owned)
        sums[method] = rank_sum, n_owned
    return sums


class IndexUpdate:
    """Equation 3 averaged over the repeats, for one method.

    Call `add` for each repeat, in their order; then `optimized_index` for any theta.
    """

    def __init__(self, index: NDArray[np.int64]) -> None:
        """Start from the quality indices `(I,)`."""
        self.index = index
        self.n_owned_pairs = np.zeros(len(index), np.int64)
        self._shift_sum = np.zeros(len(index))
        self._mean_rank_sum = np.zeros(len(index))
        self._n_owning_repeats = np.zeros(len(index), np.int64)
        self._n_repeats = 0

    def add(self, rank_sum: NDArray[np.int64], n_owned: NDArray[np.int64], scale: float = 1.0) -> None:
        """Add one repeat: its `sum_owned_ranks` and its `rank_scale`."""
        if not len(rank_sum) == len(n_owned) == len(self.index):
            raise ValueError(f"{len(rank_sum)} rank sums and {len(n_owned)} counts for {len(self.index)} images")
        sums = self._shift_sum, self._mean_rank_sum, self._n_owning_repeats, self.n_owned_pairs
        add_repeat(self.index, rank_sum, n_owned, scale, *sums)
        self._n_repeats += 1

    def optimized_index(self, theta: float) -> NDArray[np.float64]:
        """Return `(I,)` equation 3: the mean over the repeats of id + theta * (mean rank - id)."""
        return self.index + theta * (self._shift_sum / max(self._n_repeats, 1))

    @property
    def mean_similarity_rank(self) -> NDArray[np.float64]:
        """Mean rank `(I,)` of owned pairs, NaN where no repeat gave the image a pair."""
        n = self._n_owning_repeats
        return np.where(n > 0, self._mean_rank_sum / np.maximum(n, 1), np.nan)


def reassign_scores(
    prior_scores: ArrayLike, index: NDArray[np.int64], optimized_index: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32], float]:
    """Sort images by optimized index and give the i-th image the i-th lowest prior score; ties go by quality index.

    Args:
        prior_scores: `(I,)`.
        index: `(I,)` their quality indices.
        optimized_index: `(I,)`.

    Returns:
        `score` `(I,) float64`, a permutation of the prior scores; `label` `(I,) float32`, the scores scaled to [0, 1]; and
        by how many ranks an image moved on average.
    """
    prior = np.asarray(prior_scores, np.float64)
    order = stable_order(optimized_index, index)
    ascending, score = np.empty_like(prior), np.empty_like(prior)
    total_move = assign_sorted_scores(prior, np.asarray(index, np.int64), order, ascending, score)
    return score, scale_to_unit(score), total_move / max(len(prior), 1)


def scale_to_unit(score: NDArray[np.float64], extremes: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Scale scores `(I,)` to labels in [0, 1] by min-max (released transfer-learning code); 0 where all are equal.

    `extremes` are the lowest and the highest of all scores, if `score` holds only a part of them.
    """
    if extremes is None:
        extremes = (score.min(), score.max()) if len(score) else (0.0, 0.0)
    low, high = extremes
    above: NDArray[np.float64] = score - low + 0.0  # -0 becomes 0: labels do not depend on which zero is the lowest
    return (above / (high - low if high > low else 1.0)).astype(np.float32)


def rank_scale(index_scale: str, n_images: int, n_pairs: int) -> float:
    """Return the factor on similarity ranks: 1 for `raw`, I / L for `normalized`."""
    return 1.0 if index_scale == "raw" or n_pairs == 0 else n_images / n_pairs


def check_theta(theta: float, index_scale: str) -> None:
    """Raise `UsageError` for a theta outside [0, 1] or an unknown index scale."""
    if not 0 <= theta <= 1:
        raise UsageError(f"theta={theta} is outside [0, 1]; the paper uses 0.001")
    if index_scale not in INDEX_SCALES:
        raise UsageError(f"index_scale={index_scale!r} is unknown; choose one of {', '.join(INDEX_SCALES)}")


def checked_scores(prior_scores: ArrayLike) -> NDArray[np.float64]:
    """Return the prior scores `(I,)` as float64; `UsageError` names the first that is not finite."""
    prior = real_array("prior scores", prior_scores, np.float64)
    if prior.ndim != 1:
        raise UsageError(f"prior scores must be of shape (n_images,), got {prior.shape}")
    bad = np.flatnonzero(~np.isfinite(prior))
    if len(bad):
        raise UsageError(f"prior score of image {bad[0]} is {prior[bad[0]]} ({len(bad)} such): scores must be finite")
    return prior


def _checked_prior(name: str, scores: ArrayLike, n_images: int) -> NDArray[np.float64]:
    values = checked_scores(scores)
    if len(values) != n_images:
        of = f" of {name}" if name else ""
        raise UsageError(f"{len(values)} prior scores{of} for {n_images} embeddings: one score per image")
    return values


def _identity_rows(identities: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Return the identity row `(I,)` of each image, in order of first appearance, and their number K."""
    if hasattr(identities, "__array__"):  # torch tensors and Arrow arrays would give objects of their own
        identities = np.asarray(identities)
    if isinstance(identities, np.ndarray) and identities.dtype != object and len(identities):
        unlike, first, inverse = np.unique(identities, return_index=True, return_inverse=True)
        _refuse_nobody(unlike.tolist())
        by_appearance = np.empty(len(first), np.int64)
        by_appearance[np.argsort(first)] = np.arange(len(first))
        return by_appearance[inverse], len(first)
    row_of: dict[Any, int] = {}
    rows = np.array([row_of.setdefault(identity, len(row_of)) for identity in identities], np.int64)
    _refuse_nobody(row_of)
    return rows, len(row_of)


def _refuse_nobody(identities: Iterable[Any]) -> None:
    """Raise UsageError for None, NaN and an empty name: images without an identity are not images of one person."""
    for identity in identities:
        if identity is None or identity != identity or identity in ("", b""):
            raise UsageError(f"an image has the identity {identity!r}; name its person, or leave the image out")


def _reordered(values: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an array whose entry order[i] is values[i]."""
    result = np.empty_like(values)
    result[order] = values
    return result


def _labels(prior: NDArray[np.float64], update: IndexUpdate, theta: float) -> OptimizedLabels:
    optimized = update.optimized_index(theta)
    score, label, mean_ranks_moved = reassign_scores(prior, update.index, optimized)
    return OptimizedLabels(
        label,
        score,
        optimized,
        update.index,
        update.mean_similarity_rank,
        update.n_owned_pairs,
        theta,
        mean_ranks_moved / max(len(prior), 1),
    )
