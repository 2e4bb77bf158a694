from __future__ import annotations

import numpy as np
import pytest

from fiqa_ray.core.ediff import ediff_labels
from fiqa_ray.errors import UsageError
from released import golden

PEOPLE = list("aaabbb")


@pytest.fixture
def toy():
    """The recipe of the golden file: scores, stored embeddings, and those of a network in training."""
    r = np.random.RandomState(21)
    q, stored = r.uniform(0.2, 0.9, 6), r.randn(6, 8)
    return q, stored, stored + 0.6 * r.randn(6, 8)


def test_labels_are_the_targets_of_the_authors_code(toy):
    wanted = golden("method_checks_2026")["ediffiqa_training"]
    q, stored, current = toy
    assert q.tolist() == pytest.approx(wanted["q"])
    got = ediff_labels(stored, PEOPLE, q, best=0.5, least=1, current=current)
    assert got.tolist() == pytest.approx(wanted["target"], rel=1e-9, abs=0)
    distance = np.array(wanted["one_minus_cos_to_identity_mean"])
    unclipped = ediff_labels(stored, PEOPLE, q, best=0.5, least=1, epsilon=0.01, current=current)
    np.testing.assert_allclose(unclipped[[1, 4]], (np.array(wanted["q_minmax"]) - 0.01 * distance)[[1, 4]], rtol=1e-9)


def test_people_with_too_few_good_images_get_no_label(toy):
    q, stored, _ = toy
    # the threshold is the third best score (rank 2 of 6), .344: a has two images there, b one
    labels = ediff_labels(stored, PEOPLE, q, best=0.34, least=2)
    assert np.isfinite(labels).tolist() == [True] * 3 + [False] * 3
    mean = (stored[1] + stored[2]) / 2
    cosines = stored[:3] @ mean / np.linalg.norm(stored[:3], axis=1) / np.linalg.norm(mean)
    scaled = (q[:3] - q[0]) / (q[2] - q[0])  # least and largest of those with labels
    np.testing.assert_allclose(labels[:3], np.clip(scaled - 0.5 * (1 - cosines), 0, 1), rtol=1e-9)
    with pytest.raises(UsageError, match=r"nobody has 3 images among the best 34% \(the most are 2\)"):
        ediff_labels(stored, PEOPLE, q, best=0.34, least=3)
    with pytest.raises(UsageError, match="6 embeddings, 5 identities and 6 scores"):
        ediff_labels(stored, PEOPLE[:5], q)
