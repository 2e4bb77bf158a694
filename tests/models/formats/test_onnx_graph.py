from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.onnx_graph import INTEGER_OPERATORS, OPERATORS, OnnxGraph, parse_onnx
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.networks.mobilefacenet import arcface_torch_mobilefacenet
from fiqa_ray.models.recognition import load_recognizer
from released import fill

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(5)


def graph(
    nodes: list[Any], shape: tuple[Any, ...], weights: dict[str, np.ndarray] | None = None, opset: int = 17
) -> bytes:
    """An ONNX file with input ``x`` of ``shape`` and output ``y``."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, list(inputs), [out], **attributes)


def by_onnxruntime(data: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


W3, C5 = f32(5, 3, 3, 3), f32(5)
POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
SHAPE_OF_X = [
    node("Shape", "x", out="s"),
    node("Gather", "s", "zero", out="b"),
    node("Unsqueeze", "b", "zeros", out="n"),
]
CASES: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "Conv": ([node("Conv", "x", "w", "c", pads=[1, 0, 1, 0], strides=[2, 1])], {"w": W3, "c": C5}),
    "Conv uneven": ([node("Conv", "x", "w", pads=[0, 1, 2, 0], dilations=[2, 1])], {"w": W3}),
    "Conv grouped": ([node("Conv", "x", "w", group=3)], {"w": f32(6, 1, 3, 3)}),
    "BatchNormalization": (
        [node("BatchNormalization", "x", "a", "b", "m", "v", epsilon=1e-3)],
        {"a": f32(3), "b": f32(3), "m": f32(3), "v": abs(f32(3))},
    ),
    "PRelu channels": ([node("PRelu", "x", "a")], {"a": f32(3, 1, 1)}),
    "PRelu places": ([node("PRelu", "x", "a")], {"a": f32(7, 6)}),
    "Relu": ([node("Relu", "x")], {}),
    "Sigmoid": ([node("Sigmoid", "x")], {}),
    "Clip": ([node("Clip", "x", "low", "high")], {"low": scalar(0), "high": scalar(0.5)}),
    "Clip one side": ([node("Clip", "x", "", "high")], {"high": scalar(0.5)}),
    "Add": ([node("Add", "x", "a")], {"a": f32(3, 1, 1)}),
    "Sub": ([node("Sub", "a", "x")], {"a": scalar(3)}),
    "Mul": ([node("Mul", "x", "x")], {}),
    "Div": ([node("Div", "x", "a")], {"a": abs(f32(3, 1, 1))}),
    "Gemm": (
        [node("Flatten", "x", out="f"), node("Gemm", "f", "w", "c", transB=1, alpha=0.5, beta=2.0)],
        {"w": f32(4, 126), "c": f32(4)},
    ),
    "MatMul": ([node("MatMul", "x", "w")], {"w": f32(6, 4)}),
    "Flatten": ([node("Flatten", "x", axis=2)], {}),
    "Reshape zero": ([node("Reshape", "x", "s")], {"s": i64(0, -1, 6)}),
    "Reshape batch": ([*SHAPE_OF_X, node("Concat", "n", "rest", out="t", axis=0), node("Reshape", "x", "t")],
                      {"zero": np.array(0), "zeros": i64(0), "rest": i64(-1)}),
    "GlobalAveragePool": ([node("GlobalAveragePool", "x")], {}),
    "AveragePool": ([node("AveragePool", "x", **POOL, pads=[1, 1, 1, 1])], {}),
    "AveragePool counts": ([node("AveragePool", "x", **POOL, pads=[1, 0, 0, 1], count_include_pad=1)], {}),
    "MaxPool": ([node("MaxPool", "x", **POOL, pads=[1, 0, 0, 1])], {}),
    "MaxPool ceil": ([node("MaxPool", "x", **POOL, ceil_mode=1)], {}),
    "Concat": ([node("Concat", "x", "x", axis=1)], {}),
    "Transpose": ([node("Transpose", "x", perm=[0, 2, 3, 1])], {}),
    "Pad": ([node("Pad", "x", "p", "v")], {"p": i64(0, 1, 0, 2, 0, 0, 3, 0), "v": scalar(1.5)}),
    "Slice": ([node("Slice", "x", "a", "b", "c", "d")], {"a": i64(1, 5), "b": i64(9, 0), "c": i64(2, 3), "d": i64(2, -2)}),
    "Slice reversed": ([node("Slice", "x", "a", "b", "c", "d")],
                       {"a": i64(-1), "b": i64(-99), "c": i64(1), "d": i64(-1)}),
    "Squeeze": ([node("GlobalAveragePool", "x", out="p"), node("Squeeze", "p", "a")], {"a": i64(2, 3)}),
    "Unsqueeze": ([node("Unsqueeze", "x", "a")], {"a": i64(1, -1)}),
    "Gather": ([node("Gather", "x", "i", axis=1)], {"i": i64(2, 0, -1)}),
    "Gather one": ([node("Gather", "x", "i", axis=-1)], {"i": np.array(-2)}),
    "ReduceL2": ([node("ReduceL2", "x", axes=[1], keepdims=1)], {}),
    "ReduceMean": ([node("ReduceMean", "x", axes=[2, 3], keepdims=0)], {}),
    "Expand": ([node("ReduceL2", "x", out="r", axes=[1]), node("Shape", "x", out="s"), node("Expand", "r", "s")], {}),
    "Identity": ([node("Identity", "x", out="i"), node("Dropout", "i")], {}),
    "Cast": ([node("Cast", "x", to=1)], {}),
    "Arithmetic of sizes": (  # to (2, 3, 6, 7)
        [
            node("Shape", "x", out="s"),
            node("Slice", "s", "three", "one", "zero", "minus", out="a"),
            node("Add", "a", "one", out="c"),
            node("Sub", "c", "one", out="d"),
            node("Mul", "d", "three", out="e"),
            node("Div", "e", "three", out="f"),
            node("Cast", "f", out="g", to=7),
            node("Identity", "g", out="h"),
            node("Slice", "s", "zero", "one", out="n"),
            node("Squeeze", "n", out="m"),
            node("Reshape", "m", "one", out="k"),
            node("Concat", "k", "three", "h", out="t", axis=0),
            node("Reshape", "x", "t"),
        ],
        {"zero": i64(0), "one": i64(1), "three": i64(3), "minus": i64(-1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_equal_onnxruntime(case):
    nodes, weights = CASES[case]
    data = graph(nodes, ("b", 3, 7, 6), weights)
    x = f32(2, 3, 7, 6)
    with torch.no_grad():
        got = parse_onnx(data, case)(torch.from_numpy(x)).numpy()
    wanted = by_onnxruntime(data, x)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case():
    assert {n.op_type for nodes, _ in CASES.values() for n in nodes} == set(OPERATORS)
    assert set(INTEGER_OPERATORS) <= {
        n.op_type for case in CASES for n in CASES[case][0] if "batch" in case or "sizes" in case
    }


def test_an_output_is_chosen_by_name_and_what_it_does_not_need_is_left_out():
    nodes = [node("Relu", "x", out="r"), node("MatMul", "r", "w", out="embedding")]
    model = onnx.load_model_from_string(graph([*nodes, node("Add", "r", "a")], ("b", 3), {"w": f32(3, 2), "a": f32(3)}))
    model.graph.output.append(onnx.helper.make_tensor_value_info("embedding", 1, None))
    data, x = model.SerializeToString(), f32(2, 3)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    wanted = dict(zip(("y", "embedding"), session.run(None, {"x": x}), strict=True))
    for asked, given, used in (("y", "y", ["a"]), ("embedding", "embedding", ["w"]), ("other", "y", ["a"])):
        net = parse_onnx(data, "net", asked)
        assert net.weight_names == used
        np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), wanted[given], rtol=1e-5)


def test_older_operator_sets_keep_settings_in_attributes():
    nodes = [
        node("Clip", "x", out="c", min=-0.5, max=0.5),
        node("Slice", "c", out="d", starts=[1], ends=[7], axes=[2]),
        node("Pad", "d", out="e", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=2.0),
        node("GlobalAveragePool", "e", out="f"),
        node("Squeeze", "f", out="g", axes=[3]),
        node("Unsqueeze", "g", out="y", axes=[1]),
    ]
    data, x = graph(nodes, (2, 3, 7, 6), opset=9), f32(2, 3, 7, 6)
    np.testing.assert_allclose(parse_onnx(data, "old")(torch.from_numpy(x)).numpy(), by_onnxruntime(data, x), atol=1e-6)


def exported(model: torch.nn.Module, dynamic: bool) -> bytes:
    buffer = io.BytesIO()
    axes = {"x": {0: "b"}, "y": {0: "b"}} if dynamic else None
    torch.onnx.export(
        model, (torch.zeros(1, 3, 112, 112),), buffer, dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes=axes,
    )  # fmt: skip
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "dynamic"),
    [(lambda: IResNet(18), True), (arcface_torch_mobilefacenet, False)],
    ids=["iresnet18", "mobilefacenet"],
)
def test_an_exported_network_keeps_values_and_gradients(build, dynamic):
    model = fill(build()).requires_grad_(False)
    data = exported(model, dynamic)
    again = parse_onnx(data, "exported").requires_grad_(False)
    assert again.fixed_batch == (None if dynamic else 1)
    x = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (3, 3, 112, 112))).float().requires_grad_()
    with torch.no_grad():
        alone = np.concatenate([by_onnxruntime(data, x[i : i + 1].detach().numpy()) for i in range(3)])
    a, b = model(x), again(x)
    np.testing.assert_allclose(b.detach().numpy(), alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())
    wanted, got = (torch.autograd.grad(y.square().sum(), x)[0] for y in (a, b))
    # Folded batch norms round otherwise, and a PReLU near 0 may bend a few pixels' gradient.
    assert (got - wanted).norm() < 1e-2 * wanted.norm()


def small_net(batch: Any = 1, last: Any = None) -> bytes:
    """A recogniser of 112x112 faces with 4 values, whose Reshape names the file's own batch size."""
    return graph(
        [
            node("Sub", "x", "half", out="a"),
            node("Conv", "a", "w2", out="c", strides=[16, 16]),
            node("PRelu", "c", "slope", out="d"),
            node("GlobalAveragePool", "d", out="e"),
            last or node("Reshape", "e", "shape"),
        ],
        (batch, 3, 112, 112),
        {
            "shape": i64(batch if isinstance(batch, int) else 0, -1),
            "slope": f32(4, 1, 1),
            "half": scalar(0.5),
            "w2": f32(4, 3, 16, 16),
        },
    )


