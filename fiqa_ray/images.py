"""From the bytes of an image file to an aligned 112x112 face, with a named reason if that fails. Pixels are RGB uint8."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.align import FACE_SIZE, degenerate_reason, fit_residual, similarity_matrix
from fiqa_ray.core.jitter import jitter_matrix
from fiqa_ray.core.landmark_order import better_order
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.image_files import decode, swap_red_and_blue
from fiqa_ray.image_files import decode_image as decode_image
from fiqa_ray.packed_faces import Bytes, is_packed, pack_face, unpack_faces

STATUSES = (
    "ok",
    "missing",
    "empty",
    "unreadable",
    "truncated",
    "too_large",
    "no_landmarks",
    "bad_landmarks",
    "no_face",
    "bad_record",
)
"""Every value of `PreparedFace.status`."""


@dataclass(frozen=True)
class PreparedFace:
    """A face ready to be stored: an encoded 112x112 image, or why there is none.

    Attributes:
        face: the stored form of `packed_faces`, or the file of a 112x112 source; None unless the status is "ok".
        status: one of `STATUSES`.
        error: what the status means here.
        alignment: "landmarks" (given), "detector", or "as_is" (a crop that somebody else made).
        complaint: what libjpeg said of the image, whose face is used nevertheless.
    """

    face: bytes | None
    status: str
    error: str | None
    alignment: str | None = None
    complaint: str | None = None


_AT = np.arange(FACE_SIZE)

# --- aligning ---------------------------------------------------------------------------------------------------------


def align_face(image: NDArray[np.uint8], landmarks: ArrayLike) -> NDArray[np.uint8]:
    """Return the aligned face `(112, 112, 3) uint8` of an image `(h, w, 3)` and its landmarks `(5, 2)` in px.

    Bilinear, black outside the image: bit for bit `cv2.warpAffine` of OpenCV 4.10, which rounds sampling positions to
    1/32 px and with which the released networks' crops were cut. Later versions sample exactly, which moves values
    by up to 5 levels; `cv2.remap` with its positions given in 1/32 px has the same bits in all of them.
    """
    inverse = cv2.invertAffineTransform(similarity_matrix(landmarks))
    whole = np.empty((FACE_SIZE, FACE_SIZE, 2), np.int16)
    fraction = np.zeros((FACE_SIZE, FACE_SIZE), np.uint16)
    for axis, row in enumerate(inverse):
        # warpAffine's arithmetic: both terms in 1/1024 px, their sum to 1/32 px, half upwards
        down, across = np.rint((row[1] * _AT + row[2]) * 1024), np.rint(row[0] * _AT * 1024)
        if np.abs(down).max() + np.abs(across).max() < 2**25:
            position = np.add.outer(down.astype(np.int32) + 16, across.astype(np.int32))
        else:
            position = np.clip(np.add.outer(down, across), -(2**25), 2**25 - 1).astype(np.int32) + 16
        whole[..., axis] = position >> 10  # at most 2^15: an image's side is shorter
        fraction |= ((position >> 5 & 31) << 5 * axis).astype(np.uint16)
    face = cv2.remap(image, whole, fraction, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(face, np.uint8)


def resize_crop(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an aligned crop `(n, n, 3) uint8` at `(112, 112, 3)`: averages of areas where it shrinks, else bilinear."""
    method = cv2.INTER_AREA if len(crop) > FACE_SIZE else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (FACE_SIZE, FACE_SIZE), interpolation=method), np.uint8)


def encode_png(face: NDArray[np.uint8]) -> bytes:
    """Return a picture `(h, w, 3) uint8` RGB as PNG.

    Run-length strategy: on faces as small as the best of zlib's, and three times as fast.
    """
    settings = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_COMPRESSION, 1]
    _, encoded = cv2.imencode(".png", swap_red_and_blue(face), settings)
    return encoded.tobytes()


def face_picture(face: bytes) -> bytes:
    """Return a stored face as an image file: PNG, or the source's own file where that was stored."""
    return encode_png(decode_packed_faces([face])[0].transpose(1, 2, 0)) if is_packed(face) else face


