from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.methods.faceqan import faceqan_formula, faceqan_noise, faceqan_scores, faceqan_similarities
from fiqa_ray.models.methods.forward import embedding_norm
from fiqa_ray.models.networks.iresnet import IResNet, SplitNetwork
from fiqa_ray.models.networks.mobilefacenet import sddfiqa_mobilefacenet
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import METHODS, load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.scorer import score_together
from released import fill, golden

SMALL = "curricularface_mobilefacenet"


def some_faces(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


@pytest.fixture(scope="module")
def small() -> Recognizer:
    return load_recognizer(SMALL, weights="random:0")


class TinyNet(nn.Module):
    """A smooth float64 network, quick enough for loops."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 9, 6)).double()
        self.n_embedded = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n_embedded += len(x)
        return self.net(x)


def released_faceqan(embed, x, noise, epsilon, n_iterations, exponent):
    """The released algorithm for one image as written: every gradient taken, nothing shared."""
    clean = embed(x[None]).detach()
    points = (x[None] + epsilon * noise).clamp(-1, 1)
    recorded = []
    for _ in range(n_iterations):
        points = points.detach().requires_grad_()
        cosines = cosine_similarity(embed(points), clean.expand(len(noise), -1), dim=1)
        recorded += cosines.tolist()
        (1 - cosines).mean().backward()
        points = (points + epsilon * points.grad.sign()).clamp(-1, 1)
    symmetry = cosine_similarity(embed(x[None]), embed(x.flip(-1)[None])).item()
    spread = min(max(1 - np.std(recorded), 0), 1)
    return ((1 + np.mean(recorded)) / 2 * spread * symmetry) ** exponent


@pytest.mark.slow
@pytest.mark.parametrize(("k", "n_iterations", "epsilon", "n_run"), [(10, 5, 0.001, 2), (4, 3, 0.01, 3)])
def test_faceqan_equals_the_released_code_on_iresnet18(released_iresnet18, k, n_iterations, epsilon, n_run):
    """With the released defaults the first two of five iterations, for they are slow; a smaller attack as a whole."""
    wanted = golden("method_checks")[f"faceqan_iresnet18_k{k}_l{n_iterations}_eps{epsilon}"]
    x = torch.from_numpy(np.random.RandomState(4242).uniform(0, 1, (1, 3, 112, 112)))
    noise = torch.from_numpy(np.random.RandomState(777).uniform(-1, 1, (1, k, 3, 112, 112)))
    similarities, symmetry = faceqan_similarities(
        lambda v: released_iresnet18((v - 0.5) / 0.5), x, noise, epsilon=epsilon, n_iterations=n_run
    )
    assert similarities.shape == (1, n_run, k)
    near = {"rel": 1e-9, "abs": 0}
    assert similarities[0].mean(dim=1).tolist() == pytest.approx(wanted["per_iteration_mean"][:n_run], **near)
    assert similarities[0, 0].tolist() == pytest.approx(wanted["first_row"], **near)
    assert symmetry.item() == pytest.approx(wanted["symmetry"], **near)
    if n_run == n_iterations:
        assert similarities[0, -1].tolist() == pytest.approx(wanted["last_row"], **near)
        assert faceqan_formula(similarities, symmetry, 5).item() == pytest.approx(wanted["score_p5"], **near)


def test_faceqan_formula_golden():
    wanted = golden("method_checks")["faceqan_F"]
    s, q = torch.tensor([wanted["Si"]], dtype=torch.float64), torch.tensor([wanted["sf"]], dtype=torch.float64)
    assert faceqan_formula(s, q, 5).item() == pytest.approx(wanted["value"], rel=1e-12)
    assert faceqan_formula(s, q, 1).item() == pytest.approx(wanted["value_p1"], rel=1e-12)
    # An odd power keeps the sign of the symmetry; a deviation of 1 or more gives 0.
    assert faceqan_formula(s, -q, 5).item() == pytest.approx(-wanted["value"], rel=1e-12)
    assert faceqan_formula(torch.tensor([[[-1.0, 1.0]]]), q, 5).item() == 0


@pytest.mark.parametrize(("b", "k", "n_iterations", "epsilon", "exponent"), [(4, 3, 5, 0.02, 5), (2, 1, 1, 0.3, 1)])
def test_faceqan_of_many_images_equals_slow_loops_over_one(b, k, n_iterations, epsilon, exponent):
    net, rng = TinyNet(), np.random.default_rng(1)
    x = torch.from_numpy(rng.uniform(0, 1, (b, 3, 16, 16)))
    noise = torch.from_numpy(rng.uniform(-1, 1, (b, k, 3, 16, 16)))
    options = {"epsilon": epsilon, "n_iterations": n_iterations, "exponent": exponent}
    got = faceqan_scores(net, x, noise, **options)
    assert got.shape == (b,)
    assert net.n_embedded == b * (2 + k * n_iterations)  # clean, mirrored, and each copy once per iteration
    wanted = [released_faceqan(net, x[i], noise[i], epsilon, n_iterations, exponent) for i in range(b)]
    assert got.tolist() == pytest.approx(wanted, rel=1e-9)
    scaled = faceqan_scores(lambda v: 37.5 * net(v), x, noise, **options)
    torch.testing.assert_close(scaled, got, rtol=1e-9, atol=0)


def test_faceqan_takes_one_gradient_less_than_iterations(monkeypatch):
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    net = TinyNet()
    x, noise = torch.rand(1, 3, 16, 16).double(), torch.rand(1, 2, 3, 16, 16).double()
    faceqan_scores(net, x, noise, epsilon=0.001, n_iterations=5, exponent=5)
    assert len(calls) == 4
    assert all(p.grad is None for p in net.parameters())


def test_noise_is_a_pure_function_of_seed_and_image_row():
    noise = faceqan_noise(3, 2**40, 4)
    assert (noise.shape, noise.dtype) == ((4, 3, 112, 112), np.float32)
    assert np.array_equal(noise, faceqan_noise(3, 2**40, 4))
    assert np.array_equal(noise[:2], faceqan_noise(3, 2**40, 2))
    for other in (faceqan_noise(4, 2**40, 4), faceqan_noise(3, 2**40 + 1, 4), faceqan_noise(2**40, 3, 4)):
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02
    assert -1 <= noise.min() < -0.999
    assert 0.999 < noise.max() <= 1
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1 / np.sqrt(3)) < 0.01


@pytest.mark.slow
def test_faceqan_scores_do_not_depend_on_the_batch(small):
    faces, rows = some_faces(3), np.array([7, 0, 123456789])
    options = {"n_iterations": 2, "n_samples": 2}
    scorer = load_scorer("faceqan", small, seed=1, **options)
    scores = scorer(faces, rows)
    assert (scores.shape, scores.dtype) == ((3,), np.float32)
    order = np.array([2, 0, 1])
    with torch.inference_mode():  # as a caller may have it
        assert np.array_equal(scorer(faces[order], torch.from_numpy(rows[order])), scores[order])
    alone = np.concatenate([scorer(faces[i : i + 1], rows[i : i + 1]) for i in range(3)])
    assert np.array_equal(alone, scores)
    padded = scorer(faces[[0, 1, 1]], np.array([7, -1, 0]))
    assert np.array_equal(padded[[0, 2]], scores[:2])
    assert np.isnan(padded[1])
    together = load_scorer("faceqan", small, seed=1, **options, images_per_pass=2)
    np.testing.assert_allclose(together(faces, rows), scores, rtol=1e-3)
    assert np.array_equal(together(faces[order], rows[order]), together(faces, rows)[order])
    assert not np.array_equal(load_scorer("faceqan", small, seed=2, **options)(faces, rows), scores)


@pytest.mark.slow
def test_faceqan_through_a_recogniser_equals_the_pure_function(small):
    faces, row = some_faces(1), 42
    x = faces.float() / 255
    noise = torch.from_numpy(faceqan_noise(9, row, 10))[None]
    wanted = faceqan_scores(small.embed_unit, x, noise, epsilon=0.001, n_iterations=5, exponent=5)
    got = load_scorer("faceqan", recognizer=small, seed=9)(faces, np.array([row]))
    assert got[0] == np.float32(wanted.item())


class Split(SplitNetwork):
    """The trunk's width of the released networks in one convolution; not finite for faces whose first pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.fc, self.n_trunks = nn.Conv2d(3, 512, 16, stride=16), nn.Linear(25088, 16), 0

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        self.n_trunks += 1
        return torch.where(x[:, :1, 0, 0] > 0.99, torch.nan, self.conv(x).relu().flatten(1))

    def tail(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features)


INSIDE = ("grafiqs", "froq", "vitnt_fiqa")
"""Methods that look into a network; their tests are in `methods/`."""
ON_RECOGNISER = [name for name, row in METHODS.items() if row.network is None and name not in INSIDE]
FEW = {"faceqan": {"n_iterations": 2, "n_samples": 2}, "serfiq": {"n_passes": 10, "alpha": 5.0}}


def scorers_on(recognizer: Recognizer, names=ON_RECOGNISER):
    head = {"pcnet": {"weights": "random:3"}}
    return [load_scorer(name, recognizer, **FEW.get(name, {}), **head.get(name, {})) for name in names]


@pytest.fixture
def split() -> Recognizer:
    return Recognizer("split", Split(), Preprocessing(), 16, "")


@pytest.mark.parametrize("method", ON_RECOGNISER)
def test_a_face_that_breaks_the_network_spoils_only_its_own_score(split, method):
    faces = some_faces(3)
    faces[:, 0, 0, 0] = torch.tensor([0, 255, 0])
    scores = scorers_on(split, [method])[0](faces, np.arange(3))
    assert np.isfinite(scores).tolist() == [True, False, True]


def test_methods_on_one_recogniser_share_its_pass_and_give_what_they_give_alone(split):
    faces, rows = some_faces(5) // 2, np.array([3, 1, 4, 15, -1])
    scorers = [s for s in scorers_on(split) if s.name != "faceqan"]  # which attacks, see there
    assert [s.name for s in scorers] == ["serfiq", "pcnet", "embedding_norm"]
    alone = [s(faces, rows) for s in scorers]
    split.backbone.n_trunks = 0
    together = score_together(scorers, faces, rows)
    assert split.backbone.n_trunks == 1
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a, b, equal_nan=True)
    other = Recognizer("other", Split(), Preprocessing("BGR"), 16, "")
    mixed = score_together([*scorers, *scorers_on(other, ["embedding_norm"])], faces, rows)
    assert np.array_equal(mixed[2], alone[2])
    assert not np.array_equal(mixed[3], alone[2])


