"""A trained regressor as one ONNX file that can be used without this package, and such a file as a scorer.

The graph takes faces as they are, uint8 RGB: colour order and scaling lie inside, and a runtime refuses pixels of another
type. A file is handed out only after onnxruntime has run it and given torch's results.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import Tensor, nn

from fiqa_ray._version import __version__
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.onnx_file import keep_output, parse_onnx, read_onnx
from fiqa_ray.models.formats.onnx_network import FILE_ENTRY, OnnxNetwork, try_network
from fiqa_ray.models.formats.onnx_quality import add_quality
from fiqa_ray.models.quality_scale import Quantiles
from fiqa_ray.models.quality_scale import quality as quality_of
from fiqa_ray.models.recognizer import FACE_SHAPE
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.models.regressor import QualityRegressor, check_score_table

TOLERANCE = 1e-4
"""Largest deviation from torch: of a score, as a share of the scores' range; of an embedding, as a share of its length."""
BATCH_SIZES = (1, 8)
OPSET = 18
INPUT = "faces: (batch, 3, 112, 112) uint8, RGB, aligned to the ArcFace template; scaling and colour order lie inside"
OUTPUT = (
    "score: (batch,) float32, larger is better; embedding: (batch, dim) float32, raw, not of unit length; "
    "quality: (batch,) int32, share of validation images that score lower, 0 to 100, -1 where there is no score"
)


