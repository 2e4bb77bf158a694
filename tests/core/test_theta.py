"""Theta on held-out people: folds, pairs and heads against direct computations, and the choice where the answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from fiqa_ray.core import theta as module
from fiqa_ray.core.labels import optimize_labels, scale_to_unit
from fiqa_ray.core.theta import CANDIDATES, HeldoutPairs, ThetaCurve, choose_theta, compare_thetas, heldout_scores
from fiqa_ray.errors import UsageError


def people(n_people, per_person, rng, dim=48):
    """Embeddings whose similarity falls with the quality of both images, and a nuisance that quality has no part in.

    The nuisance moves embeddings along one direction, so that a head can learn it.
    """
    person = np.repeat(np.arange(n_people), per_person)
    quality, nuisance = rng.uniform(0, 1, len(person)), rng.normal(size=len(person))
    raw = rng.normal(size=(n_people, dim))[person] + (1.8 - 1.4 * quality)[:, None] * rng.normal(
        size=(len(person), dim)
    )
    raw *= ((0.5 + quality) / np.linalg.norm(raw, axis=1))[:, None]
    direction = rng.normal(size=dim)
    return (
        (raw + 0.15 * nuisance[:, None] * direction / np.linalg.norm(direction)).astype(np.float32),
        person,
        quality,
        nuisance,
    )


@pytest.mark.slow
def test_a_prior_that_is_the_truth_is_left_alone_and_one_that_is_half_nuisance_gains():
    embeddings, person, quality, nuisance = people(80, 10, np.random.default_rng(0))
    truth = choose_theta(embeddings, person, quality, n_clusters=6, n_repeats=5)
    assert truth.theta == CANDIDATES
    assert truth.chosen == 0
    assert "does not gain measurably" in truth.sentence("truth")
    half = choose_theta(embeddings, person, quality / quality.std() + nuisance, n_clusters=6, n_repeats=5)
    at = half.theta.index(half.chosen)
    assert half.chosen >= 0.1
    assert half.high[at] < 0
    assert half.gain[at] == pytest.approx(half.area[at] - half.area[0])
    assert half.low[at] < half.gain[at] < half.high[at]
    assert f"half gains at theta {half.chosen:g}: on 80 held-out people the area x 1000 falls from" in half.sentence(
        "half"
    )
    assert truth.sign == half.sign == ""
    with pytest.warns(UserWarning, match="less similar pairs"):
        wrong = choose_theta(embeddings, person, -quality, n_clusters=6, n_repeats=5)
    assert wrong.chosen > 0  # another order than the wrong one helps, which is no reason to trust it
    sentence = wrong.sentence("wrong")
    assert sentence.startswith(f"wrong, whose sign is in doubt, has theta {wrong.chosen:g}: on 80 held-out people")
    assert "Images with larger scores have less similar pairs (Spearman -" in sentence
    assert half.gain[at] < (truth.area[0] - half.area[0]) / 3 < 0  # a third of the way to the prior that is the truth


def test_each_folds_scores_are_of_a_ridge_fit_to_the_other_folds():
    rng = np.random.default_rng(1)
    embeddings, fold = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    targets = rng.uniform(size=(60, 2))
    scores = heldout_scores(embeddings, fold, targets)
    for f in range(3):
        inner, outer = embeddings[fold != f], embeddings[fold == f]
        with_norm = [np.hstack([e, np.linalg.norm(e, axis=1, keepdims=True)]).astype(float) for e in (inner, outer)]
        mean, deviation = with_norm[0].mean(0), with_norm[0].std(0)
        z, other = ((x - mean) / deviation for x in with_norm)
        # ridge as ordinary least squares with a row more per coefficient
        rows = np.vstack([z, np.sqrt(module.RIDGE * len(z)) * np.eye(6)])
        level = targets[fold != f].mean(0)
        fit = np.linalg.lstsq(rows, np.vstack([targets[fold != f] - level, np.zeros((6, 2))]), rcond=None)[0]
        np.testing.assert_allclose(scores[fold == f], other @ fit + level, rtol=1e-6)


def test_pairs_are_what_they_are_said_to_be(monkeypatch):
    rng = np.random.default_rng(2)
    monkeypatch.setattr(module, "MAX_MATED", 40)
    monkeypatch.setattr(module, "MAX_NONMATED", 300)
    sizes = [1, 2, 9, 51, 4, 6, 3, 1, 5, 8]
    person = rng.permutation(np.repeat(np.arange(10), sizes))
    pairs = HeldoutPairs.draw(person, rng)
    assert ((person[pairs.row_a] == person[pairs.row_b]) == pairs.mated).all()
    assert (pairs.row_a != pairs.row_b).all()
    both = np.sort(np.stack([pairs.row_a, pairs.row_b]), axis=0).T
    assert len(np.unique(both, axis=0)) == len(both)
    assert (~pairs.mated).sum() <= 300
    # 40 mated pairs for 8 people of two images or more: 5 of each, where it has so many
    drawn = np.bincount(person[pairs.row_a[pairs.mated]], minlength=10)
    assert drawn.tolist() == [0, 1, 5, 5, 5, 5, 3, 0, 5, 5]


def test_no_pair_of_a_person_with_many_images_is_drawn_twice():
    person = np.repeat(np.arange(10), 51)  # 600 of 1,275 pairs each
    pairs = HeldoutPairs.draw(person, np.random.default_rng(0))
    both = np.sort(np.stack([pairs.row_a, pairs.row_b]), axis=0).T[pairs.mated]
    assert len(np.unique(both, axis=0)) == len(both)


def test_a_recogniser_that_cannot_tell_people_apart_gives_no_choice():
    rng = np.random.default_rng(3)
    person, noise = np.repeat(np.arange(40), 5), rng.normal(size=(200, 64)).astype(np.float32)
    targets = {t: rng.random(200) for t in (0.0, 0.3)}
    curve = compare_thetas(noise, person, targets)
    assert curve.chosen == 0
    assert "the recogniser barely tells them apart" in curve.sentence()
    people = rng.normal(size=(40, 64)).astype(np.float32)[person]
    assert "barely" not in compare_thetas(noise + 0.5 * people, person, targets).sentence()  # d' is about 1.6


def test_the_sentence_names_the_surest_candidate_beside_the_best():
    theta, nan = (0.0, 0.3, 1.0), float("nan")
    curve = ThetaCurve(
        theta, (0.1, 0.0875, 0.0698), (0.0, -0.0125, -0.0302), (nan, -0.0277, -0.1103), (nan, 0.0027, 0.0499), 0.0, "", 15,
        210, 900, 20_000, 0.001, 0.2,
    )  # fmt: skip
    text = curve.sentence("sharpness")
    assert "the best theta, 1, changes the area x 1000 by -30.2 [-110.3, +49.9]" in text
    assert "the surest change is that of theta 0.3, -12.5 [-27.7, +2.7]; its labels are its scores unchanged" in text
    alone = replace(curve, low=(nan, -0.0677, -0.0400), high=(nan, 0.0427, 0.0001))
    assert "surest" not in alone.sentence("sharpness")


@pytest.mark.parametrize(
    ("n_people", "per_person", "reason"),
    [(8, 6, "8 people with two images or more are too few: 10 are needed"), (40, 1, "0 people with two images"),
     (0, 1, "0 people with two images")],
)  # fmt: skip
def test_where_there_is_too_little_the_labels_are_left_alone(n_people, per_person, reason):
    embeddings, person, quality, _ = people(n_people, per_person, np.random.default_rng(3))
    curve = compare_thetas(embeddings, person, {0.0: quality, 0.3: 1 - quality})
    assert curve.chosen == 0
    assert curve.reason.startswith(reason)
    assert np.isnan(curve.gain).all()
    assert np.isnan(curve.fmr)
    assert "its labels are its scores unchanged" in curve.sentence()


def test_for_a_recogniser_without_errors_a_tenth_of_the_mated_pairs_fail():
    rng = np.random.default_rng(4)
    person = np.repeat(np.arange(30), 8)
    embeddings = (rng.normal(size=(30, 64))[person] + 0.01 * rng.normal(size=(240, 64))).astype(np.float32)
    curve = compare_thetas(embeddings, person, {0.0: rng.uniform(size=240), 0.3: rng.uniform(size=240)})
    assert curve.chosen == 0
    assert curve.reason == ""
    assert np.isnan(curve.fmr)
    assert curve.fnmr == pytest.approx(0.1, abs=0.01)


def test_zero_must_be_among_the_thetas():
    embeddings, person, quality, _ = people(20, 4, np.random.default_rng(5))
    with pytest.raises(UsageError, match=r"must hold 0"):
        compare_thetas(embeddings, person, {0.3: quality})
    with pytest.raises(UsageError, match=r"and at least one more"):
        compare_thetas(embeddings, person, {0.0: quality})


@pytest.mark.slow
def test_choose_theta_compares_the_labels_that_optimize_labels_gives(monkeypatch):
    embeddings, person, quality, nuisance = people(25, 6, np.random.default_rng(6))
    prior = quality + nuisance
    labels = optimize_labels(
        embeddings, person, prior, n_clusters=4, n_repeats=3, theta=[0.1, 0.3, 0.6, 1], index_scale="normalized", seed=7
    )
    targets = {0.0: scale_to_unit(prior)} | {t: r.label for t, r in labels.items()}
    monkeypatch.setattr(module, "CANDIDATES", tuple(targets))
    chosen = choose_theta(embeddings, person, prior, n_clusters=4, n_repeats=3, seed=7)
    assert replace(chosen, sign="") == compare_thetas(embeddings, person, targets, seed=7)
