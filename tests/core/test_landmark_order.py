"""Orders of landmarks, judged on drawn and rendered faces whose true points are known."""

import csv
import io
import itertools
import os
import tarfile
from functools import cache

import numpy as np
import pytest

from fiqa_ray.core.align import TEMPLATE, fit_residual, similarity_matrix
from fiqa_ray.core.landmark_order import POINTS, USUAL, LandmarkOrder, better_order, judge_order
from fiqa_ray.synthetic.render import draw_identity, draw_view, render_face

# name -> what stands in a file for points (5, 2) in the template's order; written by hand, not by LandmarkOrder
ORDERS = {
    "standard": lambda q: q,
    "both_exchanged": lambda q: q[[1, 0, 2, 4, 3]],
    "eyes_exchanged": lambda q: q[[1, 0, 2, 3, 4]],
    "mouth_exchanged": lambda q: q[[0, 1, 2, 4, 3]],
    "nose_first": lambda q: q[[2, 0, 1, 3, 4]],
    "nose_last": lambda q: q[[0, 1, 3, 4, 2]],
    "planar": lambda q: q.T,
    "y_first": lambda q: q[:, ::-1],
    "planar+y_first": lambda q: q[:, ::-1].T,
    "planar+nose_first": lambda q: q[[2, 0, 1, 3, 4]].T,
    "y_first+both_exchanged": lambda q: q[[1, 0, 2, 4, 3]][:, ::-1],
    "right_mouth-left_mouth-nose-right_eye-left_eye": lambda q: q[::-1],
    "fractions": lambda q: q / 160,
}


@cache
def true_points(kind):
    """`(40, 5, 2)`: points of faces drawn by hand, of rendered people, and of drawn faces rolled by up to 45 degrees."""
    rng = np.random.default_rng(0)
    if kind == "synthetic":
        people = [draw_identity(rng) for _ in range(10)]
        return np.stack([render_face(person, draw_view(rng), rng)[1] for person in people for _ in range(4)])
    largest = np.pi / 4 if kind == "rotated" else 0.35
    points = []
    for _ in range(40):
        yaw, roll, size = rng.uniform(-0.5, 0.5), rng.uniform(-largest, largest), rng.uniform(0.8, 1.1)
        face = (TEMPLATE + rng.normal(0, 2, (5, 2)) - TEMPLATE.mean(0)) * [np.cos(yaw), 1]
        face[2, 0] += 14 * np.sin(yaw)
        c, s = np.cos(roll), np.sin(roll)
        points.append(size * face @ np.array([[c, s], [-s, c]]) + 80 + rng.uniform(-6, 6, 2))
    return np.stack(points)


def as_given(kind, order):
    return np.stack([ORDERS[order](q).reshape(10) for q in true_points(kind)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["drawn", "synthetic", "rotated"])
def test_a_set_is_right_or_refused_with_the_name_of_its_order(kind, order):
    given, better = judge_order(as_given(kind, order))
    assert given.order.name == "standard"
    if order == "standard":
        assert better is None
        return
    matrices = similarity_matrix(as_given(kind, order).reshape(-1, 5, 2))
    right = similarity_matrix(true_points(kind))
    places = [np.einsum("nij,nkj->nki", m[:, :, :2], true_points(kind)) + m[:, None, :, 2] for m in (matrices, right)]
    assert np.median(np.linalg.norm(places[0] - places[1], axis=2)) > 3  # so that this order must not pass
    assert better is not None
    assert better.order.name == order
    # with its name the points are the true ones, and nothing is better
    arranged = better.order.arrange(as_given(kind, order)) * (160 if order == "fractions" else 1)
    np.testing.assert_allclose(arranged, true_points(kind), atol=1e-9)
    assert judge_order(as_given(kind, order), better.order)[1] is None


@pytest.mark.parametrize(
    "kind", ["drawn", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("synthetic", "rotated"))]
)
def test_every_reading_of_ten_numbers_is_told_apart(kind):
    """All 480 orders, three sets: the one that the numbers have, or none where it is standard."""
    for planar, y_first in itertools.product((False, True), repeat=2):
        for points in itertools.permutations(range(5)):
            order = LandmarkOrder(points, planar, y_first)
            q = true_points(kind)[:, list(points)]
            q = q[:, :, ::-1] if y_first else q
            _, better = judge_order((q.swapaxes(1, 2) if planar else q).reshape(-1, 10))
            assert (better.order if better else LandmarkOrder()) == order


