"""The stored form of a face, against sums of its differences by hand, and damage of it."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from fiqa_ray.images import decode_faces, decode_image, encode_png, face_picture, small_picture
from fiqa_ray.packed_faces import is_packed, pack_face, unpack_faces


def faces(n: int) -> np.ndarray:
    """Noise, smooth pictures and a grey one, `(n, 112, 112, 3) uint8`."""
    noise = np.random.default_rng(0).integers(0, 256, (n, 112, 112, 3), dtype=np.uint8)
    return np.stack([np.full_like(x, 77) if i == 1 else cv2.blur(x, (i % 4 + 1,) * 2) for i, x in enumerate(noise)])


def test_pixels_come_back_whatever_their_number() -> None:
    pictures = faces(70)
    packed = [pack_face(face) for face in pictures]
    assert packed == [pack_face(face.copy()) for face in pictures]
    for some in (packed, packed[:1], packed[:64], []):
        pixels, ok = unpack_faces(some)
        assert ok.all()
        np.testing.assert_array_equal(pixels, pictures[: len(some)].transpose(0, 3, 1, 2))


def test_the_layout_as_its_page_says_it() -> None:
    """Cumulative sums over rows modulo 256, then green added to red and blue."""
    face = faces(3)[2]
    content = np.frombuffer(pa.decompress(pack_face(face), 3 * 112 * 112, codec="zstd"), np.uint8)
    summed = content.reshape(112, 3, 112).astype(np.int64).cumsum(axis=0)
    red, green, blue = summed[:, 0], summed[:, 1], summed[:, 2]
    np.testing.assert_array_equal(np.stack([red + green, green, blue + green], axis=-1) % 256, face)


@pytest.mark.parametrize("damage", ["cut", "other length", "longer", "frame of another"])
def test_a_damaged_face_is_named_and_leaves_its_neighbours_alone(damage: str) -> None:
    pictures = faces(3)
    packed = [pack_face(face) for face in pictures]
    other = {
        "cut": packed[1][:-20],
        "other length": bytes(pa.compress(bytes(3 * 111 * 112), codec="zstd", asbytes=True)),
        "longer": bytes(pa.compress(bytes(3 * 113 * 112), codec="zstd", asbytes=True)),
        "frame of another": packed[1][:4] + b"not a frame",
    }
    assert is_packed(other[damage])
    pixels, ok = decode_faces([packed[0], other[damage], packed[2]])
    assert ok.tolist() == [True, False, True]
    assert not pixels[1].any()
    np.testing.assert_array_equal(pixels[2].transpose(1, 2, 0), pictures[2])


def test_batches_mix_both_forms_and_a_picture_of_each_can_be_shown() -> None:
    pictures = faces(9)
    stored = [pack_face(face) if i % 3 else encode_png(face) for i, face in enumerate(pictures)]
    for n_threads in (1, 4):
        pixels, ok = decode_faces(stored, n_threads)
        assert ok.all()
        np.testing.assert_array_equal(pixels, pictures.transpose(0, 3, 1, 2))
    for face, data in zip(pictures, stored, strict=True):
        np.testing.assert_array_equal(decode_image(face_picture(data))[0], face)
    assert face_picture(stored[0]) == stored[0]


def test_a_small_picture_looks_like_the_face():
    x, y = np.meshgrid(np.arange(112), np.arange(112))
    face = np.stack([2 * x, 2 * y, x + y], axis=2).astype(np.uint8)  # red rises to the right, green downwards
    small = small_picture(pack_face(face))
    assert np.abs(decode_image(small)[0].astype(int) - face).mean() < 2
    assert len(small) < 5000
