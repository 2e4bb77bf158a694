"""Landmarks of faces in raw images, by OpenCV's YuNet (`face_detection_yunet` of opencv_zoo) from an ONNX file."""

from __future__ import annotations

import hashlib
import threading

import cv2
import numpy as np
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import read_bytes

DETECTION_SIDE = 320
"""Length in px that the longer side of an image is scaled to; YuNet was trained on this size."""
MIN_SCORE = 0.6
"""Detections with a lower score do not count as faces."""
_MAX_OVERLAP = 0.3
_MAX_BOXES = 50


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
        FiqaRayError: OpenCV cannot read the file as such a network.
    """

    def __init__(self, uri: str) -> None:
        model = read_bytes(uri)
        self._lock = threading.Lock()  # a network keeps the size of its input between calls
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._network = cv2.FaceDetectorYN.create(
                "onnx",
                np.frombuffer(model, np.uint8),
                np.empty(0, np.uint8),
                (DETECTION_SIDE, DETECTION_SIDE),
                MIN_SCORE,
                _MAX_OVERLAP,
                _MAX_BOXES,
            )
            self(np.zeros((DETECTION_SIDE, DETECTION_SIDE, 3), np.uint8))
        except cv2.error as exc:
            raise FiqaRayError(
                f"detector {uri}: not a YuNet network that OpenCV {cv2.__version__} can run "
                f"({' '.join(str(exc).split())[:120]}); give face_detection_yunet's .onnx of opencv_zoo"
            ) from exc

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
