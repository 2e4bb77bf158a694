"""A program that loads and runs a face detector once: OpenCV breaks down on some damaged files, and its process with it.

It imports nothing of this package. `detector.FaceDetector` starts it.

python detector_trial.py MOST_BYTES < NETWORK    prints {} or {"error": message} as JSON
"""

from __future__ import annotations

import json
import resource
import sys

import cv2
import numpy as np


def main() -> None:
    """Look for a face in a black image, within so much memory."""
    most_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    cv2.setNumThreads(1)
    model = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
    network = cv2.FaceDetectorYN.create("onnx", model, np.empty(0, np.uint8), (320, 320))
    _, faces = network.detect(np.zeros((320, 320, 3), np.uint8))
    if faces is not None and faces.shape[1] != 15:
        raise ValueError(f"it returns {faces.shape[1]} numbers per face, wanted 15")
    print("{}")


if __name__ == "__main__":
    try:
        main()
    except (cv2.error, ValueError, MemoryError) as error:
        print(json.dumps({"error": " ".join(str(error).split())[:120] or type(error).__name__}))
