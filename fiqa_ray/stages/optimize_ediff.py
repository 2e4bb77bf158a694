"""The labels of stage optimize by eDifFIQA's rule (`fiqa_ray.core.ediff`); only where `optimize.mode` asks for them.

Three steps, each for all methods side by side. `find_threshold` finds the score from which images count as good, a quantile
of all scores. `measure_part` finds the distance of each image to the mean of its person's good images, in a task per part of
embeddings, which people never cross; and the least and largest score of images with a distance. `label_part` puts the scores
on the scale of these two and lowers them by the distances.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.config import EDIFF, EdiffSettings
from fiqa_ray.core.ediff import REMEDY, distances_to_means, good_place, lowered_scores
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.image_rows import PartRange, range_rows, read_image_rows
from fiqa_ray.engine.cost import Cost, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import EdiffDataset, Job

NUMBER_S = 2e-8
"""Seconds of a core per number of an embedding."""
PART_BYTES = 40
"""Memory of `measure_part` per number of an embedding: float32, and four arrays of float64."""


@dataclass(frozen=True)
class EdiffData:
    """One method, and what its labels are made from."""

    method: str
    settings: EdiffSettings
    faces: Dataset
    embeddings: Dataset
    quality_index: Dataset
    threshold: Dataset
    distances: Dataset
    labels: Dataset

    @staticmethod
    def all_of(job: Job) -> list[EdiffData]:
        """Return the data of each method."""
        shared = job.settings.optimize.ediff, job.faces("train"), job.embeddings("train")
        return [
            EdiffData(
                m.label,
                *shared,
                job.quality_index(m),
                job.ediff("ediff_threshold", m),
                job.ediff("ediff_distances", m),
                job.ediff("ediff_labels", m),
            )
            for m in job.settings.methods
        ]


@dataclass(frozen=True)
class EmbeddedSpan:
    """A part of embeddings, its first image, and the parts of quality indices and of faces that hold its images."""

    part: Part
    first: int
    indices: PartRange
    faces: PartRange

    @property
    def last(self) -> int:
        """The image after the last."""
        return self.first + self.part.n_rows


def ediff_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the three steps of all methods; none without mode ediff."""
    if EDIFF not in job.settings.optimize.mode:
        return
    sets, n_images = EdiffData.all_of(job), job.faces("train").require().n_rows
    step = partial(Step, "optimize", unit="images")
    yield [Step("optimize", s.threshold, [s], stateless_worker(find_threshold), 1, unit="thresholds") for s in sets]
    spans = {s.method: embedded_spans(s) for s in sets}
    yield [step(s.distances, spans[s.method], stateless_worker(measure_part, s), n_images) for s in sets]
    yield [step(s.labels, spans[s.method], stateless_worker(label_part, s, RuleFacts.of(s)), n_images) for s in sets]


def embedded_spans(data: EdiffData) -> list[EmbeddedSpan]:
    """Return the shards: a span of images per part of embeddings."""
    embeddings, indices, faces = (d.require() for d in (data.embeddings, data.quality_index, data.faces))
    spans = []
    for part, first in zip(embeddings.parts, embeddings.first_rows, strict=False):
        held = [PartRange.of(m).between(first, first + part.n_rows) for m in (indices, faces)]
        spans.append(EmbeddedSpan(part, first, *held))
    return spans


@dataclass(frozen=True)
class RuleFacts:
    """What the labels of all images share.

    Attributes:
        low: Least score of an image with a distance.
        high: Largest score of an image with a distance.
        threshold: Score from which images count as good.
        n_good: Good images that also have an embedding.
    """

    low: float
    high: float
    threshold: float
    n_good: int

    @staticmethod
    def of(data: EdiffData) -> RuleFacts:
        """Read what the distances' parts recorded.

        Raises:
            FiqaRayError: Nobody has enough good images.
        """
        distances, threshold = data.distances.require(), data.threshold.require().stats["threshold"]
        labelled = [p.stats for p in distances.parts if p.stats["n_labelled"]]
        if not labelled:
            most, rule = max(p.stats["most_good"] for p in distances.parts), data.settings
            raise FiqaRayError(
                f"optimize.ediff: nobody has {rule.least} images among the best {rule.best:.0%} by {data.method} (the most "
                f"are {most}); {REMEDY}"
            )
        low, high = min(s["low"] for s in labelled), max(s["high"] for s in labelled)
        return RuleFacts(low, high, threshold, int(distances.stats["n_good"]))


