"""The bytes of an image file as pixels, with a named reason if there are none.

JPEG, PNG, WebP and BMP are read. Sizes and ends of files are checked in the file's structure before decoding, because
decoders differ here: cut-off JPEGs come back filled up with grey, or even with what the memory held before. Damage that
leaves a valid stream (a flipped bit in JPEG data, a progressive JPEG cut and closed again) cannot be seen; of other damage
libjpeg complains.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fiqa_ray.decoder_output import decoder_lines

cv2.setNumThreads(0)  # the callers are the parallel ones: Ray's workers and pools of threads
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, OpenCV 5
_set_log_level(0)  # a bad image is reported by its status, not on stderr

MAX_PIXELS = 1 << 26
"""Images with more pixels (67 million, 200 MB decoded) are refused from their header, undecoded."""
MAX_SIDE = 32766
"""OpenCV's sampler addresses pixels with 16-bit integers."""
MAX_JPEG_SCANS = 100
"""Progressive JPEGs hold about 10 scans; a small file with thousands would keep the decoder busy for hours."""

_OTHER_KINDS: tuple[tuple[int, bytes, str], ...] = (  # position, bytes, what the file is
    (0, b"GIF8", "a GIF"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftypavis", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftyphev", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"\0\x05\x16\x07", "AppleDouble (macOS's notes on a file)"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"P5", "a PGM image"),
    (0, b"P6", "a PPM image"),
    (0, b"/9j/", "base64 text of a JPEG"),
    (0, b"iVBORw0KGgo", "base64 text of a PNG"),
    (0, b"data:image", "a data URI"),
    (0, b"<svg", "an SVG"),
    (0, b"<!doctype", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "XML text"),
    (0, b"version https://git-lfs", "a git-LFS pointer (run git lfs pull)"),
)


@dataclass(frozen=True)
class _Layout:
    """What a file's structure says, read without decoding a pixel.

    Attributes:
        width: in px.
        height: in px.
        end: first byte after the picture; None if the file is cut off.
        n_scans: scans of a JPEG.
        is_baseline: whether it is a JPEG whose data come in one pass, without marks in between.
        has_notes: whether it is a PNG with chunks that change no pixel.
        fault: why no decoder should see the file.
    """

    width: int = 0
    height: int = 0
    end: int | None = None
    n_scans: int = 1
    is_baseline: bool = False
    has_notes: bool = False
    fault: str | None = None


@dataclass(frozen=True)
class Decoded:
    """A decoded image file, or why there is none.

    Attributes:
        image: `(h, w, 3) uint8` RGB, or None.
        status: "ok", "empty", "unreadable", "truncated" or "too_large".
        error: what the status means here.
        data: the file's content, with its end mark if that was missing.
        complaint: what libjpeg said of a picture that it decoded; None where it was asked for none.
    """

    image: NDArray[np.uint8] | None
    status: str
    error: str | None
    data: bytes = b""
    complaint: str | None = None


