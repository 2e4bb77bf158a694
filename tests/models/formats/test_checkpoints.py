from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct

import fsspec
import pytest
import torch

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.checkpoints import (
    fill_randomly,
    likely_architecture,
    load_state_dict,
    load_strictly,
    sha256_of,
)
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.networks.mobilefacenet import curricularface_mobilefacenet
from fiqa_ray.models.quality import METHODS
from fiqa_ray.models.recognition import RECOGNIZERS, load_recognizer
from released import golden


def of_shapes(name: str) -> dict[str, torch.Tensor]:
    """A state dict with released names and shapes that stores one number per entry."""
    return {
        k: torch.full((), 0.5).expand(s) if s else torch.tensor(3) for k, s in golden(f"state_dicts/{name}").items()
    }


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


BARE = of_shapes("arcface_iresnet18")
SHARD = torch.zeros(()).expand(10718, 512)
WRAPPED = {
    "bare": BARE,
    "state_dict": {"state_dict": BARE, "epoch": 3},
    "data parallel": {f"module.{k}": v for k, v in BARE.items()},
    "MagFace": {
        "epoch": 25,
        "arch": "iresnet100",
        "state_dict": {**{f"features.module.{k}": v for k, v in BARE.items()}, "fc.weight": SHARD},
        "model_parallel": True,
    },
    "MagFace, data parallel": {
        "state_dict": {**{f"module.features.{k}": v for k, v in BARE.items()}, "module.fc.weight": SHARD}
    },
    "MagFace, distributed head": {**{f"features.module.{k}": v for k, v in BARE.items()}, "parallel_fc.weight": SHARD},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_released_wrapping_loads_strictly(wrapping):
    state = load_state_dict(saved(WRAPPED[wrapping]))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in BARE.items()}
    assert state["fc.weight"].shape == (512, 25088)  # the backbone's own, not the class weights
    model = IResNet(18)
    load_strictly(model, state, "file")
    assert (model.fc.weight == 0.5).all()
    assert model.bn1.num_batches_tracked == 3


def test_missing_unexpected_and_reshaped_entries_are_named():
    model = IResNet(18)
    broken = dict(WRAPPED["MagFace"]["state_dict"])
    del broken["features.module.layer3.1.conv2.weight"]
    with pytest.raises(
        FiqaRayError, match=r"magface\.pth.*1 missing \(layer3\.1\.conv2\.weight\).*looks like MagFace's iresnet18"
    ):
        load_strictly(model, load_state_dict(saved({"state_dict": broken})), "magface.pth")

    crfiqa = {**BARE, "qs.weight": torch.zeros(1, 512), "qs.bias": torch.zeros(1)}
    with pytest.raises(
        FiqaRayError, match=r"2 unexpected \(qs.weight, qs.bias\).*iresnet18 with CR-FIQA's quality head"
    ):
        load_strictly(model, crfiqa, "crfiqa.pth")

    other = {**BARE, "fc.weight": torch.zeros(128, 25088), "fc.bias": torch.zeros(128)}
    message = r"2 of another shape \(fc\.weight \(128, 25088\) instead of \(512, 25088\), fc\.bias"
    with pytest.raises(FiqaRayError, match=message):
        load_strictly(model, other, "small.pth")

    with pytest.raises(FiqaRayError, match=r"187 entries wanted, 475 found: 288 unexpected .*looks like iresnet50\."):
        load_strictly(model, of_shapes("arcface_iresnet50"), "r50.pth")
    before = model.state_dict()["conv1.weight"].clone()
    assert not (before == 0.5).all()  # a refused file leaves nothing behind


def three_bn_ir101() -> dict[str, torch.Tensor]:
    """Later repositories' IR-101: 672 + 5 * 49 entries, a batch norm before each PReLU."""
    entries = {}
    for key, tensor in of_shapes("curricularface_ir101").items():
        stem, _, last = key.partition(".res_layer.")
        at, _, leaf = last.partition(".")
        entries[f"{stem}.res_layer.{int(at) + (int(at) > 1)}.{leaf}" if last else key] = tensor
    for i in range(49):
        width = entries[f"body.{i}.res_layer.3.weight"].shape
        entries |= {f"body.{i}.res_layer.2.{leaf}": torch.zeros(width) for leaf in ("weight", "bias", "running_mean")}
        entries |= {f"body.{i}.res_layer.2.running_var": torch.ones(width)}
        entries |= {f"body.{i}.res_layer.2.num_batches_tracked": torch.tensor(0)}
    assert len(entries) == 917
    return entries