@pytest.mark.parametrize("batch", [1, 2, "b"])
def test_fixed_and_free_batch_sizes_take_any_number_of_faces(tmp_path, batch):
    data = small_net(batch)
    (tmp_path / "net.ONNX").write_bytes(data)
    recognizer = load_recognizer(str(tmp_path / "net.ONNX"), mean=0, scale=255.0, colour="BGR")
    assert (recognizer.dim, recognizer.differentiable) == (4, True)
    faces = torch.from_numpy(RNG.integers(0, 256, (6, 3, 112, 112), dtype=np.uint8))
    x = (faces.flip(1).float() / 255).numpy()
    step = batch if isinstance(batch, int) else 6
    wanted = np.concatenate([by_onnxruntime(data, x[i : i + step]) for i in range(0, 6, step)])
    np.testing.assert_allclose(recognizer(faces).numpy(), wanted, rtol=1e-4, atol=1e-5)
    for n in (1, 5):
        torch.testing.assert_close(recognizer(faces[:n]), recognizer(faces)[:n], rtol=1e-5, atol=1e-6)


def test_a_state_dict_alone_rebuilds_the_network_in_order_of_use():
    net = parse_onnx(small_net(), "net")
    state = net.state_dict()
    assert net.weight_names == ["w2", "slope"]
    assert [tuple(p.shape) for p in net.parameters()] == [(4, 3, 16, 16), (4, 1, 1)]
    assert state["onnx_graph"].numel() < 1000
    again = parse_onnx(state["onnx_graph"].numpy().tobytes(), "again")
    assert not any(p.any() for p in again.parameters())
    again.load_state_dict(state)
    again = pickle.loads(pickle.dumps(again))
    x = torch.rand(2, 3, 112, 112)
    assert torch.equal(again(x), net(x))
    assert net.double()(x.double()).dtype == torch.float64