class _ScoreAndEmbedding(nn.Module):
    """What is exported: the regressor with its embedding as a second output."""

    def __init__(self, model: QualityRegressor) -> None:
        super().__init__()
        self.model = model

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(N, 3, 112, 112) uint8` to `(N,)` scores and `(N, D)` embeddings."""
        return self.model.score_and_embedding(faces)


def export_onnx(model: QualityRegressor, card: Mapping[str, Any], faces: np.ndarray) -> bytes:
    """Return a regressor as an ONNX file, checked against torch.

    Inputs and outputs are described by `INPUT` and `OUTPUT` and, with the regressor's and the recogniser's hashes,
    licence and score quantiles, in the file's `metadata_props`. The batch axis is free.

    Args:
        model: on the CPU, in evaluation mode, as from `load_regressor`.
        card: the regressor's card.
        faces: `(N, 3, 112, 112) uint8` RGB, at least 2 unlike ones, on which file and torch are compared, in
            batches of 1 and of 8.

    Raises:
        FiqaRayError: a package is missing, the network cannot be exported, or the file's scores or embeddings differ from
            torch's by more than `TOLERANCE`.
    """
    try:
        import onnxscript  # noqa: F401  # torch.onnx writes graphs with it
    except ImportError as error:
        raise FiqaRayError(
            f"export needs {error.name}, which is not installed: pip install 'fiqa-ray[export]'"
        ) from error
    network = _ScoreAndEmbedding(model).eval()
    proto = _around_onnx(model) if isinstance(model.base_model, OnnxNetwork) else _to_onnx(network)
    table = card.get("validation_scores")
    if table is not None:
        add_quality(proto, table)
    onnx.helper.set_model_props(proto, _metadata(card))
    data = proto.SerializeToString()
    with torch.inference_mode():
        parts = [network(torch.from_numpy(part)) for part in np.array_split(faces, -(-len(faces) // BATCH_SIZES[-1]))]
    score, embedding = (torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True))
    spread = float(np.ptp(score))
    if not spread > 1e-6 * float(np.abs(score).max()):  # also NaN
        raise FiqaRayError(
            f"the {len(faces)} crops to check the export on score the same ({score[0]:.6g}); give unlike --images"
        )
    for batch_size in BATCH_SIZES:
        outputs = _run_onnx(data, faces, batch_size, ["score", "embedding", *(["quality"] if table else [])])
        if table is not None:
            _check_quality(outputs[2], outputs[0], table, batch_size)
        for name, gap in (
            ("scores", np.abs(outputs[0] - score).max() / spread),
            ("embeddings", (np.linalg.norm(outputs[1] - embedding, axis=1) / np.linalg.norm(embedding, axis=1)).max()),
        ):
            if not gap <= TOLERANCE:
                unit = "the scores' range" if name == "scores" else "an embedding's length"
                raise FiqaRayError(
                    f"not exported: in batches of {batch_size} onnxruntime's {name} differ from torch's by {gap:.2g} of "
                    f"{unit}, more than {TOLERANCE:g}"
                )
    return data


def _check_quality(quality: np.ndarray, score: np.ndarray, table: Mapping[str, Any], batch_size: int) -> None:
    wanted = quality_of(score, Quantiles(tuple(table["quantiles"])))
    if not np.array_equal(quality, wanted):
        i = int(np.flatnonzero(quality != wanted)[0])
        raise FiqaRayError(
            f"not exported: in batches of {batch_size} onnxruntime's quality of the score {score[i]:.6g} is {quality[i]}, "
            f"and not {wanted[i]}"
        )


def _run_onnx(data: bytes, faces: np.ndarray, batch_size: int, names: list[str]) -> tuple[np.ndarray, ...]:
    """Return the named outputs of all faces, computed in batches of one size."""
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        starts = range(0, len(faces), batch_size)
        parts = [session.run(names, {"faces": faces[at : at + batch_size]}) for at in starts]
    except Exception as error:  # onnxruntime has a class for each fault, all straight below Exception
        reason = str(error).strip().splitlines()[0]
        raise FiqaRayError(f"not exported: onnxruntime cannot run batches of {batch_size}: {reason}") from error
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def _to_onnx(network: _ScoreAndEmbedding) -> Any:
    """Return the `onnx.ModelProto` of a network from faces to (score, embedding)."""
    example, model = torch.zeros(2, *FACE_SHAPE, dtype=torch.uint8), network.model
    disabled = logging.root.manager.disable
    try:
        # torch logs each package that is not there, and prints the whole graph of a network that it cannot trace
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            if FILE_ENTRY in model.base_model.state_dict():
                return _by_tracing(network, example)
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=["faces"],
                output_names=["score", "embedding"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever a network holds that torch cannot trace or ONNX has no operator for
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise FiqaRayError(f"torch cannot export this network to ONNX: {reason}") from error
    finally:
        logging.disable(disabled)
    assert program is not None  # None only where torch writes a file itself
    return program.model_proto


def _by_tracing(network: nn.Module, example: Tensor) -> Any:
    """Return the `onnx.ModelProto` of a trained ONNX network, whose sizes are values that only a trace follows."""
    buffer: Any = io.BytesIO()
    torch.onnx.export(
        network,
        (example,),
        buffer,
        dynamo=False,
        input_names=["faces"],
        output_names=["score", "embedding"],
        dynamic_axes={name: {0: "batch"} for name in ("faces", "score", "embedding")},
        opset_version=OPSET,
    )
    return onnx.load_model_from_string(buffer.getvalue())


def _metadata(card: Mapping[str, Any]) -> dict[str, str]:
    row = RECOGNIZERS.get(card["recognizer"])
    licence = row.licence if row else "that of its owner; not known to fiqa-ray"
    return {
        "input": INPUT,
        "output": OUTPUT,
        "regressor": str(card.get("scorer", "")),
        "regressor_sha256": card["weights_sha256"],
        "recognizer": card["recognizer"].rpartition("/")[2],  # of an ONNX file not where it lay
        "recognizer_sha256": card["recognizer_sha256"],
        "licence": f"recogniser: {licence}",
        "validation_scores": json.dumps(card.get("validation_scores")),
        "made_by": f"fiqa-ray {__version__}",
    }


def _around_onnx(model: QualityRegressor) -> Any:
    """Return the `onnx.ModelProto` of a regressor on an ONNX network: scaling before the network's nodes, head after."""
    assert isinstance(model.base_model, OnnxNetwork)
    network = compose.add_prefix(
        parse_onnx(model.base_model.onnx_file.numpy().tobytes(), model.base_model.name), "network/"
    )
    graph, p = network.graph, model.preprocessing
    image, output = graph.input[0], graph.output[0]
    pixel_type = image.type.tensor_type.elem_type
    scaling = {"unit": 255.0, "shift": p.mean / 255, "factor": 255 / p.scale}
    weights = {f"scaling/{key}": np.array(value, np.float32) for key, value in scaling.items()}
    weights |= {
        "scaling/order": np.array([2, 1, 0] if p.colour == "BGR" else [0, 1, 2]),
        "head/weight": model.regressor.weight.detach().mean(0, keepdim=True).numpy(),  # the mean score over the seeds
        "head/bias": model.regressor.bias.detach().mean(0, keepdim=True).numpy(),
        "head/flat": np.array([-1]),
    }
    before = [
        helper.make_node("Cast", ["faces"], ["scaling/float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["scaling/float", "scaling/unit"], ["scaling/in_unit"]),
        helper.make_node("Gather", ["scaling/in_unit", "scaling/order"], ["scaling/ordered"], axis=1),
        helper.make_node("Sub", ["scaling/ordered", "scaling/shift"], ["scaling/shifted"]),
        helper.make_node("Mul", ["scaling/shifted", "scaling/factor"], ["scaling/pixels"]),
        helper.make_node("Cast", ["scaling/pixels"], [image.name], to=pixel_type),
    ]
    head_input = "head/input" if model.regressor.kind == "norm" else "embedding"
    after = [
        helper.make_node("Cast", [output.name], ["embedding"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", [head_input, "head/weight", "head/bias"], ["head/column"], transB=1),
        helper.make_node("Reshape", ["head/column", "head/flat"], ["score"]),
    ]
    if model.regressor.kind == "norm":
        weights["head/ones"] = np.ones((model.regressor.dim, 1), np.float32)
        after[1:1] = [
            helper.make_node("Mul", ["embedding", "embedding"], ["head/squares"]),
            helper.make_node("MatMul", ["head/squares", "head/ones"], ["head/sum"]),
            helper.make_node("Sqrt", ["head/sum"], ["head/norm"]),
            helper.make_node("Concat", ["embedding", "head/norm"], [head_input], axis=1),
        ]
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", model.regressor.dim]),
    ]
    nodes = [*before, *graph.node, *after]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("faces", TensorProto.UINT8, ["batch", *FACE_SHAPE]))
    graph.output.extend(outputs)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return network


def load_exported(uri: str) -> tuple[OnnxNetwork, dict[str, Any]]:
    """Load a file of `export_onnx` as a module from `(N, 3, 112, 112) uint8` to `(N,)` scores, which onnxruntime runs.

    Returns the module and what the file says of itself, the card's `validation_scores` among it.

    Raises:
        FiqaRayError: the file is missing or was not made by `fiqa-ray export`.
    """
    model, _ = read_onnx(uri)
    card: dict[str, Any] = {entry.key: entry.value for entry in model.metadata_props}
    if "score" not in [value.name for value in model.graph.output] or "validation_scores" not in card:
        raise FiqaRayError(
            f"{uri}: not a regressor that fiqa-ray export wrote; a quality network of yours needs the options "
            "mean and scale, a recogniser goes into --recognizer"
        )
    try:
        card["validation_scores"] = json.loads(card["validation_scores"])
    except ValueError as error:
        raise FiqaRayError(f"{uri}: its validation_scores are not readable ({error}); export it again") from error
    check_score_table(card["validation_scores"], uri)
    keep_output(model, "score")
    data = model.SerializeToString(deterministic=True)
    try_network(data, uri, n_faces=2)
    return OnnxNetwork(data, uri), card