def built(name, device):
    with torch.device(device):
        return (RECOGNIZERS[name] if name in RECOGNIZERS else METHODS[name].network).build()


MAGFACE_R100 = {
    "epoch": 25,
    "arch": "iresnet100",
    "state_dict": {
        **{f"features.module.{k}": v for k, v in of_shapes("magface_iresnet100").items()},
        "fc.weight": SHARD,
    },
    "model_parallel": True,
}


@pytest.mark.parametrize(
    ("row", "content", "words"),
    [
        (
            "crfiqa_l",
            of_shapes("arcface_iresnet100"),
            r"2 missing \(qs\.weight, qs\.bias\); this looks like iresnet100\.",
        ),
        ("arcface_r100", of_shapes("crfiqa_iresnet100"), r"2 unexpected \(qs.*looks like iresnet100 with CR-FIQA's"),
        ("crfiqa_s", of_shapes("crfiqa_iresnet100"), r"477 entries wanted, 927 found.*iresnet100 with CR-FIQA's"),
        (
            "curricularface_ir101",
            three_bn_ir101(),
            "672 entries wanted, 917 found.*looks like three-BN IR with 49 blocks",
        ),
        (
            "sddfiqa_r50",
            of_shapes("sddfiqa_r50_recognition"),
            r"3 missing \(quality.1.weight.*two-BN IR with 24 blocks",
        ),
        ("sddfiqa_r50", of_shapes("sddfiqa_mobilefacenet"), "looks like sddfiqa_mobilefacenet"),
        ("curricularface_mobilefacenet", of_shapes("ediffiqa_mobilefacenet"), "looks like ediffiqa_mobilefacenet"),
        ("arcface_r50", MAGFACE_R100, "looks like MagFace's iresnet100"),
        ("paper_regressor_r100", of_shapes("arcface_iresnet100"), r"base_model\.conv1\.weight.*looks like iresnet100"),
        ("arcface_r100", of_shapes("transfer_regressor_iresnet100"), "looks like a quality regressor on iresnet100"),
        ("arcface_r18", of_shapes("pcnet_kaenchan_head_fc2_prob"), "looks like PCNet's head"),
    ],
)
def test_the_wrong_file_is_named(row, content, words):
    with pytest.raises(FiqaRayError, match=words):
        load_strictly(built(row, "meta"), load_state_dict(saved(content)), "file.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "content"),
    [
        ("magface_r100", MAGFACE_R100),
        ("sddfiqa_r50", {f"module.{k}": v for k, v in of_shapes("sddfiqa_r50").items()}),
        ("curricularface_ir101", of_shapes("curricularface_ir101")),
        ("crfiqa_l", of_shapes("crfiqa_iresnet100")),
        ("paper_regressor_r100", of_shapes("transfer_regressor_iresnet100")),
        ("elasticface_r100", of_shapes("elasticface_iresnet100")),
    ],
)
def test_the_right_file_loads_as_it_is_wrapped(row, content):
    model = built(row, "cpu")
    load_strictly(model, load_state_dict(saved(content)), "file.pth")
    assert all((p == 0.5).all() for p in model.parameters())


@pytest.mark.slow
def test_a_magface_file_is_refused_where_its_entries_would_fit(tmp_path):
    # Same entries as ArcFace, but BGR, other scaling and another eps: nothing but the wrapping tells.
    path = str(tmp_path / "magface.pth")
    (tmp_path / "magface.pth").write_bytes(saved(WRAPPED["MagFace"]))
    with pytest.raises(FiqaRayError, match=r"looks like a MagFace checkpoint .*BGR.*Choose magface_r100"):
        load_recognizer("arcface_r18", weights=path)
    recognizer = load_recognizer("magface_r18", weights=path)
    assert (recognizer.backbone.fc.weight == 0.5).all()
    (tmp_path / "bare.pth").write_bytes(saved(BARE))  # saved again without its wrapping
    assert load_recognizer("magface_r18", weights=str(tmp_path / "bare.pth")).preprocessing.colour == "BGR"


