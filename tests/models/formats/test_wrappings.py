"""Checkpoints as people have them: the backbone is found by its entries, other files are told by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.checkpoints import load_strictly, read_checkpoint
from fiqa_ray.models.formats.wrappings import find_backbone
from fiqa_ray.models.networks.iresnet import CRFIQA, IResNet
from fiqa_ray.models.recognition import load_recognizer

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 6, 1), nn.Linear(6, 5)))
SMALL = {k: (t + 0.25 if t.is_floating_point() else t) for k, t in NET.state_dict().items()}
OTHER = {k: 2 * t for k, t in SMALL.items()}
LOSS = {"head.kernel": torch.zeros(5, 10), "head.t": torch.zeros(1)}


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def under(prefix, state=SMALL):
    return {prefix + k: v for k, v in state.items()}


WRAPPED = {
    "bare": SMALL,
    "arcface_torch": {
        "epoch": 19,
        "state_dict_backbone": SMALL,
        "state_dict_softmax_fc": {"weight": torch.zeros(10, 5)},
        "state_optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "compiled": under("_orig_mod."),
    "compiled, data parallel": under("module._orig_mod."),
    "data parallel twice": under("module.module."),
    "Lightning": {"state_dict": {**under("model."), **LOSS}, "epoch": 1, "hyper_parameters": {"lr": 0.1}},
    "key model": {"model": SMALL, "epoch": 3},
    "key net": {"net": SMALL},
    "key backbone": {"backbone": under("module."), "optimizer": {}},
    "key ema alone": {"ema": SMALL, "step": torch.tensor(3)},
    "model and its average": {"model": SMALL, "model_ema": OTHER},
    "twice the same": {"model": SMALL, "state_dict": dict(SMALL)},
    "quality head beside": {**under("base_model."), "mlp.l1.weight": torch.zeros(8, 5), "mlp.l2.bias": torch.zeros(1)},
    "margin loss beside": {**SMALL, **LOSS},
    "no counters": {k: v for k, v in SMALL.items() if not k.endswith("num_batches_tracked")},
    "deep": {"checkpoint": {"ema": {"module": under("backbone.")}}},
    "deeper": {"a": {"b": {"c": {"d": {"e": {"state_dict": SMALL}}}}}},
    "data parallel, compiled": under("_orig_mod.module."),
    "parts compiled": {k.replace(".", "._orig_mod.", 1): v for k, v in SMALL.items()},
    "parts sharded": {"model": {k.replace(".", "._fsdp_wrapped_module.", 1): v for k, v in under("net.").items()}},
    "list": [{"model": {"state_dict": SMALL}}, {"weight": torch.zeros(10, 5)}],
    "running average without names": {"model": SMALL, "ema": {"decay": 0.9, "shadow_params": list(SMALL.values())}},
    "optimizer beside": {"net": SMALL, "optimizer": {"state": {0: {"exp_avg": SMALL["0.weight"]}}, "param_groups": []}},
    "a loss of another name": {**SMALL, "arc.weight": torch.zeros(10, 5), "fc_loss.weight": torch.zeros(10, 5)},
}
LEFT = {
    "arcface_torch": ["epoch", "state_dict_softmax_fc"],
    "margin loss beside": ["head.kernel"],
    "model and its average": ["model_ema"],
    "quality head beside": ["mlp.l1.weight"],
    "list": ["1"],
    "running average without names": ["ema"],
    "optimizer beside": ["optimizer"],
    "a loss of another name": ["arc.weight", "fc_loss.weight"],
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_the_backbone_is_found_by_its_entries(wrapping, caplog):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 6, 1), nn.Linear(6, 5)))
    state = find_backbone(read_checkpoint(saved(WRAPPED[wrapping]), "f.pt"), network.state_dict(), "f.pt")
    load_strictly(network, state, "f.pt")
    for key, value in network.state_dict().items():
        assert torch.equal(value, SMALL[key])
    assert ("f.pt: the network lies under" in caplog.text) == (
        wrapping not in ("bare", "no counters", "parts compiled")
    )
    for left in LEFT.get(wrapping, []):
        assert left in caplog.text


def test_what_could_be_two_networks_is_refused():
    content = {"student": SMALL, "teacher": OTHER}
    with pytest.raises(FiqaRayError, match=r"f\.pt: holds 2 unlike networks that fit, under 'student' and 'teacher'"):
        find_backbone(content, NET.state_dict(), "f.pt")


@pytest.mark.slow
def test_advice_names_another_network_only_for_another_network(tmp_path):
    wanted = IResNet(18).state_dict()
    part = {k: v for k, v in wanted.items() if k != "layer3.1.conv2.weight"}
    quality = CRFIQA(18).state_dict()
    for content, words in (
        (
            {"model": part},
            r"1 missing \(layer3\.1\.conv2\.weight\)\. It is of the right kind, iresnet18, but not whole",
        ),
        (
            {"net": quality},
            r"2 unexpected \(qs\.weight, qs\.bias\); this looks like iresnet18 with CR-FIQA's quality head",
        ),
        ({"state_dict": under("module.", IResNet(34).state_dict())}, r"looks like iresnet34\. Choose the model that"),
    ):
        path = tmp_path / "f.pt"
        torch.save(content, path)
        with pytest.raises(FiqaRayError, match=words):
            load_recognizer("arcface_r18", weights=str(path))


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("m.pt"))
    return buffer.getvalue()


def of_numpy():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_are_told_by_their_first_bytes():
    weights = safetensors.torch.save({k: v.contiguous() for k, v in SMALL.items()})
    state = find_backbone(read_checkpoint(weights, "f"), NET.state_dict(), "f")
    assert all(torch.equal(state[k], v) for k, v in SMALL.items())
    for data, words in (
        (weights[:-9], "not a readable torch checkpoint"),
        (scripted(), "a TorchScript archive; save its weights"),
        (of_numpy(), "an npz archive of numpy"),
        (zipped(model__weights="x"), r"a zip archive of 1 file\(s\), no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-LFS pointer"),
        (b"  <!DOCTYPE html><html>", "an HTML page"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX file; it is a recogniser of its own"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (gzip.compress(b"x"), "compressed by gzip; unpack it"),
        (bz2.compress(b"x"), "compressed by bzip2; unpack it"),
        (lzma.compress(b"x"), "compressed by xz; unpack it"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive; unpack it"),
        (tarred(), "a tar archive; unpack it"),
        (b"\x08\x01\x12\x0a\x0a\x05serve", "a TensorFlow model; export"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model; export"),
        (b"\x81\xa6params\x82\xa5Conv0", "msgpack, as Flax writes; export"),
        (b'{"error": "rate limit"}', "text in XML or JSON, no weights"),
        (b'<?xml version="1.0"?><Error>', "text in XML or JSON, no weights"),
        (b"", r"empty \(0 bytes\); fetch or save"),
        (bytes(1000), r"empty \(1,000 bytes, all of them 0\)"),
        (pickle.dumps({"a": np.zeros(2)}), "holds pickled Python objects"),
    ):
        with pytest.raises(FiqaRayError, match=words) as caught:
            read_checkpoint(data, "weights.bin")
        assert str(caught.value).startswith("weights.bin: ")


def test_every_flipped_byte_of_an_entry_is_found():
    """torch reads zips without their checksums: each of these files would load, or fail with another message."""
    data = saved(SMALL)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = [i for i in archive.infolist() if "/data/" in i.filename and i.file_size]
    assert len(largest) > 5
    for info in largest:
        at = data.index(b"PK\x03\x04", info.header_offset) + 30
        at += len(info.filename) + int.from_bytes(data[at - 2 : at], "little") + int(rng.integers(info.file_size))
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(FiqaRayError, match=f"damaged: its entry '{info.filename}' does not fit its checksum"):
            read_checkpoint(bytes(damaged), "f.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    broken = {**SMALL, "0.weight": torch.full((4, 3, 3, 3), value)}
    with pytest.raises(FiqaRayError, match=r"f\.pt: 1 entries hold NaN or infinity \(0\.weight\)"):
        load_strictly(NET, find_backbone(broken, NET.state_dict(), "f.pt"), "f.pt")


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.to_sparse, lambda t: t.to("meta"), lambda t: t.to(torch.complex64)],
    ids=["sparse", "without values", "complex"],
)
def test_tensors_of_other_kinds_are_refused(change):
    broken = {**SMALL, "0.weight": change(SMALL["0.weight"])}
    with pytest.raises(FiqaRayError, match=r"f\.pt: 1 entries hold no plain real numbers \(0\.weight\)"):
        load_strictly(NET, find_backbone(broken, NET.state_dict(), "f.pt"), "f.pt")


def test_what_holds_no_network_is_named_and_a_dict_within_itself_ends():
    for content, words in (
        ({"decay": 0.9, "shadow_params": list(SMALL.values())}, "a running average, whose tensors have no names"),
        ({"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}, "the state of an optimizer"),
    ):
        with pytest.raises(FiqaRayError, match=words):
            find_backbone(content, NET.state_dict(), "f.pt")
    inner = {"model": SMALL}
    inner["self"] = inner
    assert find_backbone(inner, NET.state_dict(), "f.pt").keys() == SMALL.keys()


def test_a_header_of_safetensors_is_no_text():
    """Its length begins with a space and a bracket: 0x7b20 bytes."""
    header = b'{"0.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = (0x7B20).to_bytes(8, "little") + header.ljust(0x7B20) + b"\0\0\x80\x3f"
    assert read_checkpoint(data, "f")["0.weight"] == torch.ones(1)