def decode(
    data: bytes, *, allow_missing_end: bool = False, apply_exif: bool = True, catch_complaints: bool = False
) -> Decoded:
    """Decode an image file.

    Grey becomes RGB, transparency is dropped, 16 bits become 8, and an EXIF orientation is applied, as `cv2.imread` does;
    PIL's `Image.open` leaves it.

    Args:
        data: the file's content.
        allow_missing_end: accept a JPEG without end mark if all its pixels are there, as some phones write it.
        apply_exif: turn the image as its EXIF orientation says.
        catch_complaints: return what libjpeg says of a damaged picture, in place of a line on stderr.
    """
    if not data:
        return Decoded(None, "empty", "the file is empty")
    layout = _layout(data)
    if layout is None:
        return Decoded(None, "unreadable", f"not a JPEG, PNG, WebP or BMP file{_other_kind(data)}")
    size = f"{layout.width}x{layout.height} px"
    if layout.width * layout.height > MAX_PIXELS or max(layout.width, layout.height) > MAX_SIDE:
        return Decoded(None, "too_large", f"{size}; the limit is {MAX_PIXELS} pixels and {MAX_SIDE} px a side")
    if layout.n_scans > MAX_JPEG_SCANS:
        return Decoded(None, "too_large", f"a JPEG of {layout.n_scans} scans; the limit is {MAX_JPEG_SCANS}")
    if layout.fault is not None:
        return Decoded(None, "unreadable", layout.fault)
    if layout.end is None:
        with _lines(catch_complaints):  # of bytes that are added here
            closed = _closed_jpeg(data, layout) if allow_missing_end else None
        if closed is None:
            hint = "; if only its end mark is missing, allow_missing_end reads it" if layout.is_baseline else ""
            return Decoded(None, "truncated", f"the file ends early, after {len(data)} bytes{hint}")
        data, layout = closed, _jpeg_layout(closed)
    catches = catch_complaints and data.startswith(b"\xff\xd8")
    with _lines(catches) as lines:
        image = _imdecode(_plain_png(data) if layout.has_notes else data, apply_exif)
    if image is None:
        return Decoded(None, "unreadable", f"{size} by its header, but it cannot be decoded")
    with _lines(catches):
        is_cut = _ends_in_fill(data, layout.end or len(data), image, apply_exif)
    if is_cut:
        return Decoded(None, "truncated", "the picture's data end before the picture does")
    return Decoded(swap_red_and_blue(image), "ok", None, data, "; ".join(lines) or None)


def decode_image(data: bytes) -> tuple[NDArray[np.uint8] | None, str | None]:
    """Decode an image file; return the image `(h, w, 3) uint8` RGB and None, or None and the status of `decode`."""
    decoded = decode(data)
    return decoded.image, None if decoded.image is not None else decoded.status


