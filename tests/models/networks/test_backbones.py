from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.models.methods.pcnet import PCNetHead
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.quality import METHODS
from fiqa_ray.models.recognition import RECOGNIZERS
from released import check_forward, count_macs, fill, golden, golden_input

ROW_OF = {  # released architecture -> the row that builds it
    "arcface_iresnet18": "arcface_r18",
    "arcface_iresnet50": "arcface_r50",
    "arcface_iresnet100": "arcface_r100",
    "elasticface_iresnet100": "elasticface_r100",
    "faceqan_iresnet100": "faceqan_cosface_r100",
    "magface_iresnet18": "magface_r18",
    "magface_iresnet50": "magface_r50",
    "magface_iresnet100": "magface_r100",
    "curricularface_ir101": "curricularface_ir101",
    "curricularface_mobilefacenet": "curricularface_mobilefacenet",
    "sddfiqa_mobilefacenet_recognition": "curricularface_mobilefacenet",
    "sddfiqa_r50_recognition": "sddfiqa_r50_recognition",
    "ediffiqa_mobilefacenet": "ediffiqa_mobilefacenet",
    "arcface_torch_mobilefacenet": "arcface_torch_mobilefacenet",
    "crfiqa_iresnet100": "crfiqa_l",
    "crfiqa_iresnet50": "crfiqa_s",
    "sddfiqa_r50": "sddfiqa_r50",
    "sddfiqa_mobilefacenet": "sddfiqa_mobilefacenet",
    "transfer_regressor_iresnet100": "paper_regressor_r100",
}
# Same entries and the same forward as arcface_iresnet100 in the golden file: one run stands for all.
SAME_AS_ARCFACE = ("elasticface_iresnet100", "faceqan_iresnet100")


def row_of(name):
    row = ROW_OF[name]
    return RECOGNIZERS[row] if row in RECOGNIZERS else METHODS[row].network


def released_outputs(name: str, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What the authors' forward returns: some return a pair, of which this project's forward gives one."""
    output = model(x)
    if name.startswith("crfiqa"):
        return [model.embed(model.trunk(x)), output]
    if name == "curricularface_ir101":
        return [output, model.maps(x).flatten(1)]
    if name == "curricularface_mobilefacenet":
        return [output, model[:-1](x).flatten(1)]
    return [output]


def marked(name):
    """A network of 50 or 100 layers takes up to ten times as long as one of 18."""
    is_deep = any(depth in name for depth in ("50", "100", "101"))
    return pytest.param(name, marks=pytest.mark.slow) if is_deep else name


@pytest.mark.parametrize("name", [marked(name) for name in ROW_OF])
def test_network_equals_the_released_one(name):
    row = row_of(name)
    with torch.device("meta"):
        model = row.build().eval()
        n_outputs, macs = count_macs(model, torch.empty(1, 3, 112, 112))
    wanted = golden("forward_checks")[name]
    state = model.state_dict()
    shapes = {key: list(tensor.shape) for key, tensor in state.items()}
    assert shapes == golden(f"state_dicts/{name}")
    assert list(shapes) == list(golden(f"state_dicts/{name}"))
    assert len(state) == wanted["entries"]
    assert sum(p.numel() for p in model.parameters()) == wanted["params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == wanted["trainable_at_init"]
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == wanted["frozen"]
    assert macs == {kind: wanted["macs"][kind] for kind in macs}
    assert row.macs == sum(macs.values())
    assert n_outputs.shape == (1, row.dim)
    if name in SAME_AS_ARCFACE:
        assert wanted["forward"] == golden("forward_checks")["arcface_iresnet100"]["forward"]
        return
    model = row.build()
    for key in wanted["frozen"]:
        assert (model.state_dict()[key] == 1).all()
    with torch.no_grad():
        check_forward(released_outputs(name, fill(model.double()), golden_input()), wanted["forward"])


def test_pcnet_head_equals_the_reference():
    wanted, head = golden("forward_checks")["pcnet_head"], fill(PCNetHead().double())
    shapes = {key: list(tensor.shape) for key, tensor in head.state_dict().items()}
    assert shapes == golden("state_dicts/pcnet_kaenchan_head_fc2_prob")
    assert sum(p.numel() for p in head.parameters()) == wanted["params"]
    features = torch.from_numpy(np.random.RandomState(12345).uniform(-1, 1, (2, 25088)))
    output, macs = count_macs(head, features)
    torch.testing.assert_close(output, torch.tensor(wanted["out"], dtype=torch.float64), rtol=1e-9, atol=0)
    assert macs == {"conv": 0, "linear": METHODS["pcnet"].head.macs}


def test_eps_is_told_apart():
    # ArcFace and MagFace share names and shapes; only eps differs, and the golden norms by 1e-4.
    a, b = (
        golden("forward_checks")[name]["forward"][0]["l2"][0] for name in ("arcface_iresnet18", "magface_iresnet18")
    )
    assert abs(a - b) > 1e-5 * a
    assert {m.eps for m in IResNet(18, eps=2e-5).modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)} == {2e-5}


def test_float32_and_one_image():
    model = fill(IResNet(18))
    expected = golden("forward_checks")["arcface_iresnet18"]["forward"][0]["l2"]
    with torch.no_grad():
        for row in (0, 1):
            output = model(golden_input()[row : row + 1].float())
            assert output.shape == (1, 512)
            assert output.dtype == torch.float32
            assert output.norm().item() == pytest.approx(expected[row], rel=1e-4)


def test_iresnet34_has_the_entries_of_the_layer_table():
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    norms = {"bn1": 64, "bn2": 512, "features": 512}
    c_in = 64
    for stage, (n_blocks, c) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for b in range(n_blocks):
            at = f"layer{stage}.{b}"
            norms |= {f"{at}.bn1": c_in, f"{at}.bn2": c, f"{at}.bn3": c}
            wanted[f"{at}.conv1.weight"] = (c, c_in, 3, 3)
            wanted[f"{at}.conv2.weight"] = (c, c, 3, 3)
            wanted[f"{at}.prelu.weight"] = (c,)
            if b == 0:
                wanted[f"{at}.downsample.0.weight"] = (c, c_in, 1, 1)
                norms[f"{at}.downsample.1"] = c
            c_in = c
    wanted |= {"fc.weight": (512, 25088), "fc.bias": (512,)}
    for name, width in norms.items():
        wanted |= {f"{name}.{leaf}": () if leaf == "num_batches_tracked" else (width,) for leaf in bn}
    assert {k: tuple(v.shape) for k, v in IResNet(34).state_dict().items()} == wanted
    assert len(wanted) == 7 + 16 * 18 + 4 * 6 + 12


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("arcface_iresnet18", marks=pytest.mark.slow),
        "curricularface_mobilefacenet",
        "arcface_torch_mobilefacenet",
    ],
)
@pytest.mark.parametrize("batch", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_an_image_has_the_same_bits_at_any_place_of_a_batch(name, batch):
    # Labels must not depend on how images fall into batches. It holds for one thread per process; with more, the rows
    # of a batch may fall to kernels that add in another order.
    assert torch.get_num_threads() == 1
    model = fill(row_of(name).build())
    pool = torch.rand(2 * batch, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        first = model(pool[:batch])
        assert torch.equal(model(pool[:batch].roll(1, 0)), first.roll(1, 0))
        for place in {0, batch // 2, batch - 1}:
            others = pool[batch:].clone()
            others[place] = pool[0]
            assert torch.equal(model(others)[place], first[0])
