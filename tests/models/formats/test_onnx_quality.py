from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from fiqa_ray.models.formats.onnx_quality import add_quality
from fiqa_ray.models.regressor import score_table


def graph_of(table, opset):
    h = onnx.helper
    ports = [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch"]) for name in ("x", "score")]
    graph = h.make_graph([h.make_node("Identity", ["x"], ["score"])], "g", ports[:1], ports[1:])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)
    add_quality(model, table)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def slow_quality(score, quantiles):
    """The share of quantiles below a score, with a line between two of them, halves up; by Python's own numbers."""
    if not np.isfinite(score):
        return -1
    lower = [q for q in quantiles if q < score]
    if not lower:
        return 0
    if len(lower) == len(quantiles):
        return 100
    last, following = lower[-1], quantiles[len(lower)]
    start = quantiles.index(last)
    percent = 100 * (start + (len(lower) - start) * (score - last) / (following - last)) / (len(quantiles) - 1)
    return int(percent + 0.5)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("kind", ["even", "lumps", "one"])
def test_quality_in_the_file_is_that_of_the_table(opset, kind):
    rng = np.random.default_rng(0)
    values = {"even": rng.normal(size=5000), "lumps": rng.integers(0, 4, 500), "one": np.array([0.3])}[kind]
    table = score_table(values)
    quantiles = table["quantiles"]
    scores = np.array([*rng.normal(size=300), *quantiles[::50], 9, -9, np.nan, np.inf, -np.inf], np.float32)
    (quality,) = graph_of(table, opset).run(["quality"], {"x": scores})
    assert quality.dtype == np.int32
    assert quality.tolist() == [slow_quality(float(s), quantiles) for s in scores]
    assert len(set(quality.tolist())) > (50 if kind == "even" else 2)
