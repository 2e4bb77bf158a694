"""d' of all people and with each left out, against a direct computation."""

import numpy as np
import pytest

from fiqa_ray.tools.separation import difference, separations


def test_separations_with_each_person_left_out():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(7), [2, 3, 4, 4, 2, 3, 4])
    embeddings = (rng.normal(size=(7, 6))[person] + rng.normal(size=(len(person), 6))).astype(np.float32)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def direct(keep):
        mated, nonmated = [], []
        for i in np.flatnonzero(keep):
            for j in np.flatnonzero(keep):
                if i < j:
                    (mated if person[i] == person[j] else nonmated).append(float(units[i] @ units[j]))
        return (np.mean(mated) - np.mean(nonmated)) / np.sqrt((np.var(mated) + np.var(nonmated)) / 2)

    expected = [direct(person >= 0), *(direct(person != k) for k in range(7))]
    assert separations(embeddings, person) == pytest.approx(expected, rel=1e-5)


def test_the_error_of_a_difference_is_the_jackknifes():
    """Of a mean it is the standard deviation over the root of the number."""
    values = np.random.default_rng(1).normal(size=30)
    left_out = np.array([values.mean(), *(np.delete(values, k).mean() for k in range(30))])
    gain, error = difference(left_out, np.zeros(31))
    assert gain == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(30))
