"""A program that runs an ONNX network once: a damaged file can make onnxruntime ask for any memory, or abort.

It imports nothing of this package. `onnx_network.try_network` starts it.

python onnx_trial.py MOST_BYTES MOST_S N_FACES < NETWORK

It prints {output's name: [shape, type]} or {"error": message} as JSON.
"""

from __future__ import annotations

import json
import resource
import sys

import numpy as np
import onnxruntime

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


def main() -> None:
    """Run the network on faces of grey pixels, within so much memory and so many seconds of CPU."""
    most_bytes, most_s, n_faces = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (most_s, most_s))
    kinds, places = onnxruntime.OrtAllocatorType, onnxruntime.OrtMemType
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo("Cpu", kinds.ORT_ARENA_ALLOCATOR, 0, places.DEFAULT),
        onnxruntime.OrtArenaCfg({"max_mem": most_bytes, "arena_extend_strategy": 1}),  # 1: as much as is asked for
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it computes constants
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(
        sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    image = session.get_inputs()[0]
    if image.type not in DTYPES:
        raise ValueError(f"its input is {image.type}, wanted floating point or uint8 pixels")
    faces = np.full((n_faces, 3, 112, 112), 0.25, DTYPES[image.type])
    outputs = session.run(None, {image.name: faces})
    names = [output.name for output in session.get_outputs()]
    shapes = {n: [list(np.shape(a)), str(np.asarray(a).dtype)] for n, a in zip(names, outputs, strict=True)}
    print(json.dumps(shapes))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # onnxruntime has a class for each fault
        print(json.dumps({"error": " ".join(str(error).split())[:300] or type(error).__name__}))