@pytest.mark.slow
def test_scores_are_the_same_for_every_batch_size(split):
    """To 1e-6 (relative) in float32; FaceQAN's attack exactly, as its passes have one shape whatever the batch."""
    faces, rows = some_faces(64) // 2, np.arange(64) * 7
    for scorer in [*scorers_on(split), load_scorer("sddfiqa_mobilefacenet", weights="random:1")]:
        whole = scorer(faces, rows)
        assert len(np.unique(whole)) == 64
        for size in (1, 7):
            parts = [scorer(faces[i : i + size], rows[i : i + size]) for i in range(0, 64, size)]
            tolerance = 0 if scorer.name == "faceqan" else 1e-6
            np.testing.assert_allclose(np.concatenate(parts), whole, rtol=tolerance, atol=tolerance * np.ptp(whole))


@pytest.mark.slow
def test_embedding_norm():
    assert embedding_norm(np.array([[3, 4], [0, 0], [-5, 12]], np.float32)).tolist() == [5, 0, 13]
    model = fill(IResNet(18))
    faces = some_faces(2)
    plain = load_scorer("embedding_norm", Recognizer("r18", model, Preprocessing(), 512, ""))(faces)
    with torch.no_grad():
        wanted = np.sqrt((model(faces.double().float() / 127.5 - 1).double().numpy() ** 2).sum(axis=1))
        np.testing.assert_allclose(plain, wanted, rtol=1e-4)
        model.features.weight *= -3
        model.features.bias *= -3
    scaled = load_scorer("embedding_norm", Recognizer("r18", model, Preprocessing(), 512, ""))(faces)
    np.testing.assert_allclose(scaled, 3 * plain, rtol=1e-5)


