"""eDifFIQA's label rule (`LSIbabnikz/eDifFIQA loss.py, prepare_data.py`): a score, lowered by the distance to good images.

    label = clamp(q - epsilon (1 - cos(e, m)), 0, 1)

q is the prior score on the scale of its least and largest value, e the image's embedding, and m the mean of the raw
embeddings of the same person's images of high quality: those whose score reaches the value at the share `best` of all
scores. The authors take e from the network in training, so that the labels move; here it is the recogniser's.

`ediff_labels` applies the rule to arrays. A job applies its steps, `good_place`, `distances_to_means` and `lowered_scores`,
to some people at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.errors import UsageError


def ediff_labels(
    embeddings: ArrayLike,
    identities: Sequence[Any] | NDArray[Any],
    prior_scores: ArrayLike,
    *,
    epsilon: float = 0.5,
    best: float = 0.2,
    least: int = 10,
    current: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return eDifFIQA's labels.

    Args:
        embeddings: `(I, D)` raw embeddings.
        identities: `(I,)` names or numbers of people.
        prior_scores: `(I,)` finite, larger is better.
        epsilon: weight of the distance.
        best: share of all images that count as being of high quality, in [0, 1).
        least: images of high quality that a person must have; other people get no labels.
        current: `(I, D)` embeddings of another network that are compared with the means; None: `embeddings`.

    Returns:
        `(I,) float64` in [0, 1]; NaN for images of people with too few images of high quality, and for embeddings of zeros.

    Raises:
        UsageError: arrays of unlike lengths, an option out of range, or nobody has enough images of high quality.
    """
    stored, scores = np.asarray(embeddings, np.float64), np.asarray(prior_scores, np.float64)
    compared = stored if current is None else np.asarray(current, np.float64)
    _, person = np.unique(np.asarray(identities), return_inverse=True)
    if not (len(stored) == len(compared) == len(scores) == len(person)):
        raise UsageError(
            f"{len(stored)} embeddings, {len(person)} identities and {len(scores)} scores; give one of each per image"
        )
    if not 0 <= best < 1 or not epsilon >= 0 or least < 1:
        raise UsageError(f"best={best:g} must lie in [0, 1), epsilon={epsilon:g} be 0 or more, least={least} 1 or more")
    threshold = np.sort(scores)[good_place(best, len(scores))]
    distance, most_good = distances_to_means(stored, person, scores >= threshold, least, compared)
    has_mean = np.isfinite(distance)
    if not has_mean.any():
        raise UsageError(f"nobody has {least} images among the best {best:.0%} (the most are {most_good}); {REMEDY}")
    low, high = scores[has_mean].min(), scores[has_mean].max()
    return lowered_scores(scores, distance, epsilon, low, high)


REMEDY = "lower least, or raise best"
"""What to do where nobody has enough images of high quality."""


def good_place(best: float, n_images: int) -> int:
    """Return the place, among scores in ascending order, of the least score of high quality."""
    return n_images - 1 - int(best * n_images)


def distances_to_means(
    embeddings: NDArray[np.floating],
    person: NDArray[np.integer],
    is_good: NDArray[np.bool_],
    least: int,
    current: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.float64], int]:
    """Return the distance of each image to the mean of its person's images of high quality.

    Args:
        embeddings: `(I, D)` raw embeddings of all images of some people.
        person: `(I,)` numbers of the people, from 0.
        is_good: `(I,)` whether an image is of high quality.
        least: images of high quality that a person must have.
        current: see `ediff_labels`.

    Returns:
        `(I,)` 1 - cosine, NaN for people with too few images of high quality; and the most that a person has.
    """
    stored = np.asarray(embeddings, np.float64)
    compared = stored if current is None else np.asarray(current, np.float64)
    n_people = int(person.max(initial=-1)) + 1
    n_good = np.bincount(person[is_good], minlength=n_people)
    has_mean = n_good[person] >= least
    sums = np.zeros((n_people, stored.shape[1]))
    np.add.at(sums, person[is_good], stored[is_good])
    distance = np.full(len(person), np.nan)
    distance[has_mean] = 1 - _cosines(compared[has_mean], sums[person[has_mean]])  # a sum points where its mean does
    return distance, int(n_good.max(initial=0))


def lowered_scores(
    scores: NDArray[np.float64], distance: NDArray[np.float64], epsilon: float, low: float, high: float
) -> NDArray[np.float64]:
    """Return the labels `(I,)`: scores on the scale from `low` to `high`, lowered by the distance; NaN where that is NaN.

    Args:
        scores: `(I,)` prior scores.
        distance: `(I,)` from `distances_to_means`.
        epsilon: weight of the distance.
        low: least score of an image with a distance.
        high: largest score of an image with a distance.
    """
    return np.clip((scores - low) / (high - low or 1.0) - epsilon * distance, 0, 1)


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product = np.einsum("ij,ij->i", a, b)
    with np.errstate(invalid="ignore"):  # an embedding of zeros has no direction: NaN
        return np.asarray(product / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)), np.float64)
