"""Functions of a user whose results depend on the batch are refused; all others pass unchanged."""

import numpy as np
import pytest
import torch

import fiqa_ray
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.batch_check import BatchCheck

FACES = torch.randint(0, 256, (16, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def brightness(faces):
    return faces.float().mean(dim=(1, 2, 3)).numpy()


def normalised(faces):
    values = brightness(faces)
    return (values - values.mean()) / values.std()


@pytest.mark.parametrize(
    "function",
    [
        normalised,
        lambda faces: brightness(faces) - brightness(faces).min(),
        lambda faces: normalised(faces)[:, None] * np.ones(8),  # embeddings
    ],
)
@pytest.mark.parametrize("n", [2, 16])
def test_a_result_that_depends_on_the_batch_is_refused(function, n):
    with (
        np.errstate(all="ignore"),
        pytest.raises(FiqaRayError, match=r"my\.py:f: a face's result depends on the other faces"),
    ):
        BatchCheck("my.py:f", lambda faces, _: function(faces))(FACES[:n], np.arange(n))


def test_others_pass_and_are_called_twice_more():
    calls = []
    rng = np.random.default_rng(0)

    def plain(faces, _):
        calls.append(len(faces))
        return brightness(faces) + 1e-7 * len(calls)

    check = BatchCheck("plain", plain)
    assert (check(FACES[:1], np.arange(1)) == brightness(FACES[:1]) + 1e-7).all()
    for _ in range(3):
        check(FACES, np.arange(16))
    assert calls == [1, 16, 16, 16, 16, 16]
    BatchCheck("random", lambda faces, _: rng.random(len(faces)))(FACES, np.arange(16))
    BatchCheck("equal", lambda faces, _: np.ones(len(faces)))(FACES, np.arange(16))
    BatchCheck("missing", lambda faces, _: np.full(len(faces), np.nan))(FACES, np.arange(16))


def test_score_refuses_it():
    with pytest.raises(FiqaRayError, match="normalised: a face's result depends on the other faces"):
        fiqa_ray.score(FACES.numpy(), normalised)