def ediff_costs(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of each of the three steps for all methods."""
    s, methods = workload.scale, job.settings.methods
    n, rows = s.n_images * s.n_methods, min(s.n_images, s.rows_per_part)
    n_parts = workload.n_parts("train") * s.n_methods
    read, work_s, memory = s.n_methods * s.embedding_bytes, n * s.dim * NUMBER_S, PART_BYTES * s.dim * rows
    thresholds, distances, labels = (tuple(job.ediff(name, m) for m in methods) for name in get_args(EdiffDataset))
    cost, storage = partial(Cost, "optimize"), workload.units.storage
    index_bytes, range_bytes = 16.0 * n, 32.0 * range_rows(s.n_images)
    yield cost(
        "eDifFIQA thresholds",
        1,
        s.n_methods,
        storage(index_bytes, 0),
        range_bytes,
        index_bytes,
        0.0,
        datasets=thresholds,
    )
    work_s += storage(read, 18.0 * n)
    yield cost("eDifFIQA distances", s.n_images, n_parts, work_s, memory, read, 18.0 * n, datasets=distances)
    work_s = storage(30.0 * n, 36.0 * n)
    yield cost("eDifFIQA labels", s.n_images, n_parts, work_s, 200.0 * rows, 30.0 * n, 36.0 * n, datasets=labels)


def find_threshold(data: EdiffData) -> Part:
    """Write the score from which images count as good. Memory: 32 bytes per image of a part of quality indices."""
    started = time.monotonic()
    indices = data.quality_index.require()
    place = good_place(data.settings.best, indices.stats["n_scored"])
    for part in indices.parts:
        table = data.quality_index.read(part, ["quality_index", "prior_score"])
        rows = np.flatnonzero(table["quality_index"].to_numpy() == place)
        if len(rows):
            score = table["prior_score"][int(rows[0])].as_py()
            return data.threshold.write_part(
                0,
                {".parquet": pa.table([[score]], schema=schemas.EDIFF_THRESHOLD)},
                n_rows=1,
                stats={"threshold": score},
                duration_s=time.monotonic() - started,
            )
    raise FiqaRayError(
        f"{data.quality_index.uri} holds no image of place {place}; it is damaged: choose another run_uri"
    )


def measure_part(data: EdiffData, span: EmbeddedSpan) -> Part:
    """Write the distances of a part of embeddings. Memory: `PART_BYTES` per number of its embeddings.

    `low`, `high` and `most_good` are of the part alone; their sums in the manifest mean nothing.
    """
    started = time.monotonic()
    prior = _prior_scores(data, span)
    table = data.embeddings.read(span.part, ["identity_row", "embedding"])
    values, rows = embedding_values(table)
    is_scored = np.isfinite(prior[rows])
    values, rows = values[is_scored], rows[is_scored]
    _, person = np.unique(table["identity_row"].to_numpy()[rows], return_inverse=True)
    is_good = prior[rows] >= data.threshold.require().stats["threshold"]
    measured, most_good = distances_to_means(values, person, is_good, data.settings.least)
    distance = np.full(len(prior), np.nan)
    distance[rows] = measured
    stats: dict[str, float] = {
        "n_good": int(is_good.sum()),
        "n_labelled": int(np.isfinite(distance).sum()),
        "most_good": most_good,
    }
    if stats["n_labelled"]:
        with_label = prior[np.isfinite(distance)]
        stats |= {"low": float(with_label.min()), "high": float(with_label.max())}
    columns = [np.arange(span.first, span.last), *(pa.array(v, from_pandas=True) for v in (prior, distance))]
    return data.distances.write_part(
        span.part.index,
        {".parquet": pa.table(columns, schema=schemas.EDIFF_DISTANCES)},  # NaN stands for null
        n_rows=span.part.n_rows,
        stats=stats,
        duration_s=time.monotonic() - started,
    )


def label_part(data: EdiffData, facts: RuleFacts, span: EmbeddedSpan) -> Part:
    """Write the labels of a part. Memory: 200 bytes per image of the part."""
    started = time.monotonic()
    where = span.first, span.last
    stored = data.distances.require().parts[span.part.index]
    table = data.distances.read(stored, ["prior_score", "distance"])
    prior, distance = table["prior_score"].to_numpy(), table["distance"].to_numpy()
    label = lowered_scores(prior, distance, data.settings.epsilon, facts.low, facts.high).astype(np.float32)
    labels = {
        "image_row": np.arange(*where),
        "image_id": read_image_rows(data.faces, span.faces.parts, *where, ["image_id"])["image_id"],
        "prior_score": table["prior_score"],
        "distance": table["distance"],
        "label": pa.array(label, from_pandas=True),
    }
    shared = {"threshold": facts.threshold, "n_good": facts.n_good} if span.part.index == 0 else {}
    return data.labels.write_part(
        span.part.index,
        {".parquet": pa.table(labels, schema=schemas.EDIFF_LABELS)},
        n_rows=span.part.n_rows,
        stats={"n_scored": int(np.isfinite(prior).sum()), "n_labelled": int(np.isfinite(label).sum()), **shared},
        duration_s=time.monotonic() - started,
    )


def _prior_scores(data: EdiffData, span: EmbeddedSpan) -> NDArray[np.float64]:
    """Return the scores `(I,)` of a span of images, NaN where an image has none."""
    columns = read_image_rows(data.quality_index, span.indices.parts, span.first, span.last, ["prior_score"])
    return columns["prior_score"].to_numpy()
