"""Landmarks of faces in raw images: OpenCV's YuNet (opencv_zoo ``face_detection_yunet``) from the user's ONNX file."""

from __future__ import annotations

import hashlib
import threading

import cv2
import numpy as np
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import read_bytes

DETECTION_SIDE = 320
"""Images are scaled so that their longer side has so many px, the size that YuNet was trained on."""
MIN_SCORE = 0.6
"""Detections of a lower score are no faces."""
_MAX_OVERLAP = 0.3
_MAX_BOXES = 50


class FaceDetector:
    """Five landmarks of the largest face of an image.

    The largest box counts, not the best score: in a picture of a person others stand behind. YuNet's points are the
    person's right eye, left eye, nose tip, right and left mouth corner, which are those of `fiqa_ray.core.align`'s
    ``TEMPLATE`` in its order, for a person's right is the image's left.

    Parameters
    ----------
    uri: YuNet's ``.onnx``; local or any fsspec URL.

    Raises FiqaRayError for a file that OpenCV cannot read as such a network.
    """

    def __init__(self, uri: str) -> None:
        model = read_bytes(uri)
        self._lock = threading.Lock()  # a network holds the size of its input
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
        """Landmarks ``(5, 2)`` in px of an image ``(h, w, 3)`` uint8 RGB, or None where no face is found."""
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
