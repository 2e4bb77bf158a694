import itertools
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import reference
from fiqa_ray.core import paper
from fiqa_ray.core.labels import optimize_from_pairs, optimize_labels, quality_index, reassign_scores, sum_owned_ranks
from fiqa_ray.core.ranking import RankTable
from fiqa_ray.errors import UsageError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "label_optimization_check.json").read_text())


@pytest.mark.parametrize("theta", [0.001, 0.1, 0.5])
@pytest.mark.parametrize("n_repeats", [1, 3])
def test_authors_golden_values(theta, n_repeats):
    names = GOLDEN["names"]
    embeddings = np.array([GOLDEN["embeddings"][n] for n in names], np.float32)
    prior = np.array([GOLDEN["quality"][n] for n in names])
    cluster_of = {n: c for ident in GOLDEN["clusters"].values() for c, ns in ident.items() for n in ns}
    pairs = [
        (i, j, reference.key(embeddings[i], embeddings[j]) / reference.STEPS)
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if a[0] == b[0] and cluster_of[a] != cluster_of[b]
    ]
    expected = GOLDEN["expected"]
    assert len(pairs) == expected["n_pairs"]
    repeat = tuple(np.array(column) for column in zip(*pairs, strict=True))
    got = optimize_from_pairs(prior, [repeat] * n_repeats, theta=theta, index_scale="raw")
    assert {n: int(k) for n, k in zip(names, got.quality_index, strict=True)} == expected["quality_index"]
    means = {n: m for n, m in zip(names, got.mean_similarity_rank, strict=True) if not math.isnan(m)}
    assert means == expected["mean_pair_index"]
    assert dict(zip(names, got.score, strict=True)) == expected["optimized"][f"theta={theta},R={n_repeats}"]


def exact_embeddings(rng, n_images):
    """Rows of +-1 in 16 dimensions: norm 4, so unit vectors and cosines are exact and ties abound."""
    return rng.choice([-1.0, 1.0], size=(n_images, 16)).astype(np.float32)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    n_clusters=st.integers(1, 25),
    n_repeats=st.integers(1, 3),
    theta=st.sampled_from([0.0, 0.001, 0.03, 0.5, 1.0]),
    n_scores=st.sampled_from([2, 10, 10**6]),
    seed=st.integers(0, 2**40),
)
@example(sizes=[55], n_clusters=6, n_repeats=1, theta=0.03, n_scores=10, seed=788447167)  # tied distances
def test_engine_equals_slow_loops(sizes, n_clusters, n_repeats, theta, n_scores, seed):
    rng = np.random.default_rng(seed)
    n_images = sum(sizes)
    embeddings = exact_embeddings(rng, n_images)
    prior = rng.integers(0, n_scores, n_images).astype(np.float64)  # few distinct scores: ties
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    identities = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
    names = np.repeat(np.arange(len(sizes)), sizes)
    got = optimize_labels(
        embeddings, names, prior, n_clusters=n_clusters, theta=theta, n_repeats=n_repeats, seed=seed, index_scale="raw"
    )
    scores, index, means, owned = reference.whole(
        embeddings.tolist(), identities, prior.tolist(), n_clusters, theta, n_repeats, seed
    )
    assert got.score.tolist() == scores
    assert got.n_owned_pairs.tolist() == owned
    np.testing.assert_allclose(got.optimized_index, index, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(got.mean_similarity_rank, means, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    n_clusters=st.integers(1, 25),
    n_repeats=st.integers(1, 3),
    theta=st.sampled_from([0.0, 0.001, 0.03, 0.5, 1.0]),
    index_scale=st.sampled_from(["raw", "normalized"]),
    init=st.sampled_from(["random", "k-means++"]),
    n_scores=st.sampled_from([2, 10, 10**6]),
    seed=st.integers(0, 2**40),
)
@example(  # two images of equal index, but for the order of the roundings
    sizes=[14], n_clusters=14, n_repeats=1, theta=1.0, index_scale="normalized", init="random", n_scores=10, seed=329350
)
def test_engine_equals_the_paper_on_a_page(sizes, n_clusters, n_repeats, theta, index_scale, init, n_scores, seed):
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    embeddings = exact_embeddings(rng, len(identity))
    prior = rng.integers(0, n_scores, len(identity)).astype(np.float64)  # few distinct scores: ties
    options = {"n_clusters": n_clusters, "n_repeats": n_repeats, "theta": theta, "seed": seed, "init": init}
    on_a_page = paper.optimize_labels(embeddings, identity, prior, index_scale=index_scale, **options)
    fast = optimize_labels(embeddings, identity, prior, index_scale=index_scale, **options)
    assert fast.score.tolist() == on_a_page.tolist()
    if index_scale == "raw" and init == "random":
        images_of = [np.flatnonzero(identity == k).tolist() for k in range(len(sizes))]
        scores, *_ = reference.whole(embeddings.tolist(), images_of, prior.tolist(), n_clusters, theta, n_repeats, seed)
        assert on_a_page.tolist() == scores


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 40), n_pairs=st.integers(0, 200), levels=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_given_pairs_equal_slow_loops(n, n_pairs, levels, seed):
    rng = np.random.default_rng(seed)
    prior = rng.integers(0, levels, n).astype(float)
    repeats = []
    for _ in range(2):
        image = rng.integers(0, n, n_pairs)
        mate = (image + rng.integers(1, n, n_pairs)) % n
        repeats.append((image, mate, rng.integers(-levels, levels + 1, n_pairs) / 2.0**10))
    got = optimize_from_pairs(prior, repeats, theta=0.3, index_scale="raw")
    scores, _, means, owned = reference.optimize(
        prior.tolist(), [list(zip(*(c.tolist() for c in r), strict=True)) for r in repeats], 0.3
    )
    assert got.score.tolist() == scores
    assert got.n_owned_pairs.tolist() == owned
    np.testing.assert_allclose(got.mean_similarity_rank, means, rtol=1e-12)


