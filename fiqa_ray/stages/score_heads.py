"""evaluate, first step of mode `head`: the scores of all heads and benchmarks, from the stored embeddings alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.columns import embedding_values, seed_score_column
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.step import Step, Worker
from fiqa_ray.job import Job
from fiqa_ray.models.regressor import QualityHead, load_head


def head_score_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per benchmark, which writes the scores of all regressors."""
    if job.settings.train.mode != "head" or not job.settings.benchmarks or not job.label_sets():
        return
    yield [_benchmark_step(job, b.name) for b in job.settings.benchmarks]


def _benchmark_step(job: Job, face_set: str) -> Step:
    embeddings = job.embeddings(face_set)
    manifest = embeddings.require()
    heads, recognizer = [], job.settings.recognizer
    for label_set in job.label_sets():
        regressor = job.regressor(label_set)
        (part,) = regressor.require().parts
        expected = {"recognizer": recognizer.name, "options": dict(recognizer.options), "files": part.files}
        heads.append((job.regressor_scores(face_set, label_set), regressor.uri, expected))
    first, *others = (dataset for dataset, _, _ in heads)
    worker = partial(_make_worker, embeddings, heads)
    return Step("evaluate", first, manifest.parts, worker, manifest.n_rows, unit="images", extra_datasets=tuple(others))


def _make_worker(embeddings: Dataset, heads: Sequence[tuple[Dataset, str, dict[str, Any]]]) -> Worker:
    return partial(score_shard, embeddings, [(dataset, load_head(uri, expected)) for dataset, uri, expected in heads])


def score_shard(embeddings: Dataset, heads: Sequence[tuple[Dataset, QualityHead]], shard: Part) -> Part:
    """Write the scores that heads give to a part of the stored embeddings, and return the part of the first dataset."""
    started = time.monotonic()
    table = embeddings.read(shard, ["image_row", "embedding", "status", "error"])
    values, good = embedding_values(table)
    stored = torch.from_numpy(values.copy())
    parts = []
    for dataset, head in heads:
        with torch.inference_mode():
            by_seed = head(stored).numpy()
        score = np.full(len(table), np.nan)
        score[good] = by_seed.mean(axis=1, dtype=np.float64).astype(np.float32)  # as `fiqa-ray score` gives it
        columns = {
            "image_row": table["image_row"],
            "score": pa.array(score, from_pandas=True),  # NaN stands for null
            "status": table["status"],
            "error": table["error"],
            "seed_scores": seed_score_column(by_seed, good, len(table)),
        }
        content = pa.table(columns, schema=schemas.REGRESSOR_SCORES)
        duration_s = (time.monotonic() - started) / len(heads)
        stats = {"status": dict(Counter(table["status"].to_pylist()))}
        parts.append(
            dataset.write_part(
                shard.index, {".parquet": content}, n_rows=len(table), stats=stats, duration_s=duration_s
            )
        )
    return parts[0]