def small_picture(face: bytes) -> bytes:
    """Return a stored face as a JPEG file: a seventh of the bytes of a PNG, and hardly another picture to the eye."""
    pixels = decode_packed_faces([face])[0].transpose(1, 2, 0)
    _, encoded = cv2.imencode(".jpg", swap_red_and_blue(pixels), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return encoded.tobytes()


def prepare_face(
    data: bytes | None,
    landmarks: ArrayLike | None,
    detector: Callable[[NDArray[np.uint8]], NDArray[np.float64] | None] | None = None,
    *,
    fractions: bool = False,
    check_order: bool = True,
    allow_missing_end: bool = False,
    apply_exif: bool = True,
    resize_crops: bool = False,
) -> PreparedFace:
    """Make the stored face of one image file.

    With landmarks the image is decoded, aligned and packed. Without landmarks and detector, a file whose image is
    112x112 is aligned already and its bytes stay as they are, unless libjpeg complains of it: then its pixels are
    packed. Another size has status "no_landmarks", or is resized.

    Args:
        data: the file's content; None: the file is missing.
        landmarks: `(5, 2)` or `(10,)` in px of the image, in the template's order.
        detector: finds landmarks in an image `(h, w, 3) uint8` RGB without given ones, or None: status "no_face".
        fractions: landmarks are fractions of the image's width and height.
        check_order: refuse landmarks that fit another order far better.
        allow_missing_end: accept JPEGs without an end mark whose pixels are all there; the mark is added.
        apply_exif: turn images as their EXIF orientation says.
        resize_crops: take an image of another size for an aligned crop, and resize it.

    Returns:
        The face, or why there is none. Bad input never raises.
    """
    if data is None:
        return PreparedFace(None, "missing", "no such file")
    decoded = decode(data, allow_missing_end=allow_missing_end, apply_exif=apply_exif, catch_complaints=True)
    image, complaint = decoded.image, decoded.complaint
    if image is None:
        return PreparedFace(None, decoded.status, decoded.error)
    height, width = image.shape[:2]
    alignment = "landmarks"
    if landmarks is None and detector is not None:
        alignment, landmarks, fractions = "detector", detector(image), False
        if landmarks is None:
            return PreparedFace(None, "no_face", f"the detector finds no face in {width}x{height} px")
    if landmarks is None:
        if (height, width) == (FACE_SIZE, FACE_SIZE):
            # whoever decodes the stored bytes applies an orientation
            again = image if apply_exif else decode(decoded.data, catch_complaints=True).image
            is_stored = again is not None and np.array_equal(again, image) and complaint is None
            return PreparedFace(decoded.data if is_stored else pack_face(image), "ok", None, "as_is", complaint)
        if resize_crops and height == width:
            return PreparedFace(pack_face(resize_crop(image)), "ok", None, "as_is", complaint)
        return PreparedFace(
            None,
            "no_landmarks",
            f"{width}x{height} px without landmarks; aligned faces are {FACE_SIZE}x{FACE_SIZE}"
            + ("; resize_crops takes square crops" if resize_crops else ""),
        )
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape not in ((5, 2), (10,)):
        return PreparedFace(None, "bad_landmarks", f"landmarks of shape {points.shape}, not (5, 2)")
    points = points.reshape(5, 2) * ((width, height) if fractions else 1)
    fault = _landmark_fault(points, width, height, check_order and alignment == "landmarks")
    if fault is not None:
        return PreparedFace(None, "bad_landmarks", fault)
    return PreparedFace(pack_face(align_face(image, points)), "ok", None, alignment, complaint)


def _landmark_fault(points: NDArray[np.float64], width: int, height: int, check_order: bool) -> str | None:
    """Return why landmarks `(5, 2)` cannot align an image of this size, or None."""
    fault = degenerate_reason(points)
    is_finite = all(map(math.isfinite, points.ravel().tolist()))
    better = better_order(points) if check_order and is_finite else None
    if better is not None:
        residual, _ = fit_residual(points)
        return (
            f"the landmarks lie {residual:.1f} px from the template; in the order {better.order.name} it would be "
            f"{better.residual_px:.1f} px"
        )
    if fault is None:
        x, y = (sum(at) / len(points) for at in points.T.tolist())
        if not (0 <= x <= width and 0 <= y <= height):
            fault = f"the landmarks' centre ({x:.1f}, {y:.1f}) lies outside the image of {width}x{height} px"
    return fault


# --- batches for inference --------------------------------------------------------------------------------------------


def decode_faces(faces: Sequence[Bytes | None], n_threads: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode stored faces for the networks.

    Returns:
        `(I, 3, 112, 112) uint8` RGB, and `(I,) bool`: False, and the pixels 0, for a face that is None, cannot be decoded or
        is not 112x112. The result does not depend on `n_threads`.
    """
    pixels = np.zeros((len(faces), 3, FACE_SIZE, FACE_SIZE), np.uint8)
    ok = np.zeros(len(faces), np.bool_)

    def fill(rows: range) -> None:
        packed = [i for i in rows if is_packed(faces[i] or b"")]
        if packed:
            pixels[packed], ok[packed] = unpack_faces([faces[i] or b"" for i in packed])
        for i in sorted(set(rows) - set(packed)):
            image = decode(bytes(faces[i] or b"")).image
            if image is not None and image.shape[:2] == (FACE_SIZE, FACE_SIZE):
                pixels[i] = image.transpose(2, 0, 1)
                ok[i] = True

    if n_threads <= 1:
        fill(range(len(faces)))
    else:  # OpenCV and Zstandard let go of Python's lock
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(fill, [range(start, len(faces), n_threads) for start in range(n_threads)]))
    return pixels, ok


def decode_packed_faces(faces: Sequence[Bytes | None], n_threads: int = 1) -> NDArray[np.uint8]:
    """Decode faces that were decodable when they were packed.

    Returns:
        `(I, 3, 112, 112) uint8` RGB.

    Raises:
        FiqaRayError: a face cannot be decoded any more.
    """
    pixels, ok = decode_faces(faces, n_threads)
    if not ok.all():
        raise FiqaRayError(
            "a packed face can no longer be decoded, so its part is damaged; remove the part's files and run again"
        )
    return pixels


def jittered_face(face: PreparedFace, image_id: str) -> PreparedFace:
    """Return a stored face moved a little at random; the border is repeated. Faces that could not be made stay."""
    if face.face is None:
        return face
    image = decode_packed_faces([face.face])[0].transpose(1, 2, 0)
    matrix = jitter_matrix(image_id, FACE_SIZE)
    moved = cv2.warpAffine(
        image, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return replace(face, face=pack_face(np.asarray(moved, dtype=np.uint8)))
