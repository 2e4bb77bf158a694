"""How an ONNX recogniser wants its pixels, where the file shows it.

InsightFace's package looks at the names of the first eight nodes (`python-package/insightface/model_zoo/arcface_onnx.py`):
a `Sub` and a `Mul` mean that the graph scales pixels itself, else they go in as (v - 127.5) / 127.5. Names tell little
(newer exports begin them with a slash), so this looks at the operators and their numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from fiqa_ray.models.formats.onnx_file import constants_of
from fiqa_ray.models.preprocessing import Preprocessing

N_FIRST = 8
INPUT_NAMES = ("data", "input.1")
"""Names that InsightFace's exports give their input: MXNet and arcface_torch, and the files of its packs."""
_LIMIT = 2.7
"""Scaled pixels lie within about -1 to 1; divided by the usual deviations of the channels they reach 2.64."""


def find_scaling(model: ModelProto) -> tuple[Preprocessing, str] | None:
    """Return scaling and colour order of a recogniser's input, and by what they were found; None if nothing shows them.

    The colour order is RGB, which InsightFace's files want.
    """
    scaled = _scaled_in_graph(model)
    if scaled is not None:
        factor, offset = scaled
        for top, preprocessing, words in (
            (255.0, Preprocessing(mean=0.0, scale=1.0), "0..255"),
            (1.0, Preprocessing(mean=0.0, scale=255.0), "0..1"),
        ):
            least, largest = offset.min(), (factor * top + offset).max()
            if -_LIMIT <= least < largest <= _LIMIT and largest - least > 0.5:
                return preprocessing, f"the graph itself scales pixels of {words}"
        return None
    names = [node.name for node in model.graph.node][:N_FIRST]
    if any(n.startswith(("Sub", "_minus")) for n in names) and any(n.startswith(("Mul", "_mul")) for n in names):
        return Preprocessing(mean=0.0, scale=1.0), "InsightFace's rule: the first nodes scale pixels of 0..255"
    if model.graph.input[0].name in INPUT_NAMES and len(model.graph.output) == 1:
        return Preprocessing(), "InsightFace's rule: the first nodes do not scale pixels"
    return None


def _scaled_in_graph(model: ModelProto) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return factor and offset by which the first nodes scale a pixel, `(1,)` or `(3,)` each; None if they do not."""
    constants = constants_of(model.graph)
    value = model.graph.input[0].name
    factor, offset = np.ones(1), np.zeros(1)
    kinds = set()
    for node in [n for n in model.graph.node if n.op_type != "Constant"][:N_FIRST]:
        if value not in node.input:
            continue
        if node.op_type in ("Identity", "Cast", "Slice", "Gather", "Split", "Concat", "Transpose"):
            value = node.output[0]  # other order, same numbers
            continue
        others = [name for name in node.input if name != value]
        if node.op_type not in ("Sub", "Add", "Mul", "Div") or len(others) != 1 or others[0] not in constants:
            break
        number = numpy_helper.to_array(constants[others[0]]).astype(np.float64).reshape(-1)
        first = node.input[0] == value
        if number.size not in (1, 3) or (node.op_type == "Div" and (not first or not number.all())):
            break
        if node.op_type in ("Sub", "Add"):
            sign = 1.0 if first else -1.0
            factor = factor * (sign if node.op_type == "Sub" else 1.0)
            offset = sign * (offset - number) if node.op_type == "Sub" else offset + number
        else:
            by = number if node.op_type == "Mul" else 1 / number
            factor, offset = factor * by, offset * by
        kinds.add("shift" if node.op_type in ("Sub", "Add") else "scale")
        value = node.output[0]
    if "scale" not in kinds:
        return None
    return factor, offset
