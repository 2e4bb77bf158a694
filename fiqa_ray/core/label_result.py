"""What label optimization gives for one FIQA method and one theta, and what to say about it."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

MOVE_PER_THETA = {"raw": (0.14, 0.20), "normalized": (0.06, 0.20)}
"""Mean move of an image, as a share of all ranks, per unit of theta (raw: and per pair of an image), while theta is small.

The first number is for scores that follow the similarities, the second for scores independent of them; which holds is known
only after ranking. Measured by `benchmarks/expected_move.py`.
"""
UNRELATED_MOVE = 0.19
"""On the scale normalized, the mean move per unit of theta of scores that are independent of the similarities.

An image moves by what its pairs say beyond what its own rank says: by the deviation of its pairs' mean rank from the mean of
images of the same rank, which is smaller by sqrt(1 - rho^2) if both have the rank correlation rho.
"""
LARGEST_RAW_THETA = 0.01
"""Theta above which the scale `raw` moves images without pairs, which are good ones, down among the bad."""
LEAST_STEP = 0.45
"""A step of fewer ranks than this passes no image. In small sets most steps are so short."""
LEAST_MOVE = 0.005
"""Mean move below which labels are almost the prior scores."""
_WANTED_MOVE = 0.02
_ADVISED = (*(digit / 10**places for places in (3, 2, 1) for digit in range(1, 10)), 1.0)
"""Thetas that are advised: those of one digit."""
_AGREEING_RHO = 0.9
"""Rank correlation of scores and similarities above which a move is small because both say the same."""
MIN_OWNERS, LEAST_RHO, SIGN_ERRORS = 50, 0.08, 4.0
"""The sign of scores is doubted if so many images own pairs and the rank correlation of scores with similarities is below
-LEAST_RHO and below -SIGN_ERRORS standard errors."""


@dataclass(frozen=True, repr=False)
class OptimizedLabels:
    """The labels of one FIQA method at one theta, in the caller's image order.

    Attributes:
        label: `(I,) float32` in [0, 1].
        score: `(I,) float64`, the prior scores in their new order.
        optimized_index: `(I,) float64`.
        quality_index: `(I,) int64`, rank of the prior score.
        mean_similarity_rank: `(I,) float64`, mean over the repeats in which the image owned a pair; NaN where it never did.
        n_owned_pairs: `(I,) int64`, over all repeats.
        theta: weight of the update.
        mean_move: by how many ranks an image moved on average, as a share of all ranks.
    """

    label: NDArray[np.float32]
    score: NDArray[np.float64]
    optimized_index: NDArray[np.float64]
    quality_index: NDArray[np.int64]
    mean_similarity_rank: NDArray[np.float64]
    n_owned_pairs: NDArray[np.int64]
    theta: float
    mean_move: float

    def __repr__(self) -> str:
        n_none = int((self.n_owned_pairs == 0).sum())
        return (
            f"<OptimizedLabels of {len(self.label):,} images: theta {self.theta:g}, mean move {100 * self.mean_move:.2g} % "
            f"of the ranks; {n_none:,} images own no pair, the best of their people, and keep their index>"
        )

    @property
    def prior(self) -> NDArray[np.float64]:
        """The prior scores `(I,)`."""
        return np.sort(self.score)[self.quality_index]

    def to_pandas(self, image_id: Sequence[Any] | None = None) -> pd.DataFrame:
        """Return a DataFrame with one row per image: image_id, prior, label, score, n_owned_pairs. It needs pandas.

        Args:
            image_id: `(I,)` names of the images; default: their positions.

        Raises:
            UsageError: pandas is not installed, or there are more or fewer names than images.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise UsageError("to_pandas needs pandas: pip install pandas; to_csv does without") from exc
        return pd.DataFrame(self._columns(image_id))

    def to_csv(self, path: str | os.PathLike[str], image_id: Sequence[Any] | None = None) -> None:
        """Write a CSV with the columns of `to_pandas`.

        Args:
            path: a local file.
            image_id: `(I,)` names of the images; default: their positions.

        Raises:
            UsageError: there are more or fewer names than images.
        """
        columns = self._columns(image_id)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def _columns(self, image_id: Sequence[Any] | None) -> dict[str, Any]:
        n = len(self.label)
        if image_id is not None and len(image_id) != n:
            raise UsageError(f"{len(image_id)} names for {n} images: one name per image")
        return {
            "image_id": range(n) if image_id is None else list(image_id),
            "prior": self.prior,
            "label": self.label,
            "score": self.score,
            "n_owned_pairs": self.n_owned_pairs,
        }


