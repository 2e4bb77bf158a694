import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_ray.core.align import TEMPLATE, degenerate_reason, similarity_matrix

GOLDEN = Path(__file__).parent.parent / "golden" / "method_checks.json"


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Umeyama 1991, eq. (40)-(42): SVD of the covariance, reflection excluded by the sign matrix."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, d, vt = np.linalg.svd(covariance)
    sign = np.array([1.0, np.sign(np.linalg.det(covariance))])
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / ((source - source_mean) ** 2).sum(1).mean()
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_published_matrix_of_the_vggface2_example() -> None:
    golden = json.loads(GOLDEN.read_text())["alignment"]
    landmarks = np.array(golden["landmarks"], dtype=float)
    np.testing.assert_array_equal(TEMPLATE, golden["template"])
    matrix = similarity_matrix(landmarks)
    np.testing.assert_allclose(matrix, golden["matrix"], atol=1e-5)  # printed from float32 input
    residual = np.linalg.norm(apply(matrix, landmarks) - TEMPLATE, axis=1)
    np.testing.assert_allclose(residual, golden["residual_px"], atol=0.005)


def test_template_maps_to_itself_and_a_shift_is_seen() -> None:
    np.testing.assert_allclose(similarity_matrix(TEMPLATE), [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(similarity_matrix(TEMPLATE - [8, 0]), [[1, 0, 8], [0, 1, 0]], atol=1e-12)


def test_batch_equals_umeyama_row_by_row() -> None:
    faces = np.random.default_rng(0).normal(size=(50, 5, 2)) * [[[40, 30]]] + 100
    expected = np.stack([umeyama(face, TEMPLATE) for face in faces])
    np.testing.assert_allclose(similarity_matrix(faces), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(similarity_matrix(faces[7]), similarity_matrix(faces)[7])


@given(
    scale=st.floats(0.05, 50),
    angle=st.floats(-np.pi, np.pi),
    shift=st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)),
)
def test_a_known_similarity_is_recovered(scale: float, angle: float, shift: tuple[float, float]) -> None:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    forward = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])
    landmarks = apply(forward, TEMPLATE)
    found = similarity_matrix(landmarks)
    full = np.vstack([found, [0, 0, 1]]) @ np.vstack([forward, [0, 0, 1]])
    np.testing.assert_allclose(full, np.eye(3), atol=1e-6)
    if scale > 0.1:
        assert degenerate_reason(landmarks) is None


@pytest.mark.parametrize(
    ("landmarks", "words"),
    [
        (np.where(np.arange(10).reshape(5, 2) == 3, np.nan, TEMPLATE), "not finite"),
        (np.where(np.arange(10).reshape(5, 2) == 9, np.inf, TEMPLATE), "not finite"),
        (np.full((5, 2), 50.0), "coincide"),
        (np.zeros((5, 2)), "coincide"),
        (TEMPLATE * 0.01, "coincide"),
        (TEMPLATE * 1e9, "outside any image"),
        (TEMPLATE[[1, 0, 2, 4, 3]], "do not form a face"),  # left and right exchanged
        (TEMPLATE[:, ::-1], "do not form a face"),  # y, x instead of x, y
    ],
)
def test_degenerate_landmarks_are_named(landmarks: np.ndarray, words: str) -> None:
    assert words in str(degenerate_reason(landmarks))


def test_profile_views_are_accepted() -> None:
    for squeeze in (0.5, 0.2, 0.05):
        assert degenerate_reason(TEMPLATE * [squeeze, 1]) is None


def test_degenerate_rows_are_nan_and_leave_their_neighbours_alone() -> None:
    matrices = similarity_matrix(np.stack([np.full((5, 2), 3.0), TEMPLATE]))
    assert np.isnan(matrices[0]).any()
    np.testing.assert_allclose(matrices[1], [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("shape", [(10,), (4, 2), (2, 5), (1, 2, 5, 2)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        similarity_matrix(np.zeros(shape))