@pytest.mark.skipif("FIQA_RAY_DATA" not in os.environ, reason="FIQA_RAY_DATA names a folder with real faces")
def test_real_faces_with_profiles():
    """280 detected faces of 20 people, a third of them turned far: right is never refused, every other order is named."""
    with tarfile.open(os.path.join(os.environ["FIQA_RAY_DATA"], "vggface2_like_sample.tar")) as tar:
        text = tar.extractfile("raw_sample/bb_landmark/loose_landmark_train.csv").read().decode()
    rows = list(csv.reader(io.StringIO(text)))[1:]
    points = np.array([row[1:] for row in rows], float).reshape(-1, 5, 2)
    assert len(points) == 280
    for name, order in ORDERS.items():
        if name == "fractions":
            continue  # needs the sizes of the images
        _, better = judge_order(np.stack([order(q).reshape(10) for q in points]))
        assert (better.order.name if better else "standard") == name
    assert not [i for i, face in enumerate(points) if better_order(face)]


def test_names_are_read_back():
    for name in [*ORDERS, "fractions+planar+y_first+nose_last"]:
        assert LandmarkOrder.parse(name).name == name
    assert LandmarkOrder.parse("-".join(POINTS)) == LandmarkOrder()
    assert set(USUAL) <= {*ORDERS, "nose_last"}
    for name in ("", "plane", "planar+planar", "nose_first+nose_last", "nose-nose-nose-nose-nose"):
        with pytest.raises(ValueError, match="is no order of landmarks"):
            LandmarkOrder.parse(name)


def test_one_exchanged_face_in_a_good_set_is_that_faces_fault():
    points = true_points("drawn").copy()
    points[7] = points[7][[0, 1, 2, 4, 3]]
    assert judge_order(points.reshape(-1, 10))[1] is None
    odd = [i for i, face in enumerate(points) if better_order(face)]
    assert odd == [7]
    assert better_order(points[7]).order.name == "mouth_exchanged"


def test_single_faces_of_right_order_are_never_refused():
    for kind in ("drawn", "synthetic", "rotated"):
        assert not [i for i, face in enumerate(true_points(kind)) if better_order(face)]
    for yaw in np.linspace(-90, 90, 37):  # a head with depth, from profile to profile
        depth = np.array([0, 0, 22, 8, 8])
        x = (TEMPLATE[:, 0] - 56) * np.cos(np.radians(yaw)) + depth * np.sin(np.radians(yaw))
        face = np.column_stack([x, TEMPLATE[:, 1]])
        assert better_order(face) is None
        assert judge_order(face.reshape(1, 10))[1] is None


def test_a_set_without_usable_landmarks_is_not_judged():
    assert judge_order(np.empty((0, 10))) is None
    assert judge_order([np.full(10, np.nan), np.full(10, 3.0)]) is None


def test_residual_and_roll_of_hand_worked_faces():
    turned = TEMPLATE[:, ::-1] * [-1, 1]  # a quarter turn
    np.testing.assert_allclose(
        fit_residual(np.stack([TEMPLATE, 3 * TEMPLATE + 7, turned])), [[0, 0, 0], [0, 0, -90]], atol=1e-9
    )
    moved = TEMPLATE.copy()
    moved[2] += [0, 5]  # the nose alone: four fifths of it stay after the shift of the mean
    residual, _ = fit_residual(moved)
    least = [np.linalg.norm(moved @ m[:, :2].T + m[:, 2] - TEMPLATE) for m in [similarity_matrix(moved)]]
    assert residual == pytest.approx(least[0] / np.sqrt(5))
    assert 1.5 < residual < 5 * np.sqrt(0.8 / 5) + 1e-9
    assert fit_residual(np.full((5, 2), 4.0)) == (np.inf, 0.0)
