"""Scores of images on disk or in a bucket, with a trained regressor or a FIQA method: no YAML, no cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import torch
from numpy.typing import NDArray

from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.engine.progress import note
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import PreparedFace, decode_faces, prepare_face
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.models.quality_scale import FAILED, IDENTITY, QualityScale, card_scale, quality
from fiqa_ray.public_uri import public_text
from fiqa_ray.sources.command_line import ImageFile, read_images
from fiqa_ray.storage import public_uri, write_atomic

ScoreRows = Callable[[torch.Tensor, NDArray[np.int64]], NDArray[np.float32]]
"""Maps `(N, 3, 112, 112) uint8` faces and their `(N,)` rows to `(N,)` scores."""

SCORES = pa.schema(
    [
        ("image_id", pa.string()),  # path below the folder that was given, as in a job whose source is that folder
        ("uri", pa.string()),
        ("score", pa.float64()),  # larger is better; null unless status is "ok"
        ("percentile", pa.float64()),  # share of the regressor's scores of its validation images below, 0..100
        ("quality", pa.int16()),  # 0..100, -1 where there is no score; null where the method has no scale
        ("status", pa.string()),  # one of fiqa_ray.images.STATUSES, or "non_finite"
        ("error", pa.string()),
    ]
)


def score_images(
    images: Sequence[ImageFile],
    scorer: ScoreRows,
    *,
    detector: FaceDetector | None = None,
    validation_scores: Mapping[str, Any] | None = None,
    scale: QualityScale | None = None,
    batch_size: int = 8,
    n_threads: int = 1,
    apply_exif: bool = True,
    resize_crops: bool = False,
    allow_missing_end: bool = False,
    read: Callable[[Sequence[ImageFile]], Iterable[bytes | None]] = read_images,
    advance: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """Score images, larger is better.

    Batches have one fixed shape, and one thread computes each. So a trained regressor gives the same bits as in a job with
    the same batch size.

    Args:
        images: aligned 112x112 crops or, with a detector, raw images.
        scorer: maps `(N, 3, 112, 112) uint8` faces and their `(N,)` rows to `(N,)` scores.
        detector: finds the face in each image, which is then aligned.
        validation_scores: the entry of a regressor's card; without it, percentiles are null.
        scale: how scores become qualities; without it, qualities are null, and -1 where there is no score.
        batch_size: images per call of the scorer.
        n_threads: threads that call the scorer.
        apply_exif: turn images as their EXIF orientation says.
        resize_crops: take square images of another size for aligned crops, and resize them.
        allow_missing_end: accept JPEGs that lack nothing but their end mark.
        read: returns the bytes of images.
        advance: is called with the number of images of each finished batch.

    Returns:
        One row of `SCORES` per image, in order. An image that cannot be scored has a status and an error.
    """

    def score_files(at: int) -> pa.Table:
        batch = images[at : at + batch_size]
        prepared = [
            prepare_face(
                content,
                None,
                detector,
                apply_exif=apply_exif,
                resize_crops=resize_crops,
                allow_missing_end=allow_missing_end,
            )
            for content in read(batch)
        ]
        for image, face in zip(batch, prepared, strict=True):
            if face.complaint is not None:
                note(f"{image.uri}: scored, though libjpeg says: {face.complaint}")
        score = _score_faces(prepared, scorer, batch_size, first_row=at)
        return _score_table(batch, prepared, score, validation_scores, scale)

    tables = []
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for table in pool.map(score_files, range(0, len(images), batch_size)):
            tables.append(table)
            advance(len(table))
    return pa.concat_tables(tables)


def _score_faces(
    prepared: Sequence[PreparedFace], scorer: ScoreRows, batch_size: int, first_row: int
) -> NDArray[np.float64]:
    """Return the score of each usable face, NaN for others; the batch is filled up with black images."""
    score = np.full(len(prepared), np.nan)
    good = [i for i, face in enumerate(prepared) if face.status == "ok"]
    if good:
        faces, _ = decode_faces([prepared[i].face for i in good])
        padded = np.zeros((batch_size, *faces.shape[1:]), np.uint8)
        padded[: len(good)] = faces
        rows = np.full(batch_size, -1, np.int64)
        rows[: len(good)] = first_row + np.array(good)
        score[good] = scorer(torch.from_numpy(padded), rows)[: len(good)]
    return score


def _score_table(
    images: Sequence[ImageFile],
    prepared: Sequence[PreparedFace],
    score: NDArray[np.float64],
    validation_scores: Mapping[str, Any] | None,
    scale: QualityScale | None,
) -> pa.Table:
    bad = ~np.isfinite(score)
    status = ["non_finite" if p.status == "ok" and b else p.status for p, b in zip(prepared, bad, strict=True)]
    non_finite = "the model returned NaN or infinity for this face"
    percents = card_scale({"validation_scores": validation_scores})
    percentile = np.full(len(images), np.nan) if percents is None else percents(score)
    no_quality = ~bad if scale is None else np.zeros(len(bad), bool)
    columns = {
        "image_id": [public_uri(image.name or image.uri) for image in images],
        "uri": [public_uri(image.uri) for image in images],
        "score": pa.array(score, mask=bad),
        "percentile": pa.array(percentile, mask=bad | np.isnan(percentile)),
        "quality": pa.array(quality(score, scale or IDENTITY), mask=no_quality),
        "status": status,
        "error": [
            non_finite if s == "non_finite" else public_text(p.error or "") or None
            for s, p in zip(status, prepared, strict=True)
        ],
    }
    return pa.table(columns, schema=SCORES)


def read_crops(images: Sequence[ImageFile]) -> NDArray[np.uint8]:
    """Read aligned crops as `(I, 3, 112, 112) uint8` RGB.

    Raises:
        FiqaRayError: names the first image that is no such crop.
    """
    prepared = [prepare_face(content, None) for content in read_images(images)]
    for image, face in zip(images, prepared, strict=True):
        if face.status != "ok":
            raise FiqaRayError(f"{image.uri}: {face.error}; give aligned 112x112 crops")
    return decode_faces([face.face for face in prepared])[0]


def check_output(output: str, form: str | None = None, scale: QualityScale | None = None, model: str = "") -> None:
    """Raise UsageError unless `write_scores` can write such a file.

    Args:
        output: where it goes.
        form: `ofiq`, or None for a table by the extension of `output`.
        scale: the model's scale, which OFIQ's form needs.
        model: the model, for the message.
    """
    if form is not None:
        if form != "ofiq":
            raise UsageError(
                f"format {form!r} is unknown; there is ofiq, and a table by the output's ending without it"
            )
        if not output.endswith(".csv"):
            raise UsageError(f"output {output!r}: OFIQ's format is a .csv")
        if scale is None:
            raise UsageError(
                f"{model}: nothing says how its scores become a quality of 0 to 100, which OFIQ's format needs; take a "
                "trained regressor, ofiq_uqs or magface_r50"
            )
        return
    if not output.endswith((".parquet", ".pq", ".csv", ".json", ".jsonl")):
        raise UsageError(f"output {output!r} must end in .parquet, .csv or .json")


def write_scores(table: pa.Table, output: str, form: str | None = None) -> None:
    """Write scores as Parquet, CSV or JSON lines, by the extension of `output`, or as OFIQ's CSV.

    Raises:
        UsageError: the extension is another one.
    """
    if output.endswith((".parquet", ".pq")):
        data = table_bytes(table)
    elif form == "ofiq":
        data = _ofiq_csv(table)
    elif output.endswith(".csv"):
        sink = io.BytesIO()
        pacsv.write_csv(table, sink)
        data = sink.getvalue()
    else:
        data = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    write_atomic(output, data)


def _ofiq_csv(table: pa.Table) -> bytes:
    """Return OFIQ's form: semicolons, raw score and quality of each image, -1 for a failure, one more `;` in the header."""
    lines = ["Filename;UnifiedQualityScore;UnifiedQualityScore.scalar;"]
    columns = (table[name].to_pylist() for name in ("uri", "score", "quality"))
    for uri, score, whole in zip(*columns, strict=True):
        lines.append(f"{uri};{FAILED if score is None else format(score, '.6g')};{whole}")
    return ("\n".join(lines) + "\n").encode()
