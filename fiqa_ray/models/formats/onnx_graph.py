"""ONNX networks run with torch operations: differentiable, on any device, at any batch size.

A closed set of operators, those of convolutional face recognisers. The file's weights become parameters, in the order
in which the graph uses them, and its structure (the graph without weights) a small uint8 buffer: a state dict alone
rebuilds the network. Batch-norm statistics stay as the file has them, also while training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.errors import FiqaRayError

Attributes = dict[str, Any]
# An operator takes the node's inputs (None where an optional one is left out), its attributes and the batch size that
# the file fixes (None if free), and returns the first output.
Operator = Callable[[Sequence[Any], Attributes, int | None], Any]
STRUCTURE = "onnx_graph"
_FLOAT_TYPES = (1, 10, 11, 16)
"""float32, float16, float64 and bfloat16 in ONNX's numbering of types."""


def _ints(value: Any) -> list[Any]:
    """Return a list of ints from an array of whole numbers, an attribute or None.

    While torch traces the network for an export, a size that may vary stays torch's symbol for it.
    """
    return [] if value is None else np.asarray(value).tolist()


def _optional(inputs: Sequence[Any], position: int) -> Any:
    return inputs[position] if len(inputs) > position else None


def _padded(x: Tensor, attributes: Attributes, value: float) -> tuple[Tensor, list[int]]:
    """Apply padding that differs between the two sides; return the rest as torch's symmetric padding."""
    pads = _ints(attributes.get("pads")) or [0] * 2 * (x.ndim - 2)
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin == end:
        return x, begin
    last_first = itertools.chain.from_iterable(zip(begin[::-1], end[::-1], strict=True))
    return functional.pad(x, list(last_first), value=value), [0] * len(begin)


