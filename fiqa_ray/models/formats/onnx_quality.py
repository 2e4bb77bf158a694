"""The quality of 0 to 100 as nodes of an exported file, computed from its score as `quality_scale.Quantiles` does.

Only operators that ONNX has had since opset 10 are used, because a regressor on an ONNX network keeps that network's opset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fiqa_ray.models.quality_scale import FAILED

_NODES = (  # operator, inputs, output; attributes of Cast follow its output
    ("Cast", ("score",), "s", TensorProto.DOUBLE),
    ("Reshape", ("s", "column"), "s_column", None),
    # how many quantiles are at most the score
    ("Less", ("s_column", "quantiles"), "is_below", None),
    ("Not", ("is_below",), "is_reached", None),
    ("Cast", ("is_reached",), "reached", TensorProto.FLOAT),
    ("MatMul", ("reached", "ones"), "count_column", None),
    ("Reshape", ("count_column", "flat"), "count", None),
    # the line between the two quantiles around the score
    ("Sub", ("count", "one"), "last", None),
    ("Min", ("last", "last_line"), "at_most", None),
    ("Max", ("at_most", "first_line"), "line", None),
    ("Cast", ("line",), "row", TensorProto.INT64),
    ("Gather", ("starts", "row"), "start", None),
    ("Gather", ("slopes", "row"), "slope", None),
    ("Gather", ("percents", "row"), "percent", None),
    ("Sub", ("s", "start"), "step", None),
    ("Mul", ("slope", "step"), "rise", None),
    ("Add", ("rise", "percent"), "on_line", None),
    ("Less", ("s", "lowest"), "is_lower", None),
    ("Where", ("is_lower", "zero", "on_line"), "not_lower", None),
    ("Greater", ("s", "highest"), "is_higher", None),
    ("Where", ("is_higher", "hundred", "not_lower"), "value", None),
    # halves are rounded up
    ("Floor", ("value",), "floor", None),
    ("Sub", ("value", "floor"), "rest", None),
    ("Less", ("rest", "half"), "is_down", None),
    ("Not", ("is_down",), "is_up", None),
    ("Cast", ("is_up",), "up", TensorProto.DOUBLE),
    ("Add", ("floor", "up"), "rounded", None),
    ("Cast", ("rounded",), "whole", TensorProto.INT32),
    ("IsNaN", ("s",), "is_nan", None),
    ("IsInf", ("s",), "is_inf", None),
    ("Or", ("is_nan", "is_inf"), "is_failed", None),
    ("Where", ("is_failed", "failed", "whole"), "quality", None),
)


def add_quality(model: Any, table: Mapping[str, Any]) -> None:
    """Give an `onnx.ModelProto` with the output `score` one more output: `quality`, `(batch,) int32`, -1 to 100.

    Args:
        model: is changed.
        table: the card's `validation_scores`, see `regressor.score_table`.
    """
    quantile, first = np.unique(np.asarray(table["quantiles"], np.float64), return_index=True)
    percent = 100 * first / (len(table["quantiles"]) - 1)
    highest = quantile[-1]
    if len(quantile) == 1:  # a line that only the score itself touches
        quantile, percent = np.append(quantile, quantile + 1), np.append(percent, percent)
    constants = {
        "quantiles": quantile[None],
        "starts": quantile[:-1],
        "slopes": np.diff(percent) / np.diff(quantile),
        "percents": percent[:-1],
        "lowest": quantile[0],
        "highest": highest,
        "zero": np.float64(0),
        "half": np.float64(0.5),
        "hundred": np.float64(100),
        "ones": np.ones((len(quantile), 1), np.float32),
        "one": np.float32(1),
        "first_line": np.float32(0),
        "last_line": np.float32(len(quantile) - 2),
        "column": np.array([-1, 1]),
        "flat": np.array([-1]),
        "failed": np.int32(FAILED),
    }

    def name(value: str) -> str:
        return value if value in ("score", "quality") else f"quality/{value}"

    for operator, inputs, output, to in _NODES:
        attributes: dict[str, Any] = {} if to is None else {"to": to}
        model.graph.node.append(helper.make_node(operator, list(map(name, inputs)), [name(output)], **attributes))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name(key)) for key, value in constants.items()
    )
    model.graph.output.append(helper.make_tensor_value_info("quality", TensorProto.INT32, ["batch"]))
