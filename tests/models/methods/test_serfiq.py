from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.serfiq import dropout_masks, serfiq_distance, serfiq_raw, serfiq_stretched
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognizer import Recognizer
from released import fill, golden

CPU = torch.device("cpu")


def slow_distance(embeddings: np.ndarray) -> float:
    unit = [e / math.sqrt(sum(v * v for v in e)) for e in embeddings]
    found = [math.sqrt(((a - b) ** 2).sum()) for a, b in itertools.combinations(unit, 2)]
    assert len(found) == len(embeddings) * (len(embeddings) - 1) // 2
    return sum(found) / len(found)


def test_formula_golden():
    wanted = golden("method_checks")["serfiq_formula"]
    x = np.random.RandomState(0).randn(10, 512) * 0.2 + np.random.RandomState(1).randn(1, 512)
    assert slow_distance(x) == pytest.approx(wanted["mean_distance"], rel=1e-12)
    d = serfiq_distance(lambda _: torch.from_numpy(x), torch.zeros(3), torch.ones(10, 3, dtype=torch.bool), 0.5)
    assert d.item() == pytest.approx(wanted["mean_distance"], rel=1e-12)
    assert serfiq_raw(d).item() == pytest.approx(wanted["raw"], rel=1e-12)
    assert serfiq_stretched(serfiq_raw(d), 130, 0.88).item() == pytest.approx(wanted["scaled"], rel=1e-9)
    assert serfiq_stretched(torch.tensor(0.88, dtype=torch.float64), 130, 0.88).item() == 0.5
    # three unit vectors at right angles: every one of the three pairs lies sqrt(2) apart
    d = serfiq_distance(lambda _: torch.eye(3), torch.zeros(2), torch.ones(3, 2, dtype=torch.bool), 0.5)
    assert d.item() == pytest.approx(math.sqrt(2), rel=1e-12)


@pytest.mark.slow
def test_one_trunk_pass_equals_repeating_the_whole_network():
    """As the released code does it: the image repeated, dropout drawn inside; here with the same masks, layer by layer."""
    net = fill(IResNet(18, eps=2e-5).double())
    x = torch.from_numpy(np.random.RandomState(1).uniform(-1, 1, (1, 3, 112, 112)))
    masks = dropout_masks(7, 42, 6, 25088, 0.4, CPU)
    with torch.no_grad():
        copies = net.prelu(net.bn1(net.conv1(x.expand(6, -1, -1, -1))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4, net.bn2):
            copies = layer(copies)
        dropped = copies * masks.view(6, 512, 7, 7) / 0.6
        wanted = slow_distance(net.features(net.fc(dropped.flatten(1))).numpy())
        got = serfiq_distance(net.tail, net.trunk(x)[0], masks, 0.4)
    assert got.item() == pytest.approx(wanted, rel=1e-9)
    assert wanted > 0.1


def test_masks_are_a_pure_function_of_seed_and_image_row():
    masks = dropout_masks(3, 2**40, 100, 25088, 0.5, CPU)
    assert (masks.shape, masks.dtype) == ((100, 25088), torch.bool)
    assert torch.equal(masks[:7], dropout_masks(3, 2**40, 7, 25088, 0.5, CPU))
    assert abs(masks.float().mean() - 0.5) < 4 * 0.5 / math.sqrt(masks.numel())
    per_pass = masks.float().mean(1)
    assert (abs(per_pass - 0.5) < 5 * 0.5 / math.sqrt(25088)).all()
    # neither passes, nor images, nor seeds share draws: correlations stay within five deviations of chance
    signs = masks.double() * 2 - 1
    others = [dropout_masks(s, r, 100, 25088, 0.5, CPU).double() * 2 - 1 for s, r in ((4, 2**40), (3, 2**40 + 1))]
    bound = 5 / math.sqrt(25088)
    assert ((signs @ signs.T / 25088).fill_diagonal_(0).abs() < bound).all()
    for other in others:
        assert ((signs @ other.T / 25088).abs() < bound).all()
    assert (masks[:, 1:] == masks[:, :-1]).double().mean().item() == pytest.approx(0.5, abs=2e-3)
    for drop in (0.0, 0.1, 0.9):
        kept = dropout_masks(0, 5, 100, 25088, drop, CPU).double().mean().item()
        assert kept == pytest.approx(1 - drop, abs=1e-3 if drop else 0)


@pytest.fixture(scope="module")
def r18() -> Recognizer:
    return Recognizer("r18", fill(IResNet(18)), Preprocessing(), 512, "")


def faces(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


def test_without_dropout_every_image_is_perfect(r18):
    raw = load_scorer("serfiq", r18, drop=0.0, stretched=False, n_passes=5)
    assert raw(faces(2), np.arange(2)).tolist() == [1, 1]
    stretched = load_scorer("serfiq", r18, drop=0.0, n_passes=5)
    assert stretched(faces(1), np.arange(1))[0] == pytest.approx(1 / (1 + math.exp(-15.6)), abs=1e-7)


@pytest.mark.slow
def test_options_and_rows(r18):
    rows = np.array([5, -1, 9])
    raw = load_scorer("serfiq", r18, seed=1, stretched=False)(faces(3), rows)
    assert np.isnan(raw[1])  # padding costs nothing
    with torch.no_grad():
        features = r18.backbone.trunk((faces(3).float() / 255 - 0.5) / 0.5)
        masks = dropout_masks(1, 9, 100, 25088, 0.5, CPU)
        embeddings = r18.backbone.tail(features[2] * masks * 2).double().numpy()
    assert raw[2] == pytest.approx(2 / (1 + math.exp(slow_distance(embeddings))), rel=1e-5)
    stretched = load_scorer("serfiq", r18, seed=1, alpha=10.0, r=0.7)(faces(3), rows)
    assert stretched[2] == pytest.approx(1 / (1 + math.exp(-10 * (raw[2] - 0.7))), rel=1e-5)
    assert load_scorer("serfiq", r18, seed=2, stretched=False)(faces(3), rows)[2] != raw[2]
    for options, words in (
        ({"n_passes": 1}, "n_passes=1 must be a whole number of at least 2"),
        ({"drop": 1.0}, r"drop=1.0 must lie in \[0, 1\)"),
        ({"alpha": 0}, "alpha=0 must lie above 0"),
        ({"r": math.nan}, "r=nan must lie between 0 and 1"),
        ({"stretched": 1}, "stretched=1 must be true or false"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(UsageError, match=f"serfiq: {words}"):
            load_scorer("serfiq", r18, **options)
