"""An ONNX network as a torch module with gradients, for FaceQAN and for training.

onnx2pytorch converts it: of the two converters tried (onnx2torch is the other) it alone knows `auto_pad`, pools with uneven
padding, and operator sets after 13. A converted network counts only if it equals onnxruntime on faces.
"""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto
from torch import Tensor, nn
from torch.nn import functional

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.onnx_file import constants_of, fixed_batch, parse_onnx
from fiqa_ray.models.formats.onnx_network import FILE_ENTRY, OnnxNetwork, differ_by, first_line

TOLERANCE = 1e-4
"""Largest difference of the converted network from onnxruntime, as a share of the length of a face's output."""
_OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class ConvertedNetwork(nn.Module):
    """An ONNX network converted to torch, and the file that it comes from.

    It stays in evaluation mode also while it is trained: dropout is off, and batch-norm statistics are the file's.

    Args:
        network: the network as onnxruntime runs it.
        faces: `(N, 3, 112, 112)` pixels as the network wants them, on which the two are compared.

    Raises:
        FiqaRayError: the network cannot be converted, or computes something else then.
    """

    def __init__(self, network: OnnxNetwork, faces: NDArray[np.float32]) -> None:
        super().__init__()
        self.name = network.name
        self.register_buffer(FILE_ENTRY, network.onnx_file.cpu().clone())
        model = parse_onnx(network.onnx_file.cpu().numpy().tobytes(), network.name)
        operators = ", ".join(sorted({node.op_type for node in model.graph.node}))
        self.batch = fixed_batch(model)
        try:
            self.converted = _convert(model)
            output, gradient = self._try(torch.from_numpy(faces))
        except FiqaRayError:
            raise
        except Exception as error:  # whatever a graph holds that the library cannot express
            raise FiqaRayError(
                f"{self.name}: cannot be run with gradients: {first_line(error)}. Its operators are {operators}; "
                "give the network as module:function, a function that returns it as a torch module"
            ) from error
        cpu = OnnxNetwork(network.onnx_file.cpu().numpy().tobytes(), network.name)
        difference = differ_by(output, cpu(torch.from_numpy(faces)).numpy())
        if not difference <= TOLERANCE or not gradient:
            fault = (
                f"differs from onnxruntime by {difference:.1e} of an output's length, more than {TOLERANCE:g}"
                if not difference <= TOLERANCE
                else "has no gradient at its input"
            )
            raise FiqaRayError(
                f"{self.name}: cannot be run with gradients: converted to torch it {fault}. Its operators are "
                f"{operators}; give the network as module:function, a function that returns it as a torch module"
            )
        self.difference = difference

    def _try(self, x: Tensor) -> tuple[NDArray[Any], bool]:
        """Return the output for some faces, and whether a gradient reaches them."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            output = self(x)
            (gradient,) = torch.autograd.grad(output.square().sum() + output.sum(), x)
        return output.detach().numpy(), bool(gradient.isfinite().all() and gradient.any())

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, 3, 112, 112)` pixels, scaled as the file wants them, to the network's output."""
        if self.batch is None or self.batch == len(x):
            return self.converted(x)
        n_missing = -len(x) % self.batch  # a file that fixes its batch size gets pieces of that size
        padded = torch.cat([x, x.new_zeros(n_missing, *x.shape[1:])])
        return torch.cat([self.converted(piece) for piece in padded.split(self.batch)])[: len(x)]

    def train(self, mode: bool = True) -> ConvertedNetwork:
        """Set the mode of this module, and keep the network in evaluation mode."""
        super().train(mode)
        self.converted.eval()
        return self


class _PRelu(nn.Module):
    """ONNX's PRelu with torch's gradient at 0, the slope: the converter's own is 1 more, as it adds the two sides."""

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """Return x where it is positive, else x times the slope, which is broadcast as ONNX says."""
        n_axes = x.ndim - 1  # from the channels to the last
        one_per_channel = slope.ndim >= n_axes > 0 and x.shape[1] == slope.numel() == slope.shape[-n_axes]
        if slope.numel() == 1 or one_per_channel:
            return functional.prelu(x, slope.flatten())
        return torch.where(x > 0, x, x * slope)