def expected_move(
    theta: float, pairs_per_image: float, n_images: int, index_scale: str, rho: float | None = None
) -> tuple[float, float]:
    """Return between which mean moves a theta is expected to give, as shares of all ranks.

    The paper's scale mixes ranks of pairs with ranks of images, so its step is larger by the pairs per image.

    Args:
        theta: weight of the update.
        pairs_per_image: L / I; C - 1 where all people have at least C images.
        n_images: I.
        index_scale: `raw` or `normalized`.
        rho: `score_rho` of `sign_facts`, if pairs are ranked; on `normalized` both ends are then one number.
    """
    factor = theta * (pairs_per_image if index_scale == "raw" else 1.0)
    low, high = MOVE_PER_THETA[index_scale]
    if rho is not None and index_scale == "normalized":
        low = high = UNRELATED_MOVE * math.sqrt(1 - min(rho * rho, 1.0))
    middle = n_images * factor * (low + high) / 2
    share = math.exp(-((LEAST_STEP / middle) ** 2)) if middle > 0 else 0.0
    return share * factor * low, share * factor * high


def raw_scale_advice(theta: float) -> str:
    """Say what the scale `raw` does at a theta above `LARGEST_RAW_THETA`."""
    return (
        f"theta={theta:g} on index_scale raw labels images without a pair as bad, though they are among the best; take "
        f"index_scale normalized, or a theta of at most {LARGEST_RAW_THETA:g}"
    )


def move_advice(
    method: str,
    theta: float,
    move: float,
    n_images: int,
    index_scale: str,
    *,
    share_with_pairs: float = 1.0,
    rho: float | None = None,
) -> str:
    """Say that a theta moves almost nothing, and which one would move `_WANTED_MOVE` on the scale normalized.

    Args:
        method: its name, or an empty text.
        theta: weight of the update.
        move: its mean move, measured or expected.
        n_images: I.
        index_scale: `raw` or `normalized`.
        share_with_pairs: share of the images that own a pair; the others do not move.
        rho: as in `expected_move`.
    """
    said = (
        f"{method}{': ' if method else ''}theta={theta:g} moves an image by {100 * move:.2g} % of the ranks on average, so "
        "the labels are almost your scores"
    )

    def moved(other: float, rho: float | None = rho) -> float:
        return share_with_pairs * sum(expected_move(other, 1.0, n_images, "normalized", rho)) / 2

    wanted = min(_ADVISED, key=lambda t: abs(moved(t) - _WANTED_MOVE))
    is_larger = index_scale == "raw" or wanted > theta
    if moved(1.0) >= _WANTED_MOVE and is_larger:
        scale = ", index_scale normalized" if index_scale == "raw" else ""
        return f"{said}; try theta={wanted:g}{scale}, which moves about {100 * moved(wanted):.2g} %"
    end = f"{said}; even theta=1 would move only about {100 * moved(1.0):.2g} %" if is_larger else said
    if moved(1.0, 0.0) >= _WANTED_MOVE and rho is not None and rho >= _AGREEING_RHO:
        return f"{end}, since the similarities agree with them (Spearman {rho:+.2f})"
    return (
        f"{end}: too few pairs or too few clusters ({100 * share_with_pairs:.2g} % of the images own a pair); take more "
        "images per person, or more clusters"
    )


def sign_facts(quality_index: NDArray[np.int64], mean_similarity_rank: NDArray[np.float64]) -> dict[str, float]:
    """Return the numbers by which `sign_advice` judges the sign of a method's scores.

    Args:
        quality_index: `(I,)`, in any order.
        mean_similarity_rank: `(I,)`, NaN where an image owns no pair.

    Returns:
        `n_owners`, images that own pairs; and `score_rho`, over these images the rank correlation (Spearman) of quality
        index and mean similarity rank, 0 below `MIN_OWNERS` images.
    """
    owns = np.flatnonzero(np.isfinite(mean_similarity_rank))
    rho = 0.0
    if len(owns) >= MIN_OWNERS:
        ranks = [np.argsort(np.argsort(v[owns])) for v in (quality_index, mean_similarity_rank)]
        rho = float(np.corrcoef(ranks[0].astype(np.float64), ranks[1].astype(np.float64))[0, 1])
    return {"n_owners": len(owns), "score_rho": rho}