def test_table():
    assert [n for n, row in METHODS.items() if not row.deterministic] == ["faceqan", "serfiq", "serfiq_mxnet"]
    assert [n for n, row in METHODS.items() if row.needs_gradient] == ["faceqan"]
    assert [n for n, row in METHODS.items() if row.from_embedding] == ["embedding_norm"]
    assert ON_RECOGNISER == ["faceqan", "serfiq", "pcnet", "embedding_norm"]
    for row in METHODS.values():
        assert row.licence.startswith(("code ", "a formula"))
        assert "weights: " in row.licence
    # GMAC as counted by the authors' classes (methods of one forward), trunk once and 100 heads (SER-FIQ)
    cost = {name: row.cost for name, row in METHODS.items()}
    assert cost == {
        "faceqan": "52 F + 40 B",
        "serfiq": "1 F + 1.3 GMAC",
        "serfiq_mxnet": "13.36 GMAC",
        "crfiqa_l": "12.09 GMAC",
        "crfiqa_s": "6.31 GMAC",
        "magface_r100": "12.09 GMAC",
        "magface_r50": "6.31 GMAC",
        "magface_r18": "2.61 GMAC",
        "sddfiqa_r50": "6.28 GMAC",
        "sddfiqa_mobilefacenet": "0.22 GMAC",
        "pcnet": "1 F + 0.0064 GMAC",
        "paper_regressor_r100": "12.09 GMAC",
        "adaface_ir18": "2.60 GMAC",
        "adaface_ir50": "6.30 GMAC",
        "adaface_ir101": "12.08 GMAC",
        "ofiq_uqs": "6.31 GMAC",
        "ediffiqa_l": "12.09 GMAC",
        "ediffiqa_m": "6.31 GMAC",
        "ediffiqa_s": "2.61 GMAC",
        "ediffiqa_t": "0.22 GMAC",
        "ediffiqa_t_onnx": "0.22 GMAC",
        "mrfiqa": "6.31 GMAC",
        "mrfiqa_synfiqapp": "6.30 GMAC",
        "vitfiqa": "5.75 GMAC",
        "vitfiqa_full": "5.79 GMAC",
        "vitfiqa_crfiqa": "5.75 GMAC",
        "clib_fiqa": "5.79 GMAC",
        "grafiqs": "1 F",
        "froq": "1 F",
        "vitnt_fiqa": "1 F",
        "embedding_norm": "1 F",
    }


