"""Every network of the tables, exported to ONNX at four opsets: onnxruntime's outputs and gradients against torch's.

python benchmarks/onnx_rows.py [--rows NAME ...] [--opsets 11 13 17 20] [--keep FILE] [--json FILE]

Weights are random, so rows of one architecture are one network here, measured once. Outputs are compared in float32 with
those of torch and of a session of onnxruntime without this package, for two faces; gradients of a random sum of the outputs
in float64, for one: in float32 a PReLU near 0 bends the gradient of a few pixels. Each difference is a share of a length.
A file holds its constants in float32, so a unit may still lie on the other side of its kink (0 for a PReLU, also 6 for a
ReLU6), which is rounding, not a fault. Where the gradient differs by more than the limit, that is a column of its own, with
the number of such units, and the gradient counts with the units' inputs moved to torch's: those alone that differ by
rounding, so that a fault of the conversion still shows.
The exit code is 1 if one exceeds 1e-5 or a network cannot be measured. Each network has a process of its own. An opset that
torch's exporter cannot write a network in is a row with the exporter's reason. All networks take an hour or two: --keep
names a file of JSON lines to which each row is added, and networks that stand in it are not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import torch
from torch.overrides import TorchFunctionMode

from fiqa_ray.models.formats.onnx_gradients import ConvertedNetwork
from fiqa_ray.models.formats.onnx_network import OnnxNetwork
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.recognition import load_onnx, load_released
from fiqa_ray.models.recognizer_table import RECOGNIZERS, NetworkRow
from fiqa_ray.synthetic.dataset import aligned_faces

OPSETS, LIMIT = (11, 13, 17, 20), 1e-5
ROWS: dict[str, NetworkRow] = {
    **RECOGNIZERS,
    **{f"{name} (method)": row.network for name, row in METHODS.items() if row.network is not None},
}
NETWORKS = [name for name, row in ROWS.items() if row.file_format != "onnx"]  # those are ONNX files already


def architectures(names: list[str]) -> dict[str, list[str]]:
    """Return the rows that stand for a network, by the first of those that are the same but for weights and colours."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        row = ROWS[name]
        groups[f"{row.builder} {sorted(row.arguments.items())}"].append(name)
    return {rows[0]: rows for rows in groups.values()}


