from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.networks.clib_fiqa import DEVIATION, MEAN, ClibFIQA, ClipResNet50, expected_quality
from released import check_forward, count_macs, fill, golden


class Tower(nn.Module):
    """The image tower under the name that it has in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = ClipResNet50()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


def test_the_tower_is_clips():
    wanted = golden("forward_checks_2026")["clib_fiqa_clip_rn50"]
    with torch.device("meta"):
        tower, whole = Tower(), ClibFIQA()
    assert sum(p.numel() for p in tower.parameters()) == wanted["visual_params"]
    assert len(tower.state_dict()) == wanted["visual_entries"]
    assert list(whole.state_dict()) == ["logit_scale", "text_features", *tower.state_dict()]
    _, macs = count_macs(whole, torch.empty(1, 3, 112, 112, device="meta"))
    assert macs["conv"] == wanted["macs"]["conv"]
    # queries of one token, keys and values of 50, and the output
    assert macs["linear"] == (1 + 2 * 50) * 2048**2 + 2048 * 1024
    assert METHODS["clib_fiqa"].network.macs == sum(macs.values())


@pytest.mark.slow
def test_the_towers_features_are_clips():
    with torch.device("meta"):
        tower = Tower().double()
    fill(tower.to_empty(device="cpu"))
    x = torch.from_numpy(np.random.RandomState(12345).uniform(-1, 1, (2, 3, 224, 224)))
    with torch.no_grad():
        check_forward([tower(x)], golden("forward_checks_2026")["clib_fiqa_clip_rn50"]["forward"])


def test_quality_is_the_authors_expectation():
    wanted, r = golden("method_checks_2026")["clib_fiqa_formula"], np.random.RandomState(41)
    features, sentences = torch.from_numpy(r.randn(2, 1024)), torch.from_numpy(r.randn(360, 1024))
    scale = torch.tensor(1 / 0.07, dtype=torch.float64)
    together = expected_quality(features, sentences, scale)
    assert together[:, 0].tolist() == pytest.approx(wanted["score"], rel=1e-9, abs=0)
    assert expected_quality(features[1:], sentences, scale).item() == pytest.approx(wanted["score"][1], rel=1e-9)


def test_faces_are_enlarged_and_scaled_as_clip_wants_them():
    """Of a face of one colour, every pixel is that colour, less CLIP's mean, over its deviation."""
    network, seen = ClibFIQA(), []
    network.visual = nn.Sequential()  # the tower's input is what it returns
    network.visual.forward = lambda x: seen.append(x) or x.new_ones(len(x), 1024)
    colour = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        network(colour[None, :, None, None].expand(1, 3, 112, 112))
    wanted = (colour - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    torch.testing.assert_close(seen[0], wanted[None, :, None, None].expand(1, 3, 224, 224), rtol=1e-5, atol=1e-6)
