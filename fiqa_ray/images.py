"""From the bytes of an image file to an aligned 112x112 face, with a named reason wherever that fails.

Pixels are RGB uint8. JPEG, PNG, WebP and BMP are read; sizes and ends of files are checked in the file's own structure
before decoding, because decoders differ here: cut-off JPEGs come back filled up with grey, or even with what the
memory held before. Damage that leaves a valid stream (a flipped bit in JPEG data, a progressive JPEG cut and closed
again) cannot be seen.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fiqa_ray.core.align import FACE_SIZE, degenerate_reason, fit_residual, similarity_matrix
from fiqa_ray.core.landmark_order import better_order
from fiqa_ray.errors import FiqaRayError

cv2.setNumThreads(0)  # the callers are the parallel ones: Ray's workers and the pool below
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, OpenCV 5
_set_log_level(0)  # a bad image is reported by its status, not on stderr

MAX_PIXELS = 1 << 26
"""Images with more pixels (67 million, 200 MB decoded) are refused from their header, undecoded."""
MAX_SIDE = 32766
"""OpenCV's sampler addresses pixels with 16-bit integers."""
MAX_JPEG_SCANS = 100
"""Progressive JPEGs hold about 10 scans; a small file with thousands would keep the decoder busy for hours."""

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
"""Every value of ``PreparedFace.status``."""


@dataclass(frozen=True)
class PreparedFace:
    """A face ready to be stored: an encoded 112x112 image, or why there is none.

    ``face`` is None unless ``status`` is "ok"; ``error`` says in words what ``status`` (one of ``STATUSES``) names.
    ``alignment`` of a face: "landmarks" (given), "detector", or "as_is" (a crop that somebody else made).
    """

    face: bytes | None
    status: str
    error: str | None
    alignment: str | None = None


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """What a file's own structure says, read without decoding a pixel. ``end`` is None where the file is cut off."""

    width: int = 0
    height: int = 0
    end: int | None = None
    n_scans: int = 1


# any marker but stuffed bytes (FF00), fill bytes (FFFF) and the restart markers inside a scan
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg_layout(data: bytes) -> _Layout:
    """Walks the segments, so that a thumbnail's end marker inside a segment is not taken for the image's own."""
    width = height = n_scans = 0
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        code, position = match[1][0], match.end()
        if code == 0xD9:
            return _Layout(width, height, match.start(), n_scans)
        if code in (0x01, 0xD8):
            continue
        if position + 7 <= len(data):
            if code in _JPEG_FRAMES:
                height, width = struct.unpack_from(">HH", data, position + 3)
            n_scans += code == 0xDA
        position += int.from_bytes(data[position : position + 2])
    return _Layout(width, height, None, n_scans)


def _png_layout(data: bytes) -> _Layout:
    if len(data) < 24:
        return _Layout()
    if data[12:16] != b"IHDR":
        return _Layout(end=len(data))  # no decoder takes it
    width, height = struct.unpack_from(">II", data, 16)
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND":
            return _Layout(width, height, position if position <= len(data) else None)
    return _Layout(width, height)