def refused(data: bytes) -> str:
    with pytest.raises(FiqaRayError) as caught:
        parse_onnx(data, "net.onnx")
    assert str(caught.value).startswith("net.onnx: ")
    return str(caught.value)


def test_unsupported_files_are_refused_by_name():
    assert "operators not supported: Erf, Softmax;" in refused(
        graph([node("Erf", "x", out="a"), node("Softmax", "a")], (1, 3, 112, 112))
    )
    assert "not a readable ONNX file (10 bytes)" in refused(b"\xff\xfe no file")
    assert "not a readable ONNX file" in refused(b"")
    assert "not a readable ONNX file" in refused(small_net()[:500])
    two = onnx.load_model_from_string(graph([node("Add", "x", "z")], (1, 3)))
    two.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, [1, 3]))
    assert "has 2 inputs and 1 outputs" in refused(two.SerializeToString())
    outside = onnx.load_model_from_string(small_net())
    outside.graph.initializer[3].data_location = onnx.TensorProto.EXTERNAL
    assert "second file" in refused(outside.SerializeToString())
    for nodes, words in (
        ([node("Cast", "x", to=7)], "Cast of a network's values to another type"),
        ([node("Shape", "x", out="s"), node("Cast", "s", to=1)], "Cast of a shape or index to floating point"),
        ([node("Shape", "x", out="s"), node("Relu", "s")], "Relu of a shape or index"),
    ):
        with pytest.raises(FiqaRayError, match=words):
            parse_onnx(graph(nodes, (1, 3, 8, 8)), "net.onnx")(torch.zeros(1, 3, 8, 8))
    reflecting = graph([node("Pad", "x", "p", mode="reflect")], (1, 3, 8, 8), {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)})
    with pytest.raises(FiqaRayError, match="Pad with mode reflect"):
        parse_onnx(reflecting, "net.onnx")(torch.zeros(1, 3, 8, 8))


def test_a_graph_that_mixes_faces_is_refused(tmp_path):
    mixing = [node("ReduceMean", "e", out="y", axes=[0, 2, 3], keepdims=0)]
    path = tmp_path / "mix.onnx"
    path.write_bytes(small_net("b", last=mixing[0]))
    with pytest.raises(FiqaRayError, match=r"mix\.onnx: returned embeddings of shape \(4,\)"):
        load_recognizer(str(path), mean=0, scale=1)
    centred = graph(
        [
            node("ReduceMean", "x", out="m", axes=[2, 3], keepdims=0),
            node("ReduceMean", "m", out="c", axes=[0], keepdims=1),
            node("Sub", "m", "c"),
        ],
        ("b", 3, 112, 112),
    )
    path.write_bytes(centred)
    with pytest.raises(FiqaRayError, match="depends on the others in its batch"):
        load_recognizer(str(path), mean=0, scale=1)
    assert isinstance(parse_onnx(small_net(), "fine"), OnnxGraph)