@pytest.mark.parametrize(
    ("image", "mate", "similarity", "text"),
    [
        ([0, 1], [1, 0, 1], [0.5, 0.5, 0.5], r"one length .* image_row \(2,\), mate_row \(3,\), similarity \(3,\)"),
        ([0, 1], [1, 0], [0.5], "one length"),
        ([[0, 1]], [[1, 0]], [[0.5, 0.5]], "one length"),
        ([0.5, 1], [1, 0], [0.5, 0.5], "image_row must hold whole numbers, got float64"),
        ([0, 1], [1, 2], [0.5, 0.5], "mate_row runs from 1 to 2, but there are 2 prior scores"),
        ([0, 1], [1, 0], [0.5, 7.0], "a similarity is 7; give cosines"),
        ([0, 1], [1, 0], [0.5, np.nan], "NaN or infinite"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(image, mate, similarity, text):
    with pytest.raises(UsageError, match=f"repeat 1: .*{text}"):
        optimize_from_pairs([0.1, 0.2], [([0], [1], [0.5]), (image, mate, similarity)], theta=0.1)


def test_one_theta_may_be_an_array_of_no_dimension():
    embeddings = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    run = partial(
        optimize_labels, embeddings, np.arange(20) // 5, np.arange(20.0), index_scale="normalized", n_clusters=3
    )
    assert run(theta=np.array(0.1)).label.tolist() == run(theta=0.1).label.tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), theta=st.floats(0, 1))
def test_properties(seed, theta):
    rng = np.random.default_rng(seed)
    names = rng.integers(0, 6, 80)
    embeddings = rng.normal(size=(80, 16)).astype(np.float32)
    prior = rng.normal(size=80)
    prior[:9] = rng.choice([0.0, -0.0], 9)

    def run(p, t):
        return optimize_labels(embeddings, names, p, n_clusters=4, n_repeats=2, theta=t, seed=seed, index_scale="raw")

    got = run(prior, theta)
    assert sorted(got.score.view(np.int64)) == sorted(prior.view(np.int64))  # the distribution is kept, to the bit
    assert got.label.min() == 0
    assert got.label.max() == 1
    stretched = run(np.exp(prior), theta)  # a strictly increasing map moves values, not order
    assert np.array_equal(quality_index(stretched.score), quality_index(got.score))
    assert np.array_equal(run(prior, 0.0).score, prior)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), theta=st.floats(0, 1))