def _conv(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, padding = _padded(inputs[0], attributes, 0.0)
    stride, dilation = attributes.get("strides", 1), attributes.get("dilations", 1)
    return functional.conv2d(x, inputs[1], _optional(inputs, 2), stride, padding, dilation, attributes.get("group", 1))


def _batch_norm(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, weight, bias, mean, variance = inputs
    return functional.batch_norm(x, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _prelu(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, slope = inputs
    if slope.numel() in (1, x.shape[1]):  # one slope, or one per channel however its axes are written
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, slope * x)


def _clip(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    low = attributes["min"] if "min" in attributes else _optional(inputs, 1)
    high = attributes["max"] if "max" in attributes else _optional(inputs, 2)
    return inputs[0] if low is None and high is None else torch.clamp(inputs[0], low, high)


def _gemm(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    a = inputs[0].T if attributes.get("transA") else inputs[0]
    b = inputs[1].T if attributes.get("transB") else inputs[1]
    y = attributes.get("alpha", 1.0) * (a @ b) if attributes.get("alpha", 1.0) != 1.0 else a @ b
    bias = _optional(inputs, 2)
    return y if bias is None else y + attributes.get("beta", 1.0) * bias


def _reshape(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, shape = inputs[0], _ints(inputs[1])
    if shape and isinstance(shape[0], int) and shape[0] == batch:  # the file's own batch size: for whatever comes in
        shape[0] = x.shape[0]
    if not attributes.get("allowzero"):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _pool(kind: str) -> Operator:
    def pool(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
        x, kernel = inputs[0], attributes["kernel_shape"]
        stride, ceil_mode = attributes.get("strides", 1), bool(attributes.get("ceil_mode", 0))
        if kind == "max":
            x, padding = _padded(x, attributes, -torch.inf)
            return functional.max_pool2d(x, kernel, stride, padding, attributes.get("dilations", 1), ceil_mode)
        pads = _ints(attributes.get("pads"))
        count_padding = bool(attributes.get("count_include_pad", 0))
        if pads[: len(pads) // 2] != pads[len(pads) // 2 :] and not count_padding:
            raise FiqaRayError("ONNX AveragePool with unequal padding that does not count is not supported")
        x, padding = _padded(x, attributes, 0.0)
        return functional.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_padding)

    return pool


def _axes(inputs: Sequence[Any], attributes: Attributes) -> list[int]:
    """Return the axes, which are an attribute in older operator sets and the second input in newer ones."""
    return _ints(attributes["axes"] if "axes" in attributes else _optional(inputs, 1))


def _squeeze(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes)
    # Without axes every axis of size 1 goes, but not the batch, which may be one image by chance.
    return x.squeeze(tuple(axes or range(1, x.ndim)))


def _unsqueeze(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes)
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x = inputs[0]
    starts = _ints(attributes["starts"] if "starts" in attributes else inputs[1])
    ends = _ints(attributes["ends"] if "ends" in attributes else inputs[2])
    axes = _ints(attributes.get("axes", _optional(inputs, 3))) or list(range(len(starts)))
    steps = _ints(_optional(inputs, 4)) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        positions = list(range(x.shape[axis]))[start:end:step]  # torch itself slices only forwards
        x = x.index_select(axis, torch.tensor(positions, device=x.device))
    return x


def _pad(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, pads = inputs[0], _ints(attributes.get("pads", _optional(inputs, 1)))
    if attributes.get("mode", b"constant") != b"constant":
        raise FiqaRayError(f"ONNX Pad with mode {attributes['mode'].decode()} is not supported")
    value = attributes.get("value", _optional(inputs, 2))
    begin, end = pads[: x.ndim], pads[x.ndim :]
    last_first = itertools.chain.from_iterable(zip(begin[::-1], end[::-1], strict=True))
    return functional.pad(x, list(last_first), value=float(value) if value is not None else 0.0)


def _reduce_l2(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    axes = _axes(inputs, attributes) or list(range(inputs[0].ndim))
    return torch.linalg.vector_norm(inputs[0], dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _reduce_mean(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    axes = _axes(inputs, attributes) or list(range(inputs[0].ndim))
    return inputs[0].mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _shape(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> np.ndarray:
    return np.array(tuple(inputs[0].shape), dtype=object)


def _gather(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    x, index = inputs
    axis = attributes.get("axis", 0) % x.ndim
    index = np.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, torch.tensor(index.reshape(-1).tolist(), device=x.device))
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _expand(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    return inputs[0].expand(torch.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1]))))


def _cast(inputs: Sequence[Any], attributes: Attributes, batch: int | None) -> Tensor:
    if attributes["to"] not in _FLOAT_TYPES:
        raise FiqaRayError("ONNX Cast of a network's values to another type than floating point is not supported")
    x = inputs[0]  # what floats already keeps its type: the whole network is computed in one
    return x if x.is_floating_point() else x.to(torch.float32)


OPERATORS: dict[str, Operator] = {
    "Add": lambda i, a, b: i[0] + i[1],
    "AveragePool": _pool("average"),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda i, a, b: torch.cat(list(i), dim=a["axis"]),
    "Conv": _conv,
    "Div": lambda i, a, b: i[0] / i[1],
    "Dropout": lambda i, a, b: i[0],
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda i, a, b: i[0].mean(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "Identity": lambda i, a, b: i[0],
    "MatMul": lambda i, a, b: i[0] @ i[1],
    "MaxPool": _pool("max"),
    "Mul": lambda i, a, b: i[0] * i[1],
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceL2": _reduce_l2,
    "ReduceMean": _reduce_mean,
    "Relu": lambda i, a, b: torch.relu(i[0]),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda i, a, b: torch.sigmoid(i[0]),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda i, a, b: i[0] - i[1],
    "Transpose": lambda i, a, b: i[0].permute(a.get("perm") or list(range(i[0].ndim))[::-1]),
    "Unsqueeze": _unsqueeze,
}


def _integer_slice(inputs: Sequence[Any], attributes: Attributes) -> np.ndarray:
    (start,), (end,), (step,) = _ints(inputs[1]), _ints(inputs[2]), _ints(_optional(inputs, 4)) or [1]
    return inputs[0][start:end:step]


def _integer_cast(inputs: Sequence[Any], attributes: Attributes) -> np.ndarray:
    if attributes["to"] in _FLOAT_TYPES:
        raise FiqaRayError("ONNX Cast of a shape or index to floating point is not supported")
    return inputs[0]


# The arithmetic of shapes and indices, which are never negative: numpy arrays of Python's ints.
INTEGER_OPERATORS: dict[str, Callable[[Sequence[Any], Attributes], Any]] = {
    "Add": lambda i, a: i[0] + i[1],
    "Cast": _integer_cast,
    "Concat": lambda i, a: np.concatenate(i),
    "Div": lambda i, a: i[0] // i[1],
    "Gather": lambda i, a: np.take(i[0], np.asarray(i[1], dtype=np.int64)),
    "Identity": lambda i, a: i[0],
    "Mul": lambda i, a: i[0] * i[1],
    "Reshape": lambda i, a: np.reshape(i[0], _ints(i[1])),
    "Slice": _integer_slice,
    "Squeeze": lambda i, a: np.reshape(i[0], ()),
    "Sub": lambda i, a: i[0] - i[1],
    "Unsqueeze": lambda i, a: np.reshape(i[0], (1,)),
}


class Node(NamedTuple):
    """One operation, a key of `OPERATORS`; `spent` are the values that no later node needs."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes
    spent: tuple[str, ...]


class OnnxGraph(nn.Module):
    """An ONNX network as a torch module with one image input and one output.

    Args:
        model: the parsed `onnx.ModelProto`. Weights without data, as in the kept structure, become zeros.
        name: what to call the file in messages.
        output: the output to return; the first where the file has none of that name.

    Attributes:
        metadata: what the file says of itself, by key.

    Raises:
        FiqaRayError: for an operator or setting outside the set of this module, naming it.
    """

    def __init__(self, model: Any, name: str, output: str) -> None:
        super().__init__()
        from onnx import numpy_helper

        graph = model.graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in stored]
        if len(inputs) != 1 or not graph.output:
            raise FiqaRayError(
                f"{name}: has {len(inputs)} inputs and {len(graph.output)} outputs; one image input wanted"
            )
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        outputs = [value.name for value in graph.output]
        self.input_name, self.output_name = inputs[0].name, output if output in outputs else outputs[0]
        sizes = inputs[0].type.tensor_type.shape.dim
        self.fixed_batch = (int(sizes[0].dim_value) or None) if sizes else None

        nodes = [(node, _attributes(node)) for node in graph.node]
        constants = {node.output[0]: attributes for node, attributes in nodes if node.op_type == "Constant"}
        nodes = [(node, attributes) for node, attributes in nodes if node.op_type != "Constant"]
        unknown = sorted({node.op_type for node, _ in nodes if node.op_type not in OPERATORS or node.domain})
        if unknown:
            raise FiqaRayError(
                f"{name}: ONNX operators not supported: {', '.join(unknown)}; "
                "give the network as module:function instead, a function that returns it as a torch module"
            )
        self.nodes = _with_lifetimes(nodes, self.output_name, keep={*stored, *constants, self.input_name, ""})

        # Not to be trained: batch-norm statistics, and single numbers such as the bounds of a Clip.
        fixed = {name for node in self.nodes if node.kind == "BatchNormalization" for name in node.inputs[3:]}
        fixed |= {name for name, tensor in stored.items() if not tensor.dims}

        self.weights = nn.ParameterList()
        self.weight_names: list[str] = []
        self.constant_names: dict[str, str] = {}
        self.integers: dict[str, np.ndarray] = {}  # shapes and indices are no tensors: torch can trace their use
        for used in dict.fromkeys(itertools.chain.from_iterable(node.inputs for node in self.nodes)):
            if used in constants:
                value = _constant(constants[used], numpy_helper, name)
            elif used in stored:
                value = _stored(stored[used], numpy_helper, name)
            else:
                continue
            if isinstance(value, np.ndarray):
                self.integers[used] = value
            elif used in stored and used not in fixed:
                self.weights.append(nn.Parameter(value))
                self.weight_names.append(used)
            else:
                self.constant_names[used] = f"constant_{len(self.constant_names)}"
                self.register_buffer(self.constant_names[used], value, persistent=False)
        self.register_buffer(STRUCTURE, _structure(model, set(self.weight_names)))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, h, w)` pixels, of the type and scale that the file wants, to the chosen output."""
        values: dict[str, Any] = {"": None, self.input_name: x, **self.integers}
        values.update(zip(self.weight_names, self.weights, strict=True))
        values.update((used, getattr(self, buffer)) for used, buffer in self.constant_names.items())
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs]
            if not isinstance(inputs[0], np.ndarray):
                values[node.output] = OPERATORS[node.kind](inputs, node.attributes, self.fixed_batch)
            elif node.kind in INTEGER_OPERATORS:
                whole = INTEGER_OPERATORS[node.kind](inputs, node.attributes)
                values[node.output] = np.asarray(whole, dtype=object)  # also one number, which may be a traced size
            else:
                raise FiqaRayError(f"ONNX {node.kind} of a shape or index is not supported")
            for spent in node.spent:
                del values[spent]
        return values[self.output_name]


def _attributes(node: Any) -> Attributes:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _with_lifetimes(nodes: list[tuple[Any, Attributes]], result: str, keep: set[str]) -> list[Node]:
    """Return the nodes that lead to the result, each with the values that no later node uses and that can be freed."""
    done: list[Node] = []
    needed = {result} | keep
    for node, attributes in reversed(nodes):
        if not needed.intersection(node.output):
            continue
        spent = tuple(dict.fromkeys(used for used in node.input if used not in needed))
        needed.update(spent)
        done.append(Node(node.op_type, tuple(node.input), node.output[0], attributes, spent))
    return done[::-1]


def _stored(tensor: Any, numpy_helper: Any, name: str) -> Tensor | np.ndarray:
    """Return a stored weight, see `_value`; zeros where the structure keeps only its shape."""
    from onnx import TensorProto

    if tensor.data_location == TensorProto.EXTERNAL:
        raise FiqaRayError(f"{name}: its weights lie in a second file; save the ONNX model as one file")
    if tensor.doc_string == STRUCTURE:
        return torch.zeros(tuple(tensor.dims))
    return _value(numpy_helper.to_array(tensor))


def _constant(attributes: Attributes, numpy_helper: Any, name: str) -> Tensor | np.ndarray:
    kind, value = next(iter(attributes.items()))
    if kind not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise FiqaRayError(f"{name}: ONNX Constant given as {kind} is not supported")
    return _value(numpy_helper.to_array(value) if kind == "value" else np.asarray(value))


def _value(array: np.ndarray) -> Tensor | np.ndarray:
    """Return floats as a float32 tensor and whole numbers as an int64 array."""
    if np.issubdtype(array.dtype, np.floating):
        return torch.from_numpy(np.array(array, dtype=np.float32))
    return array.astype(np.int64)


def _structure(model: Any, weight_names: set[str]) -> Tensor:
    """Serialise the graph without the values of its trainable weights as `(n_bytes,)` uint8."""
    bare = type(model)()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.name in weight_names:
            dims, tensor_name, data_type = list(tensor.dims), tensor.name, tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.doc_string = tensor_name, data_type, STRUCTURE
            tensor.dims.extend(dims)
    return torch.frombuffer(bytearray(bare.SerializeToString(deterministic=True)), dtype=torch.uint8)


def parse_onnx(data: bytes, name: str, output: str = "embedding") -> OnnxGraph:
    """Build the network from an ONNX file's bytes, or from the structure that a state dict keeps.

    Args:
        data: the file's bytes.
        name: what to call the file in messages.
        output: name of the output to return; the first where the file has none of that name.

    Raises:
        FiqaRayError: if the onnx package is missing, the bytes are no ONNX file, or the graph is not supported.
    """
    try:
        import onnx
    except ImportError as error:
        raise FiqaRayError(
            f"{name}: reading ONNX files needs the onnx package: pip install 'fiqa-ray[onnx]'"
        ) from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise FiqaRayError(
            f"{name}: not a readable ONNX file ({len(data):,} bytes); fetch or export it again"
        ) from error
    if not model.graph.node:
        raise FiqaRayError(f"{name}: not a readable ONNX file (it holds no operations); fetch or export it again")
    return OnnxGraph(model, name, output)