@pytest.mark.slow
def test_a_method_with_a_network_of_its_own(tmp_path):
    faces = some_faces(2)
    torch.save({"state_dict": fill(sddfiqa_mobilefacenet()).state_dict()}, tmp_path / "sdd.pth")
    scorer = load_scorer("sddfiqa_mobilefacenet", weights=str(tmp_path / "sdd.pth"))
    with torch.no_grad():
        wanted = fill(sddfiqa_mobilefacenet().double())((faces.double() / 255 - 0.5) / 0.5)[:, 0]
    np.testing.assert_allclose(scorer(faces), wanted.numpy(), rtol=1e-4)
    # the last layer alone: weight 0 leaves its bias
    network = scorer.network.backbone
    network.quality[3].weight.zero_()
    assert (scorer(faces) == network.quality[3].bias.item()).all()
    magface = load_scorer("magface_r18", weights="random:2")
    same = load_scorer("embedding_norm", load_recognizer("magface_r18", weights="random:2"))
    assert np.array_equal(magface(faces), same(faces))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_an_onnx_file_is_a_quality_network(tmp_path, shape):
    onnx = pytest.importorskip("onnx")
    h, t = onnx.helper, onnx.TensorProto
    nodes = [
        h.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
        h.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    graph = h.make_graph(
        nodes,
        "mean",
        [h.make_tensor_value_info("x", t.FLOAT, ["b", 3, 112, 112])],
        [h.make_tensor_value_info("y", t.FLOAT, ["b", *shape[1:]])],
        [h.make_tensor("shape", t.INT64, [len(shape)], shape)],
    )
    path = str(tmp_path / "quality.onnx")
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 13)]), path)
    faces = some_faces(3)
    scores = load_scorer(path, mean=100, scale=50)(faces)
    wanted = (faces.numpy().astype(float).mean(axis=(1, 2, 3)) - 100) / 50
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
    with pytest.raises(FiqaRayError, match="needs the options mean and scale"):
        load_scorer(path)