def test_order_of_images_and_names_of_people_do_not_matter(seed, theta):
    """Given pairs, permuted images get permuted labels. Whole runs: other names change nothing; nor do shuffled people whose
    rows keep their order and first appearance, for an identity's draws depend on its own images alone."""
    rng = np.random.default_rng(seed)
    n = 40
    prior = rng.normal(size=n)  # no ties: with ties the row order decides
    image = rng.integers(0, n, 150)
    mate = (image + rng.integers(1, n, 150)) % n
    similarity = rng.integers(-50, 51, 150) / 2.0**7
    got = optimize_from_pairs(prior, [(image, mate, similarity)], theta=theta, index_scale="raw")
    order = rng.permutation(n)  # new row i holds the old image order[i]
    place = np.argsort(order)
    shuffled = rng.permutation(150)
    moved = (place[image][shuffled], place[mate][shuffled], similarity[shuffled])
    permuted = optimize_from_pairs(prior[order], [moved], theta=theta, index_scale="raw")
    assert np.array_equal(permuted.optimized_index, got.optimized_index[order])
    if len(set(got.optimized_index)) == n:  # ties of the index fall to the quality index, which is permuted alike
        assert np.array_equal(permuted.label, got.label[order])

    people = np.repeat(np.arange(5), rng.integers(1, 20, 5))
    embeddings, prior = exact_embeddings(rng, len(people)), rng.normal(size=len(people))
    run = partial(optimize_labels, n_clusters=4, n_repeats=2, theta=theta, seed=seed)
    plain = run(embeddings, people, prior)
    names = [f"person {9 - k}" for k in people]
    assert np.array_equal(run(embeddings, names, prior).score, plain.score)
    # people mixed with one another, each one's images in their own order, and first seen in the same order
    slots = np.concatenate([np.arange(5), rng.permutation(np.repeat(np.arange(5), np.bincount(people) - 1))])
    own = {k: iter(np.flatnonzero(people == k)) for k in range(5)}
    mixed = np.array([next(own[k]) for k in slots])
    assert np.array_equal(run(embeddings[mixed], people[mixed], prior[mixed]).score, plain.score[mixed])


def test_an_image_paired_with_itself_owns_the_pair_once():
    repeat = (np.array([1, 1, 0]), np.array([1, 0, 0]), np.array([0.5, 0.25, 0.75]))
    got = optimize_from_pairs(np.array([0.1, 0.2]), [repeat], theta=0.5, index_scale="raw")
    assert got.n_owned_pairs.tolist() == [2, 1]  # image 0 owns the pair with 1 and the one with itself
    assert got.mean_similarity_rank.tolist() == [1.0, 1.0]  # places 0 and 2; place 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mate": np.array([1, 0, 9], np.int32)}, "rows below 3"),
        ({"mate": np.array([1, 0], np.int32)}, "different runs"),
        ({"similarity": np.zeros(4, np.float32)}, "different runs"),
        ({"n_opened": np.array([1, 1, 0])}, "different runs"),
        ({"n_opened": np.array([-5000, 5000, 3])}, "different runs"),
    ],
)
def test_pairs_that_do_not_fit_together_are_refused(change, words):
    good = {
        "n_opened": np.array([1, 1, 1]),
        "mate": np.array([1, 0, 0], np.int32),
        "similarity": np.array([0.5, 0.5, 0.25], np.float32),
    }
    assert sum_owned_ranks({"": np.arange(3)}, **good)[""][1].tolist() == [3, 0, 0]
    with pytest.raises(ValueError, match=words):
        sum_owned_ranks({"": np.arange(3)}, **{**good, **change})


@settings(max_examples=60, deadline=None)
@given(n_images=st.integers(1, 40), n_pairs=st.integers(0, 300), is_part=st.booleans(), seed=st.integers(0, 2**32))
def test_sums_by_owner_equal_slow_loops(n_images, n_pairs, is_part, seed):
    """Of two methods at once, some images without a score; ranked among themselves, or as part of a repeat."""
    rng = np.random.default_rng(seed)
    image = np.sort(rng.integers(0, n_images, n_pairs))
    mate = rng.integers(0, n_images, n_pairs).astype(np.int32)
    key = rng.choice([rng.integers(-5, 5, n_pairs), rng.integers(-(2**23), 2**23 + 1, n_pairs)])
    others = rng.integers(-(2**23), 2**23 + 1, 50 if is_part else 0)
    everything = np.concatenate([key, others])
    rank2 = (2 * (rankdata(everything) - 1)).astype(int) if len(everything) else everything
    indices = {m: np.where(rng.random(n_images) < 0.2, -1, rng.permutation(n_images)) for m in "ab"}
    ranks = RankTable.among((everything / 2**23).astype(np.float32)) if is_part else None
    n_opened = np.bincount(image, minlength=n_images)
    found = sum_owned_ranks(indices, n_opened, mate, (key / 2**23).astype(np.float32), ranks)
    for method, index in indices.items():
        total, count = [0] * n_images, [0] * n_images
        for i, j, r in zip(image, mate, rank2, strict=False):
            if min(index[i], index[j]) >= 0:
                owner = i if index[i] <= index[j] else j
                total[owner] += int(r)
                count[owner] += 1
        assert found[method][0].tolist() == total
        assert found[method][1].tolist() == count


def test_scores_are_dealt_out_by_place():
    # by hand: places 2, 0, 1 become 0, 1, 2, so the images move by 2, 1 and 1 places
    score, label, moved = reassign_scores(np.array([0.3, 0.1, 0.2]), np.array([2, 0, 1]), np.array([0.5, 0.75, 9.0]))
    assert score.tolist() == [0.1, 0.2, 0.3]
    assert label.tolist() == [0.0, 0.5, 1.0]
    assert moved == 4 / 3


