"""`fiqa_ray.score`, and what `help(fiqa_ray)` shows."""

import pydoc
import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

import fiqa_ray
from fiqa_ray.errors import FiqaRayError, UsageError


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Five crops `(5, 112, 112, 3)` and the folder of their PNGs."""
    folder = tmp_path_factory.mktemp("faces")
    crops = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    crops[:, 40:60] //= np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    for i, crop in enumerate(crops):
        cv2.imwrite(f"{folder}/{i}.png", crop[:, :, ::-1])
    return crops, folder


def redness(faces):
    """Mean of red less that of blue: wrong for another colour order or scale."""
    return (faces[:, 0] - faces[:, 2]).mean(dim=(1, 2))


def test_images_in_every_form_have_the_same_scores(faces):
    crops, folder = faces
    wanted = (crops[..., 0].astype(float) - crops[..., 2]).mean(axis=(1, 2)) / 255
    nchw = crops.transpose(0, 3, 1, 2)
    forms = {
        "folder": folder,
        "text": str(folder),
        "paths": sorted(folder.glob("*.png")),
        "PIL": [PIL.Image.open(p) for p in sorted(folder.glob("*.png"))],
        "PIL with alpha": [PIL.Image.open(p).convert("RGBA") for p in sorted(folder.glob("*.png"))],
        "HWC": list(crops),
        "NHWC": crops,
        "NCHW": nchw,
        "int64": nchw.astype(np.int64),
        "float": nchw.astype(np.float32) / 255,
        "torch": torch.from_numpy(nchw.copy()),
        "torch floats": torch.from_numpy(nchw / 255),
        "mixed": [crops[0], torch.from_numpy(nchw[1:3] / 255), PIL.Image.fromarray(crops[3]), nchw[4]],
    }
    for name, images in forms.items():
        table = fiqa_ray.score(images, redness, batch_size=2)
        assert table["status"].to_pylist() == ["ok"] * 5, name
        np.testing.assert_allclose(table["score"].to_numpy(), wanted, rtol=1e-3, atol=1e-6, err_msg=name)
    assert fiqa_ray.score(crops, redness).to_pandas()["uri"].tolist() == ["0", "1", "2", "3", "4"]
    assert fiqa_ray.score(crops[3], redness)["score"].to_pylist() == pytest.approx(wanted[3:4].tolist(), rel=1e-3)


def test_a_picture_with_an_orientation_is_turned_upright_in_every_form(faces, tmp_path):
    crop, exif = PIL.Image.fromarray(faces[0][3]), PIL.Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    crop.rotate(90).save(tmp_path / "turned.png", exif=exif)
    scores = [
        fiqa_ray.score(image, lambda faces: faces[:, 0, :50, :30].mean(dim=(1, 2)))["score"][0].as_py()
        for image in (crop, tmp_path / "turned.png", PIL.Image.open(tmp_path / "turned.png"))
    ]
    assert scores[1:] == scores[:1] * 2


def test_models_are_named_loaded_or_functions(faces):
    crops, folder = faces
    recognizer = fiqa_ray.load_recognizer("smoke:tiny")
    with torch.no_grad():
        wanted = recognizer(torch.from_numpy(crops.transpose(0, 3, 1, 2).copy())).norm(dim=1).numpy()
    for model, more in (
        ("embedding_norm", {"recognizer": recognizer}),
        ("embedding_norm", {"recognizer": "smoke:tiny"}),
        (fiqa_ray.load_scorer("embedding_norm", recognizer), {}),
    ):
        table = fiqa_ray.score(folder, model, **more)
        np.testing.assert_allclose(table["score"].to_numpy(), wanted, rtol=1e-4)
    with pytest.raises(UsageError, match="a loaded scorer has its recognizer"):
        fiqa_ray.score(folder, fiqa_ray.load_scorer("embedding_norm", recognizer), recognizer="smoke:tiny")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (np.zeros((112, 112, 4), np.uint8), r"shape \(112, 112, 4\); wanted"),
        (np.zeros((2, 3, 112, 3), np.uint8), r"shape \(2, 3, 112, 3\); wanted"),
        (np.full((112, 112, 3), 255.0), r"floats from 255 to 255; floats must lie in \[0, 1\]"),
        (np.full((112, 112, 3), np.nan), "floats from nan"),
        (np.full((112, 112, 3), -1), "int64 from -1 to -1"),
        (np.zeros((0, 112, 112, 3)), r"float64 of shape \(0, 112, 112, 3\)"),
        ([b"\xff\xd8"], r"is \|S2 of shape"),
        (np.ma.masked_equal(np.zeros((112, 112, 3)), 0), "masked array"),
        (PIL.Image.fromarray(np.full((112, 112), 40000, np.uint16)), "PIL image of mode I;16"),
        (["a.jpg", np.zeros((112, 112, 3), np.uint8)], "both paths and arrays"),
        ("no/such/folder", "no/such/folder"),
    ],
)
def test_faults_are_said(images, message):
    with pytest.raises(FiqaRayError, match=message):
        fiqa_ray.score(images, redness)


def test_a_raw_image_without_detector_has_a_row(faces):
    table = fiqa_ray.score([faces[0][0], np.zeros((200, 150, 3), np.uint8)], redness)
    assert table["status"].to_pylist() == ["ok", "no_landmarks"]
    assert table["score"].to_pylist()[1] is None


def test_help_shows_the_public_functions():
    text = pydoc.plain(pydoc.render_doc(fiqa_ray))
    for name in ("score", "load_recognizer", "load_scorer", "optimize_labels", "edc_curve", "open_run"):
        start = text.index(f"    {name}(")
        assert "Args:" in text[start : start + 3000], name


def test_import_is_light():
    """Under 0.1 s of CPU more than Python itself, and neither torch nor pyarrow nor Ray is there."""
    code = (
        "import time; at = time.process_time(); import fiqa_ray; took = time.process_time() - at; import sys; "
        "dir(fiqa_ray); print(took, {'torch', 'ray', 'pyarrow', 'numpy', 'numba'} & set(sys.modules))"
    )
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(3)]
    assert all(text.endswith("set()\n") for text in done)
    assert min(float(text.split()[0]) for text in done) < 0.1


def test_progress_and_models_are_told_in_short(faces):
    shares = []
    fiqa_ray.score(faces[1], redness, batch_size=2, progress=shares.append)
    assert shares == [0.4, 0.8, 1.0]
    recognizer = fiqa_ray.load_recognizer("magface_r18", "random:0")
    assert repr(recognizer) == "<Recognizer magface_r18: 512 numbers per face, BGR pixels (v - 0) / 255>"
    assert repr(fiqa_ray.load_scorer("embedding_norm", recognizer)) == "<Scorer embedding_norm on magface_r18, cpu>"
