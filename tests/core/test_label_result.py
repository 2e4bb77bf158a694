"""Results of label optimization as a person meets them: several thetas, files, and what they are warned of."""

import re
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from fiqa_ray.core.label_result import expected_move, move_advice, sign_doubt
from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.errors import UsageError


def faces(n_people=30, per_person=10, seed=0):
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(n_people), per_person)
    noise = rng.uniform(0.3, 1.5, len(people))
    embeddings = rng.normal(size=(n_people, 64))[people] + noise[:, None] * rng.normal(size=(len(people), 64))
    return embeddings.astype(np.float32), people, rng.random(len(people))


def run(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return optimize_labels(*args, **{"n_clusters": 5, "index_scale": "normalized", **options})


def test_one_result_per_theta_is_what_each_theta_gives_alone():
    embeddings, people, prior = faces()
    several = run(embeddings, people, {"a": prior, "b": -prior}, theta=[0.1, 0.3])
    assert {m: list(r) for m, r in several.items()} == {"a": [0.1, 0.3], "b": [0.1, 0.3]}
    for method, scores in (("a", prior), ("b", -prior)):
        for theta in (0.1, 0.3):
            alone = run(embeddings, people, scores, theta=theta)
            assert alone.label.tolist() == several[method][theta].label.tolist()
            assert (alone.theta, several[method][theta].theta) == (theta, theta)
    assert list(run(embeddings, people, prior, theta=np.array([0.2]))) == [0.2]
    for theta, message in (([], "empty list"), (["a"], "must be a number"), ([0.1, 2], "theta=2.0 is outside")):
        with pytest.raises(UsageError, match=message):
            run(embeddings, people, prior, theta=theta)


def test_a_result_as_text_table_and_file(tmp_path):
    embeddings, people, prior = faces()
    result = run(embeddings, people, prior, theta=0.3)
    old, new = rankdata(prior), rankdata(result.score)  # no ties: ranks of an independent library
    assert result.mean_move == pytest.approx(np.abs(old - new).mean() / len(prior))
    assert result.prior.tolist() == prior.tolist()
    assert repr(result) == (
        f"<OptimizedLabels of 300 images: theta 0.3, mean move {100 * result.mean_move:.2g} % of the ranks; "
        f"{int((result.n_owned_pairs == 0).sum())} images own no pair, the best of their people, and keep their index>"
    )
    names = [f"{p}/{i}.jpg" for i, p in enumerate(people)]
    frame = result.to_pandas(names)
    assert frame.columns.tolist() == ["image_id", "prior", "label", "score", "n_owned_pairs"]
    assert frame["image_id"].tolist() == names
    result.to_csv(tmp_path / "labels.csv", names)
    stored = pd.read_csv(tmp_path / "labels.csv")
    pd.testing.assert_frame_equal(stored, frame, check_dtype=False, rtol=1e-6)
    assert result.to_pandas()["image_id"].tolist() == list(range(300))
    with pytest.raises(UsageError, match="2 names for 300 images"):
        result.to_csv(tmp_path / "labels.csv", ["a", "b"])


def warned(*args, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimize_labels(*args, **{"n_clusters": 5, "index_scale": "normalized", "theta": 0.3, **options})
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def test_warnings():
    embeddings, people, prior = faces()
    assert warned(embeddings, people, prior) == []
    (text,) = warned(embeddings, np.arange(300), prior)
    assert "300 of 300 people (300 of 300 images) have no pair, since they have one image each" in text
    assert "Were identities and scores exchanged?" in text
    (text,) = warned(embeddings, np.where(people == 3, np.arange(300) + 1000, people), prior)
    assert "10 of 39 people (10 of 300 images)" in text
    (text,) = warned(embeddings, people, prior, n_clusters=1)
    assert "n_clusters is 1" in text
    (text,) = warned(embeddings, people, prior, n_clusters=50)
    assert "n_clusters=50 is above the images of 30 of 30 people (median 10)" in text
    assert "such as 5" in text
    (text,) = warned(embeddings, people, prior, theta=0.001, index_scale=None)
    assert text.startswith("theta=0.001 moves an image by")
    wanted = re.search(r"try theta=([\d.]+), index_scale normalized, which moves about [\d.]+ %$", text)
    moved = run(embeddings, people, prior, theta=float(wanted[1]), index_scale="normalized").mean_move
    assert 0.01 < moved < 0.05  # the advice keeps its word: some 2 % of the ranks
    (text,) = warned(embeddings, people, prior, theta=0.1, index_scale="raw")
    assert "theta=0.1 on index_scale raw labels images without a pair as bad" in text
    assert warned(embeddings, people, prior, theta=0.1, index_scale=None) == []
    assert warned(embeddings, people, prior, theta=0) == []


def test_a_theta_that_moves_nothing_is_answered_by_one_that_moves_two_percent():
    """A unit of theta moves 0.19 sqrt(1 - rho^2) of the ranks of images with pairs, once it is far above 0.45 ranks."""
    said = " % of the ranks on average, so the labels are almost your scores"
    advice = partial(move_advice, "mine", index_scale="normalized")
    # 300 images: 0.19 x 0.1 x exp(-(0.45 / (300 x 0.019))^2) = 0.0189; in proportion to the move of 0 it was 1
    assert advice(0.001, 0.0, n_images=300, rho=0.0) == (
        f"mine: theta=0.001 moves an image by 0{said}; try theta=0.1, which moves about 1.9 %"
    )
    # 0.19 x sqrt(1 - 0.99^2) = 0.0268: 0.7 gives 0.0188, 0.8 gives 0.0214
    large = partial(advice, n_images=9500)
    assert large(0.1, 0.004, rho=0.99).endswith(f"by 0.4{said}; try theta=0.7, which moves about 1.9 %")
    agree = ", since the similarities agree with them (Spearman +0.99)"
    assert large(1.0, 0.004, rho=0.99).endswith(f"by 0.4{said}{agree}")
    # 0.19 x sqrt(1 - 0.994^2) = 0.0208, 0.19 x sqrt(1 - 0.9949^2) = 0.0192
    assert large(0.1, 0.004, rho=0.994).endswith("try theta=1, which moves about 2.1 %")
    assert large(0.1, 0.004, rho=0.9949).endswith(f"; even theta=1 would move only about 1.9 %{agree}")
    few = (
        "; even theta=1 would move only about 0.95 %: too few pairs or too few clusters (5 % of the images own a pair)"
    )
    assert large(0.1, 0.004, rho=0.0, share_with_pairs=0.05) == (
        f"mine: theta=0.1 moves an image by 0.4{said}{few}; take more images per person, or more clusters"
    )
    assert move_advice("", 0.001, 0.002, 9500, "raw", rho=0.0) == (
        f"theta=0.001 moves an image by 0.2{said}; try theta=0.1, index_scale normalized, which moves about 1.9 %"
    )


def test_each_method_that_does_not_move_is_named_once():
    embeddings, people, prior = faces()
    texts = warned(embeddings, people, {"a": prior, "b": prior[::-1]}, theta=[0.0001, 0.001, 0.3])
    assert [text[:15] for text in texts] == ["a: theta=0.001 ", "b: theta=0.001 "]
    few = np.arange(300)
    few[:10] = 0  # one person of ten images, 290 of one
    texts = warned(embeddings, few, prior, theta=0.2)
    assert re.search(
        r"theta=0\.2 .* only about 0\.[456]\d? %: too few pairs .* \([23](\.\d)? % of the images", texts[-1]
    )


def test_scores_of_the_wrong_sign_or_without_order_are_doubted():
    rng = np.random.default_rng(3)
    people = np.repeat(np.arange(40), 10)
    noise = rng.uniform(0.3, 1.5, len(people))
    embeddings = rng.normal(size=(40, 64))[people] + noise[:, None] * rng.normal(size=(400, 64))
    embeddings = embeddings.astype(np.float32)
    assert warned(embeddings, people, -noise) == []
    (text,) = warned(embeddings, people, {"good": -noise, "uncertainty": noise})
    assert re.match(r"uncertainty: images with larger scores have less similar pairs \(Spearman -0\.[5-9]", text)
    assert any("all 400 scores are equal" in text for text in warned(embeddings, people, np.ones(400)))
    with pytest.raises(UsageError, match="choose_theta"):
        optimize_labels(embeddings, people, -noise, theta="heldout")
    embeddings[7] = 0
    with pytest.raises(UsageError, match=r"1 embeddings are all zeros.*the first is that of image 7"):
        optimize_labels(embeddings, people, -noise)


def test_a_sign_is_not_told_below_four_standard_errors():
    """The standard error of Spearman's rho of 101 images without relation is 0.1."""
    for n_owners, rho, text in (
        (101, 0.41, ""),
        (101, 0.39, "a: sign not told: .* \\(Spearman \\+0.39, 101 images\\); .*doctor"),
        (
            10_001,
            0.07,
            "a: sign not told: .* \\(Spearman \\+0.07, 10,001 images\\); .*doctor",
        ),  # 7 errors, and next to nothing
        (101, -0.39, "a: sign not told: .* \\(Spearman -0.39"),
        (101, -0.41, "a: images with larger scores have less similar pairs .*Negate an uncertainty"),
        (49, 0.0, "a: sign not told: .*49 images with pairs are too few"),
    ):
        doubt = sign_doubt("a", {"n_owners": n_owners, "score_rho": rho})
        assert re.fullmatch(f"{text}.*" if text else "", doubt), doubt


@pytest.mark.parametrize("n_clusters", [5, 10, 20])
@pytest.mark.parametrize("n_people", [9, 90])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_expected_move_is_near_the_measured_one(n_people, n_clusters):
    embeddings, people, prior = faces(n_people, 40)
    theta = 0.003
    moved = optimize_labels(embeddings, people, prior, n_clusters=n_clusters, theta=theta, index_scale="raw").mean_move
    middle = np.mean(expected_move(theta, n_clusters - 1, len(people), "raw"))
    assert middle == pytest.approx(moved, rel=0.2)
    moved = optimize_labels(
        embeddings, people, prior, n_clusters=n_clusters, theta=0.03, index_scale="normalized"
    ).mean_move
    low, high = expected_move(0.03, n_clusters - 1, len(people), "normalized")
    assert low < moved < high
    # with the rank correlation of scores and similarities, by another library, one number: also where scores follow them
    rank = optimize_labels(embeddings, people, prior, n_clusters=n_clusters, theta=0).mean_similarity_rank
    near = np.nan_to_num(rank) / np.nanstd(rank) + np.random.default_rng(5).normal(0, 0.7, len(rank))
    for scores in (prior, near):
        result = optimize_labels(
            embeddings, people, scores, n_clusters=n_clusters, theta=0.05, index_scale="normalized"
        )
        owns = np.isfinite(result.mean_similarity_rank)
        rho = float(spearmanr(scores[owns], result.mean_similarity_rank[owns]).statistic)
        ends = expected_move(0.05, n_clusters - 1, len(people), "normalized", rho)
        assert ends[0] == ends[1] == pytest.approx(result.mean_move, rel=0.2 if n_people == 90 else 0.3)