def test_normalized_scale_is_n_over_l():
    prior = np.array([0.1, 0.2, 0.3])
    repeat = (np.array([0, 1, 1, 2]), np.array([1, 0, 2, 1]), np.array([0.5, 0.5, 0.75, 0.75]))
    got = optimize_from_pairs(prior, [repeat], theta=1.0, index_scale="normalized")
    # image 0 owns places 0 and 1, image 1 owns 2 and 3; N/L = 3/4; image 2 owns none and keeps 2
    np.testing.assert_allclose(got.optimized_index, [0.5 * 0.75, 2.5 * 0.75, 2.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prior_scores": np.array([0.1, np.nan, 0.2])}, "image 1 is nan"),
        ({"identities": ["a", "a"]}, "3 embeddings but 2 identities"),
        ({"embeddings": np.full((3, 4), np.inf, np.float32)}, "finite"),
        ({"embeddings": np.full((3, 4), 1e39)}, "finite"),
        ({"embeddings": np.ma.masked_greater(np.eye(3, 4), 0.5)}, "3 embeddings are masked"),
        ({"embeddings": torch.eye(3, 4).requires_grad_()}, "embeddings cannot be read as numbers"),
        ({"prior_scores": np.ma.masked_array([1.0, 2, 3], [0, 1, 0])}, "1 prior scores are masked"),
        ({"prior_scores": ["good", "fair", "bad"]}, "prior scores cannot be read as numbers"),
        ({"identities": pa.array(["a", "a", None])}, "identity None"),
        ({"embeddings": np.array([[1.0, 0], [0, 0], [0, 1]])}, "1 embeddings are all zeros.*that of image 1"),
        ({"embeddings": np.empty((3, 0))}, r"shape \(n_images, dim\), got \(3, 0\)"),
        ({"theta": 2.0}, "theta=2.0 is outside"),
        ({"index_scale": "row"}, "index_scale='row'"),
    ],
)
def test_bad_input_is_named(change, words):
    good = {"embeddings": np.eye(3, 4, dtype=np.float32), "identities": list("aab"), "prior_scores": np.arange(3.0)}
    with pytest.raises(UsageError, match=words):
        optimize_labels(**{**good, **change})


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_length_of_embeddings_and_the_kind_of_array_do_not_matter(factor):
    """The squares of such embeddings are 0 or infinite in float32."""
    rng = np.random.default_rng(0)
    person, scores = np.repeat(np.arange(8), 5), rng.normal(size=40)
    embeddings = (np.repeat(rng.normal(size=(8, 16)), 5, axis=0) + rng.normal(size=(40, 16))).astype(np.float32)
    options = {"n_clusters": 3, "n_repeats": 3, "theta": 0.1, "index_scale": "normalized"}
    wanted = optimize_labels(embeddings, person, scores, **options)
    embeddings[::3] *= np.float32(factor)
    got = optimize_labels(torch.from_numpy(embeddings), torch.from_numpy(person), torch.from_numpy(scores), **options)
    np.testing.assert_allclose(got.mean_similarity_rank, wanted.mean_similarity_rank, atol=2)
    np.testing.assert_allclose(got.label, wanted.label, atol=0.02)


def test_progress_rises_to_one():
    rng = np.random.default_rng(0)
    shares = []
    with pytest.warns(UserWarning, match="images of"):
        optimize_labels(
            rng.normal(size=(400, 8)), np.repeat(np.arange(200), 2), rng.random(400), progress=shares.append
        )
    assert shares == sorted(shares)
    assert len(shares) > 5
    assert shares[-1] == 1


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_complex_numbers_are_refused():
    """numpy would take their real parts with a warning."""
    embeddings, scores = np.random.default_rng(0).normal(size=(4, 3)), np.arange(4.0)
    for x, q in ((embeddings * 1j, scores), (embeddings, scores + 1j)):
        with pytest.raises(UsageError, match="complex numbers"):
            optimize_labels(x, [0, 0, 1, 1], q, n_clusters=2, theta=0.1)


@pytest.mark.parametrize(
    "identities",
    [
        [None, None, "a", "a"],
        ["", "", "a", "a"],
        [math.nan, math.nan, 1.0, 1.0],
        np.array([np.nan, np.nan, 1, 1]),
        np.array(["", "", "a", "a"]),
    ],
    ids=str,
)
def test_images_of_nobody_are_not_one_person(identities):
    embeddings = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(UsageError, match=r"an image has the identity (None|''|nan); name its person"):
        optimize_labels(embeddings, identities, np.arange(4.0), n_clusters=2, theta=0.1)
