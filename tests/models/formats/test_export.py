"""Regressors as ONNX files: parity by onnxruntime, metadata, reading back, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats import export
from fiqa_ray.models.formats.export import export_onnx
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.recognizer_table import RECOGNIZERS as NETWORKS
from fiqa_ray.models.regressor import QualityHead, QualityRegressor, load_regressor, save_regressor, score_table
from fiqa_ray.synthetic.dataset import aligned_faces
from onnx_files import exported
from released import fill

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def faces():
    """11 crops, (11, 3, 112, 112) uint8: faces, and black and white ones.

    The export's tolerance is a share of the scores' range. Random weights score faces so alike that rounding, which
    differs between processors, exceeds it; black and white crops widen the range.
    """
    crops = np.concatenate([aligned_faces((0, 0, k, 2)) for k in range(3)])[:11].transpose(0, 3, 1, 2).copy()
    crops[-2:] = np.array([0, 255], np.uint8)[:, None, None, None]
    return crops


def saved(recognizer, folder):
    """A regressor with a random head, written and loaded again."""
    torch.manual_seed(0)
    model = QualityRegressor(recognizer, QualityHead(recognizer.dim, "norm", 3))
    folder.mkdir()
    for name, data in save_regressor(
        model, {"scorer": "mine", "validation_scores": score_table(np.arange(5.0))}
    ).items():
        (folder / name).write_bytes(data)
    return load_regressor(str(folder))


def from_onnx(folder):
    """An ONNX recogniser of BGR faces as others write them: a fixed batch, and sizes computed from the input's shape."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[16, 16]),
        helper.make_node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["n"]),
        helper.make_node("PRelu", ["n", "slope"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Unsqueeze", ["b", "axis"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["r", "t"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["g"]),
        helper.make_node("Reshape", ["g", "fixed"], ["y"]),
    ]
    weights = {
        "w": rng.normal(size=(4, 3, 16, 16)),
        "slope": rng.uniform(0, 0.5, (4, 1, 1)),
        "v": rng.normal(size=(196, 6)),
    }
    weights |= {name: rng.uniform(0.5, 1, 4) for name in ("gain", "shift", "mean", "variance")}
    numbers = {k: v.astype(np.float32) for k, v in weights.items()}
    numbers |= {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1]), "fixed": np.array([1, 6])}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("y", 1, [1, 6])],
        [onnx.numpy_helper.from_array(v, k) for k, v in numbers.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return load_recognizer(str(folder / "net.onnx"), mean=127.5, scale=128.0, colour="BGR")


def trained_onnx(folder):
    """An ONNX network with gradients, as `finetune` changes it."""
    (folder / "net.onnx").write_bytes(exported(fill(NETWORKS["arcface_torch_mobilefacenet"].build())))
    recognizer = load_recognizer(str(folder / "net.onnx"), mean=127.5, scale=127.5).with_gradients("test")
    with torch.no_grad():
        for parameter in recognizer.backbone.parameters():
            parameter.mul_(1.01)
    return recognizer


def released(name):
    recognizer = load_recognizer(name, weights="random:0")
    fill(recognizer.backbone)
    return recognizer


RECOGNIZERS = {
    "iresnet18": lambda folder: released("arcface_r18"),
    "onnx": from_onnx,
    "onnx, trained": trained_onnx,
}


@pytest.mark.slow
@pytest.mark.parametrize("base", RECOGNIZERS)
def test_round_trip(base, faces, tmp_path):
    """By onnxruntime in batches of any size, by torch from the folder, and by this package from the file: the same."""
    recognizer = RECOGNIZERS[base](tmp_path)
    model, card = saved(recognizer, tmp_path / "regressor")
    file = tmp_path / "regressor.onnx"
    file.write_bytes(export_onnx(model, card, faces))
    onnx.checker.check_model(str(file), full_check=True)

    other = np.random.default_rng(1).integers(0, 256, (5, 3, 112, 112), dtype=np.uint8)  # none that the export saw
    with torch.no_grad():
        wanted = model(torch.from_numpy(other)).numpy()
        embedding = recognizer(torch.from_numpy(other)).numpy()
        spread = float(np.ptp(model(torch.from_numpy(faces)).numpy()))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        score, embedded = session.run(["score", "embedding"], {"faces": other[:n]})
        assert (score.shape, embedded.shape) == ((n,), (n, recognizer.dim))
        np.testing.assert_allclose(score, wanted[:n], rtol=0, atol=1e-4 * spread)
        np.testing.assert_allclose(embedded, embedding[:n], rtol=0, atol=1e-4 * np.abs(embedding).max())
    for given in (other.astype(np.float32) / 255, other[:, :, :111], other.transpose(0, 2, 3, 1)):
        with pytest.raises(Exception, match=r"(?i)unexpected input data type|invalid dimensions"):
            session.run(None, {"faces": given})  # floats, another size, another order of axes

    scorer = load_scorer(str(file))
    np.testing.assert_allclose(scorer(other), wanted, rtol=0, atol=1e-4 * spread)
    again = load_recognizer(str(file), mean=0, scale=1)
    assert (again.dim, again.differentiable) == (recognizer.dim, True)
    np.testing.assert_allclose(
        again(torch.from_numpy(other)).numpy(), embedding, rtol=0, atol=1e-4 * np.abs(embedding).max()
    )

    said = session.get_modelmeta().custom_metadata_map
    assert (said["regressor"], said["regressor_sha256"]) == ("mine", card["weights_sha256"])
    assert said["recognizer"] == ("net.onnx" if "onnx" in base else recognizer.name)
    assert said["recognizer_sha256"] == recognizer.weights_sha256
    assert ("that of its owner" if "onnx" in base else "non-commercial research only") in said["licence"]
    assert "uint8, RGB" in said["input"]
    assert json.loads(said["validation_scores"]) == card["validation_scores"] == scorer.card["validation_scores"]


class Branching(nn.Module):
    """Looks at its pixels to choose what to compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(dim=(2, 3))
        return x if x.sum() > 0 else -x


class OneAtATime(nn.Module):
    """Written for the two faces of a batch that it was tried on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)).reshape(int(x.shape[0]), 3)


