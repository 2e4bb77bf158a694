"""Small ONNX networks of faces, and what onnxruntime says of them without this package."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import nn

RNG = np.random.default_rng(5)


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [out], **attributes)


def graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray] | None = None,
    *,
    batch: Any = "b",
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
    image: str = "x",
    dtype: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A network from ``(batch, 3, 112, 112)`` to the given outputs."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(image, dtype, (batch, 3, 112, 112))],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def by_onnxruntime(data: bytes, x: np.ndarray, output: str | None = None) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run([output] if output else None, {session.get_inputs()[0].name: x})[0]


def small_recognizer() -> bytes:
    """A recogniser of two layers, which wants pixels as (v - 127.5) / 127.5."""
    torch.manual_seed(0)
    layers = (nn.AvgPool2d(14), nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 32))
    return exported(nn.Sequential(*layers))


def exported(network: torch.nn.Module, opset: int = 17, *, batch: int | None = None) -> bytes:
    """A torch network as its users export it; ``batch``: a fixed batch size."""
    buffer = io.BytesIO()
    torch.onnx.export(
        network, (torch.zeros(batch or 1, 3, 112, 112),), buffer, dynamo=False, input_names=["x"], output_names=["y"],
        opset_version=opset, dynamic_axes=None if batch else {"x": {0: "b"}, "y": {0: "b"}},
    )  # fmt: skip
    return buffer.getvalue()
