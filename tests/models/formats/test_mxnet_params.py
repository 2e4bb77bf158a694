from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.checkpoints import load_strictly
from fiqa_ray.models.formats.mxnet_params import load_mxnet_iresnet, read_params
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from released import fill, golden, golden_input


def written(arrays: dict[str, np.ndarray], form: str, kind: int = 0, storage: int = 0) -> bytes:
    """A .params file, after the format's description."""
    out = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for a in arrays.values():
        if form == "legacy":
            out.append(struct.pack(f"<I{a.ndim}I", a.ndim, *a.shape))
        elif form == "V1":
            out.append(struct.pack(f"<II{a.ndim}q", 0xF993FAC8, a.ndim, *a.shape))
        else:
            out.append(struct.pack(f"<IiI{a.ndim}q", 0xF993FAC9, storage, a.ndim, *a.shape))
        out += [struct.pack("<iii", 1, 0, kind), a.astype("<f4").tobytes()]
    out.append(struct.pack("<Q", len(arrays)))
    out += [struct.pack("<Q", len(k.encode())) + k.encode() for k in arrays]
    return b"".join(out)


SOME = {"arg:a": np.arange(6.0).reshape(2, 3), "aux:b": np.array([-1.5]), "arg:ü": np.ones((1, 2, 1, 2))}
FORMS = ("legacy", "V1", "V2")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form):
    found = read_params(written(SOME, form), "f")
    assert list(found) == list(SOME)
    for key, array in SOME.items():
        assert found[key].dtype == np.float32
        assert np.array_equal(found[key], array)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_and_forged_files_give_one_message(form):
    good = written(SOME, form)
    for n in range(16, len(good)):
        with pytest.raises(FiqaRayError, match=r"f\.params: damaged MXNet parameter file at byte"):
            read_params(good[:n], "f.params")
    with pytest.raises(FiqaRayError, match="more follows"):
        read_params(good + b"\0", "f.params")
    rng = np.random.default_rng(0)
    n_refused = 0
    for _ in range(3000):  # lengths that the file does not have must be refused before anything is made of them
        forged = bytearray(good)
        at = int(rng.integers(16, len(good) - 8))
        forged[at : at + 8] = rng.bytes(8) if rng.random() < 0.5 else b"\xff" * 8
        try:
            read_params(bytes(forged), "f.params")
        except FiqaRayError:
            n_refused += 1
    assert n_refused > 1000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\x03\x04", r"not an MXNet parameter file \(4 bytes\)"),
        (struct.pack("<QQQ", 0x112, 0, 2**63), "9,223,372,036,854,775,808 entries cannot follow"),
        (written(SOME, "V2", kind=2), r"values of type 2, only float32 \(0\)"),
        (written(SOME, "V2", storage=1), "storage type 1, only dense"),
        (struct.pack("<QQQI", 0x112, 0, 1, 0xF993FACA) + bytes(64), "unknown version"),
        (written({"arg:a": np.ones(2)}, "V2").replace(b"arg:a", b"arg:\xff"), "not UTF-8"),
        (written({"arg:a": np.ones(2), "arg:b": np.ones(2)}, "V2").replace(b"arg:b", b"arg:a"), "stands twice"),
        (written({"arg:a": np.ones(2)}, "V1")[:-21] + struct.pack("<Q", 0), "0 names for 1 arrays"),
    ],
    ids=["zip", "count", "type", "storage", "version", "utf8", "twice", "names"],
)
def test_what_cannot_be_read_is_named(data, words):
    with pytest.raises(FiqaRayError, match=words):
        read_params(data, "f.params")


