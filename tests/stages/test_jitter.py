"""Crop jitter: bounds and order of the moves, the picture that moves so, and a benchmark judged twice."""

import cv2
import numpy as np
import pytest
import yaml

from fiqa_ray.config import make_settings
from fiqa_ray.core.jitter import jitter_matrix
from fiqa_ray.images import PreparedFace, decode_packed_faces, jittered_face, pack_face
from fiqa_ray.job import Job
from fiqa_ray.synthetic.layouts import write_layouts
from fiqa_ray.tools.open_run import open_run


def test_moves_stay_within_their_bounds_and_follow_the_name() -> None:
    matrices = np.array([jitter_matrix(f"p/{i}.png", 112) for i in range(400)])
    centre = np.array([55.5, 55.5, 1.0])
    shift = matrices @ centre - centre[:2]
    scale = np.sqrt(np.linalg.det(matrices[:, :, :2]))
    angle = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    for values, most in ((shift[:, 0], 4), (shift[:, 1], 4), (scale - 1, 0.05), (angle, 5)):
        assert 0.95 * most < np.abs(values).max() <= most
        assert values.std() == pytest.approx(most / np.sqrt(3), rel=0.1)  # uniform on [-most, most]
    np.testing.assert_array_equal(jitter_matrix("p/3.png", 112), matrices[3])


def test_a_picture_moves_as_its_matrix_says() -> None:
    image = np.zeros((112, 112, 3), np.uint8)
    cv2.circle(image, (40, 70), 4, (255, 0, 0), -1)
    face = PreparedFace(pack_face(image), "ok", None)
    moved = decode_packed_faces([jittered_face(face, "x").face])[0].transpose(1, 2, 0)
    weight = moved[:, :, 0].astype(float)
    assert moved[:, :, 2].max() == 0  # colours keep their order
    y, x = np.mgrid[:112, :112]
    centroid = [(weight * axis).sum() / weight.sum() for axis in (x, y)]
    assert centroid == pytest.approx(jitter_matrix("x", 112) @ [40, 70, 1], abs=0.1)
    bad = PreparedFace(None, "missing", "no such file")
    assert jittered_face(bad, "x") is bad


def job(root, **evaluate) -> dict:
    return {
        "name": "judged",
        "run_uri": str(root / "run"),
        "recognizer": {"name": "smoke:tiny", "label": "tiny"},
        "methods": [{"name": "embedding_norm"}],
        "benchmarks": [
            {
                "name": "lfw",
                "source": {"kind": "folder", "uri": str(root / "faces" / "lfw")},
                "pairs": {"kind": "lfw", "uri": str(root / "faces" / "lfw" / "pairs.txt"), "extension": ".png"},
                "scores": {"mine": "mine.csv"},
            }
        ],
        "evaluate": {"fmr": 0.4, "draws": 0, "conventions": ["paper"], **evaluate},
        "compute": {"engine": "local"},
    }


def test_settings_hold_both_copies_once(tmp_path) -> None:
    def names(settings) -> list[tuple[str, bool, list[str]]]:
        return [(b.name, b.source.jitter, list(b.scores)) for b in settings.benchmarks]

    both = make_settings(job(tmp_path, alignment=["as_is", "jitter"]), with_training=False)
    assert names(both) == [("lfw", False, ["mine"]), ("lfw-jitter", True, [])]
    assert names(make_settings(both.model_dump(mode="json"), with_training=False)) == names(both)
    alone = make_settings(job(tmp_path, alignment=["jitter"]), with_training=False)
    assert names(alone) == names(both)[1:]
    plain = make_settings(job(tmp_path), with_training=False)
    assert Job(plain, False).faces("lfw").fingerprint == Job(both, False).faces("lfw").fingerprint
    assert Job(both, False).faces("lfw-jitter").fingerprint != Job(plain, False).faces("lfw").fingerprint


def test_a_benchmark_is_judged_on_both(tmp_path, cli) -> None:
    write_layouts(tmp_path / "faces", n_people=3, n_views=2, n_pairs=10, train=(1, 1))
    values = job(tmp_path, alignment=["as_is", "jitter"])
    del values["benchmarks"][0]["scores"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    code, _, err = cli("evaluate", tmp_path / "job.yaml")
    assert code == 0, err
    run = open_run(str(tmp_path / "run"))
    assert {r["benchmark"] for r in run.areas().to_pylist()} == {"lfw", "lfw-jitter"}
    first, second = (run.comparisons(name, "tiny").to_pylist() for name in ("lfw", "lfw-jitter"))
    assert [(p["image_row_a"], p["image_row_b"], p["mated"]) for p in first] == [
        (p["image_row_a"], p["image_row_b"], p["mated"]) for p in second
    ]
    assert all(p["similarity"] != q["similarity"] for p, q in zip(first, second, strict=True))