OWN = """
import torch
def contrast(weights=None, factor=1.0, mode=""):
    def score(faces):
        if mode == "fail":
            raise RuntimeError("no luck")
        s = faces.float().std(dim=(1, 2, 3)) * factor
        return {"two": torch.stack([s, s], 1), "text": ["a"] * len(s)}.get(mode, s)
    return score
def nothing(weights=None):
    return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_quality.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_users_own_scorer(own):
    faces = some_faces(3)
    scores = load_scorer("my_quality:contrast", weights="w", factor=2.0)(faces)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 2 / 255 * faces.numpy().astype(float).std(axis=(1, 2, 3), ddof=1), rtol=1e-5)
    for mode, message in (
        ("two", r"returned scores of shape \(3, 2\), float32 for 3 faces; wanted \(3,\) numbers"),
        ("text", r"returned scores of shape \(3,\), <U1"),
        ("fail", "fails on faces .* RuntimeError: no luck"),
    ):
        with pytest.raises(FiqaRayError, match=f"my_quality:contrast: {message}"):
            load_scorer("my_quality:contrast", mode=mode)(faces)
    with pytest.raises(FiqaRayError, match="my_quality:nothing: returned NoneType, wanted a callable"):
        load_scorer("my_quality:nothing")


PLAIN = """
import numpy as np
import torch
seen = []
def sharpness(faces, power=1.0):
    assert faces.dtype == torch.float32 and faces.max() <= 1
    return (faces[:, :, 1:] - faces[:, :, :-1]).abs().mean(dim=(1, 2, 3)) ** power
def by_numpy(faces):
    return np.asarray(faces).mean(axis=(1, 2, 3))
def embed(faces):
    return torch.nn.functional.avg_pool2d(faces, 28).flatten(1)
def embed_numpy(faces):
    return faces.numpy().mean(axis=(2, 3))
