from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.tools.froq import calibrate


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Twelve grey crops that differ in their brightness, in three folders."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(12):
        person = folder / f"p{i // 4}"
        person.mkdir(exist_ok=True)
        face = np.full((112, 112, 3), 20 + 18 * i, np.uint8)
        face[:56] = 10  # so that a mirror image or a square changes something
        cv2.imwrite(str(person / f"{i}.png"), face)
    return folder


class Net(nn.Module):
    """The length of `bright` grows with brightness, that of `dark` falls; `unused` does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark, self.unused = nn.Flatten(), nn.Flatten(), nn.Linear(2, 2)

    def forward(self, x):
        return torch.cat([self.bright(x + 1), self.dark(1 - x)], dim=1)


def labels_file(folder, faces, sign):
    path = folder / "labels.csv"
    with open(path, "w", newline="") as file:
        rows = [(f.relative_to(faces).as_posix(), sign * int(f.stem)) for f in faces.glob("*/*.png")]
        csv.writer(file).writerows([("image_id", "label"), *rows])
    return str(path)


@pytest.mark.parametrize(("sign", "layer"), [(1, "bright"), (-1, "dark")])
def test_labels_choose_the_layer_that_grows_with_them(faces, tmp_path, sign, layer):
    network = Recognizer("net", Net(), Preprocessing(), 75264, "")
    chosen = calibrate(network, str(faces), labels_file(tmp_path, faces, sign))
    assert (chosen.layers, chosen.n_images, chosen.n_layers) == ([layer], 12, 2)


def test_froqs_own_quality_needs_no_labels(faces):
    network = Recognizer("net", Net(), Preprocessing(), 75264, "")
    chosen = calibrate(network, str(faces), max_images=10)
    assert chosen.n_images == 10
    with pytest.raises(FiqaRayError, match="a calibration needs 10 or more"):
        calibrate(network, str(faces), max_images=5)
