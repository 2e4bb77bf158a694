"""Every network of the tables, exported to ONNX at four opsets: onnxruntime's embeddings and gradients against torch's.

python benchmarks/onnx_rows.py [--rows NAME ...] [--opsets 11 13 17 20] [--json FILE]

Weights are random. Embeddings are compared in float32, gradients of a random sum of the outputs in float64: in float32 a
PReLU near 0 bends the gradient of a few pixels. Both differences are shares of a length. The exit code is 1 if one exceeds
1e-5.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.synthetic.dataset import aligned_faces

OPSETS, LIMIT = (11, 13, 17, 20), 1e-5
NETWORKS = [*RECOGNIZERS, *(name for name, row in METHODS.items() if row.network is not None)]


def load_network(name: str) -> Recognizer:
    """Return a network of the tables with random weights."""
    if name in RECOGNIZERS:
        return load_recognizer(name, "random:0")
    network = load_scorer(name, weights="random:0").network
    assert network is not None
    return network


def export(network: torch.nn.Module, opset: int, path: str) -> None:
    """Write a network as its users export it."""
    torch.onnx.export(
        network, (torch.zeros(1, 3, 112, 112),), path, dynamo=False, opset_version=opset, input_names=["data"],
        output_names=["embedding"], dynamic_axes={"data": {0: "batch"}},
    )  # fmt: skip


def largest_share(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest length of a face's difference, as a share of the wanted length."""
    difference, length = (got - wanted).flatten(1).norm(dim=1), wanted.flatten(1).norm(dim=1)
    return float((difference / length.clamp_min(1e-12)).max())


def compare(name: str, opset: int, faces: torch.Tensor, folder: str) -> dict[str, Any]:
    """Return the differences of one network at one opset; faces (I, 3, 112, 112) uint8."""
    started = time.perf_counter()
    network = load_network(name)
    backbone = network.backbone.requires_grad_(False)
    path = f"{folder}/{name}-{opset}.onnx"
    export(backbone, opset, path)
    loaded = load_recognizer(path, mean=127.5, scale=127.5)
    x = loaded.preprocess(faces.float() / 255)
    with torch.no_grad():
        wanted = backbone(x)
        wanted = wanted if isinstance(wanted, torch.Tensor) else wanted[0]
        embeddings = largest_share(loaded.backbone(x), wanted)
    converted = loaded.with_gradients("the comparison").backbone
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=wanted.shape))
    gradients = []
    for module in (converted.double(), backbone.double()):
        y = x.double().requires_grad_()
        output = module(y)
        output = output if isinstance(output, torch.Tensor) else output[0]
        gradients.append(torch.autograd.grad((output * weight).sum(), y)[0])
    Path(path).unlink()
    return {
        "network": name,
        "opset": opset,
        "embeddings": embeddings,
        "gradients": largest_share(gradients[0], gradients[1]),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Print one line per network and opset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NAME")
    parser.add_argument("--opsets", nargs="+", type=int, default=OPSETS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    faces = torch.from_numpy(aligned_faces((0, 0, 0, 2))[:2].transpose(0, 3, 1, 2).copy())
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in arguments.rows:
            for opset in arguments.opsets:
                rows.append(compare(name, opset, faces, folder))
                print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(max(row["embeddings"], row["gradients"]) > LIMIT for row in rows))


if __name__ == "__main__":
    main()