@pytest.mark.slow
def test_what_cannot_be_exported_says_why(faces, monkeypatch, capsys):
    def regressor(backbone: nn.Module) -> QualityRegressor:
        torch.manual_seed(0)
        return QualityRegressor(Recognizer("mine", backbone, Preprocessing(), 3, "0"), QualityHead(3)).eval()

    card = {"recognizer": "mine", "recognizer_sha256": "0", "weights_sha256": "1"}
    with pytest.raises(FiqaRayError, match=r"torch cannot export this network to ONNX: .*data-dependent"):
        export_onnx(regressor(Branching()), card, faces)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(FiqaRayError, match=r"onnxruntime cannot run batches of 1"):
        export_onnx(regressor(OneAtATime()), card, faces)
    with pytest.raises(FiqaRayError, match=r"the 2 crops .* score the same \(-?0\.\d+\); give unlike --images"):
        export_onnx(regressor(nn.Sequential(nn.AvgPool2d(112), nn.Flatten())), card, np.repeat(faces[:1], 2, axis=0))

    exported = export._to_onnx

    def of_one_batch_size(network):
        proto = exported(network)
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
        return proto

    monkeypatch.setattr(export, "_to_onnx", of_one_batch_size)
    with pytest.raises(FiqaRayError, match=r"onnxruntime cannot run batches of 1: .*dimensions"):
        export_onnx(regressor(nn.Sequential(nn.AvgPool2d(112), nn.Flatten())), card, faces)


def test_other_onnx_files_are_no_regressors(tmp_path):
    from_onnx(tmp_path)
    with pytest.raises(FiqaRayError, match=r"net\.onnx: not a regressor that fiqa-ray export wrote"):
        load_scorer(str(tmp_path / "net.onnx"))
