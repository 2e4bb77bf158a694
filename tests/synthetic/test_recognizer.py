"""The demo's recogniser: small, learning, saved so that it can be named like a user's own network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.synthetic.compact import CompactFaceNet, build
from fiqa_ray.synthetic.recognizer import train_recognizer


def test_the_network_is_small_enough_for_two_cores() -> None:
    model, n_macs = build(), 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal n_macs
        if isinstance(module, nn.Linear):
            n_macs += module.weight.numel()
        else:
            n_macs += output.shape[2] * output.shape[3] * module.conv.weight.numel()  # type: ignore[operator, union-attr]

    for module in model.modules():
        if isinstance(module, nn.Linear) or hasattr(module, "conv"):
            module.register_forward_hook(count)
    assert model(torch.zeros(2, 3, 112, 112)).shape == (2, 128)
    assert 5e6 < n_macs < 15e6
    assert sum(p.numel() for p in model.parameters()) < 1e6


def test_the_folded_network_equals_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = CompactFaceNet().double()
    x = torch.rand(4, 3, 112, 112, dtype=torch.float64)
    for _ in range(3):
        model(torch.rand(8, 3, 112, 112, dtype=torch.float64))  # running statistics away from their start
    model.eval()
    for module in model.modules():  # parameters too
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    t = model.trunk
    stem = torch.zeros_like(t[0].conv.weight).reshape(-1, 3, 4, 4) + t[0].conv.weight.reshape(-1, 3, 4, 4)

    def plain(part: nn.Module, y: torch.Tensor) -> torch.Tensor:
        return part.norm(part.conv(y))  # type: ignore[operator]

    y = torch.relu(t[0].norm(nn.functional.conv2d(x, stem, stride=4)))
    y = torch.relu(plain(t[2], y))
    y = y + plain(t[4].second, torch.relu(plain(t[4].first, y)))
    y = torch.relu(plain(t[5], y))
    y = t[8](y + plain(t[7].second, torch.relu(plain(t[7].first, y))))
    torch.testing.assert_close(model(x), model.norm(model.embed(y.flatten(1))), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_short_training_lowers_the_loss_repeats_and_loads_by_name(tmp_path: Path) -> None:
    settings = {"n_identities": 12, "views_per_identity": 4, "n_epochs": 6, "seed": 1, "n_threads": 1}
    threads = torch.get_num_threads()
    random_state = torch.get_rng_state()
    losses = train_recognizer(tmp_path / "a" / "net.pt", **settings)
    train_recognizer(tmp_path / "b.pt", **settings)
    assert losses[-1] < 0.7 * losses[0]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["net.pt"]

    first, second = (
        load_recognizer("fiqa_ray.synthetic.compact:build", weights=tmp_path / name) for name in ("a/net.pt", "b.pt")
    )
    faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 112, 112), np.uint8))
    embeddings = first(faces)
    assert embeddings.shape == (3, 128)
    assert first.dim == 128
    assert first.differentiable
    assert torch.equal(embeddings, second(faces))


def test_wrong_weights_and_options_have_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(FiqaRayError, match="no options, got depth"):
        build(depth=3)
    state = CompactFaceNet().state_dict()
    state.pop("norm.weight")
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(FiqaRayError, match=r"norm\.weight"):
        build(tmp_path / "cut.pt")