@pytest.mark.parametrize(
    ("state", "guess"),
    [
        (of_shapes("arcface_iresnet100"), "iresnet100"),
        (of_shapes("transfer_regressor_iresnet100"), "a quality regressor on iresnet100"),
        (of_shapes("curricularface_mobilefacenet"), "curricularface_mobilefacenet"),
        (of_shapes("arcface_torch_mobilefacenet"), "arcface_torch_mobilefacenet"),
        ({f"body.{i}.res_layer.{m}.weight": SHARD for i in range(49) for m in range(5)}, "two-BN IR with 49 blocks"),
        (of_shapes("adaface_ir101"), "three-BN IR with 49 blocks: adaface_ir101 (BGR), or cvlface_ir101 (RGB)"),
        (of_shapes("ediffiqa_s"), "eDifFIQA on iresnet18"),
        (of_shapes("mrfiqa_synfiqapp_iresnet50"), "iresnet50 with the quality head of SynFIQA++"),
        (of_shapes("arcface_torch_vit_t"), "arcface_vit with 12 blocks of 256 numbers and patches of 9 px"),
        (of_shapes("cvlface_vit_base"), "cvlface_vit with 24 blocks of 512 numbers and patches of 8 px"),
        (of_shapes("transface_vit_s"), "TransFace with 12 blocks of 512 numbers and patches of 9 px"),
        (of_shapes("vitfiqa_vit_s_full"), "ViT-FIQA with 12 blocks of 512 numbers and patches of 9 px"),
        (
            of_shapes("timm_vit_tiny_patch8_112"),
            "timm's vision transformer with 12 blocks of 192 numbers and patches of 8 px",
        ),
        (of_shapes("swinface_swin_t"), "swinface"),
        ({"layer1.weight": SHARD}, None),
    ],
)
def test_architecture_is_guessed_from_the_entries(state, guess):
    assert likely_architecture(state) == guess


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


def test_bad_files_give_one_clear_message(tmp_path):
    good = saved(BARE)
    cases = {
        "cut.pth": (good[: len(good) // 2], "not a readable torch checkpoint .*fetch it again"),
        "page.pth": (b"<html>quota exceeded</html>", "an HTML page, not the file"),
        "empty.pth": (b"", r"\(0 bytes"),
        "code.pth": (saved({"state_dict": Evil()}), "could run code"),
        "pickle.pth": (pickle.dumps(Evil(), protocol=2), "could run code"),
        "serfiq.params": (struct.pack("<QQQ", 0x112, 0, 0), "MXNet parameter file; .*serfiq_mxnet"),
        "module.pth": (saved(torch.nn.Linear(2, 2)), "pickled Python objects"),
        "number.pth": (saved(3), "no state dict of tensors inside .found int"),
        "training.pth": (saved({"epoch": 3, "optimizer": {}}), "no state dict of tensors inside .found keys epoch"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(FiqaRayError, match=message) as caught:
            load_state_dict(path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(FiqaRayError, match=re.escape(str(tmp_path / "none.pth"))):
        load_state_dict(tmp_path / "none.pth")


def test_any_url_is_read():
    data = saved({"weight": torch.arange(3.0)})
    with fsspec.open("memory://checkpoints/a.pth", "wb") as file:
        file.write(data)
    assert load_state_dict("memory://checkpoints/a.pth")["weight"].tolist() == [0, 1, 2]
    assert sha256_of(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.slow
def test_random_weights_depend_on_seed_and_name_and_keep_variance():
    nets = [curricularface_mobilefacenet() for _ in range(3)]
    for net, seed in zip(nets, (7, 7, 8), strict=True):
        fill_randomly(net, seed)
    one, same, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["conv1.conv.weight"], other["conv1.conv.weight"])
    assert not torch.equal(one["conv_3.model.0.conv.conv.weight"], one["conv_3.model.1.conv.conv.weight"])
    deep, again = IResNet(100), IResNet(100)
    fill_randomly(deep, 0)
    fill_randomly(again, 0)
    assert all(torch.equal(a, b) for a, b in zip(deep.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        faces = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
        a, b = deep.eval()(faces)
    assert torch.isfinite(a).all()
    assert 1 < a.norm() < 1e6
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) < 0.999  # faces stay apart
