"""All pairs of a set against the curve of the written-out list of pairs."""

import numpy as np
import pytest

from fiqa_ray.core import all_pairs
from fiqa_ray.core.all_pairs import all_pairs_areas, all_pairs_curves
from fiqa_ray.core.bootstrap import bootstrap_cells
from fiqa_ray.core.conventions import cells_of, changed, convention_of
from fiqa_ray.core.edc import edc_curve
from fiqa_ray.core.intervals import NOT_RESAMPLED
from fiqa_ray.errors import FiqaRayError, UsageError

FIELDS = (
    "discard_fraction", "fnmr", "threshold", "n_mated", "n_nonmated", "n_false_nonmatches", "n_false_matches", "n_allowed",
)  # fmt: skip
FINE = changed("fine", "paper", step=0.02, count="at_most")
pytestmark = pytest.mark.filterwarnings("ignore:fmr=.* allows none of the:UserWarning")


def listed(embeddings: np.ndarray, person: np.ndarray, quality: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return similarity, kind and qualities of all pairs (i, j), i < j; similarities in steps of 2^-23."""
    x = embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.triu_indices(len(x), 1)
    similarity = np.rint((x[i] * x[j]).sum(axis=1) * 2**23) / 2**23
    return similarity, person[i] == person[j], quality[i], quality[j]


def made_up(n_images: int, n_persons: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    person = rng.integers(n_persons, size=n_images)
    person[:2] = 0, 0
    quality = rng.permutation(n_images).astype(np.float64)
    centres = rng.normal(size=(n_persons, 8))
    noise = rng.normal(size=(n_images, 8)) * (1.5 - quality[:, None] / n_images)
    return (centres[person] + noise).astype(np.float32), person, quality


@pytest.mark.parametrize(("n_images", "n_persons"), [(5, 2), (9, 4), (150, 20)])
@pytest.mark.parametrize("block", [4, 256])
def test_curves_are_those_of_the_listed_pairs(n_images, n_persons, block, monkeypatch) -> None:
    monkeypatch.setattr(all_pairs, "_BLOCK_IMAGES", block)
    data = made_up(n_images, n_persons, seed=n_images)
    cells = cells_of([*map(convention_of, ("paper", "nearest", "dasec")), FINE], (0.1, 0.01, 0.001))
    curves = all_pairs_curves(*data, cells)
    assert len(curves) == 12
    similarity, mated, quality_a, quality_b = listed(*data)
    for (convention, fmr), curve in curves.items():
        expected = edc_curve(similarity, mated, quality_a, quality_b, fmr=fmr, convention=cells[convention, fmr])
        for name in FIELDS:
            np.testing.assert_allclose(getattr(curve, name), getattr(expected, name), rtol=0, atol=2.5e-7, err_msg=name)
        assert curve.n_tied == expected.n_tied


def test_equal_qualities_in_dasec_go_together() -> None:
    embeddings, person, _ = made_up(40, 6, seed=1)
    quality = np.random.default_rng(0).integers(5, size=40).astype(np.float64)
    curve = all_pairs_curves(embeddings, person, quality, cells_of([convention_of("dasec")], [0.01]))["dasec", 0.01]
    expected = edc_curve(*listed(embeddings, person, quality), fmr=0.01, convention="dasec")
    np.testing.assert_allclose(curve.fnmr, expected.fnmr)
    np.testing.assert_array_equal(curve.n_mated, expected.n_mated)
    assert curve.n_tied == expected.n_tied == 780


def test_both_kinds_of_pairs_are_needed() -> None:
    x = np.eye(4, dtype=np.float32)
    for person, words in (([0, 1, 2, 3], "no mated pair"), ([0, 0, 0, 0], "no non-mated pair")):
        with pytest.raises(FiqaRayError, match=f"there is {words} among all pairs of 4 images"):
            all_pairs_curves(x, np.array(person), np.arange(4.0), cells_of([convention_of("paper")], [0.1]))


def test_areas_and_the_floor_are_those_of_the_listed_pairs() -> None:
    embeddings, person, quality = made_up(60, 9, seed=3)
    orders = np.random.default_rng(7).random((3, 60))
    cells = cells_of([convention_of(name) for name in ("paper", "dasec")], (0.05,))
    areas = all_pairs_areas(embeddings, person, {"q": quality}, cells, random_orders=orders, limits=(0.3,), n_draws=9)
    similarity, mated, quality_a, quality_b = listed(embeddings, person, quality)
    i, j = np.triu_indices(60, 1)
    pairs = [(order[i], order[j]) for order in orders]
    expected = bootstrap_cells(
        similarity, mated, {"q": (quality_a, quality_b)}, cells, random_orders=pairs, limits=(0.3,), n_draws=0
    )
    for name in ("q", "random"):
        for cell in expected.errors:
            for limit in (0.3, expected.own_limit(name, cell)):
                found = areas.interval(name, cell, limit)
                assert found.value == pytest.approx(expected.interval(name, cell, limit).value, abs=1e-9)
                assert (found.kind, found.reason) == ("none", NOT_RESAMPLED)
    assert {c: e.n_wrong for c, e in areas.errors.items()} == {c: e.n_wrong for c, e in expected.errors.items()}
    with pytest.raises(UsageError, match="convention 'nist' cannot be computed for all pairs"):
        all_pairs_areas(embeddings, person, {"q": quality}, cells_of([convention_of("nist")], ()))
