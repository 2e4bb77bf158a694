from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import UsageError
from fiqa_ray.models.methods.froq import layer_norms, noisy, occluded, pseudo_quality, seeded_noise, select_layers
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from released import golden, golden_input

CHECKS = golden("method_checks_2026")


@pytest.mark.slow
def test_lengths_are_those_of_the_authors_code(released_iresnet18):
    wanted = CHECKS["froq_iresnet18"]
    layers = dict(released_iresnet18.named_modules())
    norms = layer_norms(released_iresnet18, golden_input(), {name: layers[name] for name in wanted["layers"]})
    for name in wanted["layers"]:
        assert norms[name].tolist() == pytest.approx(wanted["norms"][name], rel=1e-9, abs=0)
    mean = torch.stack(list(norms.values())).mean(dim=0)
    assert mean.tolist() == pytest.approx(wanted["score_mean_of_raw_norms"], rel=1e-9, abs=0)
    alone = layer_norms(released_iresnet18, golden_input()[1:], {"bn2": layers["bn2"]})
    assert alone["bn2"].item() == pytest.approx(wanted["norms"]["bn2"][1], rel=1e-9)


def test_networks_have_the_layers_of_the_authors_classes(released_iresnet18):
    wanted = CHECKS["froq_iresnet18"]
    names = [name for name, _ in released_iresnet18.named_modules()][1:]
    assert len(names) == wanted["named_modules_after_root"]
    assert names[:10] == wanted["first_ten"]
    assert names[-5:] == wanted["last_five"]
    with torch.device("meta"):
        names = [name for name, _ in RECOGNIZERS["adaface_ir101"].build().named_modules()][1:]
    assert len(names) == CHECKS["froq_adaface_modules"]["ir_101_count"]
    assert names[:12] == CHECKS["froq_adaface_modules"]["ir_101_first_twelve"]


def norms_of(recipe, labels, seed):
    r = np.random.RandomState(seed)
    labels[:] = r.uniform(0, 1, 12)
    norms = np.stack([labels * s + o + n * r.randn(12) for s, o, n in recipe])
    norms[4][3] = norms[4][7]
    return norms


def test_layers_are_chosen_as_by_the_authors_code():
    wanted = CHECKS["froq_selection"]
    norms, labels = np.array(wanted["S"]), np.array(wanted["labels"])
    chosen = select_layers(norms, labels, n_top=4)
    assert chosen == wanted["final_layers"] == [0, 1, 4]
    assert norms[chosen].mean(axis=0).tolist() == pytest.approx(wanted["scores"], rel=1e-12)
    labels = np.zeros(12)
    norms = norms_of([(10, 50, 2), (0.3, 1, 0.08), (-4, 20, 0.5), (100, 500, 30), (1, 5, 0.6), (0, 7, 1)], labels, 31)
    assert select_layers(norms, labels, n_top=4) == wanted["tie_example"]["final_layers"] == [0]
    constant = np.vstack([np.full(12, 3.0), norms[:1]])  # torch would sort its NaN first
    assert select_layers(constant, labels) == [1]
    with pytest.raises(UsageError, match="no layer's output grows with the labels"):
        select_layers(norms[:1], -labels)


@pytest.mark.slow
def test_the_pseudo_quality_changes_images_as_the_authors_code(released_iresnet18):
    wanted, x = CHECKS["froq_pseudo_label_iresnet18"], golden_input()[:1]
    noise = torch.from_numpy(np.random.RandomState(777).randn(10, 3, 112, 112))
    squares = list(occluded(x))
    assert len(squares) == 64
    changed = torch.cat([x.flip(-1), *islice(noisy(x, noise), 2), *squares[:2]])
    with torch.inference_mode():
        clean, *others = released_iresnet18(torch.cat([x, changed]))
    got = [torch.nn.functional.cosine_similarity(clean, other, dim=0).item() for other in others]
    assert got == pytest.approx(
        [wanted["flip"], *wanted["noise_each"][:2], *wanted["occlusion_first_row"][:2]], rel=1e-9, abs=0
    )


def test_the_pseudo_quality_is_the_mean_of_three_means():
    """An embedding that only counts: the mirror gives 1, both noises 0, one of four squares 1 and three of them 0."""
    x = torch.zeros(1, 3, 28, 28)
    axis = iter([0, 0, 1, 1, 0, 1, 1, 1])  # clean, mirror, noise, noise, squares
    got = pseudo_quality(lambda _: torch.eye(2)[[next(axis)]], x, torch.zeros(2, 3, 28, 28))
    assert got.tolist() == pytest.approx([(1 + 0 + 1 / 4) / 3])


def test_noise_is_the_same_for_the_same_seed():
    noise = seeded_noise(3)
    assert (noise.shape, noise.dtype) == ((10, 3, 112, 112), torch.float32)
    assert torch.equal(noise, seeded_noise(3))
    assert not torch.equal(noise, seeded_noise(4))
    assert abs(float(noise.std()) - 1) < 0.01


@pytest.fixture(scope="module")
def tiny() -> Recognizer:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.PReLU(), nn.Flatten(), nn.Linear(2916, 6))
    return Recognizer("tiny", network, Preprocessing(), 6, "")


def test_a_score_is_the_mean_length_and_depends_on_its_image_alone(tiny):
    faces = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, 112, 112), dtype=np.uint8))
    scorer = load_scorer("froq", tiny, layers=["1", "3"])
    x = (faces.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        inner = tiny.backbone[:2](x)
        wanted = (inner.flatten(1).norm(dim=1) + tiny.backbone[2:](inner).norm(dim=1)) / 2
    np.testing.assert_allclose(scorer(faces), wanted.numpy(), rtol=1e-5)
    for others in ([4], [2, 1, 0]):
        np.testing.assert_allclose(scorer(faces[others]), wanted[others].numpy(), rtol=1e-5)


def test_mistakes_are_named(tiny):
    for layers, message in (((), "layers=.* must be a list"), ("1", "must be a list"), (["9"], "has no layer '9'")):
        with pytest.raises(UsageError, match=message):
            load_scorer("froq", tiny, layers=layers)
