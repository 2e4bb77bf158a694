from __future__ import annotations

import hashlib
import io
import re

import fsspec
import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import METHODS
from fiqa_ray.models.recognition import (
    RECOGNIZERS,
    load_recognizer,
)
from fiqa_ray.models.recognizer import Recognizer, check_embeddings, finite_rows

SMALL = "curricularface_mobilefacenet"


def some_faces(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


class Spy(nn.Module):
    """Keeps its input and returns one number per channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.detach()
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (Preprocessing(), [(10 / 255 - 0.5) / 0.5, (100 / 255 - 0.5) / 0.5, (250 / 255 - 0.5) / 0.5]),
        (Preprocessing("BGR", mean=0, scale=255), [250 / 255, 100 / 255, 10 / 255]),  # MagFace
        (Preprocessing(mean=0, scale=1), [10, 100, 250]),  # networks that scale by themselves
        (Preprocessing(mean=127, scale=128), [-117 / 128, -27 / 128, 123 / 128]),
    ],
)
def test_colour_order_and_scale(preprocessing, expected):
    faces = torch.tensor([10, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 112, 112)
    spy = Spy()
    embeddings = Recognizer("spy", spy, preprocessing, 3, "")(faces)
    assert embeddings.shape == (2, 3)
    assert spy.seen.dtype == torch.float32
    torch.testing.assert_close(spy.seen[1, :, 56, 7], torch.tensor(expected, dtype=torch.float32))


def test_the_usual_scaling_is_bit_for_bit_the_released_one():
    v = torch.arange(256).float()
    x = v / 255
    assert torch.equal(Preprocessing()(x), (x - 0.5) / 0.5)
    assert torch.equal(Preprocessing(mean=0, scale=1)(x), v)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"colour": "rgb"}, "colour='rgb'"),
        ({"mean": "0.5"}, "mean='0.5'"),
        ({"scale": 0}, "scale=0"),
        ({"scale": float("nan")}, "scale=nan"),
    ],
)
def test_bad_preprocessing_is_refused(bad, message):
    with pytest.raises(UsageError, match=message):
        Preprocessing(**bad)


def test_a_table_recogniser_is_frozen_raw_and_differentiable():
    recognizer = load_recognizer(SMALL, weights="random:3")
    assert (recognizer.name, recognizer.dim, recognizer.differentiable) == (SMALL, 512, True)
    assert not recognizer.training
    assert not any(p.requires_grad for p in recognizer.parameters())
    faces = some_faces(3)
    raw = recognizer(faces)
    assert raw.dtype == torch.float32
    assert not raw.requires_grad
    x = (faces.float() / 255).requires_grad_()
    unit = recognizer.embed_unit(x)
    assert torch.equal(unit, raw)
    assert torch.equal(unit, recognizer.backbone((x - 0.5) / 0.5))
    assert not torch.allclose(raw.norm(dim=1), torch.ones(3), rtol=0.05)  # not normalised
    (gradient,) = torch.autograd.grad(unit.sum(), x)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    torch.testing.assert_close(recognizer.double()(faces), raw, rtol=1e-4, atol=1e-5)
    assert recognizer.embed_unit(x).dtype == torch.float64


def test_random_weights_are_reproducible():
    a, b, c = (load_recognizer(SMALL, weights=f"random:{seed}") for seed in (1, 1, 2))
    faces = some_faces(2)
    assert torch.equal(a(faces), b(faces))
    assert a.weights_sha256 == b.weights_sha256 != c.weights_sha256
    with pytest.raises(UsageError, match="random:x"):
        load_recognizer(SMALL, weights="random:x")


@pytest.mark.slow
def test_weights_come_from_any_url_and_are_hashed():
    model = IResNet(18)
    buffer = io.BytesIO()
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, buffer)
    with fsspec.open("memory://zoo/backbone.pth", "wb") as file:
        file.write(buffer.getvalue())
    recognizer = load_recognizer("arcface_r18", weights="memory://zoo/backbone.pth")
    assert recognizer.weights_sha256 == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert torch.equal(recognizer.backbone.fc.weight, model.fc.weight)
    with pytest.raises(FiqaRayError, match=r"memory://zoo/backbone\.pth: does not fit .*looks like iresnet18"):
        load_recognizer("arcface_r50", weights="memory://zoo/backbone.pth")


@pytest.mark.parametrize("name", RECOGNIZERS)
def test_every_row_says_what_it_needs_when_weights_are_missing(name):
    row = RECOGNIZERS[name]
    with pytest.raises(UsageError, match="random:0") as caught:
        load_recognizer(name)
    for part in (name, row.released_file, row.licence, row.source):
        assert part in str(caught.value)


ALL_ROWS = RECOGNIZERS | {name: row.network for name, row in METHODS.items() if row.network is not None}


@pytest.mark.parametrize("name", ALL_ROWS)
def test_every_network_gets_its_colours_and_scale(name):
    """A crop of three different grey levels; what arrives is written out by hand from the authors' code."""
    pixels = torch.zeros(1, 3, 112, 112, dtype=torch.uint8) + torch.tensor([200, 100, 25]).view(1, 3, 1, 1)
    got = ALL_ROWS[name].preprocessing(pixels.to(torch.uint8).float() / 255)[0, :, 5, 7].tolist()
    if "magface" in name or name == "ofiq_uqs":  # OpenCV's blue, green, red, over 255
        wanted = [25 / 255, 100 / 255, 200 / 255]
    elif name == "clib_fiqa":  # its network scales the enlarged image itself
        wanted = [v / 255 for v in (200, 100, 25)]
    elif "adaface" in name:  # its training images are stored with swapped channels
        wanted = [(v / 255 - 0.5) / 0.5 for v in (25, 100, 200)]
    elif "serfiq" in name:  # the graph gets 0..255 and does this itself
        wanted = [(v - 127.5) * 0.0078125 for v in (200, 100, 25)]
    else:
        wanted = [(v / 255 - 0.5) / 0.5 for v in (200, 100, 25)]
    assert got == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "arcface_r101"}, r"'arcface_r101' is unknown \(did you mean 'arcface_r100'\?\)"),
        ({"name": SMALL, "weights": "random:0", "epz": 1}, f"{SMALL}: no option 'epz'; it has none"),
        ({"name": SMALL, "weights": "random:0", "device": "quantum"}, "device 'quantum'"),
        ({"name": SMALL, "weights": "random:0", "device": "cuda:77"}, "device 'cuda:77'"),
        ({"name": SMALL, "weights": "nowhere/x.pth"}, r"nowhere/x\.pth"),
        ({"name": "nowhere/x.onnx", "mean": 0, "scale": 1}, r"nowhere/x\.onnx"),
        ({"name": "x.onnx", "mean": 0, "scale": 1, "color": "RGB"}, r"'color' \(did you mean 'colour'\?\)"),
        ({"name": "x.onnx", "mean": 0, "scale": 1, "weights": "y"}, "leave out weights='y'"),
    ],
)
def test_mistakes_in_a_call_are_named(call, message):
    with pytest.raises(FiqaRayError, match=message):
        load_recognizer(**call)


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, dim, mode):
        super().__init__()
        self.linear, self.mode = nn.Linear(3, dim), mode
    def forward(self, x):
        assert 0 <= x.min().item() and x.max().item() <= 1
        if self.mode == "one image only" and len(x) > 1:
            raise ValueError("only one")
        y = self.linear(x.mean(dim=(2, 3)))
        if self.mode == "nan":
            y = torch.where(x[:, :1, 0, 0] > 0.9, torch.nan, y)
        return {"flat": y.flatten(), "pair": (y, y), "ints": y.long(), "cut": y.detach()}.get(self.mode, y)

