import io
import os
import re
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from fiqa_ray.core.align import TEMPLATE, similarity_matrix
from fiqa_ray.decoder_output import decoder_lines
from fiqa_ray.images import align_face, decode_faces, decode_image, encode_png, prepare_face
from fiqa_ray.packed_faces import pack_face

Image = NDArray[np.uint8]
JPEG_KINDS: dict[str, list[int]] = {
    "baseline": [cv2.IMWRITE_JPEG_QUALITY, 91],
    "progressive": [cv2.IMWRITE_JPEG_QUALITY, 91, cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart": [cv2.IMWRITE_JPEG_QUALITY, 91, cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
}


def picture(height: int = 112, width: int = 112, seed: int = 0) -> Image:
    """A smooth coloured RGB picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def encoded(image: Image, suffix: str = ".jpg", settings: list[int] | None = None) -> bytes:
    return cv2.imencode(suffix, image[..., ::-1], settings or [])[1].tobytes()


def with_needless_bytes(data: bytes) -> bytes:
    """A JPEG with bytes before its end mark that belong to no pixel, of which libjpeg complains."""
    return data[:-2] + b"\x11\x22\x33\x44" * 4 + data[-2:]


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_lossless_formats_give_back_the_rgb_pixels(suffix: str) -> None:
    image = picture(60, 90)
    settings = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    decoded, reason = decode_image(encoded(image, suffix, settings))
    assert reason is None
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpeg_keeps_the_order_of_colours_and_tolerates_trailing_bytes(kind: str) -> None:
    red = np.zeros((40, 30, 3), np.uint8)
    red[..., 0] = 200
    data = encoded(red, settings=JPEG_KINDS[kind])
    for file in (data, data + b"appended by a careless tool" * 9):
        decoded, reason = decode_image(file)
        assert reason is None
        assert decoded is not None
        assert decoded.dtype == np.uint8
        assert decoded.shape == (40, 30, 3)
        assert np.abs(decoded.astype(int) - red).max() <= 3


def test_grey_and_transparent_pictures_become_rgb() -> None:
    grey = picture()[..., 0]
    decoded, _ = decode_image(cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))
    rgba = np.dstack([picture(), np.full((112, 112), 7, np.uint8)])
    decoded, _ = decode_image(cv2.imencode(".png", rgba[..., [2, 1, 0, 3]])[1].tobytes())
    np.testing.assert_array_equal(decoded, rgba[..., :3])


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_jpeg_cut_anywhere_is_truncated(kind: str) -> None:
    data = encoded(picture(), settings=JPEG_KINDS[kind])
    for n in [3, 10, 200, *range(300, len(data) - 1, len(data) // 40), len(data) - 2, len(data) - 1]:
        assert decode_image(data[:n]) == (None, "truncated"), n
        assert decode_image(data[:n] + bytes(len(data) - n)) == (None, "truncated"), n  # its space was reserved


@pytest.mark.parametrize("kind", ["baseline", "restart"])
def test_a_cut_jpeg_that_was_closed_again_is_truncated(kind: str) -> None:
    """The decoder accepts these and fills up with grey."""
    data = encoded(picture(), settings=JPEG_KINDS[kind])
    start = data.index(b"\xff\xda") + 14
    for n in range(start, len(data) * 9 // 10, len(data) // 20):
        closed = data[:n] + b"\xff\xd9"
        assert cv2.imdecode(np.frombuffer(closed, np.uint8), cv2.IMREAD_COLOR) is not None
        assert decode_image(closed) == (None, "truncated"), n


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_picture_that_is_grey_at_its_end_is_whole(kind: str) -> None:
    image = picture()
    image[60:] = 128
    for whole in (image, np.full_like(image, 128)):
        decoded, reason = decode_image(encoded(whole, settings=JPEG_KINDS[kind]))
        assert reason is None
        assert decoded is not None
        assert (decoded[-1, -1] == 128).all()


def test_the_end_of_a_thumbnail_is_not_the_end_of_its_picture() -> None:
    thumbnail = encoded(picture(16, 16))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    plain = encoded(picture())
    data = plain[:2] + segment + plain[2:]
    decoded, reason = decode_image(data)
    assert reason is None
    np.testing.assert_array_equal(decoded, decode_image(plain)[0])
    assert decode_image(data[:-400]) == (None, "truncated")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_other_formats_cut_anywhere_are_truncated(suffix: str) -> None:
    data = encoded(picture(), suffix)
    for n in [18, 30, 60, len(data) // 3, len(data) * 9 // 10, len(data) - 1]:
        assert decode_image(data[:n]) == (None, "truncated"), n


def test_sizes_are_limited_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(8, 8)
    png, bmp = encoded(image, ".png"), encoded(image, ".bmp")
    lossy, lossless = encoded(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]), encoded(image, ".webp", [64, 101])
    assert lossy[12:16] == b"VP8 "
    assert lossless[12:16] == b"VP8L"
    extended = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\x3f" + b"\xff\xff\x3f" + bytes(8)
    bombs = {
        "jpeg": with_jpeg_size(encoded(image), 60000, 60000),
        "jpeg, one side": with_jpeg_size(encoded(image), 40000, 10),
        "jpeg, scans": encoded(image)[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 1000 + b"\xff\xd9",
        "png": png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:],
        "bmp": bmp[:18] + struct.pack("<ii", 30000, -30000) + bmp[26:],
        "webp": lossy[:26] + struct.pack("<HH", 16383, 16383) + lossy[30:],
        "webp, lossless": lossless[:21] + b"\xff\xff\xff\x0f" + lossless[25:],
        "webp, extended": extended,
    }
    monkeypatch.setattr(cv2, "imdecode", None)  # calling it would raise
    for name, data in bombs.items():
        assert decode_image(data) == (None, "too_large"), name


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(5000), "unreadable"),
        (b"<html><body>404 Not Found</body></html>", "unreadable"),
        (b"\xff\xd8\xff\xd9", "unreadable"),
        (with_jpeg_size(encoded(picture()), 0, 112), "unreadable"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IEND\xae\x42\x60\x82" * 3, "unreadable"),
        (b"GIF89a" + bytes(50), "unreadable"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    assert decode_image(data) == (None, reason)
    face = prepare_face(data, TEMPLATE)
    assert (face.face, face.status) == (None, reason)
    assert face.error


def test_garbage_never_raises() -> None:
    rng = np.random.default_rng(5)
    files = [encoded(picture(), suffix) for suffix in (".jpg", ".png", ".webp", ".bmp")]
    for i in range(200):
        data = bytearray(files[i % 4])
        for at in rng.integers(0, len(data), rng.integers(1, 200)):
            data[at] = rng.integers(256)
        for file in (
            bytes(data),
            bytes(data[: rng.integers(len(data))]),
            rng.bytes(300),
            b"\xff\xd8\xff" + rng.bytes(99),
        ):
            image, reason = decode_image(file)
            assert (image is None) != (reason is None)


# --- what files are in everyday life ---


OTHER_KINDS = {
    "a GIF": b"GIF89a" + bytes(50),
    "a TIFF": b"MM\0*" + bytes(50),
    "an AVIF image": b"\0\0\0\x1cftypavif" + bytes(50),
    "a HEIC image": b"\0\0\0\x18ftypheic" + bytes(50),
    "an HTML page": b"\n  <!DOCTYPE html><html>403 Forbidden</html>",
    "base64 text of a JPEG": b"/9j/4AAQSkZJRgABAQ" * 5,
    "base64 text of a PNG": b"iVBORw0KGgoAAAANSUhEUg" * 5,
    "a git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
    "AppleDouble": bytes.fromhex("0005160700020000") + bytes(60),
    "a PDF": b"%PDF-1.7" + bytes(50),
    "a zip archive": b"PK\x03\x04" + bytes(50),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_files_are_named(kind: str) -> None:
    face = prepare_face(OTHER_KINDS[kind], None)
    assert face.status == "unreadable"
    assert f"not a JPEG, PNG, WebP or BMP file but {kind}" in str(face.error)


def test_a_jpeg_without_end_mark_is_read_where_allowed() -> None:
    """All pixels are there: also with a phone's notes behind. The stored face has its mark and is read like any other."""
    data = encoded(picture(), settings=JPEG_KINDS["baseline"])
    wanted, _ = decode_image(data)
    notes = b"SEFH" + bytes(range(200)) * 4 + b"SEFT"
    for file in (data[:-2], data[:-2] + notes):
        refused = prepare_face(file, None)
        assert refused.status == "truncated"
        assert "if only its end mark is missing, allow_missing_end reads it" in str(refused.error)
        face = prepare_face(file, None, allow_missing_end=True)
        assert (face.status, face.face) == ("ok", data)
        np.testing.assert_array_equal(decode_faces([face.face])[0][0].transpose(1, 2, 0), wanted)


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_cut_jpeg_stays_truncated_where_missing_marks_are_allowed(kind: str) -> None:
    data = encoded(picture(), settings=JPEG_KINDS[kind])
    start = data.index(b"\xff\xda") + 14
    marks = [i + k for i in range(start, len(data) - 20) if data[i] == 0xFF for k in (0, 1, 2)]  # where decoders stop
    for n in [*range(start, len(data) - 20, (len(data) - start) // 40), *marks]:
        assert prepare_face(data[:n], None, allow_missing_end=True).status == "truncated", n


def test_a_bitmap_with_a_wrong_size_field_is_read() -> None:
    for channels, suffix in ((3, ".bmp"), (1, ".bmp")):
        image = picture(111, 37) if channels == 3 else picture(111, 37)[..., 0]
        data = encoded(image, suffix) if channels == 3 else cv2.imencode(suffix, image)[1].tobytes()
        for size in (0, 2, len(data) + 2, 2**32 - 1):
            wrong = data[:2] + struct.pack("<I", size) + data[6:]
            np.testing.assert_array_equal(decode_image(wrong)[0], decode_image(data)[0])
        assert decode_image(data[:-1]) == (None, "truncated")


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def test_pngs_say_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """Notes that libpng complains of are passed over, damage is named; neither reaches the terminal."""
    data = encoded(picture(), ".png")
    header, rest = data[:33], data[33:]
    for notes in (
        chunk(b"iCCP", b"x\0\0" + b"no profile"),
        chunk(b"tEXt", b"a\0b", crc=1),
        chunk(b"gAMA", b"\0\0\0\0"),
        chunk(b"sRGB", b"\x09") * 2,
        chunk(b"pHYs", b"1"),
    ):
        np.testing.assert_array_equal(decode_image(header + notes + rest)[0], picture())
    damaged = bytearray(data)
    damaged[60] ^= 1
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 112, 8, 2, 0, 0, 0))
    odd = chunk(b"IHDR", struct.pack(">IIBBBBB", 112, 112, 5, 2, 0, 0, 0))
    palette = chunk(b"IHDR", struct.pack(">IIBBBBB", 112, 112, 8, 3, 0, 0, 0))
    for file in (bytes(damaged), data[:19] + b"\1" + data[20:], *(data[:8] + h + rest for h in (ihdr, odd, palette))):
        assert decode_image(file) == (None, "unreadable")
    assert capfd.readouterr() == ("", "")


def test_what_libjpeg_says_of_an_image_is_caught_and_other_lines_are_not(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(picture())
    face = prepare_face(with_needless_bytes(data), None)
    assert face.status == "ok"
    assert face.complaint is not None
    assert re.match(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9", face.complaint)
    assert prepare_face(data, None).complaint is None
    assert face.face is not None
    pixels = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    stored = decode_faces([face.face])[0][0].transpose(1, 2, 0)  # its pixels, of which nobody complains later
    assert np.abs(stored.astype(int) - pixels).max() <= 3  # decoders round differently
    with decoder_lines() as lines:
        os.write(2, b"of another thread\nCorrupt JPEG data: x\n")
    assert lines == ["Corrupt JPEG data: x"]
    assert capfd.readouterr().err == "of another thread\n"


# --- aligning ---------------------------------------------------------------------------------------------------------


def slow_warp(image: Image, matrix: NDArray[np.float64]) -> Image:
    """Bilinear sampling on a grid of 1/32 px in exact integers, pixel by pixel."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    height, width = image.shape[:2]
    face = np.zeros((112, 112, 3), np.uint8)
    for v in range(112):
        for u in range(112):
            column = np.rint(inverse[:, 0] * u * 1024)
            row = np.rint((inverse[:, 1] * v + inverse[:, 2]) * 1024)
            x, y = (int(p) for p in (column + row + 16) // 32)
            total = np.zeros(3, int)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                if 0 <= y // 32 + dy < height and 0 <= x // 32 + dx < width:
                    weight = (y % 32 if dy else 32 - y % 32) * (x % 32 if dx else 32 - x % 32)
                    total += weight * image[y // 32 + dy, x // 32 + dx].astype(int)
            face[v, u] = (total + 512) // 1024
    return face


def turned(scale: float, angle: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return TEMPLATE @ rotation.T + shift


@pytest.mark.parametrize(
    "landmarks",
    [turned(1.3, 0.2, (30, 5)), turned(0.6, -0.4, (20, 60)), turned(2.4, 3.0, (250, 200)), turned(1, 0, (-30, -40))],
)
def test_alignment_is_exact_bilinear_sampling_on_a_fixed_grid(landmarks: NDArray[np.float64]) -> None:
    image = picture(180, 150, seed=3)
    face = align_face(image, landmarks)
    matrix = similarity_matrix(landmarks)
    np.testing.assert_array_equal(face, slow_warp(image, matrix))
    # and OpenCV's own, whatever its version samples like
    own = cv2.warpAffine(image, matrix, (112, 112), flags=cv2.INTER_LINEAR, borderValue=0)
    difference = np.abs(own.astype(int) - face)
    assert difference.mean() < 0.5
    assert difference.max() <= 12  # at the black border


def test_template_landmarks_give_the_image_and_a_shift_moves_it() -> None:
    image = picture()
    np.testing.assert_array_equal(align_face(image, TEMPLATE), image)
    shifted = align_face(image, TEMPLATE - [8, 0])
    np.testing.assert_array_equal(shifted[:, 8:], image[:, :-8])
    assert (shifted[:, :8] == 0).all()


def test_an_upside_down_face_is_turned_upright() -> None:
    image = picture()
    np.testing.assert_array_equal(align_face(image[::-1, ::-1], 111 - TEMPLATE), image)


# --- faces ------------------------------------------------------------------------------------------------------------


def test_png_is_lossless_and_repeatable() -> None:
    face = picture()
    data = encode_png(face)
    assert data == encode_png(face.copy())
    np.testing.assert_array_equal(decode_image(data)[0], face)


def test_an_aligned_file_keeps_its_bytes() -> None:
    for data in (encoded(picture()), encoded(picture(), ".png"), encoded(picture(), ".bmp")):
        assert prepare_face(data, None).face == data


def test_landmarks_in_both_shapes_give_the_aligned_face() -> None:
    image = picture(200, 170)
    landmarks = turned(1.2, 0.1, (15, 20))
    prepared = prepare_face(encoded(image, ".png"), landmarks)
    assert (prepared.status, prepared.error) == ("ok", None)
    assert prepared.face == pack_face(align_face(image, landmarks))
    assert prepare_face(encoded(image, ".png"), landmarks.reshape(10)) == prepared


@pytest.mark.parametrize(
    ("landmarks", "status", "words"),
    [
        (None, "no_landmarks", "150x130"),
        (np.full((5, 2), np.nan), "bad_landmarks", "not finite"),
        (np.zeros((5, 2)), "bad_landmarks", "coincide"),
        (TEMPLATE + 500, "bad_landmarks", "outside the image of 150x130"),
        (TEMPLATE[:4], "bad_landmarks", "shape"),
    ],
)
def test_landmark_faults_are_named(landmarks: NDArray[np.float64] | None, status: str, words: str) -> None:
    prepared = prepare_face(encoded(picture(130, 150)), landmarks)
    assert (prepared.face, prepared.status) == (None, status)
    assert words in str(prepared.error)


def test_a_detectors_landmarks_serve_where_none_are_given() -> None:
    image, points = picture(200, 170), turned(1.2, 0.1, (15, 20))
    data = encoded(image, ".png")
    by_list = prepare_face(data, points)
    assert by_list.alignment == "landmarks"
    found = prepare_face(data, None, lambda seen: points if np.array_equal(seen, image) else None)
    assert (found.face, found.alignment) == (by_list.face, "detector")
    assert prepare_face(data, points, lambda _: None) == by_list
    aligned = encoded(picture())
    assert prepare_face(aligned, None).alignment == "as_is"
    missed = prepare_face(aligned, None, lambda _: None)  # the detector decides, also at 112x112
    assert (missed.face, missed.status) == (None, "no_face")


def test_a_missing_file_is_named() -> None:
    assert prepare_face(None, TEMPLATE).status == "missing"


def test_one_bad_file_in_a_hundred_is_found_and_harms_no_other() -> None:
    whole = [encoded(picture(112, 112, seed=i)) for i in range(20)] * 25
    damage = {
        7: (whole[7][: len(whole[7]) // 2], "truncated"),
        133: (b"", "empty"),
        260: (bytes(len(whole[0])), "unreadable"),
        377: (b"not an image\n" * 40, "unreadable"),
        499: (with_jpeg_size(whole[0], 65000, 65000), "too_large"),
    }
    files = [damage[i][0] if i in damage else data for i, data in enumerate(whole)]
    prepared = [prepare_face(data, None) for data in files]
    assert {i: p.status for i, p in enumerate(prepared) if p.status != "ok"} == {i: s for i, (_, s) in damage.items()}

    pixels, ok = decode_faces([p.face for p in prepared])
    assert pixels.shape == (500, 3, 112, 112)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(np.flatnonzero(~ok), sorted(damage))
    assert (pixels[~ok] == 0).all()
    for i in (0, 8, 498):
        np.testing.assert_array_equal(pixels[i].transpose(1, 2, 0), decode_image(whole[i])[0])
    threaded, threaded_ok = decode_faces(files, n_threads=4)  # type: ignore[arg-type]
    np.testing.assert_array_equal(threaded, pixels)
    np.testing.assert_array_equal(threaded_ok, ok)


def test_decode_faces_refuses_other_sizes_and_takes_an_empty_batch() -> None:
    _, ok = decode_faces([encoded(picture(112, 111)), None, encoded(picture())])
    assert ok.tolist() == [False, False, True]
    assert decode_faces([])[0].shape == (0, 3, 112, 112)


# --- settings of decoding ---------------------------------------------------------------------------------------------


def _with_orientation(image: Image, orientation: int, kind: str) -> bytes:
    """Encode by PIL, with an EXIF orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, kind, exif=exif.tobytes(), **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


TURNS = {  # orientation -> what a viewer does to the stored pixels, by the EXIF standard
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_exif_orientation_is_applied_or_ignored(orientation, kind) -> None:
    stored = picture(112, 112, seed=orientation)
    data = _with_orientation(stored, orientation, kind)
    as_pil_reads = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    tolerance = 0 if kind == "PNG" else 3  # decoders of JPEG round differently
    for apply_exif, wanted in ((True, TURNS[orientation](as_pil_reads)), (False, as_pil_reads)):
        prepared = prepare_face(data, None, apply_exif=apply_exif)
        assert prepared.status == "ok"
        (face,), _ = decode_faces([prepared.face])
        assert np.abs(face.transpose(1, 2, 0).astype(int) - wanted).max() <= tolerance
    # landmarks are in px of the image that is aligned
    loose = picture(200, 300, seed=orientation)
    data = _with_orientation(loose, orientation, "PNG")
    points = TEMPLATE + np.array([90, 40])
    ignored = prepare_face(data, points, apply_exif=False)
    assert ignored.face == prepare_face(encoded(loose, ".png"), points).face


def test_crops_of_another_size_are_resized_when_asked() -> None:
    crop = picture()
    large = encoded(crop.repeat(2, axis=0).repeat(2, axis=1), ".png")
    refused = prepare_face(large, None)
    assert refused.status == "no_landmarks"
    resized = prepare_face(large, None, resize_crops=True)
    assert (resized.status, resized.alignment) == ("ok", "as_is")
    (face,), _ = decode_faces([resized.face])
    assert np.array_equal(face.transpose(1, 2, 0), crop)  # the mean of four equal pixels
    grey = prepare_face(encoded(np.full((96, 96, 3), 77, np.uint8), ".png"), None, resize_crops=True)
    (face,), _ = decode_faces([grey.face])
    assert face.shape == (3, 112, 112)
    assert (face == 77).all()
    # a photograph is no crop, and the bytes of a 112x112 crop stay
    assert prepare_face(encoded(picture(120, 200)), None, resize_crops=True).status == "no_landmarks"
    assert prepare_face(encoded(crop), None, resize_crops=True).face == encoded(crop)