def test_all_names_of_the_released_file_find_their_place():
    names = list(golden("state_dicts/serfiq_lresnet100e_ir_mxnet"))
    assert len(names) == 771
    values = {name: np.array([float(i)]) for i, name in enumerate(names)}
    state = load_mxnet_iresnet(written(values, "legacy"), name="f")
    assert set(state) == set(golden("state_dicts/arcface_iresnet100"))
    for mxnet, torch_name in {  # by hand
        "arg:conv0_weight": "conv1.weight",
        "aux:bn0_moving_var": "bn1.running_var",
        "arg:relu0_gamma": "prelu.weight",
        "arg:stage3_unit30_bn3_beta": "layer3.29.bn3.bias",
        "arg:stage2_unit1_conv1sc_weight": "layer2.0.downsample.0.weight",
        "aux:stage4_unit1_sc_moving_mean": "layer4.0.downsample.1.running_mean",
        "arg:stage1_unit3_relu1_gamma": "layer1.2.prelu.weight",
        "arg:bn1_gamma": "bn2.weight",
        "arg:pre_fc1_bias": "fc.bias",
        "aux:fc1_moving_mean": "features.running_mean",
    }.items():
        assert state[torch_name].item() == values[mxnet][0]
    assert state["features.weight"].item() == 1  # fix_gamma
    with pytest.raises(FiqaRayError, match="'arg:stage1_unit1_conv7_weight' belongs to no LResNet-E-IR"):
        load_mxnet_iresnet(written({"arg:stage1_unit1_conv7_weight": np.ones(1)}, "V1"), name="f")


@pytest.mark.slow
def test_a_network_from_mxnet_computes_what_it_should():
    """MagFace's golden values (same layers, same eps) come out, although the file holds another gamma for the last BN."""
    filled = fill(IResNet(18, eps=2e-5)).state_dict()
    place = {"conv1": "conv0", "bn1": "bn0", "prelu": "relu0", "bn2": "bn1", "fc": "pre_fc1", "features": "fc1"}
    block = {"prelu": "relu1", "downsample.0": "conv1sc", "downsample.1": "sc"}
    leaf_of = {"running_mean": "moving_mean", "running_var": "moving_var", "bias": "beta"}
    arrays = {}
    for key, tensor in filled.items():
        layer, leaf = key.rsplit(".", 1)
        if leaf == "num_batches_tracked":
            continue
        if layer.startswith("layer"):
            stage, unit, rest = layer.split(".", 2)
            mxnet = f"stage{stage[-1]}_unit{int(unit) + 1}_{block.get(rest, rest)}"
        else:
            mxnet = place[layer]
        end = leaf if mxnet == "pre_fc1" or "conv" in mxnet else leaf_of.get(leaf, "gamma")
        kind = "aux" if leaf.startswith("running") else "arg"
        arrays[f"{kind}:{mxnet}_{end}"] = tensor.numpy()
    scale = filled["features.weight"].double()
    arrays["arg:fc1_gamma"] = np.full(512, 7.0)
    model = IResNet(18, eps=2e-5)
    load_strictly(model, load_mxnet_iresnet(written(arrays, "V2"), name="f"), "f")
    with torch.no_grad():
        raw = model.eval()(golden_input().float()).double()
    output = (raw - filled["features.bias"]) * scale + filled["features.bias"]
    wanted = golden("forward_checks")["magface_iresnet18"]["forward"][0]
    torch.testing.assert_close(output.norm(dim=1), torch.tensor(wanted["l2"]).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(output[:, :4], torch.tensor(wanted["first4"]).double(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_file_of_the_released_size_loads_as_the_methods_own_network(tmp_path, caplog):
    shapes = golden("state_dicts/serfiq_lresnet100e_ir_mxnet")
    arrays = {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in shapes.items()}
    (tmp_path / "insightface-0000.params").write_bytes(written(arrays, "V2"))
    scorer = load_scorer("serfiq_mxnet", weights=str(tmp_path / "insightface-0000.params"))
    network = scorer.network.backbone
    assert sum(p.numel() for p in network.parameters()) == 65_156_160
    assert {p.unique().item() for p in network.parameters()} == {0.5, 1.0}
    assert (network.features.weight == 1).all()
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)} == {2e-5}
    assert "is not that of the released insightface/model/insightface-0000.params" in caplog.text


def test_the_row_reads_nothing_else(tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(FiqaRayError, match="not an MXNet parameter file"):
        load_recognizer("serfiq_lresnet100e", weights=path)
    path.write_bytes(written(SOME, "V2"))
    with pytest.raises(FiqaRayError, match="'arg:a' belongs to no LResNet"):
        load_recognizer("serfiq_lresnet100e", weights=path)
