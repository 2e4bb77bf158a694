"""The synthetic faces: repeatable, where their landmarks say, damaged as their table says, and written as announced."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from fiqa_ray.core.align import TEMPLATE, similarity_matrix
from fiqa_ray.errors import UsageError
from fiqa_ray.synthetic.damage import DEGRADATION_KINDS, Degradation, degrade
from fiqa_ray.synthetic.dataset import identity_rng, person_name, true_quality, write_synthetic_faces
from fiqa_ray.synthetic.render import FaceView, draw_identity, draw_view, render_face

SMALL = {
    "n_identities": 3,
    "images_per_identity": 5,
    "n_heldout_identities": 6,
    "heldout_images_per_identity": 4,
    "n_folds": 2,
    "pairs_per_fold": 17,
    "seed": 3,
}
FRONTAL = FaceView(
    yaw=0.0,
    pitch=0.0,
    roll=0.0,
    smile=0.2,
    mouth_open=0.0,
    eye_open=1.0,
    brow_raise=0.0,
    gaze=0.0,
    light_azimuth=0.3,
    light_elevation=0.3,
    light_contrast=0.3,
    exposure=1.0,
    colour_gain=(1.0, 1.0, 1.0),
    gamma=1.0,
    face_height=140.0,
    margin=1.35,
    shift_x=0.0,
    shift_y=0.0,
)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "below" / "faces"
    write_synthetic_faces(root, **SMALL, n_workers=1)
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_files_do_not_depend_on_the_number_of_workers(written: Path, tmp_path: Path) -> None:
    write_synthetic_faces(tmp_path / "again", **SMALL, n_workers=2)
    assert files_of(tmp_path / "again") == files_of(written)


def test_another_seed_gives_other_faces_and_more_people_leave_the_first_ones_alone(
    written: Path, tmp_path: Path
) -> None:
    before = files_of(written)
    write_synthetic_faces(tmp_path / "more", **(SMALL | {"n_identities": 4}), n_workers=1)
    more = files_of(tmp_path / "more")
    pictures = {name for name in before if name.endswith(".jpg")}
    assert all(more[name] == before[name] for name in pictures)
    write_synthetic_faces(tmp_path / "other", **(SMALL | {"seed": 4, "n_identities": 1}), n_workers=1)
    other = files_of(tmp_path / "other")
    assert not any(other[name] == before[name] for name in pictures & set(other))


def test_an_existing_folder_is_kept_or_refused_but_never_written_into(written: Path, tmp_path: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    write_synthetic_faces(written, **SMALL, n_workers=1)
    with pytest.raises(UsageError, match="other settings"):
        write_synthetic_faces(written, **(SMALL | {"seed": 9}), n_workers=1)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == stamps
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="something else"):
        write_synthetic_faces(tmp_path, **SMALL, n_workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_settings_that_cannot_be_met_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    # 3 people with 4 pictures: 3 * (4 choose 2) = 18 mated pairs a fold
    with pytest.raises(UsageError, match="18 mated"):
        write_synthetic_faces(tmp_path / "a", **(SMALL | {"pairs_per_fold": 19}), n_workers=1)
    with pytest.raises(UsageError, match="n_identities=0"):
        write_synthetic_faces(tmp_path / "a", **(SMALL | {"n_identities": 0}), n_workers=1)
    assert list(tmp_path.iterdir()) == []


def test_lists_and_pictures_match_one_to_one(written: Path) -> None:
    landmark_rows = rows_of(written / "bb_landmark" / "loose_landmark_train.csv")
    heldout_rows = rows_of(written / "heldout_faces.csv")
    text = (written / "bb_landmark" / "loose_landmark_train.csv").read_text()
    assert text.startswith("NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n")
    assert all(line.startswith('"n00000') for line in text.splitlines()[1:])
    uris = [f"train/{row['NAME_ID']}.jpg" for row in landmark_rows] + [row["uri"] for row in heldout_rows]
    assert sorted(uris) == sorted(str(path.relative_to(written)) for path in written.rglob("*.jpg"))
    truth = rows_of(written / "degradations.csv")
    assert sorted(row["image_id"] for row in truth) == sorted(uri.partition("/")[2] for uri in uris)
    assert all(row["uri"].split("/")[1] == row["identity"] for row in heldout_rows)
    for row, keys in [
        *((row, [f"P{point}{axis}" for point in range(1, 6) for axis in "XY"]) for row in landmark_rows),
        *((row, [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]) for row in heldout_rows),
    ]:
        name = row["uri"] if "uri" in row else f"train/{row['NAME_ID']}.jpg"
        picture = cv2.imread(str(written / name))
        points = np.array([float(row[key]) for key in keys]).reshape(5, 2)
        assert picture is not None
        assert ((points > 0) & (points < picture.shape[0])).all()
        assert points[0, 0] < points[1, 0]
        assert points[3, 0] < points[4, 0]
        assert points[:2, 1].max() < points[3:, 1].min()
    for row in truth:
        kind, strength, quality = row["kind"], float(row["strength"]), float(row["quality"])
        assert (kind == "none" and strength == 0) or (kind in DEGRADATION_KINDS and 0 < strength <= 1)
        assert quality <= 1 - strength


def test_the_pair_list_follows_lfws_grammar(written: Path) -> None:
    header, *lines = (written / "heldout_pairs.txt").read_text().splitlines()
    n_folds, n_pairs = map(int, header.split("\t"))
    assert (n_folds, n_pairs) == (SMALL["n_folds"], SMALL["pairs_per_fold"])
    assert len(lines) == 2 * n_folds * n_pairs
    seen, people_of_fold = set(), []
    for fold in range(n_folds):
        block = [line.split("\t") for line in lines[2 * n_pairs * fold : 2 * n_pairs * (fold + 1)]]
        people = set()
        for at, fields in enumerate(block):
            mated = at < n_pairs
            assert len(fields) == (3 if mated else 4)
            name_a, number_a, name_b, number_b = (fields[0], fields[1], fields[0], fields[2]) if mated else fields
            assert mated or name_a != name_b
            pair = frozenset([f"{name_a}_{int(number_a):04d}", f"{name_b}_{int(number_b):04d}"])
            assert len(pair) == 2
            assert pair not in seen
            seen.add(pair)
            assert all((written / "heldout" / image[:-5] / f"{image}.jpg").is_file() for image in pair)
            people |= {name_a, name_b}
        people_of_fold.append(people)
    assert all(not a & b for a, b in itertools.combinations(people_of_fold, 2))


def test_made_up_names_are_distinct() -> None:
    names = [person_name(i) for i in range(5000)]
    assert len(set(names)) == len(names)
    assert all(name.count("_") == 1 and name.replace("_", "").isalpha() for name in names)


def with_green_eyes(view: FaceView, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A face without glasses whose irises are pure green, to be found in the picture by their colour alone."""
    identity = draw_identity(identity_rng(seed, 7, 0))
    for name, value in (("iris_rgb", np.array([0.0, 255.0, 0.0])), ("glasses", 0)):
        object.__setattr__(identity, name, value)
    return render_face(identity, view, identity_rng(seed, 7, 0, 0))


