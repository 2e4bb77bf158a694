"""Theta chosen on people who were held out: does a prior gain from label optimization, at which theta, and by how much?

The people are divided into folds. For each candidate theta and each fold a head learns from the other folds and scores this
one; so every image has a score of a head that never saw its person. The criterion is the area under the
error-versus-discard curve of mated pairs. Theta 0 stands for the prior labels. A theta is chosen only where it is better
than 0 by more than its interval; else the labels are left alone. The threshold follows from a false match rate of non-mated
pairs; if fewer than 5 % of the mated pairs then fail, the threshold is raised until 10 % do.

The head is fitted by least squares on the standardised embedding and its norm, in closed form: it has no training noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from fiqa_ray.core.bootstrap import AreaDraws, bootstrap_areas
from fiqa_ray.core.candidates import CANDIDATES, MIN_SEPARATION, N_FOLDS
from fiqa_ray.core.conventions import CONVENTIONS, Cell, changed
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.label_result import sign_doubt, sign_facts
from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.core.verification import threshold_at_fmr
from fiqa_ray.errors import UsageError

N_DRAWS = 400
LEVEL = 0.95

MAX_MATED, MAX_NONMATED = 6_000, 24_000
"""Pairs that the choice is made on."""
MIN_PEOPLE = N_FOLDS
"""With fewer people of two images there is no choice."""
MIN_ERRORS = 20
"""With fewer mated pairs below the threshold, and with fewer false matches allowed, an area says nothing."""

TRAINING_SPREAD = float(np.sqrt(1 + N_FOLDS / (N_FOLDS - 1)))
"""Factor on the spread of the draws, which resample people and do not train heads again. Heads of K folds share most of
their people, so the variance of the folds' mean is not S^2 / K but (1 / K + n_test / n_train) S^2, where n_test / n_train is
1 / (K - 1): the correction of Nadeau and Bengio (Inference for the generalization error, Machine Learning 52, 2003)."""

RIDGE = 0.01
"""Weight of the squared coefficients, as a share of the images, against overfitting where images are few."""

AT_FMR = CONVENTIONS["dasec"]
"""Convention of the curve: one threshold for all levels, so that its noise is shared by all candidates. Only mated pairs are
discarded, so non-mated ones need no scores and need not lie within a fold."""
MIN_FNMR = 0.05
"""Where the rate makes fewer of the mated pairs errors, the threshold is raised to that of `AT_FNMR`."""
AT_FNMR = changed("held-out", "dasec", starting_fnmr=0.1)


@dataclass(frozen=True)
class ThetaCurve:
    """What each candidate is worth on held-out people, and which one is chosen.

    Attributes:
        theta: the candidates, rising, 0 among them.
        area: area under the curve at each; lower is better. NaN where there is none.
        gain: area minus that of theta 0; below 0 the candidate is better.
        low, high: `LEVEL` interval of the gain over people; NaN where there is none.
        chosen: the chosen theta.
        reason: why there is no interval; empty where there are some.
        n_people, n_images, n_mated, n_nonmated: what the areas stand on.
        fmr: false match rate of the threshold; NaN where the threshold was set by the FNMR of `AT_FNMR`.
        fnmr: false non-match rate before anything is discarded.
        sign: what the similarities of pairs say against the sign of the prior, by `sign_doubt`; empty if they confirm it.
    """

    theta: tuple[float, ...]
    area: tuple[float, ...]
    gain: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    chosen: float
    reason: str
    n_people: int
    n_images: int
    n_mated: int
    n_nonmated: int
    fmr: float
    fnmr: float
    sign: str = ""

    def sentence(self, method: str = "This prior") -> str:
        """Return in one sentence whether the prior gains, and by how much."""
        people = f"{self.n_people:,} held-out people"
        if self.reason:
            return f"{method}: no theta could be compared on {people} ({self.reason}); its labels are its scores unchanged."
        at = self.theta.index(self.chosen)
        if self.chosen == 0:
            best = min(range(1, len(self.theta)), key=lambda i: self.gain[i])
            change = self._change(best)
            if self.gain[best] >= 0:
                why = f"on {people} no theta is better than 0; {self.theta[best]:g} changes the area x 1000 by {change}"
            else:
                seen = 1e3 * (self.gain[best] - self.low[best])
                why = f"on {people} the best theta, {self.theta[best]:g}, changes the area x 1000 by {change}, and a gain "
                why += f"below {seen:.1f} cannot be told from none there"
                surest = min(range(1, len(self.theta)), key=self._evidence)
                if surest != best:
                    why += f"; the surest change is that of theta {self.theta[surest]:g}, {self._change(surest)}"
            return f"{method} does not gain measurably: {why}; its labels are its scores unchanged."
        change = (
            f"on {people} the area x 1000 falls from {1e3 * self.area[0]:.1f} to {1e3 * self.area[at]:.1f} "
            f"({self._change(at)})."
        )
        if self.chosen == 1:
            change += " At theta 1, the last candidate, the similarities alone order the images that have pairs."
        if self.sign:
            doubt = f"{self.sign[0].upper()}{self.sign[1:]}"
            return f"{method}, whose sign is in doubt, has theta {self.chosen:g}: {change} {doubt}."
        return f"{method} gains at theta {self.chosen:g}: {change}"

    def _change(self, i: int) -> str:
        return f"{_permille(self.gain[i])} [{_permille(self.low[i])}, {_permille(self.high[i])}]"

    def _evidence(self, i: int) -> float:
        """Return the gain of a candidate as a share of its interval's half width: the lower, the surer is a gain."""
        return self.gain[i] / max(self.gain[i] - self.low[i], 1e-12)


