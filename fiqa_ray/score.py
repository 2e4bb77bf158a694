"""Scores of images on disk or in a bucket, with a trained regressor or a FIQA method: no YAML, no cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import torch

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import decode_faces, prepare_face
from fiqa_ray.sources.faces import EXTENSIONS, read_face_bytes
from fiqa_ray.storage import filesystem, storage_errors, table_bytes, write_atomic

SCORES = pa.schema([("uri", pa.string()), ("score", pa.float64()), ("status", pa.string()), ("error", pa.string())])


def expand(places: Sequence[str]) -> list[str]:
    """Image URIs of files, folders (searched below) and globs, in order, without repeats; `FiqaRayError` if none."""
    found: dict[str, None] = {}
    for place in places:
        with storage_errors(place):
            fs, path = filesystem(place)
            if fs.isdir(path):
                names = sorted(fs.find(path))
            elif fs.exists(path):
                found[place] = None
                continue
            elif any(c in path for c in "*?["):
                names = sorted(fs.glob(path))
            else:
                raise FiqaRayError(f"{place}: not found; give image files, folders or globs")
            local = "://" not in place
            images = [n for n in names if n.lower().endswith(tuple(EXTENSIONS))]
            found |= dict.fromkeys(n if local else fs.unstrip_protocol(n) for n in images)
    if not found:
        raise FiqaRayError(f"no image ({', '.join(EXTENSIONS)}) in {', '.join(places)}")
    return list(found)


def score_images(
    uris: Sequence[str],
    scorer: Callable[[torch.Tensor, np.ndarray], np.ndarray],
    *,
    batch_size: int = 8,
    n_threads: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """One row of `SCORES` per image, in order; larger is better.

    Images must be aligned 112x112 crops; others keep a row with status and error. Batches have one fixed shape, and
    each is one thread's work: with a job's batch size a trained regressor gives the job's scores bit for bit.
    """

    def score_batch(at: int) -> pa.Table:
        chunk = list(uris[at : at + batch_size])
        with storage_errors(chunk[0]):
            prepared = [prepare_face(content, None) for content in read_face_bytes(chunk)]
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
        columns = {
            "uri": chunk,
            "score": pa.array(score, mask=~np.isfinite(score)),
            "status": status,
            "error": [
                "the model returned NaN or infinity for this face" if s == "non_finite" else p.error
                for s, p in zip(status, prepared, strict=True)
            ],
        }
        return pa.table(columns, schema=SCORES)

    tables = []
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for table in pool.map(score_batch, range(0, len(uris), batch_size)):
            tables.append(table)
            advance(len(table))
    return pa.concat_tables(tables)


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