def sign_advice(method: str, facts: Mapping[str, float]) -> Iterator[str]:
    """Yield a line where a method's scores seem to have the wrong sign: the similarities of the pairs should rise with them.

    Args:
        method: its name, or an empty text.
        facts: `sign_facts` of its images, or of many of them.
    """
    n_owners, rho = facts["n_owners"], facts["score_rho"]
    if n_owners >= MIN_OWNERS and rho < min(-LEAST_RHO, -SIGN_ERRORS / math.sqrt(n_owners - 1)):
        yield (
            f"{method}{': ' if method else ''}images with larger scores have less similar pairs (Spearman {rho:+.2f}): is a "
            "larger score better quality? Negate an uncertainty"
        )


def sign_doubt(method: str, facts: Mapping[str, float]) -> str:
    """Return a line where the similarities do not show that a method's larger scores mean better images; else an empty text.

    Arguments as in `sign_advice`.
    """
    n_owners, rho = int(facts["n_owners"]), facts["score_rho"]
    doubts = list(sign_advice(method, facts))
    if doubts or (n_owners >= MIN_OWNERS and rho > max(LEAST_RHO, SIGN_ERRORS / math.sqrt(n_owners - 1))):
        return "".join(doubts)
    why = (
        f"Spearman {rho:+.2f}, {n_owners:,} images"
        if n_owners >= MIN_OWNERS
        else f"{n_owners} images with pairs are too few"
    )
    of = f"{method}: " if method else ""
    return (
        f"{of}sign not told: the similarities of mated pairs do not show that larger scores mean better images ({why}); "
        "`fiqa-ray doctor` also looks at damaged copies"
    )


def advice(
    images_of_people: NDArray[np.int64],
    n_clusters: int,
    n_pairs: int,
    index_scale: str,
    results: Mapping[str, Mapping[float, OptimizedLabels]],
) -> Iterator[str]:
    """Yield what the caller should know before training on the labels.

    Args:
        images_of_people: `(K,)` images of each person.
        n_clusters: C.
        n_pairs: L, pairs of a repeat.
        index_scale: `raw` or `normalized`.
        results: the labels of each method at each theta.
    """
    n_images, n_people = int(images_of_people.sum()), len(images_of_people)
    alone = images_of_people < 2 if n_clusters > 1 else np.ones(n_people, bool)
    if alone.any():
        why = "they have one image each" if n_clusters > 1 else "n_clusters is 1"
        yield (
            f"{int(alone.sum()):,} of {n_people:,} people ({int(images_of_people[alone].sum()):,} of {n_images:,} images) "
            f"have no pair, since {why}: these images keep their quality index"
            + (". Were identities and scores exchanged?" if alone.all() and n_clusters > 1 else "")
        )
    largest = max((theta for by_theta in results.values() for theta in by_theta), default=0.0)
    if index_scale == "raw" and largest > LARGEST_RAW_THETA:
        yield raw_scale_advice(largest)
    few = (images_of_people < n_clusters) & ~alone
    if 2 * few.sum() > n_people - alone.sum():
        typical = int(np.median(images_of_people[~alone]))
        yield (
            f"n_clusters={n_clusters} is above the images of {int(few.sum()):,} of {n_people:,} people (median {typical}), "
            f"of whom each image is then a cluster; take fewer, such as {max(2, typical // 2)}"
        )
    if n_pairs == 0:
        return
    for method, by_theta in results.items():
        idle = [r for theta, r in by_theta.items() if theta > 0 and r.mean_move < LEAST_MOVE]
        if idle:
            largest_idle = max(idle, key=lambda r: r.theta)
            yield _measured_advice(method, largest_idle, index_scale)


def _measured_advice(method: str, result: OptimizedLabels, index_scale: str) -> str:
    """Return `move_advice` on labels that move almost nothing."""
    return move_advice(
        method,
        result.theta,
        result.mean_move,
        len(result.label),
        index_scale,
        share_with_pairs=float((result.n_owned_pairs > 0).mean()),
        rho=sign_facts(result.quality_index, result.mean_similarity_rank)["score_rho"],
    )
