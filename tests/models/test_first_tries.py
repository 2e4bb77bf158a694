"""What people try first, without the documentation: the right result, or one sentence that says what to do.

Of the other first tries, CR-FIQA's and MagFace's files are in `formats/test_checkpoints.py`, `.bin` sets in
`tests/sources/test_insightface_bin.py`, and OFIQ's CSV, written and read, in `tests/tools/test_score_formats.py`.
"""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models import recognizer_table
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.networks.ir import IR
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from onnx_files import exported


class Head(nn.Sequential):
    """A small head with the layers of AdaFace's."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(512), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 512))


def thin_ir() -> IR:
    torch.manual_seed(0)
    return IR((1, 1, 1, 1), "output_layer", Head(), n_norms=3)


@pytest.fixture(autouse=True)
def thin_networks(monkeypatch):
    """Rows of IR networks with few layers: what a file is called and wrapped in does not depend on its size."""
    monkeypatch.setattr(recognizer_table, "models_attribute", _thin(recognizer_table.models_attribute))


def _thin(original):
    return lambda path: (lambda depth: thin_ir()) if path == "networks.ir:adaface_ir" else original(path)


def under(prefix, network, **others):
    return {f"{prefix}{key}": value.contiguous() for key, value in network.state_dict().items()} | others


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def scripted(network) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 112, 112)), buffer)
    return buffer.getvalue()


def with_input(data: bytes, name: str) -> bytes:
    """An ONNX file whose input has another name."""
    model = onnx.load_model_from_string(data)
    for node in model.graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = name if given == "x" else given
    model.graph.input[0].name = name
    return model.SerializeToString()


SMALL = "curricularface_mobilefacenet"


def small():
    torch.manual_seed(1)
    return RECOGNIZERS[SMALL].build().eval()


def tries():
    """Name of the try, file name, content, model, and the network whose outputs are right."""
    ir, mobile = thin_ir().eval(), small()
    head = {"head.kernel": torch.zeros(4, 10), "head.t": torch.zeros(1), "head.batch_mean": torch.ones(1)}
    lightning = {"state_dict": under("model.", ir) | head, "epoch": 3, "global_step": 9}
    softmax = {"weight": torch.zeros(9, 512)}
    resumed = {"epoch": 3, "state_dict_backbone": mobile.state_dict(), "state_dict_softmax_fc": softmax}
    half = {k: v.half() if v.is_floating_point() else v for k, v in mobile.state_dict().items()}
    return {
        "AdaFace .ckpt": ("adaface_ir50_ms1mv2.ckpt", saved(lightning), "adaface_ir50", ir),
        "CVLface safetensors": (
            "model.safetensors",
            safetensors.torch.save(under("model.net.", ir)),
            "cvlface_ir50",
            ir,
        ),
        "CVLface model.pt": ("model.pt", saved(under("net.", ir)), "cvlface_ir50", ir),
        "arcface_torch resume file": ("checkpoint_gpu_0.pt", saved(resumed), SMALL, mobile),
        "float16 file": ("half.pth", saved(half), SMALL, mobile),
        "data parallel file": ("parallel.pth", saved(under("module.", mobile)), SMALL, mobile),
    }


@pytest.mark.parametrize("case", tries())
def test_a_recognisers_file_loads_as_it_is(case, tmp_path):
    file, content, name, network = tries()[case]
    (tmp_path / file).write_bytes(content)
    recognizer = load_recognizer(name, str(tmp_path / file))
    faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112), dtype=np.uint8))
    x = (faces.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        wanted = network(x.flip(1) if name.startswith("adaface") else x)
    tolerance = 5e-3 if "float16" in case else 1e-5
    torch.testing.assert_close(recognizer(faces), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_an_onnx_of_insightface_needs_its_file_alone(tmp_path):
    """buffalo_l's w600k_r50.onnx: input.1, one output, no scaling in the graph."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 7, 7), nn.PReLU(), nn.Flatten(), nn.Linear(1024, 8)).eval()
    (tmp_path / "w600k_r50.onnx").write_bytes(with_input(exported(network), "input.1"))
    recognizer = load_recognizer(str(tmp_path / "w600k_r50.onnx"))
    faces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112), dtype=np.uint8))
    with torch.no_grad():
        wanted = network((faces.float() - 127.5) / 127.5)
    torch.testing.assert_close(recognizer(faces), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ediffiqa_t", "sddfiqa_mobilefacenet"])
def test_a_methods_file_loads_as_it_is(method, tmp_path):
    torch.manual_seed(2)
    network = METHODS[method].network.build().eval()
    (tmp_path / "ediffiqaT.pth").write_bytes(saved(network.state_dict()))
    scores = load_scorer(method, weights=str(tmp_path / "ediffiqaT.pth"))(
        torch.full((2, 3, 112, 112), 99, dtype=torch.uint8)
    )
    with torch.no_grad():
        wanted = network(torch.full((2, 3, 112, 112), (99 / 255 - 0.5) / 0.5))[:, 0]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-6)


SENTENCES = {
    "CVLface's file as AdaFace": (
        "model.safetensors",
        lambda: safetensors.torch.save(under("model.net.", thin_ir())),
        "adaface_ir50",
        "looks like a file of CVLface .* whose pixels are RGB.*Choose cvlface_ir50",
    ),
    "AdaFace's file as CVLface": (
        "adaface.ckpt",
        lambda: saved({"state_dict": under("model.", thin_ir())}),
        "cvlface_ir50",
        "looks like a checkpoint of AdaFace .* whose pixels are BGR.*Choose adaface_ir50",
    ),
    "TorchScript": (
        "scripted.pt",
        lambda: scripted(nn.Conv2d(3, 4, 3)),
        SMALL,
        r"a TorchScript archive; save its weights: torch\.save\(torch\.jit\.load\(FILE\)\.state_dict\(\), PATH\)",
    ),
    "ONNX as weights": (
        "w600k_r50.onnx",
        lambda: exported(nn.Conv2d(3, 4, 3)),
        SMALL,
        "an ONNX file; it is a recogniser of its own: give it as the recogniser's name",
    ),
    "MagFace's file as ArcFace": (
        "magface_epoch_00025.pth",
        lambda: saved({"state_dict": under("features.module.", RECOGNIZERS["magface_r18"].build())}),
        "arcface_r18",
        "looks like a MagFace checkpoint .*Choose magface_r100, _r50 or _r18",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", SENTENCES)
def test_a_wrong_file_gives_one_sentence(case, tmp_path):
    file, content, name, message = SENTENCES[case]
    (tmp_path / file).write_bytes(content())
    with pytest.raises(FiqaRayError, match=message) as caught:
        load_recognizer(name, str(tmp_path / file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf_hub:gaunernst/vit_tiny_patch8_112.arcface_ms1mv3", "name it timm_vit_tiny, with its file as weights"),
        ("vit_small_patch8_gap_112", "name it timm_vit_small_gap, with its file as weights"),
        ("buffalo_l", r"buffalo_l is a pack of InsightFace; give its file: buffalo_l/w600k_r50\.onnx"),
        ("antelopev2", r"antelopev2 is a pack of InsightFace; give its file: antelopev2/glintr100\.onnx"),
    ],
)
def test_a_name_of_another_project_gives_one_sentence(name, message):
    with pytest.raises(FiqaRayError, match=message) as caught:
        load_recognizer(name)
    assert "\n" not in str(caught.value)