def swap_red_and_blue(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image in the other order of channels, RGB or BGR."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _other_kind(data: bytes) -> str:
    start = data[:64].lstrip().lower() if data[:1] in b" \r\n\t<" else data[:64]
    kind = next((name for at, first, name in _OTHER_KINDS if start[at : at + len(first)] == first), None)
    return f" but {kind}" if kind else ""


def _lines(catch: bool) -> AbstractContextManager[list[str]]:
    """Catch libjpeg's lines, or let them pass."""
    return decoder_lines() if catch else nullcontext([])


def _imdecode(data: bytes, apply_exif: bool = True) -> NDArray[np.uint8] | None:
    flags = cv2.IMREAD_COLOR if apply_exif else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else image.astype(np.uint8, copy=False)


def _layout(data: bytes) -> _Layout | None:
    """Return the layout of a file of a known format, else None."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_layout(data)
    if data.startswith(_PNG):
        return _png_layout(data)
    if data.startswith(b"RIFF") and data[8:15] == b"WEBPVP8":
        return _webp_layout(data)
    if data.startswith(b"BM"):
        return _bmp_layout(data)
    return None


# --- JPEG -------------------------------------------------------------------------------------------------------------

# any marker but stuffed bytes (FF00), fill bytes (FFFF) and the restart markers inside a scan
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_END = b"\xff\xd9"
_PADDINGS = (b"\x5a\xc3\x96\x1b" * 16, b"\xa5\x3c\x69\xe4" * 16)


def _jpeg_layout(data: bytes) -> _Layout:
    """Walk the segments, so that a thumbnail's end mark inside a segment is not taken for the image's."""
    width = height = n_scans = 0
    is_baseline = has_restarts = False
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        code, position = match[1][0], match.end()
        if code == 0xD9:
            return _Layout(width, height, match.start(), n_scans, is_baseline and not has_restarts)
        if code in (0x01, 0xD8):
            continue
        if position + 7 <= len(data):
            if code in _JPEG_FRAMES:
                height, width = struct.unpack_from(">HH", data, position + 3)
                is_baseline = code in (0xC0, 0xC1)
            has_restarts |= code == 0xDD and data[position + 2 : position + 4] != b"\0\0"
            n_scans += code == 0xDA
        position += int.from_bytes(data[position : position + 2])
    return _Layout(width, height, None, n_scans, is_baseline and not has_restarts)


def _closed_jpeg(data: bytes, layout: _Layout) -> bytes | None:
    """Return a JPEG without end mark with one, if all its pixels are there; else None.

    Phones append notes (Samsung's begin with SEFH and end in SEFT) and may leave the mark out. The proof is that bytes
    added before the mark change no pixel: a picture that lacks data takes them for its own.
    """
    if not layout.is_baseline or layout.n_scans != 1:
        return None
    notes = data.rfind(b"SEFH") if data.endswith(b"SEFT") else -1
    whole = (data[:notes] if notes > 0 else data).rstrip(b"\xff")  # which would make a mark of what follows
    image = _imdecode(whole + _JPEG_END)
    for padding in _PADDINGS:
        padded = _imdecode(whole + padding + _JPEG_END)
        if image is None or padded is None or not np.array_equal(padded, image):
            return None
    return whole + _JPEG_END


def _ends_in_fill(data: bytes, end: int, image: NDArray[np.uint8], apply_exif: bool) -> bool:
    """Return whether a JPEG with an end mark ran out of data before: decoders then fill up with exactly middle grey.

    A picture may well be grey there. The proof is to add data before the end mark: a complete picture is not changed by it,
    a cut one is.
    """
    if not data.startswith(b"\xff\xd8") or not (image[-1, -1] == 128).all():
        return False
    padded = _imdecode(data[:end] + _PADDINGS[0] + data[end:], apply_exif)
    return padded is None or not np.array_equal(padded, image)


# --- PNG --------------------------------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}


def _png_layout(data: bytes) -> _Layout:
    """Walk the chunks and check what the decoder would complain about on stderr: sums, sizes and the header's numbers."""
    if len(data) < 24:
        return _Layout()
    if data[12:16] != b"IHDR":
        return _Layout(end=len(data), fault="a PNG that does not begin with its header")
    width, height = struct.unpack_from(">II", data, 16)
    fault = "a PNG of 0 px" if not width or not height else None
    position, has_notes, kinds = 8, False, []
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        start, position = position + 4, position + 12 + length
        has_notes |= kind not in _PNG_KEPT
        if position <= len(data) and kind in _PNG_KEPT and fault is None:
            kinds.append(kind)
            if zlib.crc32(data[start : position - 4]) != int.from_bytes(data[position - 4 : position]):
                fault = f"the PNG's {kind.decode()} is damaged (its check sum differs)"
        if kind == b"IEND":
            end = position if position <= len(data) else None
            return _Layout(width, height, end, has_notes=has_notes, fault=fault or _png_fault(data, kinds))
    return _Layout(width, height)


def _png_fault(data: bytes, kinds: list[bytes]) -> str | None:
    depth, colour, compression, filtering, interlace = data[24:29]
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        return "a PNG whose header says what no PNG is"
    if b"IDAT" not in kinds or (colour == 3 and b"PLTE" not in kinds):
        return "a PNG without pixels or palette"
    return None


def _plain_png(data: bytes) -> bytes:
    """Return a PNG without the chunks that change no pixel, of which the decoder may complain on stderr."""
    pieces, position = [_PNG], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in _PNG_KEPT:
            pieces.append(data[position:end])
        position = end
        if kind == b"IEND":
            break
    return b"".join(pieces)


# --- WebP and BMP -----------------------------------------------------------------------------------------------------


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
    """Return the layout by the header; of plain pixels the end is counted, because files often state a wrong size."""
    if len(data) < 26:
        return _Layout()
    end, _, first, header, width, height = struct.unpack_from("<IIIIii", data, 2)
    bits, compression = 0, None
    if header == 12:  # the OS/2 header has 16-bit sizes
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    elif len(data) >= 34:
        bits, compression = struct.unpack_from("<HI", data, 28)
    if compression in (0, 3, 6):
        end = first + (abs(width) * bits + 31) // 32 * 4 * abs(height)
    return _Layout(abs(width), abs(height), end if end <= len(data) else None)