def build(weights=None, dim=5, mode=""):
    torch.manual_seed(0)
    return Net(dim, mode)

def forgets():
    return Net(2, "")

def number(weights=None):
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_fr_model.py").write_text(OWN)
    (tmp_path / "my_broken_model.py").write_text("1 / 0")
    (tmp_path / "my_hungry_model.py").write_text("import a_package_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_users_network_enters_as_module_and_function(own):
    recognizer = load_recognizer("my_fr_model:build", weights="anything", dim=7)
    assert (recognizer.dim, recognizer.differentiable, recognizer.options) == (7, True, {"dim": 7})
    faces = some_faces(4)
    linear = recognizer.backbone.linear
    torch.testing.assert_close(recognizer(faces), linear(faces.float().mean(dim=(2, 3)) / 255))
    assert not any(p.requires_grad for p in recognizer.parameters())
    assert recognizer.weights_sha256 != load_recognizer("my_fr_model:build", dim=6).weights_sha256
    assert not load_recognizer("my_fr_model:build", mode="cut").differentiable


DRAWS = """
import random
import numpy as np, torch
at_import = torch.randn(1).item()
def build(weights=None):
    draw = at_import + np.random.rand() + random.random() + torch.rand(1).item()
    layer = torch.nn.Linear(3, 4)
    return lambda faces: draw * layer(faces.mean(dim=(2, 3)))
"""


def test_a_users_network_with_random_weights_is_the_same_whenever_it_is_loaded(tmp_path):
    """Two files with one content stand for two processes: each is imported for the first time."""
    torch.manual_seed(5)
    faces, kept, embeddings = some_faces(2), torch.get_rng_state(), []
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(DRAWS)
        for _ in range(2):
            embeddings.append(load_recognizer(f"{tmp_path}/{name}.py:build")(faces))
            torch.rand(1)
            np.random.rand()
    assert embeddings[0].std() > 0
    assert all(torch.equal(embeddings[0], other) for other in embeddings)
    torch.set_rng_state(kept)
    expected = torch.rand(1)
    torch.set_rng_state(kept)
    load_recognizer(f"{tmp_path}/first.py:build")
    assert torch.equal(torch.rand(1), expected)  # the caller's numbers go on


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "my_fr_model:build",
            {"mode": "flat"},
            r"returned embeddings of shape \(10,\), torch.float32; wanted \(2, dim\)",
        ),
        ("my_fr_model:build", {"mode": "pair"}, "returned tuple, wanted .2, dim. floats; return the embeddings alone"),
        ("my_fr_model:build", {"mode": "ints"}, r"shape \(2, 5\), torch.int64; wanted"),
        (
            "my_fr_model:build",
            {"mode": "one image only"},
            "fails on faces of shape .2, 3, 112, 112.*ValueError: only one",
        ),
        ("my_fr_model:build", {"dims": 3}, r"my_fr_model:build\(weights=None, dims=3\) fails: TypeError"),
        ("my_fr_model:forgets", {}, "fails: TypeError"),
        ("my_fr_model:number", {}, "returned int, wanted a torch.nn.Module"),
        ("my_fr_model:bild", {}, r"no function 'bild' \(did you mean 'build'\?\)"),
        ("my_absent_model:build", {}, "there is no module 'my_absent_model'; its folder must be on PYTHONPATH"),
        ("my_broken_model:build", {}, "importing my_broken_model fails: ZeroDivisionError"),
        ("my_hungry_model:build", {}, "importing my_hungry_model fails: No module named 'a_package_nobody_has'"),
    ],
)
def test_faults_of_a_users_network_are_one_message(own, name, options, message):
    with pytest.raises(FiqaRayError, match=message) as caught:
        load_recognizer(name, **options)
    assert name in str(caught.value)


def test_a_face_on_which_the_network_breaks_down_spoils_only_its_row(own):
    recognizer = load_recognizer("my_fr_model:build", mode="nan")
    faces = some_faces(5)
    faces[:, 0, 0, 0] = torch.tensor([0, 255, 0, 255, 0])
    rows = finite_rows(recognizer(faces).detach().numpy())
    assert rows.tolist() == [True, False, True, False, True]
    assert finite_rows(np.array([1.0, np.inf, -np.inf])).tolist() == [True, False, False]


def test_checks_state_what_was_got_and_wanted():
    check_embeddings(np.zeros((2, 3), np.float32), 3, "m", n_images=2)
    with pytest.raises(FiqaRayError, match=re.escape("m: returned embeddings of shape (2, 3), float64; wanted (4, 3)")):
        check_embeddings(np.zeros((2, 3)), 3, "m", n_images=4)
    recognizer = load_recognizer(SMALL, weights="random:0")
    for faces in (torch.zeros(1, 3, 112, 112), torch.zeros(1, 112, 112, 3, dtype=torch.uint8)):
        with pytest.raises(FiqaRayError, match=r"wanted \(b, 3, 112, 112\) uint8"):
            recognizer(faces)