def _permille(value: float) -> str:
    return f"{1e3 * value:+.1f}"


def choose_theta(
    embeddings: NDArray[np.float32],
    identities: Sequence[Any] | NDArray[Any],
    prior_scores: NDArray[np.floating[Any]],
    *,
    n_clusters: int = 20,
    n_repeats: int = 10,
    fmr: float = 1e-3,
    seed: int = 0,
) -> ThetaCurve:
    """Optimize labels at every candidate theta, and choose one on held-out people.

    Args:
        embeddings: `(I, D) float32`, raw.
        identities: `(I,)` person of each image.
        prior_scores: `(I,)` finite, larger is better.
        n_clusters: C.
        n_repeats: R.
        fmr: as in `compare_thetas`.
        seed: of all random draws.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="theta=")  # small candidates move little, as they should
        labels = optimize_labels(
            embeddings,
            identities,
            prior_scores,
            n_clusters=n_clusters,
            theta=list(CANDIDATES),
            n_repeats=n_repeats,
            seed=seed,
            index_scale="normalized",
        )
    _, person = np.unique(np.asarray(identities), return_inverse=True)
    targets = {theta: result.label for theta, result in labels.items()}
    curve = compare_thetas(np.asarray(embeddings, np.float32), person, targets, fmr=fmr, seed=seed)
    facts = sign_facts(labels[0.0].quality_index, labels[0.0].mean_similarity_rank)
    return replace(curve, sign=sign_doubt("", facts))


def compare_thetas(
    embeddings: NDArray[np.float32],
    identities: NDArray[np.integer[Any]],
    targets: Mapping[float, NDArray[np.floating[Any]]],
    *,
    fmr: float = 1e-3,
    seed: int = 0,
) -> ThetaCurve:
    """Compare label sets by heads that are fitted to them, on people whom the heads have not seen.

    Args:
        embeddings: `(I, D) float32`, raw.
        identities: `(I,)` person of each image.
        targets: labels `(I,)` in [0, 1] of each candidate theta, 0 among them.
        fmr: false match rate of the threshold; raised where the pairs allow fewer than `MIN_ERRORS` false matches.
        seed: of folds, pairs and draws.

    Returns:
        The areas and the choice.
    """
    thetas = tuple(sorted(targets))
    if len(thetas) < 2 or thetas[0] != 0:
        raise UsageError(f"thetas {thetas} must hold 0, which stands for the labels as they are, and at least one more")
    _, person = np.unique(identities, return_inverse=True)
    rng = np.random.default_rng([seed, 17])
    fold = rng.permutation(np.arange(person.max(initial=0) + 1) % N_FOLDS)[person]
    pairs = HeldoutPairs.draw(person, rng)
    n_people = len(np.unique(person[pairs.row_a[pairs.mated]]))
    n_mated, n_nonmated = int(pairs.mated.sum()), int((~pairs.mated).sum())
    reason = ""
    if n_people < MIN_PEOPLE:
        reason = f"{n_people} people with two images or more are too few: {MIN_PEOPLE} are needed"
    elif n_nonmated < 4 * MIN_ERRORS:
        reason = f"{n_nonmated} non-mated pairs are too few"
    areas: AreaDraws | None = None
    rate = fnmr = np.nan
    similarity = _similarities(embeddings, pairs)
    if not reason and (separation := _separation(similarity, pairs.mated)) < MIN_SEPARATION:
        reason = (
            f"the recogniser barely tells them apart: mated similarities lie {separation:.2f} standard deviations above "
            f"non-mated ones, {MIN_SEPARATION:g} are needed; `fiqa-ray doctor` looks for the cause"
        )
    if not reason:
        scores = heldout_scores(embeddings, fold, np.stack([targets[t] for t in thetas], axis=1))
        by_theta = dict(zip(thetas, scores.T, strict=True))
        areas, cell = _areas(similarity, person, pairs, by_theta, max(fmr, MIN_ERRORS / n_nonmated), seed)
        rate = np.nan if cell[1] is None else cell[1]
        fnmr = float(areas.curves[_name(0.0), cell].fnmr[0])
        n_errors = round(fnmr * n_mated)
        if n_errors < MIN_ERRORS:
            reason = f"{n_errors} errors among {n_mated} mated pairs are too few: {MIN_ERRORS} are needed"
    area = gain = low = high = (np.nan,) * len(thetas)
    if areas is not None:
        area = tuple(areas.curves[_name(t), cell].auc() for t in thetas)
    if areas is not None and not reason:
        gain, low, high = _gains(areas, thetas, cell, n_people)
    better = [i for i in range(len(thetas)) if high[i] < 0]
    chosen = thetas[min(better, key=lambda i: area[i])] if better else 0.0
    return ThetaCurve(
        thetas, area, gain, low, high, chosen, reason, n_people, len(person), n_mated, n_nonmated, rate, fnmr
    )


@dataclass(frozen=True)
class HeldoutPairs:
    """Pairs to choose on: `(L,)` rows of both images, and whether they show one person."""

    row_a: NDArray[np.int64]
    row_b: NDArray[np.int64]
    mated: NDArray[np.bool_]

    @staticmethod
    def draw(person: NDArray[np.int64], rng: np.random.Generator) -> HeldoutPairs:
        """Draw up to `MAX_MATED` mated pairs, shared out evenly among the people with two images, and non-mated ones of all.

        Each pair is drawn once.

        Args:
            person: `(I,)`, dense from 0.
            rng: of the draws.
        """
        if not len(person):
            none = np.empty(0, np.int64)
            return HeldoutPairs(none, none, np.empty(0, np.bool_))
        order = np.argsort(person, kind="stable")
        sizes = np.bincount(person)
        first = np.concatenate([[0], np.cumsum(sizes)])
        per_person = max(1, MAX_MATED // max(int((sizes > 1).sum()), 1))
        mated = []
        for start, n in zip(first, sizes, strict=False):
            if n <= 50:
                a, b = np.triu_indices(n, 1)
            else:
                a, b = np.unique(np.sort(rng.integers(0, n, (2, 4 * per_person)), axis=0), axis=1)
                a, b = a[a != b], b[a != b]
            chosen = rng.permutation(len(a))[:per_person]
            mated.append(order[start + np.stack([a[chosen], b[chosen]])])
        drawn = rng.integers(0, len(person), (2, MAX_NONMATED))
        drawn = np.unique(np.sort(drawn[:, person[drawn[0]] != person[drawn[1]]], axis=0), axis=1)
        both = np.concatenate([*mated, drawn], axis=1)
        return HeldoutPairs(both[0], both[1], np.arange(both.shape[1]) < sum(m.shape[1] for m in mated))


def heldout_scores(
    embeddings: NDArray[np.float32], fold: NDArray[np.int64], targets: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Return scores `(I, T)` for T thetas: each fold's by heads fitted to the targets `(I, T)` of the other folds.

    The sums of the other folds are those of all images less those of the fold, so that ten folds cost little more than one.
    """
    x = embeddings.astype(np.float64)
    x = np.hstack([x, np.linalg.norm(x, axis=1, keepdims=True)])
    centre, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-12)
    x = (x - centre) / deviation  # so that sums of all images less those of a fold keep their digits
    n_inputs = x.shape[1]
    columns = np.hstack([x, targets, np.ones((len(x), 1))])
    total = x.T @ columns, columns.sum(axis=0)
    scores = np.empty(targets.shape)
    for f in np.unique(fold):
        held = fold == f
        n_train = len(x) - held.sum()
        products, sums = total[0] - x[held].T @ columns[held], total[1] - columns[held].sum(axis=0)
        mean, level = sums[:n_inputs] / n_train, sums[n_inputs:-1] / n_train
        covariance = products[:, :-1] - np.outer(mean, sums[:-1])
        spread = np.sqrt(np.maximum(np.diag(covariance[:, :n_inputs]) / n_train, 1e-6))  # 1 but for constant inputs
        gram = covariance[:, :n_inputs] / np.outer(spread, spread) + RIDGE * n_train * np.eye(n_inputs)
        weight = np.linalg.solve(gram, covariance[:, n_inputs:] / spread[:, None])
        scores[held] = ((x[held] - mean) / spread) @ weight + level
    return scores


