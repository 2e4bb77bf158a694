"""Size, encoding and decoding of a stored face in several lossless forms, and the rate of `pack` against a bare loop.

python benchmarks/face_files.py [--faces FOLDER] [--n 256] [--json FILE]

Faces are synthetic, or the 112x112 images of a folder. Each form is timed in processor seconds of one thread, five rounds in
turn; the median counts. `stored` is what a run stores (`fiqa_ray/packed_faces.py`). WebP at its fast settings, JPEG XL, QOI
and HTJ2K need the package imagecodecs. `threads` decodes by one and by all cores. `pack` makes faces of photographs with
landmarks: `prepare_face` against a loop of the same decoding, warping and packing, without checks of file and landmarks.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.core.align import FACE_SIZE, TEMPLATE
from fiqa_ray.image_files import swap_red_and_blue
from fiqa_ray.images import align_face, decode_faces, prepare_face
from fiqa_ray.packed_faces import pack_face, unpack_faces
from fiqa_ray.sources.command_line import list_images, read_images
from fiqa_ray.synthetic.dataset import HELDOUT_PART, aligned_faces

Face = NDArray[np.uint8]
Form = tuple[Callable[[Face], bytes], Callable[[bytes], Face]]
N_ROUNDS = 5
PHOTO_SIDE = 200
"""Pixels of a side of the photographs that `pack` reads: as wide as the median crop of VGGFace2."""
SHAPE = (FACE_SIZE, FACE_SIZE, 3)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", help="folder of 112x112 images; default: synthetic faces")
    parser.add_argument("--n", type=int, default=256, help="faces")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    cv2.setNumThreads(0)
    faces = read_faces(a.faces, a.n) if a.faces else synthetic_faces(a.n)
    result: dict[str, Any] = {"faces": "of a folder" if a.faces else "synthetic", "n_faces": len(faces)}
    result["forms"] = measure_forms(faces)
    result["threads"] = measure_threads(faces)
    result["pack"] = measure_pack(faces)
    print(json.dumps(result["pack"]))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


def synthetic_faces(n: int) -> Face:
    """Return synthetic faces `(n, 112, 112, 3) uint8` RGB."""
    return np.concatenate([aligned_faces((7, HELDOUT_PART, k, 4)) for k in range(-(-n // 8))])[:n]


def read_faces(folder: str, n: int) -> Face:
    """Return the faces `(n, 112, 112, 3) uint8` RGB of a folder, evenly spaced."""
    files = list_images([folder])
    some = [files[i] for i in np.linspace(0, len(files) - 1, min(n, len(files))).astype(int)]
    pixels, ok = decode_faces([content for content in read_images(some) if content is not None])
    return np.ascontiguousarray(pixels[ok].transpose(0, 2, 3, 1))


def forms() -> dict[str, Form]:
    """Return the forms: how to encode a face, and how to decode it."""

    def by_opencv(suffix: str, *settings: int) -> Form:
        return (
            lambda face: cv2.imencode(suffix, swap_red_and_blue(face), settings)[1].tobytes(),
            lambda data: swap_red_and_blue(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)),  # type: ignore[arg-type]
        )

    def raw(name: str, level: int | None) -> Form:
        codec = pa.Codec(name, level)
        return (
            lambda face: bytes(codec.compress(face, asbytes=True)),
            lambda data: np.frombuffer(codec.decompress(data, face_bytes), np.uint8).reshape(SHAPE),
        )

    face_bytes = int(np.prod(SHAPE))
    level, strategy = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY
    chosen: dict[str, Form] = {
        "PNG, run lengths": by_opencv(".png", strategy, cv2.IMWRITE_PNG_STRATEGY_RLE, level, 1),
        **{f"PNG, level {n}": by_opencv(".png", level, n) for n in (1, 3, 6, 9)},
        "WebP, OpenCV": by_opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
        "pixels, lz4": raw("lz4_raw", None),
        **{f"pixels, zstd {n}": raw("zstd", n) for n in (1, 3, 9)},
        "stored: differences, zstd 1": (pack_face, lambda data: unpack_faces([data])[0][0].transpose(1, 2, 0)),
    }
    if importlib.util.find_spec("imagecodecs"):
        codecs: Any = importlib.import_module("imagecodecs")
        for n in (0, 4):
            chosen[f"WebP, method {n}"] = (
                lambda face, n=n: codecs.webp_encode(face, lossless=True, method=n, numthreads=1),  # type: ignore[misc]
                codecs.webp_decode,
            )
        for n in (1, 3):
            chosen[f"JPEG XL, effort {n}"] = (
                lambda face, n=n: codecs.jpegxl_encode(face, lossless=True, effort=n, numthreads=1),  # type: ignore[misc]
                lambda data: codecs.jpegxl_decode(data, numthreads=1),
            )
        chosen["QOI"] = codecs.qoi_encode, codecs.qoi_decode
        chosen["HTJ2K"] = (lambda face: codecs.htj2k_encode(face, reversible=True)), codecs.htj2k_decode
    return chosen


def measure_forms(faces: Face) -> dict[str, dict[str, int]]:
    """Return bytes, and microseconds of encoding and decoding, of a face in each form."""
    chosen = forms()
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in chosen}
    encoded = {name: [encode(face) for face in faces[:32]] for name, (encode, _) in chosen.items()}
    for name, (encode, decode) in chosen.items():
        for face, data in zip(faces, encoded[name], strict=False):
            if not np.array_equal(decode(data), face):
                raise SystemExit(f"{name} is not lossless")
        encoded[name] = [encode(face) for face in faces]
    for _ in range(N_ROUNDS):
        for name, (encode, decode) in chosen.items():
            slow = faces[: max(8, len(faces) // 16)]
            seconds[name][0].append(_seconds(encode, list(slow)))
            seconds[name][1].append(_seconds(decode, encoded[name]))
    rows = {}
    for name, (encoding, decoding) in seconds.items():
        rows[name] = {
            "bytes": round(statistics.mean(map(len, encoded[name]))),
            "encode_us": round(1e6 * statistics.median(encoding)),
            "decode_us": round(1e6 * statistics.median(decoding)),
            "decoded_per_s": round(1 / statistics.median(decoding)),
        }
        print(json.dumps({"form": name, **rows[name]}), flush=True)
    batches = [_seconds(lambda data: unpack_faces(data), [encoded["stored: differences, zstd 1"]]) for _ in range(5)]
    rows["stored, 256 at once"] = {"decoded_per_s": round(len(faces) / statistics.median(batches))}
    print(json.dumps(rows["stored, 256 at once"]), flush=True)
    return rows


def measure_threads(faces: Face) -> dict[str, int]:
    """Return faces per second of the clock that `decode_faces` decodes, by its number of threads."""
    data = [pack_face(face) for face in faces] * 8
    rates = {}
    for n in sorted({1, os.cpu_count() or 1}):
        decode_faces(data, n)
        started = time.perf_counter()
        for _ in range(4):
            decode_faces(data, n)
        rates[str(n)] = round(4 * len(data) / (time.perf_counter() - started))
    print(json.dumps({"threads": rates}), flush=True)
    return rates


def measure_pack(faces: Face) -> dict[str, float]:
    """Return photographs per second that become faces, by `prepare_face` and by a bare loop, and the ratio of medians."""
    scale = PHOTO_SIDE / FACE_SIZE
    photos = [
        cv2.imencode(".jpg", swap_red_and_blue(cv2.resize(face, (PHOTO_SIDE, PHOTO_SIDE))))[1].tobytes()  # type: ignore[arg-type]
        for face in faces
    ]
    landmarks = TEMPLATE * scale + 2 * np.random.default_rng(0).normal(size=(len(faces), 5, 2))

    def bare(item: tuple[bytes, Any]) -> bytes:
        image = swap_red_and_blue(cv2.imdecode(np.frombuffer(item[0], np.uint8), cv2.IMREAD_COLOR))  # type: ignore[arg-type]
        return pack_face(align_face(image, item[1]))

    items = list(zip(photos, landmarks, strict=True))
    if any(prepare_face(*item).status != "ok" for item in items):
        raise SystemExit("a photograph was refused")
    seconds: dict[str, list[float]] = {"pack": [], "bare": []}
    for _ in range(N_ROUNDS):
        seconds["bare"].append(_seconds(bare, items))
        seconds["pack"].append(_seconds(lambda item: prepare_face(*item), items))
    rates = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    return {
        "pack_per_s": round(rates["pack"]),
        "bare_per_s": round(rates["bare"]),
        "ratio": round(rates["pack"] / rates["bare"], 3),
    }


def _seconds(call: Callable[[Any], object], items: list[Any]) -> float:
    """Return the processor seconds of a call, averaged over items."""
    started = time.process_time()
    for item in items:
        call(item)
    return (time.process_time() - started) / len(items)


if __name__ == "__main__":
    main()
