"""Template embeddings and qualities against values of the authors' code (`golden/template_checks.json`)."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fiqa_ray.core import templates as core
from fiqa_ray.core.templates import Templates, pair_similarities, subjects_of, template_embeddings, template_qualities
from fiqa_ray.errors import FiqaRayError, UsageError

CHECKS = json.loads((Path(__file__).parents[1] / "golden/template_checks.json").read_text())
CASES = ("equal_media_3x2x2", "unequal_media")
OPTIONS = list(product(("sum", "none", "concat"), ("keep", "unit"), ("yes", "no")))


def flipped(case: dict, flip: str) -> np.ndarray:
    image, mirror = np.array(case["features"]), np.array(case["features_of_the_mirror_image"])
    return {"none": image, "sum": image + mirror, "concat": np.hstack([image, mirror])}[flip]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("flip", "norm", "detector"), OPTIONS)
@pytest.mark.parametrize("block", [1, 16_384])
def test_template_embeddings_are_the_authors(name, flip, norm, detector, block, monkeypatch) -> None:
    monkeypatch.setattr(core, "_BLOCK_IMAGES", block)
    case = CHECKS[name]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(case["template"]))  # a list in any order
    templates = Templates.of(np.array(case["template"])[order], np.array(case["media"])[order], order)
    weight = np.array(case["detector_score"]) if detector == "yes" else None
    found = template_embeddings(flipped(case, flip), templates, weight=weight, norm=norm)
    expected = case["results"][f"flip={flip} norm={norm} detector={detector}"]
    assert templates.name.tolist() == [1, 5, 9]
    np.testing.assert_allclose(found, expected["template_features"], rtol=0, atol=1e-12)
    names = np.array([pair[:2] for pair in expected["pairs"]])
    similarity = pair_similarities(found.astype(np.float32), *templates.rows_of(names).T)
    np.testing.assert_allclose(similarity, [pair[2] for pair in expected["pairs"]], rtol=0, atol=3e-7)


def test_the_plain_mean_is_another_value_where_media_differ() -> None:
    key = "plain_mean_of_all_images (wrong unless media are equally large), flip=sum norm=keep detector=no"
    for name, is_equal in zip(CASES, (True, False), strict=True):
        case = CHECKS[name]
        templates = Templates.of(np.array(case["template"]), np.array(case["media"]))
        found = template_embeddings(flipped(case, "sum"), templates)
        assert np.allclose(found, case[key], atol=1e-12) == is_equal


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", ["min", "mean", "max"])
def test_template_qualities(name, how) -> None:
    case = CHECKS[name]
    templates = Templates.of(np.array(case["template"]), np.array(case["media"]))
    found = template_qualities(np.array(case["image_quality"]), templates, how)
    assert found.tolist() == pytest.approx([case["template_quality"][t][how] for t in ("1", "5", "9")], abs=1e-15)


def test_images_without_embedding_or_score_are_left_out() -> None:
    nan = np.nan
    templates = Templates.of(np.array([7, 7, 7, 8, 8, 9]), np.array([1, 1, 2, 1, 1, 4]))
    x = np.array([[3.0, 0], [nan, nan], [0, 3], [0, 2], [2, 0], [nan, nan]])
    found = template_embeddings(x, templates)
    np.testing.assert_allclose(found, [[0.5**0.5] * 2, [0.5**0.5] * 2, [nan, nan]])
    quality = np.array([0.5, nan, 0.25, 1, 2, nan])
    for how, expected in (("min", [0.25, 1, nan]), ("mean", [0.375, 1.5, nan]), ("max", [0.5, 2, nan])):
        np.testing.assert_array_equal(template_qualities(quality, templates, how), expected)
    with pytest.raises(UsageError, match="choose min, mean or max"):
        template_qualities(quality, templates, "median")  # type: ignore[arg-type]
    assert templates.rows_of(np.array([9, 5, 7, 100])).tolist() == [2, -1, 0, -1]


@pytest.mark.parametrize("dim", [1, 4, 7, 512])
def test_similarities_of_listed_pairs(dim) -> None:
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(40, dim)).astype(np.float32)
    a, b = rng.integers(40, size=(2, 300))
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    found = pair_similarities(x, a, b)
    np.testing.assert_allclose(found, (unit[a] * unit[b]).sum(axis=1), rtol=0, atol=3e-7)
    assert np.array_equal(pair_similarities(x, b[::-1], a[::-1]), found[::-1])  # neither order nor side matters
    with pytest.raises(FiqaRayError, match="rows 0 to 40 of 40 embeddings"):
        pair_similarities(x, np.array([0, 40]), np.array([1, 2]))


def test_mated_pairs_link_a_person() -> None:
    person = subjects_of(6, np.array([0, 1, 3]), np.array([1, 2, 4]))
    assert len(set(person[:3])) == len(set(person[3:5])) == 1
    assert len({person[0], person[3], person[5]}) == 3