network = torch.nn.Sequential(torch.nn.AvgPool2d(28), torch.nn.Flatten())
"""


def test_a_plain_function_of_faces(tmp_path, monkeypatch):
    """As a method and as a recogniser, from a module or a file of the current folder; expected values by numpy."""
    (tmp_path / "mine.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    faces = some_faces(3)
    x = faces.numpy().astype(np.float64) / 255
    wanted = np.abs(np.diff(x, axis=2)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(load_scorer("mine.py:sharpness")(faces), wanted, rtol=1e-5)
    np.testing.assert_allclose(load_scorer("mine.py:sharpness", power=0.5)(faces), np.sqrt(wanted), rtol=1e-5)
    np.testing.assert_allclose(load_scorer(f"{tmp_path}/mine.py:by_numpy")(faces), x.mean(axis=(1, 2, 3)), rtol=1e-5)
    blocks = x.reshape(3, 3, 4, 28, 4, 28).mean(axis=(3, 5)).reshape(3, -1)
    for name, embedding, differentiable in (
        ("embed", blocks, True), ("network", blocks, True), ("embed_numpy", x.mean(axis=(2, 3)), False),
    ):  # fmt: skip
        recognizer = load_recognizer(f"mine.py:{name}")
        assert (recognizer.dim, recognizer.differentiable) == (embedding.shape[1], differentiable)
        np.testing.assert_allclose(recognizer(faces), embedding, rtol=1e-4)
    norms = load_scorer("embedding_norm", load_recognizer("mine.py:embed"))(faces)
    np.testing.assert_allclose(norms, np.linalg.norm(blocks, axis=1), rtol=1e-5)
    for name, options, message in (
        ("mine.py:sharpness", {"powr": 2}, r"no option 'powr' \(did you mean 'power'\?\)"),
        ("mine.py:sharpness", {"weights": "w"}, "takes no weights"),
        ("mine.py:sharpnes", {}, r"no function 'sharpnes' \(did you mean 'sharpness'\?\)"),
        ("yours.py:sharpness", {}, "yours.py: there is no such file in"),
    ):
        with pytest.raises(FiqaRayError, match=message):
            load_scorer(name, **options)


class Opaque(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach().mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("faceqen", {}, r"'faceqen' is no FIQA method \(did you mean 'faceqan'\?\)"),
        ("faceqan", {"recognizer": None}, "faceqan works on a recogniser"),
        ("faceqan", {"weights": "x.pth"}, "leave out weights='x.pth'"),
        ("faceqan", {"n_iteration": 3}, r"no option 'n_iteration' \(did you mean 'n_iterations'\?\)"),
        ("faceqan", {"n_samples": 0}, "n_samples=0"),
        ("faceqan", {"exponent": 2.5}, "exponent=2.5"),
        ("faceqan", {"epsilon": 2}, "epsilon=2"),
        ("faceqan", {"seed": -1}, "seed=-1"),
        ("embedding_norm", {"epsilon": 1}, "embedding_norm: no option 'epsilon'; it has none"),
        ("serfiq", {}, "serfiq starts from the layer before .* curricularface_mobilefacenet does not say where"),
        ("pcnet", {"weights": "random:0"}, "pcnet starts from the layer before"),
        ("pcnet", {}, "pcnet: weights are missing. Give the path of a trained head"),
        ("pcnet", {"recognizer": SMALL, "weights": "h"}, "pcnet takes weights of its head: give recognizer=load_rec"),
        ("crfiqa_l", {}, "crfiqa_l has a network of its own: leave out the recogniser"),
        ("crfiqa_l", {"recognizer": None}, "crfiqa_l: weights are missing. Give the path of 181952backbone.pth"),
        ("crfiqa_l", {"recognizer": None, "n_passes": 3}, "crfiqa_l: no option 'n_passes'; it has none"),
        ("sddfiqa_mobilefacenet", {"recognizer": None, "weights": "random:x"}, "after 'random:' comes a whole number"),
        ("faceqan", {"recognizer": Recognizer("opaque", Opaque(), Preprocessing(), 3, "", differentiable=False)},
         "faceqan needs gradients, and opaque has none"),
    ],
)  # fmt: skip
def test_mistakes_are_named(small, name, options, message):
    with pytest.raises(UsageError, match=message):
        load_scorer(name, **{"recognizer": small, **options})


def test_calls_are_checked(small):
    scorer = load_scorer("faceqan", SMALL, weights="random:0")
    assert scorer.network.weights_sha256 == small.weights_sha256
    with pytest.raises(UsageError, match="give image_row"):
        scorer(some_faces(1))
    with pytest.raises(UsageError, match=r"image_row is \(2,\) float64; wanted \(1,\) integers"):
        scorer(some_faces(1), np.zeros(2))
    with pytest.raises(FiqaRayError, match="uint8"):
        scorer(torch.zeros(1, 3, 112, 112), np.zeros(1, int))