def _name(theta: float) -> str:
    return f"{theta:g}"


def _similarities(embeddings: NDArray[np.float32], pairs: HeldoutPairs) -> NDArray[np.float64]:
    """Return the cosine of each pair `(L,)`."""
    units = unit_vectors(embeddings)
    cosine: NDArray[np.float64] = np.einsum("ij,ij->i", units[pairs.row_a], units[pairs.row_b], dtype=np.float64)
    return np.clip(cosine, -1, 1)


def _separation(similarity: NDArray[np.float64], mated: NDArray[np.bool_]) -> float:
    """Return d': the difference of the means of both kinds of pairs, by the root of their mean variance."""
    a, b = similarity[mated], similarity[~mated]
    return float((a.mean() - b.mean()) / max(np.sqrt((a.var() + b.var()) / 2), 1e-12))


def _areas(
    similarity: NDArray[np.float64],
    person: NDArray[np.int64],
    pairs: HeldoutPairs,
    scores: Mapping[float, NDArray[np.float64]],
    fmr: float,
    seed: int,
) -> tuple[AreaDraws, Cell]:
    """Return the areas of all candidates, and the convention and rate that they have."""
    a, b = pairs.row_a, pairs.row_b
    fnmr = np.mean(similarity[pairs.mated] <= threshold_at_fmr(similarity, pairs.mated, fmr))
    convention, cell = (AT_FNMR, (AT_FNMR.name, None)) if fnmr < MIN_FNMR else (AT_FMR, (AT_FMR.name, fmr))
    areas = bootstrap_areas(
        similarity,
        pairs.mated,
        {_name(t): (score[a], score[b]) for t, score in scores.items()},
        fmrs=(fmr,),
        conventions=(convention,),
        identities=(person[a], person[b]),
        n_draws=N_DRAWS,
        seed=seed,
    )
    return areas, cell


def _gains(
    areas: AreaDraws, thetas: Sequence[float], cell: Cell, n_people: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return the differences to theta 0 and their intervals, value plus or minus Student's quantile times the spread."""
    quantile = float(student_t.ppf((1 + LEVEL) / 2, n_people - 1))
    gains, lows, highs = [], [], []
    for theta in thetas:
        limit = areas.common_limit(_name(theta), _name(0.0), cell)
        draws = areas.draws[_name(theta), cell, limit] - areas.draws[_name(0.0), cell, limit]
        gain = areas.curves[_name(theta), cell].auc(limit) - areas.curves[_name(0.0), cell].auc(limit)
        margin = quantile * TRAINING_SPREAD * float(np.nanstd(draws))
        gains.append(gain)
        lows.append(gain - margin)
        highs.append(gain + margin)
    return tuple(gains), tuple(lows), tuple(highs)