def _convert(model: ModelProto) -> nn.Module:
    """Return a network as a torch module whose weights are parameters, in the order in which the graph uses them."""
    _simplify(model)
    _rename(model.graph, {})
    library = _import_converter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about settings that do not matter to inference
        converted: Any = library.ConvertModel(model, enable_pruning=False)
    for name, module in converted.named_children():
        if type(module).__name__ == "PRelu":
            setattr(converted, name, _PRelu())
    layers = library.constants.STANDARD_LAYERS
    used: set[str] = set()
    for node in model.graph.node:
        operator = getattr(converted, converted.mapping[node.output[0]])
        inner = operator.modules() if isinstance(operator, nn.Sequential) else [operator]
        if not any(isinstance(module, layers) for module in inner):
            used.update(node.input)
    buffer_name = library.convert.operations.get_buffer_name
    for tensor in model.graph.initializer:
        attribute = buffer_name(tensor.name)
        value = getattr(converted, attribute)
        delattr(converted, attribute)
        if tensor.name in used:
            if value.is_floating_point() and value.ndim:
                converted.register_parameter(attribute, nn.Parameter(value))
            else:
                converted.register_buffer(attribute, value)
    del converted.onnx_model.graph.initializer[:]  # the layers have them
    for parameter in converted.parameters():
        parameter.requires_grad_(True)
    return converted.eval()


def _simplify(model: ModelProto) -> None:
    """Rewrite what the converter does not read: half precision, weights given as nodes, settings at their defaults."""
    graph = model.graph
    constants = {k: v for k, v in constants_of(graph).items() if v.dims}
    for node in list(graph.node):
        if node.op_type in ("Cast", "Identity") and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]  # weights stored in half precision
        if node.op_type in ("Constant", "Cast", "Identity") and node.output[0] in constants:
            weight = TensorProto()
            weight.CopyFrom(constants[node.output[0]])
            weight.name = node.output[0]
            graph.initializer.append(weight)
            graph.node.remove(node)
        for attribute in list(node.attribute):
            if attribute.name == "training_mode" and attribute.i == 0:
                node.attribute.remove(attribute)
            if (
                node.op_type == "Cast"
                and attribute.name == "to"
                and attribute.i in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
            ):
                attribute.i = TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.data_type in _OTHER_FLOATS:
            name = tensor.name
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Name the values of a graph by their number: the converter names modules by them, and torch splits names at dots."""

    def renamed(name: str) -> str:
        return name and names.setdefault(name, f"v{len(names)}")

    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = renamed(value.name)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)
        inputs, outputs = [renamed(name) for name in node.input], [renamed(name) for name in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    del graph.value_info[:]


def _import_converter() -> Any:
    """Import onnx2pytorch.

    It imports torchvision for operators of object detectors. A torchvision that was built for another torch fails to load,
    as that of PyPI does beside a torch for CPUs; the converter does without it then.
    """
    stand_ins: dict[str, types.ModuleType] = {}
    try:
        import torchvision  # noqa: F401
    except Exception:  # it raises RuntimeError where torch lacks its operators
        names = {
            "ops": ("box_convert", "deform_conv2d", "nms", "roi_align", "roi_pool"),
            "io": ("decode_image", "ImageReadMode"),
        }
        stand_ins = {"torchvision": types.ModuleType("torchvision")}
        for module, attributes in names.items():
            stand_in = types.ModuleType(f"torchvision.{module}")
            for attribute in attributes:
                setattr(stand_in, attribute, None)
            stand_ins[f"torchvision.{module}"] = stand_in
            setattr(stand_ins["torchvision"], module, stand_in)
        sys.modules.update(stand_ins)
    try:
        warnings.filterwarnings("ignore", module="onnx2pytorch")  # about its own use of torch
        import onnx2pytorch
        import onnx2pytorch.constants
        import onnx2pytorch.convert.operations
    except ImportError as error:
        raise FiqaRayError(
            f"gradients of an ONNX network need {error.name}, which is not installed: pip install 'fiqa-ray[onnx]'"
        ) from error
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
    return onnx2pytorch
