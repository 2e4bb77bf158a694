"""fuse: several FIQA methods of the job become one prior (`fiqa_ray.core.fusion`), on the training faces and each benchmark.

Two steps: sums over the mated pairs where weights are to be fitted (one task per part of pairs), then the fused scores (one
task per face set). The fused scores are used like those of any method.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.core.fusion import PairSums, ScoreDistribution, fit_weights, fuse
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.pairs import PairReader, StoredPairs
from fiqa_ray.engine.cost import Cost, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job


def fuse_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that fit weights, one per method that asks for it, then those that fuse, one per face set."""
    fused = [(m, m.fuse) for m in job.settings.methods if m.fuse is not None]
    reader = job.pair_reader()
    steps = []
    for method, settings in fused:
        if settings.weights == "fitted":
            dataset = job.fusion_fit(method)
            priors = tuple(job.prior_scores("train", job.method(label)) for label in settings.of)
            worker = stateless_worker(fit_shard, dataset, reader, priors)
            stored = reader.stored()
            n_images = sum(s.shard.n_rows for s in stored)
            step = Step("fuse", dataset, stored, worker, n_images, unit="images", needs_gpu=reader.needs_gpu)
            steps.append(step)
    if steps:
        yield steps

    steps = []
    for method, settings in fused:
        if settings.weights == "fitted":
            weights = fit_weights(_fitted_sums(job.fusion_fit(method))).tolist()
        elif settings.weights == "equal":
            weights = [1.0] * len(settings.of)
        else:
            weights = [settings.weights[label] for label in settings.of]
        total = sum(weights)
        by_label = {label: w / total for label, w in zip(settings.of, weights, strict=True)}
        train = tuple(job.prior_scores("train", job.method(label)) for label in settings.of)
        for face_set in job.face_sets:
            if not job.has_scores(face_set, method):
                continue
            dataset = job.prior_scores(face_set, method)
            priors = tuple(job.prior_scores(face_set, job.method(label)) for label in settings.of)
            worker = stateless_worker(fuse_shard, dataset, train, by_label)
            steps.append(Step("fuse", dataset, [priors], worker, priors[0].require().n_rows, unit="images"))
    if steps:
        yield steps


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of the fused scores of each face set; each method's are sorted."""
    for face_set in job.face_sets:
        n = workload.n_images[face_set]
        for method in job.settings.methods:
            if method.fuse is None or not job.has_scores(face_set, method):
                continue
            yield Cost(
                "fuse",
                f"{method.label}, {face_set}",
                n,
                1,
                work_s=n * len(method.fuse.of) * workload.units.index_image,
                memory_bytes=40.0 * (n + workload.n_images["train"]),
                read_bytes=16.0 * n * len(method.fuse.of),
                written_bytes=12.0 * n,
                datasets=(job.prior_scores(face_set, method),),
            )


@lru_cache(maxsize=1)
def _training_quantiles(priors: tuple[Dataset, ...]) -> list[np.ndarray]:
    """Return `(I,)` quantiles of the training faces by each method's score, NaN where there is none."""
    scores = [_scores(p) for p in priors]
    return [_distribution(p, s).quantiles(s) for p, s in zip(priors, scores, strict=True)]


def _scores(dataset: Dataset) -> np.ndarray:
    """Return `(I,) float64` scores, NaN where an image has none."""
    return dataset.read_all(["score"])["score"].to_numpy().astype(np.float64)


def _distribution(priors: Dataset, scores: np.ndarray) -> ScoreDistribution:
    finite = scores[np.isfinite(scores)]
    if len(finite) == 0:
        raise FiqaRayError(f"{priors.uri} holds no score at all; see its column 'error'")
    return ScoreDistribution.of(finite)


def fit_shard(dataset: Dataset, reader: PairReader, priors: tuple[Dataset, ...], stored: StoredPairs) -> Part:
    """Write the sums over the first repeat's pairs of a part.

    Memory: 8 bytes per training image and method, and the pairs as read.
    """
    started = time.monotonic()
    shard = stored.shard
    quantiles = [p[shard.first : shard.first + shard.n_rows] for p in _training_quantiles(priors)]
    (pairs,) = reader.read(stored, [0])
    sums = PairSums.of(quantiles, pairs.image, pairs.mate, pairs.similarity)
    columns = {"xy": sums.xy, **{f"xx_{j}": column for j, column in enumerate(sums.xx.T)}}
    return dataset.write_part(
        shard.index, {".parquet": pa.table(columns)}, n_rows=shard.n_rows, duration_s=time.monotonic() - started
    )


def _fitted_sums(dataset: Dataset) -> list[PairSums]:
    sums = []
    for part in dataset.require().parts:
        table = dataset.read(part)
        xx = np.stack([table[f"xx_{j}"].to_numpy() for j in range(len(table))], axis=1)
        sums.append(PairSums(xx, table["xy"].to_numpy()))
    return sums


def fuse_shard(
    dataset: Dataset, train: tuple[Dataset, ...], weights: dict[str, float], priors: tuple[Dataset, ...]
) -> Part:
    """Write the fused scores of a whole face set. Memory: about 40 bytes per image, of the training faces too."""
    started = time.monotonic()
    distributions = [_distribution(d, _scores(d)) for d in train]
    tables = [d.read_all() for d in priors]
    quantiles = [
        distribution.quantiles(t["score"].to_numpy().astype(np.float64))
        for distribution, t in zip(distributions, tables, strict=True)
    ]
    score = fuse(quantiles, list(weights.values()))
    status, error = tables[0]["status"].combine_chunks(), tables[0]["error"].combine_chunks()
    for table in tables[1:]:  # the first method that failed on an image says why
        failed = pc.not_equal(status, "ok")
        status = pc.if_else(failed, status, table["status"].combine_chunks())
        error = pc.if_else(failed, error, table["error"].combine_chunks())
    columns = {
        "image_row": tables[0]["image_row"],
        "score": pa.array(score, mask=np.isnan(score)),
        "status": status,
        "error": error,
    }
    return dataset.write_part(
        0,
        {".parquet": pa.table(columns, schema=schemas.QUALITY_SCORES)},
        n_rows=len(score),
        stats={"status": dict(Counter(status.to_pylist())), "weights": weights},
        duration_s=time.monotonic() - started,
    )
