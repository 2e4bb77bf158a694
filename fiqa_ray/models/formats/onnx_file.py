"""Reading of ONNX files: one image input, weights that fit their shapes, whatever lies in files beside it.

No import of torch: a job's fingerprint needs the hash. A damaged file ends in one error with its name; sizes are compared
with the stored bytes before any memory is asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

from fiqa_ray.core.align import FACE_SIZE
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import join, read_bytes

LARGEST_FILE = 2**31 - 2**20
"""Bytes that one protocol buffer can hold, less some room."""

_Tensor = TensorProto
_BITS: dict[int, int] = {
    **dict.fromkeys((_Tensor.DOUBLE, _Tensor.INT64, _Tensor.UINT64, _Tensor.COMPLEX64), 64),
    **dict.fromkeys((_Tensor.FLOAT, _Tensor.INT32, _Tensor.UINT32), 32),
    **dict.fromkeys((_Tensor.FLOAT16, _Tensor.BFLOAT16, _Tensor.INT16, _Tensor.UINT16), 16),
    **dict.fromkeys((_Tensor.INT8, _Tensor.UINT8, _Tensor.BOOL), 8),
    **dict.fromkeys((_Tensor.INT4, _Tensor.UINT4), 4),
}
"""Bits of one number, by ONNX's types; a network that stores numbers of another type is refused."""
_FLOATS = (_Tensor.FLOAT, _Tensor.FLOAT16, _Tensor.DOUBLE)
_FIELDS: dict[int, str] = {
    _Tensor.FLOAT: "float_data",
    _Tensor.DOUBLE: "double_data",
    _Tensor.INT64: "int64_data",
    _Tensor.UINT32: "uint64_data",
    _Tensor.UINT64: "uint64_data",
}
"""Field that holds the numbers of a type where they are not raw bytes; other types are in `int32_data`."""


def read_onnx(uri: str) -> tuple[ModelProto, str]:
    """Read an ONNX file, with the weights that lie in files beside it.

    Args:
        uri: path or any fsspec URL.

    Returns:
        The checked network, as one that needs no other file, and the SHA-256 of the file, or of it and those beside it.

    Raises:
        FiqaRayError: as `parse_onnx`; or a file beside it is missing or too short.
    """
    data = read_bytes(uri)
    model = parse_onnx(data, uri)
    beside = _load_beside(model, uri)
    check_sizes(model, uri)
    return model, _sha256(data, *beside)


def onnx_sha256(uri: str) -> str:
    """Return the SHA-256 of an ONNX file and of the weights beside it, as `read_onnx` does, without checks."""
    data = read_bytes(uri)
    try:
        beside = _load_beside(parse_onnx(data, uri), uri)
    except FiqaRayError:  # whoever loads the network says what is wrong with it
        beside = []
    return _sha256(data, *beside)


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def parse_onnx(data: bytes, name: str) -> ModelProto:
    """Parse an ONNX file's bytes.

    Args:
        data: the file's bytes.
        name: what to call the file in messages.

    Raises:
        FiqaRayError: the bytes are no ONNX file, or the network has not one image input and at least one output.
    """
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise FiqaRayError(_unreadable(data, name)) from error
    if not model.graph.node:
        raise FiqaRayError(f"{name}: not a readable ONNX file (it holds no operations); fetch or export it again")
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or not model.graph.output:
        raise FiqaRayError(
            f"{name}: has {len(inputs)} inputs and {len(model.graph.output)} outputs; one image input wanted"
        )
    if model.graph.input[0].name != inputs[0].name or len(model.graph.input) > 1:
        image = type(inputs[0])()
        image.CopyFrom(inputs[0])  # old files list their weights among the inputs; they are constants all the same
        del model.graph.input[:]
        model.graph.input.append(image)
    _check_input(model, name)
    return model


def _unreadable(data: bytes, name: str) -> str:
    kinds = {
        b"version https://git-lfs": "a git-LFS pointer, not the file itself: fetch it with git lfs pull",
        b"<!DOCTYPE": "an HTML page, not the file: open the link in a browser",
        b"<html": "an HTML page, not the file: open the link in a browser",
        b"PK": "a zip archive or torch checkpoint, not an ONNX file",
    }
    for start, kind in kinds.items():
        if data[:64].lstrip().startswith(start):
            return f"{name}: {kind}"
    return f"{name}: not a readable ONNX file ({len(data):,} bytes); fetch or export it again"


