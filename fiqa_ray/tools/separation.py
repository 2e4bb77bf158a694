"""How well embeddings tell people apart: d', with each person left out in turn, and the standard error of a difference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.kernels.gram import unit_vectors


def separations(embeddings: NDArray[Any], person: NDArray[Any]) -> NDArray[Any]:
    """Return the separation d' of all people, then with each person left out: `(1 + n_people,)`."""
    units = unit_vectors(embeddings)
    i, j = np.triu_indices(len(units), 1)
    cosine = np.einsum("ij,ij->i", units[i], units[j]).astype(np.float64)
    mated = person[i] == person[j]

    n_people = int(person.max()) + 1

    def moments(rows: NDArray[np.bool_], sides: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return mean and variance of some pairs: of all, then without those of each person, `(1 + n_people,)`."""
        totals = []
        for power in (0, 1, 2):
            values = cosine[rows] ** power
            of_person = sum(np.bincount(person[side[rows]], values, n_people) for side in sides)
            totals.append(values.sum() - np.concatenate([[0.0], of_person]))
        n, total, squares = totals
        return total / n, np.maximum(squares / n - (total / n) ** 2, 0)

    mean_m, variance_m = moments(mated, (i,))  # both images of a mated pair are of one person
    mean_n, variance_n = moments(~mated, (i, j))
    return np.asarray((mean_m - mean_n) / np.maximum(np.sqrt((variance_m + variance_n) / 2), 1e-12))


def difference(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Return a - b and its standard error: a jackknife over the values from the second on."""
    differences = a - b
    left_out = differences[1:]
    n = len(left_out)
    return float(differences[0]), float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
