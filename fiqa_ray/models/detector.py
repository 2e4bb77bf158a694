"""Landmarks of faces in raw images, by OpenCV's YuNet (`face_detection_yunet` of opencv_zoo) from an ONNX file."""

from __future__ import annotations

import hashlib
import threading

import cv2
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models import detector_trial
from fiqa_ray.models.formats.onnx_file import check_sizes
from fiqa_ray.models.trial import run_trial
from fiqa_ray.storage import read_bytes

DETECTION_SIDE = 320
"""Length in px that the longer side of an image is scaled to; YuNet was trained on this size."""
MIN_SCORE = 0.6
"""Detections with a lower score do not count as faces."""
_MAX_OVERLAP = 0.3
_MAX_BOXES = 50
_TRIAL_BYTES, _TRIAL_S = 4 << 30, 60


class FaceDetector:
    """Five landmarks of the largest face of an image.

    The largest box counts, not the box with the best score, because other people may be in the background of a picture.
    YuNet's points are the person's right eye, left eye, nose tip, right and left mouth corner. This is the order of
    `fiqa_ray.core.align.TEMPLATE`, because a person's right is the image's left.

    Args:
        uri: YuNet's `.onnx` file; a path or any fsspec URL.

    Attributes:
        sha256: hash of the file.

    Raises:
        FiqaRayError: the file is damaged, or OpenCV cannot run it as such a network.
    """

    def __init__(self, uri: str) -> None:
        model = read_bytes(uri)
        self._lock = threading.Lock()  # a network keeps the size of its input between calls
        self.sha256 = hashlib.sha256(model).hexdigest()
        _try_detector(model, f"detector {uri}")
        self._network = cv2.FaceDetectorYN.create(
            "onnx",
            np.frombuffer(model, np.uint8),
            np.empty(0, np.uint8),
            (DETECTION_SIDE, DETECTION_SIDE),
            MIN_SCORE,
            _MAX_OVERLAP,
            _MAX_BOXES,
        )

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Find the largest face of an image.

        Args:
            image: `(h, w, 3) uint8` RGB.

        Returns:
            `(5, 2)` landmarks (x, y) in px, or None if no face is found.
        """
        height, width = image.shape[:2]
        scale = DETECTION_SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        with self._lock:
            self._network.setInputSize(size)
            _, faces = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if faces is None:
            return None
        largest = max(faces, key=lambda face: face[2] * face[3])
        points = largest[4:14].reshape(5, 2).astype(np.float64)
        return points * (width / size[0], height / size[1])


def _try_detector(model: bytes, name: str) -> None:
    """Load and run a detector once in a process of its own.

    Raises:
        FiqaRayError: stored numbers do not fill their shapes, or OpenCV cannot run it, hangs or breaks down.
    """
    advice = "give face_detection_yunet's .onnx of opencv_zoo, or fetch it again"
    try:
        check_sizes(onnx.load_model_from_string(model), name)
    except (DecodeError, ValueError) as error:
        raise FiqaRayError(f"{name}: not a readable ONNX file ({len(model):,} bytes); {advice}") from error
    outcome = run_trial(detector_trial.__file__, (_TRIAL_BYTES,), model, _TRIAL_S, f"{name}: OpenCV", advice)
    if "error" in outcome:
        raise FiqaRayError(
            f"{name}: not a YuNet network that OpenCV {cv2.__version__} can run ({outcome['error']}); {advice}"
        )