def _check_input(model: ModelProto, name: str) -> None:
    """Check that the input takes `(b, 3, 112, 112)`; sizes that the file leaves open fit anything."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    fits = len(sizes) == 4 and all(
        size in (None, 0, -1, wanted) for size, wanted in zip(sizes[1:], (3, FACE_SIZE, FACE_SIZE), strict=True)
    )
    if sizes and not fits:
        shape = ", ".join("?" if size is None else str(size) for size in sizes)
        raise FiqaRayError(f"{name}: its input is ({shape}); wanted (b, 3, {FACE_SIZE}, {FACE_SIZE}), channels first")


# --- weights ---


def graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every stored tensor of a graph: its weights, and those of its nodes and their graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from graph_tensors(graph)


def check_sizes(model: ModelProto, name: str) -> None:
    """Check that stored numbers fill their shapes and are numbers.

    Raises:
        FiqaRayError: naming the file and the tensor.
    """
    for tensor in graph_tensors(model.graph):
        _check_tensor(tensor, name)
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS and np.isnan(numpy_helper.to_array(tensor)).any():
            raise FiqaRayError(f"{name}: the weights {tensor.name!r} hold NaN; fetch or export the file again")
    if model.ByteSize() > LARGEST_FILE:
        raise FiqaRayError(f"{name}: its weights are larger than 2 GB, which one ONNX file cannot hold")


def _check_tensor(tensor: TensorProto, name: str) -> None:
    what = f"{name}: the weights {tensor.name!r}"
    if tensor.data_type not in _BITS:
        raise FiqaRayError(f"{what} have the type {tensor.data_type}, which is unknown; fetch or export the file again")
    if any(size < 0 for size in tensor.dims):
        raise FiqaRayError(f"{what} have the shape {list(tensor.dims)}; fetch or export the file again")
    n, bits = math.prod(tensor.dims), _BITS[tensor.data_type]
    n_bytes = -(-n * bits // 8)
    if tensor.HasField("raw_data"):
        wanted, stored, unit = n_bytes, len(tensor.raw_data), "bytes"
    else:
        field = _FIELDS.get(tensor.data_type, "int32_data")
        wanted = -(-n // 2) if bits == 4 else n
        stored, unit = len(getattr(tensor, field)), "numbers"
    if wanted != stored:
        raise FiqaRayError(
            f"{what} of shape {list(tensor.dims)} need {wanted:,} {unit}, and the file holds {stored:,}; "
            "fetch or export it again"
        )


def _load_beside(model: ModelProto, uri: str) -> list[bytes]:
    """Put the weights that lie in other files of the folder into the model; return them in the order of the graph."""
    files: dict[str, bytes] = {}
    parts = []
    for tensor in graph_tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        location = place.get("location", "")
        steps = location.replace("\\", "/").split("/")
        if not location or ".." in steps or not steps[0] or ":" in location:
            raise FiqaRayError(f"{uri}: its weights lie in {location!r}, outside its folder; save it as one file")
        if location not in files:
            files[location] = read_bytes(join(uri.rpartition("/")[0] or ".", *steps))
        try:
            offset = int(place.get("offset", 0))
            length = int(place.get("length", len(files[location]) - offset))
        except ValueError as error:
            raise FiqaRayError(f"{uri}: the place of {tensor.name!r} in {location} is no number") from error
        content = files[location][offset : offset + length] if offset >= 0 and length >= 0 else b""
        parts.append(content)
        tensor.raw_data = content
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return parts


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the stored tensors of a graph by name: its weights, and the values of its nodes `Constant`."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    return constants


def fixed_batch(model: ModelProto) -> int | None:
    """Return the batch size that the file fixes; None if it is free."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return int(dims[0].dim_value) if dims and dims[0].dim_value > 0 else None  # 0: a name or nothing; -1: some write it


def keep_output(model: ModelProto, output: str) -> None:
    """Leave one output of a network, and the nodes that lead to it."""
    outputs = [value for value in model.graph.output if value.name == output]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    needed, nodes = {output}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_names_inside(node))
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])


def _names_inside(node: Any) -> Iterator[str]:
    """Yield the names that the graphs inside a node use, which may be values outside them."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _names_inside(inner)
            yield from (value.name for value in graph.output)


def free_batch(model: ModelProto) -> ModelProto:
    """Return a network that fixes its batch size as one for any number of faces.

    The input's size is left open, and shapes that begin with the file's own size take it from their input. Whether the
    result computes the same is for the caller to check.
    """
    batch = fixed_batch(model)
    freed = ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    constants = constants_of(graph)
    for i, node in enumerate(graph.node):
        if node.op_type == "Reshape" and len(node.input) > 1 and node.input[1] in constants:
            shape: Sequence[int] = numpy_helper.to_array(constants[node.input[1]]).tolist()
            if len(shape) > 1 and shape[0] == batch and 0 not in shape[1:]:
                name = f"fiqa_ray_shape_{i}"
                graph.initializer.append(
                    onnx.helper.make_tensor(name, TensorProto.INT64, [len(shape)], [0, *shape[1:]])
                )
                node.input[1] = name
    return freed
