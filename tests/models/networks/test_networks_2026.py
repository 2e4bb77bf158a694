"""Networks of 2023 to 2026 against numbers of the authors' classes (`tests/golden/forward_checks_2026.json`)."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.networks.vit import FaceViT
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from released import check_forward, count_macs, fill, golden, golden_input

ALL_FORWARDS = bool(os.environ.get("FIQA_RAY_ALL_FORWARDS"))
RECOGNISERS = {  # released architecture -> the row that builds it
    "adaface_ir18": "adaface_ir18",
    "adaface_ir50": "adaface_ir50",
    "adaface_ir101": "adaface_ir101",
    "cvlface_vit_small": "cvlface_vit_s",
    "cvlface_vit_base": "cvlface_vit_b",
    "arcface_torch_vit_t": "arcface_vit_t",
    "arcface_torch_vit_s": "arcface_vit_s",
    "arcface_torch_vit_b": "arcface_vit_b",
    "arcface_torch_vit_l": "arcface_vit_l",
    "transface_vit_s": "transface_s",
    "transface_vit_b": "transface_b",
    "transface_vit_l": "transface_l",
    "swinface_swin_t": "swinface",
    "timm_vit_tiny_patch8_112": "timm_vit_tiny",
    "timm_vit_small_patch8_gap_112": "timm_vit_small_gap",
}
METHOD_NETWORKS = {
    "ediffiqa_l": "ediffiqa_l",
    "ediffiqa_m": "ediffiqa_m",
    "ediffiqa_s": "ediffiqa_s",
    "ediffiqa_t": "ediffiqa_t",
    "vitfiqa_vit_s_token": "vitfiqa",
    "vitfiqa_vit_s_full": "vitfiqa_full",
    "vitfiqa_vit_s_crfiqa": "vitfiqa_crfiqa",
    "mrfiqa_synfiqapp_iresnet50": "mrfiqa_synfiqapp",
}
FAST = ("adaface_ir18", "ediffiqa_s", "ediffiqa_t", "arcface_torch_vit_t", "swinface_swin_t")
"""One network of each class of layers; the others differ in depth and width, and run where FIQA_RAY_ALL_FORWARDS is set."""
FASTEST = ("ediffiqa_t", "arcface_torch_vit_t")
SLOW = ("vitfiqa_vit_s_token", "transface_vit_s", "timm_vit_tiny_patch8_112", "mrfiqa_synfiqapp_iresnet50")
NOT_COMPUTED = {"vitfiqa_vit_s_token": (144 * 512 + 512) * 512, "mrfiqa_synfiqapp_iresnet50": 25088 * 512}
"""Multiply-accumulates of the authors' embedding where quality does not come from it."""
ALL = [*RECOGNISERS, *METHOD_NETWORKS]


def row_of(name):
    return RECOGNIZERS[RECOGNISERS[name]] if name in RECOGNISERS else METHODS[METHOD_NETWORKS[name]].network


def checks(name):
    return golden("forward_checks_2026")[name]


def needing_forward(name):
    marks = [pytest.mark.slow] if name not in FASTEST else []
    if name not in (*FAST, *SLOW):
        marks.append(pytest.mark.skipif(not ALL_FORWARDS, reason="a larger network of a class that others show"))
    return pytest.param(name, marks=marks)


@pytest.fixture(scope="module")
def timm_loads():
    """timm imports torchvision, whose operators are missing where it was built for another torch than is installed."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield library
    else:
        yield None


@pytest.fixture
def build(request):
    def build_empty(name):
        if "timm" in name:
            request.getfixturevalue("timm_loads")  # before timm's own import
            pytest.importorskip("timm")
        with torch.device("meta"):
            return row_of(name).build().eval()

    return build_empty


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if "timm" in n else []) for n in ALL])
def test_entries_counts_and_cost_are_those_of_the_authors_class(name, build):
    model, wanted, row = build(name), checks(name), row_of(name)
    state = model.state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == golden(f"state_dicts/{name}")
    assert list(state) == list(golden(f"state_dicts/{name}"))
    assert len(state) == wanted["entries"]
    assert sum(p.numel() for p in model.parameters()) == wanted["params"]
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == wanted.get("frozen", [])
    output, macs = count_macs(model, torch.empty(1, 3, 112, 112, device="meta"))
    assert output.shape == (1, row.dim)
    assert row.macs == sum(macs.values())
    if "macs" in wanted:  # counted by the authors' classes
        macs["linear"] += NOT_COMPUTED.get(name, 0)
        assert macs == {
            kind: wanted["macs"][kind] for kind in ("conv", "linear", "attention") if kind in wanted["macs"]
        }


def outputs_and_wanted(name, model, key):
    """This project's outputs, and the items of the authors' forward that they are."""
    x, items = golden_input(), checks(name)[key]
    with torch.no_grad():
        if name.startswith("vitfiqa"):
            embedding, quality = model.embedding_and_quality(x)
            assert torch.equal(model(x), quality)
            return [embedding, quality], items
        if name.startswith("ediffiqa"):
            return [model.base_model(x), model(x)], items
        if name.startswith("mrfiqa"):
            return [model(x)], items[1:]
        if name.startswith("transface"):
            tokens = model.tokens(x)
            gates = model.gates(tokens)
            spread = (tokens * gates[:, :, None]).std(dim=2)
            return [model(x), gates.softmax(dim=1), spread], items
        if name.startswith("adaface"):
            embedding = model(x)
            norm = embedding.norm(dim=1, keepdim=True)
            return [embedding, embedding / norm, norm], items
        return [model(x)], items[-1:]


@pytest.mark.parametrize("name", [needing_forward(n) for n in ALL if checks(n)["forward"] != "not run"])
def test_outputs_are_those_of_the_authors_class(name, build):
    model = row_of(name).build() if "swin" in name else build(name).to_empty(device="cpu")  # Swin computes constants
    fill(model.double())
    check_forward(*outputs_and_wanted(name, model, "forward"))
    if "forward_layernorm_x16" in checks(name):  # reaches the clip of ReLU6 and attention that is far from uniform
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.data.mul_(16)
        check_forward(*outputs_and_wanted(name, model, "forward_layernorm_x16"))


def test_cvlface_computes_what_adaface_computes():
    """Same class and other pixels; only the vision transformer of ViTNT-FIQA's copy of CVLface leaves the last norm out."""
    for depth in (18, 50, 101):
        adaface, cvlface = RECOGNIZERS[f"adaface_ir{depth}"], RECOGNIZERS[f"cvlface_ir{depth}"]
        assert (adaface.builder, adaface.arguments) == (cvlface.builder, cvlface.arguments)
        assert (adaface.preprocessing.colour, cvlface.preprocessing.colour) == ("BGR", "RGB")


def test_patches_of_9_px_leave_out_the_last_rows_and_columns():
    network = fill(FaceViT(9, 16, 1, 2, 2, n_outputs=4))
    x = golden_input().float()
    changed = x.clone()
    changed[:, :, 108:], changed[:, :, :, 108:] = 0, 0
    with torch.no_grad():
        assert torch.equal(network(x), network(changed))
        changed[:, :, 107] = 0
        assert not torch.equal(network(x), network(changed))