@pytest.mark.parametrize("yaw", [-0.6, 0.0, 0.5])
@pytest.mark.parametrize("pitch", [-0.25, 0.2])
@pytest.mark.parametrize("roll", [-0.3, 0.15])
def test_eye_landmarks_lie_in_the_middle_of_the_eyes(yaw: float, pitch: float, roll: float) -> None:
    view = FaceView(**(FRONTAL.__dict__ | {"yaw": yaw, "pitch": pitch, "roll": roll}))
    picture, landmarks = with_green_eyes(view, 5)
    colours = picture.astype(int)
    green = (colours[..., 1] > 90) & (colours[..., 1] > 2 * np.maximum(colours[..., 0], colours[..., 2]))
    rows, columns = np.nonzero(green)
    for eye in landmarks[:2]:
        near = np.hypot(columns - eye[0], rows - eye[1]) < 12
        assert near.sum() > 8
        # The lids cut the iris above and below, and the glint leaves a hole in it: the centre is known to about a pixel.
        assert np.hypot(columns[near].mean() - eye[0], rows[near].mean() - eye[1]) < 1.3


def test_landmarks_of_a_frontal_face_fit_the_template() -> None:
    for seed in range(8):
        identity = draw_identity(identity_rng(seed, 7, 1))
        _, landmarks = render_face(identity, FRONTAL, identity_rng(seed, 7, 1, 0))
        aligned = np.c_[landmarks, np.ones(5)] @ similarity_matrix(landmarks).T
        assert np.abs(aligned - TEMPLATE).max() < 9  # people differ; a shifted or mixed-up point would be farther off


def test_turning_moves_the_nose_and_keeps_the_person() -> None:
    identity = draw_identity(identity_rng(0, 7, 2))
    offsets = []
    for yaw in (-0.6, -0.3, 0.0, 0.3, 0.6):
        _, points = render_face(identity, FaceView(**(FRONTAL.__dict__ | {"yaw": yaw})), identity_rng(0, 7, 2, 0))
        offsets.append(float(points[2, 0] - points[[0, 1, 3, 4], 0].mean()))
    assert np.all(np.diff(offsets) > 2)  # towards the image's right with growing yaw
    assert abs(offsets[2]) < 0.5
    assert offsets[0] == pytest.approx(-offsets[4], abs=0.01)


@pytest.mark.parametrize("kind", DEGRADATION_KINDS)
def test_stronger_damage_is_farther_from_the_clean_picture(kind: str) -> None:
    levels = (0.0, 0.15, 0.4, 0.7, 1.0)
    distance, sharpness, brightness = np.zeros((3, len(levels)))
    for person in range(4):
        identity = draw_identity(identity_rng(1, 7, person))
        clean, landmarks = render_face(
            identity, draw_view(identity_rng(1, 7, person, 0)), identity_rng(1, 7, person, 1)
        )
        for at, strength in enumerate(levels):
            damaged = degrade(clean, landmarks, Degradation(kind, strength), identity_rng(2, 7, person))
            assert damaged.shape == clean.shape
            assert damaged.dtype == np.uint8
            distance[at] += np.abs(damaged.astype(float) - clean).mean()
            sharpness[at] += cv2.Laplacian(cv2.cvtColor(damaged, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
            brightness[at] += damaged.mean()
    assert distance[0] == 0
    assert np.all(np.diff(distance) > 0)
    if kind in ("blur", "low_resolution"):
        assert np.all(np.diff(sharpness) < 0)
    if kind == "noise":
        assert np.all(np.diff(sharpness) > 0)
    if kind == "darkness":
        assert np.all(np.diff(brightness) < 0)


def test_true_quality_falls_with_strength_and_with_turning_away() -> None:
    turned = FaceView(**(FRONTAL.__dict__ | {"yaw": 0.8}))
    assert true_quality(FRONTAL, Degradation("none", 0.0)) == 1.0
    assert true_quality(FRONTAL, Degradation("blur", 0.3)) > true_quality(FRONTAL, Degradation("noise", 0.5))
    assert true_quality(turned, Degradation("none", 0.0)) < 1.0