def export(network: torch.nn.Module, opset: int, path: str) -> str:
    """Write a network as its users export it; return what the exporter cannot write, or an empty text.

    Where the graph holds the batch size of the trace although it says that any fits, the file is written for that size.
    """
    x = torch.zeros(1, 3, 112, 112)
    names: dict[str, Any] = {"input_names": ["data"], "output_names": ["embedding"]}
    try:
        for axes in ({"data": {0: "batch"}}, {}):
            torch.onnx.export(network, (x,), path, dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
            with suppress(Exception):  # onnxruntime has a class for each fault
                run_alone(path, np.zeros((2 if axes else 1, 3, 112, 112), np.float32))
                return ""
    except torch.onnx.errors.OnnxExporterError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "onnxruntime does not run what the exporter wrote"


def run_alone(path: str, x: np.ndarray) -> np.ndarray:
    """Return what onnxruntime computes without this package."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"data": x})[0]


def first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the output, the first of several."""
    return output if isinstance(output, torch.Tensor) else output[0]


def largest_share(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest length of a face's difference, as a share of the wanted length."""
    difference, length = (got - wanted).flatten(1).norm(dim=1), wanted.flatten(1).norm(dim=1)
    return float((difference / length.clamp_min(1e-12)).max())


class Units(TorchFunctionMode):
    """Keeps the inputs of a network's piecewise linear units, or moves them to those of another network.

    Inputs are moved where the two differ by at most LIMIT of the layer's root mean square. Gradients pass unchanged.

    Attributes:
        inputs: the input of each layer, and where its units have kinks.
    """

    KINKS: ClassVar = {"prelu": (0.0,), "relu": (0.0,), "relu6": (0.0, 6.0), "clamp": (0.0, 6.0)}

    def __init__(self, wanted: Units | None = None) -> None:
        super().__init__()
        self.wanted = wanted
        self.inputs: list[tuple[torch.Tensor, tuple[float, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run a function of torch, with a unit's input moved."""
        if func.__name__ not in self.KINKS:
            return func(*args, **(kwargs or {}))
        x = args[0]
        self.inputs.append((x, self.KINKS[func.__name__]))
        if self.wanted is not None:
            y = self.wanted.inputs[len(self.inputs) - 1][0]
            shift = (y - x).detach()
            x = x + shift.where(shift.abs() <= LIMIT * y.square().mean().sqrt(), 0.0)
        return func(x, *args[1:], **(kwargs or {}))

    def n_across(self, other: Units) -> int:
        """Return the number of units that lie on another side of a kink in another network."""
        layers = zip(self.inputs, other.inputs, strict=True)
        return sum(int(((x > kink) != (y > kink)).sum()) for (x, kinks), (y, _) in layers for kink in kinks)


def gradient(module: torch.nn.Module, x: torch.Tensor, units: Units) -> torch.Tensor:
    """Return the gradient of a random sum of a network's outputs at pixels, in float64."""
    y = x.double().requires_grad_()
    with units:
        output = first(module.double()(y))
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=output.shape))
    return torch.autograd.grad((output * weight).sum(), y)[0]


def let_timm_load() -> torch.library.Library | None:
    """Declare the operators that timm's import asks of torchvision, where that was built for another torch.

    PyPI's torchvision is built for its torch with CUDA. No operator of it is called here. timm's attention is written out,
    since the exporter has no fused one before opset 14.
    """
    os.environ["TIMM_FUSED_ATTN"] = "0"
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def measure(name: str, opsets: list[int]) -> list[dict[str, Any]]:
    """Return the differences of one network at each opset, in a process that ends after it."""
    library = let_timm_load()
    faces = torch.from_numpy(aligned_faces((0, 0, 0, 2))[:2].transpose(0, 3, 1, 2).copy())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = compare(name, opsets, faces, folder)
    del library
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [row | {"peak_gb": round(peak, 1)} for row in rows]


def compare(name: str, opsets: list[int], faces: torch.Tensor, folder: str) -> list[dict[str, Any]]:
    """Return the differences of one network at each opset; faces (I, 3, 112, 112) uint8."""
    row = ROWS[name]
    recognizer = load_released(name, name, row, "random:0")
    backbone = recognizer.backbone.requires_grad_(False)
    x = recognizer.preprocess(faces.float() / 255)
    with torch.no_grad():
        wanted = first(backbone(x))
    failed = {opset: export(backbone, opset, f"{folder}/{opset}.onnx") for opset in opsets}
    units = Units()
    wanted_gradient = gradient(backbone, x[:1], units)
    rows = []
    for opset in opsets:
        path, started = f"{folder}/{opset}.onnx", time.perf_counter()
        result: dict[str, Any] = {"network": name, "opset": opset}
        if failed[opset]:
            rows.append(result | {"not_exported": failed[opset]})
            continue
        options = {"mean": 127.5, "scale": 127.5, "output": "embedding"}
        loaded = load_onnx(path, None, options, quality=row.dim == 1)
        alone = np.concatenate([run_alone(path, face[None]) for face in x.numpy()])
        with torch.no_grad():
            outputs = loaded.backbone(x)
        network = next(module for module in loaded.backbone.modules() if isinstance(module, OnnxNetwork))
        converted, lie = ConvertedNetwork(network, x.numpy()), Units()
        result |= {
            "outputs_to_onnxruntime": largest_share(outputs, torch.from_numpy(alone)),
            "outputs_to_torch": largest_share(outputs, wanted),
            "gradients_to_torch": largest_share(gradient(converted, x[:1], lie), wanted_gradient),
        }
        if result["gradients_to_torch"] > LIMIT:
            result["as_units_lie"] = result["gradients_to_torch"]
            result["gradients_to_torch"] = largest_share(gradient(converted, x[:1], Units(units)), wanted_gradient)
            result["n_units"], result["n_across"] = sum(y.numel() for y, _ in units.inputs), units.n_across(lie)
        Path(path).unlink()
        rows.append(result | {"seconds": round(time.perf_counter() - started, 1)})
    return rows


def largest(row: dict[str, Any]) -> float:
    """Return the largest difference of one network at one opset."""
    return max((value for key, value in row.items() if key.endswith(("torch", "onnxruntime"))), default=0.0)


def measure_apart(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a network in a process of its own; print its rows and keep those of a network that could be measured."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            rows = process.submit(measure, name, arguments.opsets).result()
    except Exception as error:  # the other networks are measured all the same
        rows = [{"network": name, "failed": f"{type(error).__name__}: {error}"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    print(lines, end="", flush=True)
    if arguments.keep and "failed" not in rows[0]:
        with arguments.keep.open("a", encoding="utf-8") as file:
            file.write(lines)
    return rows


def kept_rows(keep: Path | None, name: str) -> list[dict[str, Any]]:
    """Return the rows of a network that an earlier run kept."""
    if keep is None or not keep.exists():
        return []
    rows = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["network"] == name]


def main() -> None:
    """Print one line per network and opset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NAME")
    parser.add_argument("--opsets", nargs="+", type=int, default=OPSETS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    groups = architectures(arguments.rows)
    rows = [row for name in groups for row in kept_rows(arguments.keep, name) or measure_apart(name, arguments)]
    if arguments.json:
        same = [{"network": name, "also": ", ".join(others[1:])} for name, others in groups.items()]
        summary = {
            "n_rows": len(arguments.rows),
            "n_networks": len(groups),
            "n_exported": sum("gradients_to_torch" in row for row in rows),
            "n_not_exported": sum("not_exported" in row for row in rows),
            "n_failed": sum("failed" in row for row in rows),
            "largest": max(map(largest, rows)),
        }
        arguments.json.write_text(json.dumps({**summary, "networks": same, "opsets": rows}, indent=1) + "\n")
    sys.exit(any(largest(row) > LIMIT or "failed" in row for row in rows))


if __name__ == "__main__":
    main()
