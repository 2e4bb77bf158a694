"""A damaged or foreign file of the face detector ends in one error with its name, also where OpenCV breaks down on it."""

import os
import random

import numpy as np
import pytest

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models import detector
from fiqa_ray.models.detector import FaceDetector
from onnx_files import f32, graph, node


def conv(**weights):
    nodes = [node("Conv", "x", "w", out="a", strides=[4, 4]), node("GlobalAveragePool", "a")]
    return graph(nodes, weights)


def short():
    model = conv(w=f32(8, 3, 5, 5))
    model.graph.initializer[0].raw_data = bytes(100)
    return model


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"uri,identity\n", "not a readable ONNX file"),
        (b"", "not a readable ONNX file|cannot run|can run"),
        (conv(w=f32(8, 3, 5, 5)), "not a YuNet network that OpenCV .* can run"),
        (conv(), "not a YuNet network that OpenCV .* can run"),
        (short(), r"weights 'w' of shape .* need 2,400 bytes, and the file holds 100"),
        (conv(w=np.full((8, 3, 5, 5), np.nan, np.float32)), "the weights 'w' hold NaN"),
    ],
    ids=["text", "empty", "another network", "unknown weights", "short weights", "NaN"],
)
def test_each_fault_is_one_error_with_the_files_name(tmp_path, content, words):
    path = tmp_path / "yunet.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(FiqaRayError, match=words) as caught:
        FaceDetector(str(path))
    assert str(caught.value).startswith(f"detector {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "trial_s", "words"),
    [("import os; os.kill(os.getpid(), 8)", 300, r"OpenCV breaks down on it \(exit code -8\)"),
     ("import time; time.sleep(600)", 1, "OpenCV does not end on it within 1 s")],
)  # fmt: skip
def test_a_file_on_which_opencv_dies_or_hangs(tmp_path, monkeypatch, program, trial_s, words):
    (tmp_path / "trial.py").write_text(program)
    monkeypatch.setattr(detector.detector_trial, "__file__", str(tmp_path / "trial.py"))
    monkeypatch.setattr(detector, "_TRIAL_S", trial_s)
    path = tmp_path / "yunet.onnx"
    path.write_bytes(conv(w=f32(8, 3, 5, 5)).SerializeToString())
    with pytest.raises(FiqaRayError, match=rf"^detector .*yunet\.onnx: {words}"):
        FaceDetector(str(path))


@pytest.mark.slow
@pytest.mark.skipif("FIQA_RAY_DATA" not in os.environ, reason="FIQA_RAY_DATA names a folder with YuNet")
def test_flips_and_cuts_of_yunet_never_end_the_process(tmp_path):
    with open(f"{os.environ['FIQA_RAY_DATA']}/face_detection_yunet.onnx", "rb") as file:
        data = file.read()
    rng, path, errors = random.Random(1), tmp_path / "yunet.onnx", []
    for k in range(12):
        damaged = bytearray(data)
        damaged[rng.randrange(3000)] ^= 1 << rng.randrange(8)  # where the first nodes lie
        path.write_bytes(bytes(damaged if k else damaged[: len(data) // 2]))
        errors.append(refusal(path))
    refused = [error for error in errors if error]  # other flips change a number only
    assert len(refused) >= 3
    assert all(error.startswith(f"detector {path}: ") for error in refused)


def refusal(path):
    try:
        FaceDetector(str(path))
    except FiqaRayError as error:
        return str(error)
    return ""