def _webp_layout(data: bytes) -> _Layout:
    if len(data) < 30:
        return _Layout()
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    complete = end if end <= len(data) else None
    kind = data[12:16]
    if kind == b"VP8X":
        return _Layout(1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"), complete)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return _Layout(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), complete)
    width, height = struct.unpack_from("<HH", data, 26)
    return _Layout(width & 0x3FFF, height & 0x3FFF, complete)


def _bmp_layout(data: bytes) -> _Layout:
    if len(data) < 26:
        return _Layout()
    end, _, _, header, width, height = struct.unpack_from("<IIIIii", data, 2)
    if header == 12:  # the OS/2 header has 16-bit sizes
        width, height = struct.unpack_from("<HH", data, 18)
    return _Layout(abs(width), abs(height), end if end <= len(data) else None)


def _layout(data: bytes) -> _Layout | None:
    """The layout of a file of a known format, else None."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_layout(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_layout(data)
    if data.startswith(b"RIFF") and data[8:15] == b"WEBPVP8":
        return _webp_layout(data)
    if data.startswith(b"BM"):
        return _bmp_layout(data)
    return None


def _imdecode(data: bytes) -> NDArray[np.uint8] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else image.astype(np.uint8, copy=False)


def _swap_red_and_blue(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _ends_in_fill(data: bytes, end: int, image: NDArray[np.uint8]) -> bool:
    """Whether a JPEG with an end marker ran out of data before: decoders then fill up with exactly middle grey.

    A picture may well be grey there. The proof is to add data before the end marker: a complete picture is not changed
    by it, a cut one is.
    """
    if not data.startswith(b"\xff\xd8") or not (image[-1, -1] == 128).all():
        return False
    padded = _imdecode(data[:end] + b"\x5a\xc3\x96\x1b" * 16 + data[end:])
    return padded is None or not np.array_equal(padded, image)


def _decode(data: bytes) -> tuple[NDArray[np.uint8] | None, str | None, str | None]:
    """The image ``(h, w, 3)`` RGB, or a status and its explanation."""
    if not data:
        return None, "empty", "the file is empty"
    layout = _layout(data)
    if layout is None:
        return None, "unreadable", "not a JPEG, PNG, WebP or BMP file"
    size = f"{layout.width}x{layout.height} px"
    if layout.width * layout.height > MAX_PIXELS or max(layout.width, layout.height) > MAX_SIDE:
        return None, "too_large", f"{size}; the limit is {MAX_PIXELS} pixels and {MAX_SIDE} px a side"
    if layout.n_scans > MAX_JPEG_SCANS:
        return None, "too_large", f"a JPEG of {layout.n_scans} scans; the limit is {MAX_JPEG_SCANS}"
    if layout.end is None:
        return None, "truncated", f"the file ends early, after {len(data)} bytes"
    image = _imdecode(data)
    if image is None:
        return None, "unreadable", f"{size} by its header, but it cannot be decoded"
    if _ends_in_fill(data, layout.end, image):
        return None, "truncated", "the picture's data end before the picture does"
    return _swap_red_and_blue(image), None, None


def decode_image(data: bytes) -> tuple[NDArray[np.uint8] | None, str | None]:
    """Decodes an image file.

    Returns ``(image, None)`` with image ``(h, w, 3)`` uint8 RGB, or ``(None, reason)`` with reason "empty",
    "unreadable", "truncated" or "too_large". Grey becomes RGB, transparency is dropped, 16 bits become 8, and an EXIF
    orientation is applied, as ``cv2.imread`` does.
    """
    image, reason, _ = _decode(data)
    return image, reason


# --- aligning ---------------------------------------------------------------------------------------------------------


def align_face(image: NDArray[np.uint8], landmarks: ArrayLike) -> NDArray[np.uint8]:
    """Aligned face ``(112, 112, 3)`` uint8 of an image ``(h, w, 3)`` and its landmarks ``(5, 2)`` in px.

    Bilinear, black outside the image: bit for bit ``cv2.warpAffine`` of OpenCV 4.10, which rounds sampling positions to
    1/32 px and with which the released networks' crops were made. Later versions sample exactly, which moves values
    by up to 5 levels; ``cv2.remap`` with its positions given in 1/32 px has the same bits in all of them.
    """
    forward = similarity_matrix(landmarks)
    inverse = cv2.invertAffineTransform(forward)
    at = np.arange(FACE_SIZE)
    positions = []
    for row in inverse:
        # warpAffine's arithmetic: both terms in 1/1024 px, their sum to 1/32 px, half upwards
        terms = np.rint((row[1] * at + row[2]) * 1024)[:, None] + np.rint(row[0] * at * 1024)[None, :]
        positions.append(np.clip(terms, -(2**25), 2**25 - 1).astype(np.int64) + 16 >> 5)
    x, y = positions
    whole = np.stack([x >> 5, y >> 5], axis=-1).clip(-(2**15), 2**15 - 1).astype(np.int16)
    fraction = ((y & 31) << 5 | x & 31).astype(np.uint16)
    face = cv2.remap(image, whole, fraction, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(face, np.uint8)


def encode_png(face: NDArray[np.uint8]) -> bytes:
    """A face ``(h, w, 3)`` uint8 RGB as PNG: lossless, and equal faces give equal bytes.

    Run-length strategy: on faces as small as the best of zlib's, and three times as fast.
    """
    settings = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_COMPRESSION, 1]
    _, encoded = cv2.imencode(".png", _swap_red_and_blue(face), settings)
    return encoded.tobytes()


def prepare_face(
    data: bytes | None,
    landmarks: ArrayLike | None,
    detector: Callable[[NDArray[np.uint8]], NDArray[np.float64] | None] | None = None,
    *,
    fractions: bool = False,
    check_order: bool = True,
) -> PreparedFace:
    """Make the stored face of one image file.

    With landmarks the image is decoded, aligned and stored as PNG. Without landmarks and detector, a file whose image is
    112x112 is aligned already and its bytes stay as they are; another size has status "no_landmarks".

    Args:
        data: the file's content; None: the file is missing.
        landmarks: `(5, 2)` or `(10,)` in px of the image, in the template's order.
        detector: finds landmarks in an image `(h, w, 3) uint8` RGB without given ones, or None: status "no_face".
        fractions: landmarks are fractions of the image's width and height.
        check_order: refuse landmarks that fit another order far better.

    Returns:
        The face, or why there is none. Bad input never raises.
    """
    if data is None:
        return PreparedFace(None, "missing", "no such file")
    image, status, error = _decode(data)
    if image is None:
        return PreparedFace(None, status or "unreadable", error)
    height, width = image.shape[:2]
    alignment = "landmarks"
    if landmarks is None and detector is not None:
        alignment, landmarks, fractions = "detector", detector(image), False
        if landmarks is None:
            return PreparedFace(None, "no_face", f"the detector finds no face in {width}x{height} px")
    if landmarks is None:
        if (height, width) == (FACE_SIZE, FACE_SIZE):
            return PreparedFace(data, "ok", None, "as_is")
        return PreparedFace(
            None, "no_landmarks", f"{width}x{height} px without landmarks; aligned faces are {FACE_SIZE}x{FACE_SIZE}"
        )
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape not in ((5, 2), (10,)):
        return PreparedFace(None, "bad_landmarks", f"landmarks of shape {points.shape}, not (5, 2)")
    points = points.reshape(5, 2) * ((width, height) if fractions else 1)
    fault = _landmark_fault(points, width, height, check_order and alignment == "landmarks")
    if fault is not None:
        return PreparedFace(None, "bad_landmarks", fault)
    return PreparedFace(encode_png(align_face(image, points)), "ok", None, alignment)


def _landmark_fault(points: NDArray[np.float64], width: int, height: int, check_order: bool) -> str | None:
    """Return why landmarks `(5, 2)` cannot align an image of this size, or None."""
    fault = degenerate_reason(points)
    better = better_order(points) if check_order and np.isfinite(points).all() else None
    if better is not None:
        residual, _ = fit_residual(points)
        return (
            f"the landmarks lie {residual:.1f} px from the template; in the order {better.order.name} it would be "
            f"{better.residual_px:.1f} px"
        )
    if fault is None:
        x, y = points.mean(axis=0)
        if not (0 <= x <= width and 0 <= y <= height):
            fault = f"the landmarks' centre ({x:.1f}, {y:.1f}) lies outside the image of {width}x{height} px"
    return fault


# --- batches for inference --------------------------------------------------------------------------------------------


def decode_faces(faces: Sequence[bytes | None], n_threads: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decodes stored faces for the networks.

    Returns ``(n_images, 3, 112, 112)`` uint8 RGB and ``ok`` ``(n_images,)``: False, with zeros in its place, for a face
    that is None, cannot be decoded, or is not 112x112. The result does not depend on ``n_threads``.
    """
    pixels = np.zeros((len(faces), 3, FACE_SIZE, FACE_SIZE), np.uint8)
    ok = np.zeros(len(faces), np.bool_)

    def fill(rows: range) -> None:
        for i in rows:
            image = _decode(faces[i] or b"")[0]
            if image is not None and image.shape[:2] == (FACE_SIZE, FACE_SIZE):
                pixels[i] = image.transpose(2, 0, 1)
                ok[i] = True

    if n_threads <= 1:
        fill(range(len(faces)))
    else:  # OpenCV lets go of Python's lock while it decodes
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(fill, [range(start, len(faces), n_threads) for start in range(n_threads)]))
    return pixels, ok


def decode_packed_faces(faces: Sequence[bytes | None], n_threads: int = 1) -> NDArray[np.uint8]:
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
