"""Scores of images on disk or in a bucket, with a trained regressor or a FIQA method: no YAML, no cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import torch

from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import decode_faces, prepare_face
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.models.regressor import percentiles
from fiqa_ray.sources.command_line import ImageFile, read_images
from fiqa_ray.storage import write_atomic

SCORES = pa.schema(
    [
        ("uri", pa.string()),
        ("score", pa.float64()),  # larger is better; null unless status is "ok"
        ("percentile", pa.float64()),  # share of the regressor's scores of its validation images below, 0..100
        ("status", pa.string()),  # one of fiqa_ray.images.STATUSES, or "non_finite"
        ("error", pa.string()),
    ]
)


def score_images(
    images: Sequence[ImageFile],
    scorer: Callable[[torch.Tensor, np.ndarray], np.ndarray],
    *,
    detector: FaceDetector | None = None,
    validation_scores: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    n_threads: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """One row of `SCORES` per image, in order; larger is better.

    Images must be aligned 112x112 crops, or a ``detector`` finds the face in each and it is aligned; what has none keeps a
    row with status and error. Batches have one fixed shape, and
    each is one thread's work: with a job's batch size a trained regressor gives the job's scores bit for bit.
    ``validation_scores`` is that of the regressor's card; without, percentiles are null.
    """

    def score_batch(at: int) -> pa.Table:
        chunk = images[at : at + batch_size]
        prepared = [prepare_face(content, None, detector) for content in read_images(chunk)]
        good = [i for i, p in enumerate(prepared) if p.status == "ok"]
        score = np.full(len(chunk), np.nan)
        status = [p.status for p in prepared]
        if good:
            faces, _ = decode_faces([prepared[i].face for i in good])
            batch = np.zeros((batch_size, *faces.shape[1:]), np.uint8)
            batch[: len(good)] = faces
            rows = np.full(batch_size, -1, np.int64)
            rows[: len(good)] = at + np.array(good)
            score[good] = scorer(torch.from_numpy(batch), rows)[: len(good)]
            for i in good:
                if not np.isfinite(score[i]):
                    status[i] = "non_finite"
        bad = ~np.isfinite(score)
        percentile = percentiles(score, validation_scores) if validation_scores else np.full(len(chunk), np.nan)
        columns = {
            "uri": [image.uri for image in chunk],
            "score": pa.array(score, mask=bad),
            "percentile": pa.array(percentile, mask=bad | np.isnan(percentile)),
            "status": status,
            "error": [
                "the model returned NaN or infinity for this face" if s == "non_finite" else p.error
                for s, p in zip(status, prepared, strict=True)
            ],
        }
        return pa.table(columns, schema=SCORES)

    tables = []
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for table in pool.map(score_batch, range(0, len(images), batch_size)):
            tables.append(table)
            advance(len(table))
    return pa.concat_tables(tables)


def read_crops(images: Sequence[ImageFile]) -> np.ndarray:
    """Reads aligned crops as ``(n_images, 3, 112, 112)`` uint8 RGB; `FiqaRayError` names the first that is none."""
    prepared = [prepare_face(content, None) for content in read_images(images)]
    for image, face in zip(images, prepared, strict=True):
        if face.status != "ok":
            raise FiqaRayError(f"{image.uri}: {face.error}; give aligned 112x112 crops")
    return decode_faces([face.face for face in prepared])[0]


def check_output(output: str) -> None:
    """Raises `UsageError` unless `write_scores` knows the ending of ``output``."""
    if not output.endswith((".parquet", ".pq", ".csv", ".json", ".jsonl")):
        raise UsageError(f"output {output!r} must end in .parquet, .csv or .json")


def write_scores(table: pa.Table, output: str) -> None:
    """Writes scores as Parquet, CSV or JSON lines, by the ending of ``output``; `UsageError` for another ending."""
    check_output(output)
    if output.endswith((".parquet", ".pq")):
        data = table_bytes(table)
    elif output.endswith(".csv"):
        sink = io.BytesIO()
        pacsv.write_csv(table, sink)
        data = sink.getvalue()
    else:
        data = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    write_atomic(output, data)
