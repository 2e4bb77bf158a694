"""Batches are decoded ahead across parts, in bounded number, and whichever part the models take first."""

import time

import numpy as np
import pyarrow as pa
import pytest

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.packed_faces import pack_face
from fiqa_ray.stages import infer_parts_decoding
from fiqa_ray.stages.infer_parts_decoding import BATCHES_AHEAD, Decoders

N_THREADS = 2


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 112, 112, 3), np.uint8)


@pytest.fixture
def begun(monkeypatch):
    """Count the faces that are decoded."""
    n, decode = [], infer_parts_decoding.decode_packed_faces

    def counted(faces):
        n.append(len(faces))
        return decode(faces)

    monkeypatch.setattr(infer_parts_decoding, "decode_packed_faces", counted)
    monkeypatch.setattr(infer_parts_decoding, "cores", lambda: N_THREADS)
    return n


def column(pixels):
    return pa.chunked_array([[pack_face(face) for face in pixels]], pa.binary())


def check(batches, pixels):
    batches = [batch.numpy() for batch in batches]
    assert all(batch.shape == (2, 3, 112, 112) for batch in batches)
    got = np.concatenate(batches)
    assert np.array_equal(got[: len(pixels)], pixels.transpose(0, 3, 1, 2))
    assert not got[len(pixels) :].any()
    return len(batches)


def settled(begun):
    """Return how many batches have been decoded when no more come."""
    n = -1
    while n != len(begun):
        n = len(begun)
        time.sleep(0.1)
    return n


def test_few_batches_are_decoded_ahead_also_of_the_next_parts(pixels, begun):
    decoders = Decoders(2)
    first, second, third = (decoders.batches(column(pixels[a:b])) for a, b in ((0, 3), (3, 6), (6, 40)))
    assert settled(begun) == BATCHES_AHEAD * N_THREADS  # 2 of the first part, 2 of the second, 2 of the third
    assert check(first, pixels[:3]) == 2
    assert settled(begun) == BATCHES_AHEAD * N_THREADS + 2
    assert check(third, pixels[6:]) == 17  # before the second, whose batches stay ahead
    assert check(second, pixels[3:6]) == 2
    assert sum(begun) == 40


def test_a_part_that_is_taken_before_its_turn_does_not_wait_for_the_others(pixels, begun):
    decoders = Decoders(2)
    waits = decoders.batches(column(pixels[:34]))
    assert check(decoders.batches(column(pixels[34:])), pixels[34:]) == 3
    assert check(waits, pixels[:34]) == 17


def test_a_part_that_is_given_up_or_damaged_leaves_room_for_the_next(pixels, begun):
    decoders = Decoders(2)
    given_up = decoders.batches(column(pixels[:20]))
    next(given_up)
    given_up.close()
    damaged = decoders.batches(pa.chunked_array([[b"no face"] * 20], pa.binary()))
    with pytest.raises(FiqaRayError, match="can no longer be decoded"):
        next(damaged)
    n = settled(begun)
    rest = decoders.batches(column(pixels[20:]))
    assert settled(begun) == n + BATCHES_AHEAD * N_THREADS
    assert check(rest, pixels[20:]) == 10


def test_a_part_without_faces_has_one_batch(begun):
    (batch,) = Decoders(2).batches(pa.chunked_array([], pa.binary()))
    assert batch.shape == (2, 3, 112, 112)
