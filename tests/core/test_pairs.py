import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fiqa_ray.core import paper
from fiqa_ray.core.clustering import faiss_clusters, lloyd_clusters, start_images, start_states
from fiqa_ray.core.kernels import jit as compiled
from fiqa_ray.core.kernels.draws import counter_draws
from fiqa_ray.core.kernels.gram import cosine_keys, unit_vectors
from fiqa_ray.core.kernels.kmeans import lloyd
from fiqa_ray.core.pairs import mated_pairs, redraw_mates
from fiqa_ray.core.templates import pair_similarities
from fiqa_ray.errors import UsageError


def shard(rng, sizes, dim=32):
    centres = [rng.normal(size=(max(1, n // 6), dim)) for n in sizes]
    x = np.concatenate(
        [c[rng.integers(0, len(c), n)] + 0.3 * rng.normal(size=(n, dim)) for c, n in zip(centres, sizes, strict=True)]
    )
    return x.astype(np.float32), np.concatenate([[0], np.cumsum(sizes)])


def test_every_image_opens_one_pair_per_other_cluster():
    rng = np.random.default_rng(0)
    sizes = [1, 2, 7, 30, 64]
    x, bounds = shard(rng, sizes)
    repeats = list(mated_pairs(x, bounds, np.arange(5), n_clusters=5, n_repeats=3, seed=7))
    identity = np.repeat(np.arange(5), sizes)
    for p in repeats:
        assert np.array_equal(identity[p.image], identity[p.mate])
        opened = np.bincount(p.image, minlength=len(x))
        assert opened.tolist() == np.repeat([min(5, n) - 1 for n in sizes], sizes).tolist()
        cosine = np.sum(unit_vectors(x)[p.image].astype(float) * unit_vectors(x)[p.mate], axis=1)
        np.testing.assert_allclose(p.similarity, cosine, atol=3e-7)
    assert not np.array_equal(repeats[0].mate, repeats[1].mate)


def test_an_identity_does_not_see_its_neighbours():
    """The same identity alone, among others, and in another batch: the same clusters, partners and similarity bits."""
    rng = np.random.default_rng(1)
    sizes = [40, 17, 90, 33, 5, 64]
    x, bounds = shard(rng, sizes, dim=512)
    together = list(mated_pairs(x, bounds, np.arange(6), n_clusters=8, n_repeats=2, seed=3))
    for k in range(6):
        lo, hi = bounds[k], bounds[k + 1]
        alone = list(mated_pairs(x[lo:hi], np.array([0, hi - lo]), np.array([k]), n_clusters=8, n_repeats=2, seed=3))
        for p, q in zip(together, alone, strict=True):
            mine = (p.image >= lo) & (p.image < hi)
            assert np.array_equal(p.image[mine] - lo, q.image)
            assert np.array_equal(p.mate[mine] - lo, q.mate)
            assert np.array_equal(p.similarity[mine].view(np.uint32), q.similarity.view(np.uint32))


def sample_partners(cluster, bounds, identity_rows, *, seed, repeat):
    n_opened, mate = redraw_mates(cluster, bounds, identity_rows, [repeat], seed=seed)
    return np.repeat(np.arange(len(cluster)), n_opened), mate[0]


def test_partners_are_uniform_and_independent():
    """Chi-square of the partner's place within each other cluster, over repeats and identities of one shape."""
    cluster = np.repeat([0, 1, 2], [4, 5, 6]).astype(np.int32)
    n_identities, n_repeats = 60, 20
    tiled = np.tile(cluster, n_identities)
    bounds = np.arange(n_identities + 1) * 15
    drawn = [sample_partners(tiled, bounds, np.arange(n_identities), seed=5, repeat=r) for r in range(n_repeats)]
    for c, n in ((0, 4), (1, 5), (2, 6)):
        counts = Counter()
        for _, mate in drawn:
            place = mate % 15
            counts.update(place[cluster[place] == c].tolist())
        assert len(counts) == n
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    a, b = drawn[0][1] % 15, drawn[1][1] % 15  # two repeats agree no more often than chance
    weights = {0: 11, 1: 10, 2: 9}  # pairs that end in each cluster, per identity
    expected = sum(w / {0: 4, 1: 5, 2: 6}[c] for c, w in weights.items()) / sum(weights.values())
    assert abs(np.mean(a == b) - expected) < 4 * np.sqrt(expected / len(a))
    assert not np.array_equal(sample_partners(tiled, bounds, np.arange(n_identities), seed=6, repeat=0)[1], drawn[0][1])


@pytest.mark.parametrize("engine", ["lloyd", "faiss"])
def test_clusters_are_as_good_as_scikit_learn(engine):
    """Same start, same data: inertia within 1 % of scikit-learn's Lloyd (it may stop at another local optimum)."""
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(2)
    x, _ = shard(rng, [300], dim=64)
    units = unit_vectors(x)
    start = np.argsort(counter_draws(9, 0x1217, 0, 4, np.arange(300)), kind="stable")[:20]
    other = KMeans(20, init=units[start], n_init=1, max_iter=50, tol=0).fit(units)
    if engine == "lloyd":
        flat, labels, n_cells = np.empty(300 * 300, np.float32), np.empty(300, np.int32), np.empty(1, np.int32)
        bounds = np.array([0, 300])
        cosine_keys(x, bounds, flat)
        gram = flat.reshape(300, 300)
        assert np.array_equal(gram, gram.T)
        exact = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
        np.testing.assert_allclose(gram / 2**23, exact @ exact.T, atol=6e-7)  # products are float32
        starts = start_images(np.array([300]), start_states(np.array([4]), [0], seed=9)[0], 20)
        assert starts[0].tolist() == start.tolist()
        lloyd(flat, bounds, starts, labels, n_cells)
        assert n_cells[0] == labels.max() + 1 == 20
    else:
        labels = faiss_clusters(units, 4, 20, seed=9)
    inertia = sum(((units[labels == c] - units[labels == c].mean(0)) ** 2).sum() for c in np.unique(labels))
    assert inertia == pytest.approx(other.inertia_, rel=0.01)


@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("n", [1, 2, 3, 40, 65, 300])
def test_clusters_of_ordinary_embeddings_are_the_specifications(init, n):
    """`core.paper` gives the compiled loop's clusters for any cosines: it rounds as the loop does."""
    rng = np.random.default_rng(n)
    unit = rng.normal(size=(n, 24)) + rng.normal(size=24)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    keys = (paper.cosine_similarity(unit[:, None], unit[None]) * 2**23).astype(np.float32).reshape(-1)
    cluster, counts = np.empty(n, np.int32), np.empty(1, np.int32)
    states = start_states(np.array([7]), [0], seed=5)[0]
    lloyd_clusters(keys, np.array([0, n]), states, 12, cluster, counts, init)
    specified = paper.cluster_identity(unit, 7, 12, 5, init)
    assert cluster.tolist() == specified.tolist()


def sums_within_clusters(units, bounds, cluster):
    """The within-cluster sum of squares of each identity."""
    sums = []
    for low, high in itertools.pairwise(bounds):
        x, c = units[low:high].astype(float), cluster[low:high]
        sums.append(sum(((x[c == k] - x[c == k].mean(0)) ** 2).sum() for k in np.unique(c)))
    return np.array(sums)


def test_spread_starts_are_as_good_as_scikit_learns():
    """k-means++ here and in scikit-learn draw other numbers: over 60 people their clusters are equally tight."""
    from sklearn.cluster import KMeans

    n_people, n = 60, 40
    x, bounds = shard(np.random.default_rng(4), [n] * n_people)
    units = unit_vectors(x)
    ours = {}
    for init in ("random", "k-means++"):
        (p,) = mated_pairs(x, bounds, np.arange(n_people), n_clusters=8, n_repeats=1, seed=0, init=init)
        ours[init] = sums_within_clusters(units, bounds, p.cluster).sum()
    models = [
        KMeans(8, init="k-means++", n_init=1, max_iter=50, tol=0, random_state=k).fit(units[low : low + n])
        for k, low in enumerate(bounds[:-1])
    ]
    theirs = sum(model.inertia_ for model in models)
    assert ours["k-means++"] == pytest.approx(theirs, rel=0.02)
    assert ours["random"] > 1.05 * theirs


def test_spread_starts_of_duplicates_and_few_images():
    x = np.repeat(np.eye(3, 8, dtype=np.float32), [5, 5, 2], axis=0)
    for device in ("cpu", "cpu:0"):
        (p,) = mated_pairs(
            x, [0, 12], [0], n_clusters=20, n_repeats=1, seed=0, init="k-means++", device=device
        )  # three faces, however many starts
        assert [len(set(p.cluster[rows])) for rows in (slice(0, 5), slice(5, 10), slice(10, 12))] == [1, 1, 1]
        assert set(p.cluster) == {0, 1, 2}
        # with as many clusters as faces, each start is another face; random starts often miss one
        for seed in range(20):
            (p,) = mated_pairs(x, [0, 12], [0], n_clusters=3, n_repeats=1, seed=seed, init="k-means++", device=device)
            assert set(p.cluster) == {0, 1, 2}


def test_faiss_does_not_take_spread_starts(monkeypatch):
    x, bounds = shard(np.random.default_rng(3), [80])
    with pytest.raises(UsageError, match="clustering is faiss; use init random"):
        mated_pairs(x, bounds, [0], init="k-means++", clustering="faiss")
    monkeypatch.setattr("fiqa_ray.core.pairs.MAX_GRAM_IMAGES", 50)
    with pytest.raises(UsageError, match="up to 50 images, and a person has 80 images; use init random"):
        mated_pairs(x, bounds, [0], init="k-means++")


def test_duplicates_and_tiny_identities():
    x = np.repeat(np.eye(3, 8, dtype=np.float32), [5, 5, 2], axis=0)
    (p,) = mated_pairs(x, np.array([0, 12]), np.array([0]), n_clusters=20, n_repeats=1, seed=0)
    assert set(p.similarity) == {0.0}  # three distinct faces: three clusters, partners are always another face
    assert len(p.image) == 12 * 2
    (p,) = mated_pairs(x[:1], np.array([0, 1]), np.array([0]), n_clusters=20, n_repeats=1, seed=0)
    assert len(p.image) == 0


def test_large_identities_go_another_way(monkeypatch):
    """Above MAX_GRAM_IMAGES no Gram matrix is formed; pairs keep the same rules and cosines."""
    import fiqa_ray.core.pairs as module

    monkeypatch.setattr(module, "MAX_GRAM_IMAGES", 50)
    x, bounds = shard(np.random.default_rng(3), [80, 20])
    (p,) = mated_pairs(x, bounds, np.arange(2), n_clusters=6, n_repeats=1, seed=1)
    cosine = np.sum(unit_vectors(x)[p.image].astype(float) * unit_vectors(x)[p.mate], axis=1)
    np.testing.assert_allclose(p.similarity, cosine, atol=3e-7)
    assert set(np.bincount(p.image)) == {5}


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    n_clusters=st.integers(1, 25),
    recluster=st.booleans(),
    init=st.sampled_from(["random", "k-means++"]),
    duplicates=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_accelerators_find_the_same(sizes, n_clusters, recluster, init, duplicates, seed):
    """The torch path, on torch's own processor device, against the compiled one: the same bits where products are exact."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], size=(sum(sizes), 4 if duplicates else 16)).astype(np.float32)
    bounds, rows = np.concatenate([[0], np.cumsum(sizes)]), rng.integers(0, 10**6, len(sizes))
    options = {"n_clusters": n_clusters, "n_repeats": 2, "seed": seed, "recluster": recluster, "init": init}
    here, there = (mated_pairs(x, bounds, rows, **options, device=device) for device in ("cpu", "cpu:0"))
    for p, q in zip(here, there, strict=True):
        assert np.array_equal(p.cluster, q.cluster)
        assert np.array_equal(p.n_opened, q.n_opened)
        assert np.array_equal(p.mate, q.mate)
        assert np.array_equal(p.similarity, q.similarity)
        # and the mates follow from the clusters
        n_opened, mate = redraw_mates(p.cluster, bounds, rows, [p.repeat], seed=seed)
        assert np.array_equal(n_opened, p.n_opened)
        assert np.array_equal(mate[0], p.mate)


def test_vectors_of_any_length_and_none():
    """Products take raw embeddings: their length does not matter, and a zero vector resembles nothing."""
    x, bounds = shard(np.random.default_rng(4), [60])
    x[7] = 0
    pairs = []
    for scale in (1.0, 2.0**-20, 2.0**20, 2.0**-100, 2.0**100):  # of the last two, float32 does not hold the squares
        pairs += mated_pairs(x * np.float32(scale), bounds, np.arange(1), n_clusters=6, n_repeats=1)
    for p in pairs[1:]:
        assert np.array_equal(p.mate, pairs[0].mate)
        assert np.array_equal(p.similarity, pairs[0].similarity)
    with_zero = (pairs[0].image == 7) | (pairs[0].mate == 7)
    assert not pairs[0].similarity[with_zero].any()
    assert pairs[0].similarity[~with_zero].all()


@pytest.mark.parametrize("length", [1e-38, 1e-30, 1e-18, 1e18, 1e30])
def test_the_length_of_one_vector_does_not_matter(length):
    """Its cosines in float64, by Gram matrix, by unit vectors and for all pairs."""
    rng = np.random.default_rng(6)
    x, bounds = shard(rng, [40, 30])
    x[[3, 50]] *= np.float32(length)
    exact = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    for p in mated_pairs(x, bounds, np.arange(2), n_clusters=6, n_repeats=2):
        wanted = np.einsum("ij,ij->i", exact[p.image], exact[p.mate])
        np.testing.assert_allclose(p.similarity, wanted, atol=3e-7)
    a, b = rng.integers(70, size=(2, 500))
    a[:2] = 3, 50
    wanted = np.einsum("ij,ij->i", exact[a], exact[b])
    np.testing.assert_allclose(pair_similarities(x, a, b), wanted, atol=3e-7)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_vectors_of_infinity_resemble_nothing(bad):
    """Their products overflow; nothing of it may reach the clusters."""
    x, bounds = shard(np.random.default_rng(6), [40, 30])
    x[3] *= np.float32(bad)
    for p in mated_pairs(x, bounds, np.arange(2), n_clusters=6, n_repeats=2):
        assert p.cluster.min() == 0
        touched = (p.image == 3) | (p.mate == 3)
        assert not p.similarity[touched].any()
        assert np.isfinite(p.similarity).all()


def test_known_clusters_must_fit():
    x, bounds = shard(np.random.default_rng(7), [40])
    cluster = np.arange(40) % 5
    (p,) = mated_pairs(x, bounds, np.arange(1), n_clusters=5, n_repeats=1, clusters=[cluster])
    assert np.array_equal(p.cluster, cluster)
    assert set(p.n_opened) == {4}
    with pytest.raises(ValueError, match="more than 4 clusters"):
        mated_pairs(x, bounds, np.arange(1), n_clusters=4, n_repeats=1, clusters=[cluster])
    for wrong in (cluster - 1, cluster[1:]):
        with pytest.raises(ValueError, match="every image must have a cluster"):
            redraw_mates(wrong, bounds, np.arange(1), [0], seed=0)
    with pytest.raises(ValueError, match="every image must have a cluster"):
        redraw_mates(cluster, np.array([0, 50, 40]), np.arange(2), [0], seed=0)  # bounds that go back


def test_order_of_threads_and_blocks_does_not_matter():
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 200, 40)
    x, bounds = shard(rng, sizes)
    one, many = (mated_pairs(x, bounds, np.arange(40), n_clusters=9, n_repeats=2, n_threads=n) for n in (1, 4))
    for p, q in zip(one, many, strict=True):
        assert np.array_equal(p.mate, q.mate)
        assert np.array_equal(p.similarity, q.similarity)


def test_compiled_code_does_without_a_cache(monkeypatch):
    """Where numba finds no folder for compiled code, functions are compiled in every process."""
    real = compiled.njit

    def njit(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(compiled, "njit", njit)
    monkeypatch.setattr(compiled, "cache_folder", lambda: None)
    assert compiled.compiled(lambda a: a + 1)(2) == 3


@pytest.mark.slow
def test_an_edited_constant_never_runs_stale_machine_code(tmp_path):
    package = tmp_path / "tree" / "fiqa_ray"
    shutil.copytree(Path(compiled.__file__).parents[2], package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numpy as np; from fiqa_ray.core.kernels.counting import to_keys; key = np.empty(1, np.int32); "
        "to_keys(np.array([0.5]), key); print(key[0])"
    )
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def key_of_a_half():
        return subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True).strip()

    assert key_of_a_half() == str(2**22)
    gram = package / "core" / "kernels" / "gram.py"
    gram.write_text(gram.read_text().replace("SIMILARITY_STEPS = 1 << 23", "SIMILARITY_STEPS = 1 << 21"))
    assert key_of_a_half() == str(2**20)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # both versions are kept
