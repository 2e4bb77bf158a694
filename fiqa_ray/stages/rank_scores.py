"""The quality index of stage rank: the place of every prior score among all scores of its method.

Where one task can hold all images, it sorts them (`index_scores`). Else three steps do (`datasets.sorted_runs`):

    1. `sort_span`: the scores of a span of images, sorted, and samples of them,
    2. `merge_scores`: a range of scores, merged from all spans; the rows below it give the place of its first,
    3. `index_span`: the quality indices of a span of images, from all ranges.

Scores stand by value, equal ones by image row, whichever way is taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from fiqa_ray.core.kernels.sorting import stable_order
from fiqa_ray.core.labels import quality_index
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Manifest, Part
from fiqa_ray.datasets.image_rows import (
    ImageSpan,
    PartRange,
    image_columns,
    image_spans,
    is_one_task,
    n_image_ranges,
    range_rows,
    read_span,
    sample_rows,
    scattered,
)
from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.datasets.sorted_runs import SortedRuns, SortRange
from fiqa_ray.engine.cost import Cost, Scale, Units
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job

INDEX_BYTES = 120
"""Memory per image, as measured, of `index_scores`, which sorts all scores of a method at once."""
SORT_BYTES = 60
"""Memory per row of a task of the sort in ranges: an upper estimate from peaks of whole processes."""
INDEX_GROUP = 1 << 16
"""Rows of a row group of indices and of sorted scores, of which tasks read their own."""


@dataclass(frozen=True)
class ScoreSpan:
    """A span of images, and the parts of prior scores that hold it."""

    images: ImageSpan
    parts: tuple[Part, ...]


def index_steps(job: Job) -> Iterator[list[Step]]:
    """Plan the quality index of each method."""
    n_images = job.faces("train").require().n_rows
    methods = job.settings.methods
    priors = {m.label: job.prior_scores("train", m) for m in methods}
    stored = {label: dataset.require() for label, dataset in priors.items()}
    step = partial(Step, "rank", unit="images")
    checks = {m.label: partial(_say_if_constant, m.label) for m in methods}
    if is_one_task(n_images):
        yield [
            step(
                job.quality_index(m),
                [priors[m.label]],
                stateless_worker(index_scores, job.quality_index(m)),
                n_images,
                check=checks[m.label],
                memory_bytes=INDEX_BYTES * n_images,
            )
            for m in methods
        ]
        return
    spans, memory = image_spans(n_images), SORT_BYTES * range_rows(n_images)
    runs = {m.label: _runs(job.score_runs(m)) for m in methods}
    steps = []
    for m in methods:
        all_parts = PartRange.of(stored[m.label])
        shards = [ScoreSpan(s, all_parts.between(s.first, s.last).parts) for s in spans]
        worker = stateless_worker(sort_span, runs[m.label], priors[m.label], sample_rows())
        steps.append(step(job.score_runs(m), shards, worker, n_images, memory_bytes=memory))
    yield steps
    steps = []
    for m in methods:
        sorted_runs = runs[m.label].dataset.require()
        n_scored = sorted_runs.stats["n_scored"]
        if n_scored == 0:
            raise _no_score(priors[m.label])
        ranges = runs[m.label].ranges(sorted_runs.parts, n_image_ranges(n_images))
        worker = stateless_worker(merge_scores, job.sorted_scores(m), runs[m.label])
        steps.append(step(job.sorted_scores(m), ranges, worker, n_scored, memory_bytes=memory))
    yield steps
    yield [
        step(
            job.quality_index(m),
            spans,
            stateless_worker(index_span, job.quality_index(m), job.sorted_scores(m)),
            n_images,
            check=checks[m.label],
            memory_bytes=memory,
        )
        for m in methods
    ]


def _runs(dataset: Dataset) -> SortedRuns:
    return SortedRuns(dataset, "score", "image_row")


def _no_score(priors: Dataset) -> FiqaRayError:
    return FiqaRayError(f"{priors.uri} holds no score at all; see its column 'error'")


def _say_if_constant(label: str, index: Manifest) -> None:
    """Print a line if all prior scores of a method are equal."""
    if index.stats["n_scored"] > 1 and index.stats.get("n_tied_with_lowest") == index.stats["n_scored"]:
        note(
            f"methods: {label}: all {index.stats['n_scored']:,} prior scores are equal, so they tell no image from another"
        )


def index_costs(s: Scale, units: Units) -> list[Cost]:
    """Return the cost of each step at a scale: one, or the three of the sort in ranges."""
    n, work_s = s.n_images * s.n_methods, s.n_images * s.n_methods * units.index_image
    if is_one_task(s.n_images):
        memory = INDEX_BYTES * s.n_images
        return [Cost("rank", "quality index", s.n_images, s.n_methods, work_s, memory, 9.0 * n, 13.0 * n)]
    n_shards, memory = n_image_ranges(s.n_images) * s.n_methods, SORT_BYTES * range_rows(s.n_images)
    steps = (  # what, share of a single task's work, bytes read and written per image
        ("sorted runs of scores", 0.8, 9.0, 11.0),
        ("sorted scores", 0.8, 14.0, 22.0),
        ("quality index", 0.4, 16.0, 13.0),
    )
    return [
        Cost("rank", what, s.n_images, n_shards, share * work_s, memory, read * n, written * n)
        for what, share, read, written in steps
    ]


def index_scores(dataset: Dataset, priors: Dataset) -> Part:
    """Write the quality index of all prior scores of one method. Memory: up to `INDEX_BYTES` per image."""
    started = time.monotonic()
    column = priors.read_all(["score"])["score"]
    if column.null_count == len(column):
        raise _no_score(priors)
    score, scored_rows = column.to_numpy(), np.flatnonzero(column.is_valid().to_numpy())
    del column
    values = score[scored_rows]
    index = scattered(scored_rows, quality_index(values), len(score), -1)
    return _write_index(dataset, ImageSpan(0, 0, len(score)), index, score, values.min(), started)


def sort_span(runs: SortedRuns, priors: Dataset, rows_per_sample: int, span: ScoreSpan) -> Part:
    """Write the sorted scores of a span of images. Memory: `SORT_BYTES` per image."""
    started = time.monotonic()
    images = span.images
    row, score = image_columns(priors, span.parts, images.first, images.last, ["score"])
    order = stable_order(score)
    run = pa.table([score[order], row[order]], schema=schemas.SCORE_RUNS)
    del row, score, order
    return runs.dataset.write_part(
        images.index,
        runs.files(run, rows_per_sample),
        n_rows=images.n_images,
        stats={"n_scored": len(run)},
        duration_s=time.monotonic() - started,
    )


def merge_scores(dataset: Dataset, runs: SortedRuns, sort_range: SortRange) -> Part:
    """Write a range of scores by place, and the places by image. Memory: `SORT_BYTES` per row of the range."""
    started = time.monotonic()
    first, (score, row) = runs.read(sort_range, ["score", "image_row"])
    order = stable_order(score, in_runs=True)  # equal scores stand by image row, as they do in the runs
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(first, first + len(order))
    by_place = table_bytes(
        pa.table([score[order]], schema=schemas.SORTED_SCORES), row_group_rows=INDEX_GROUP, write_statistics=False
    )
    del order
    places = pa.table([row, place, score], schema=schemas.SCORE_PLACES)
    return dataset.write_part(
        sort_range.index,
        {".parquet": by_place, ".places.parquet": table_bytes(places, row_group_rows=INDEX_GROUP)},
        n_rows=len(place),
        duration_s=time.monotonic() - started,
    )


def index_span(dataset: Dataset, sorted_scores: Dataset, images: ImageSpan) -> Part:
    """Write the quality index of a span of images, from all ranges. Memory: `SORT_BYTES` per image."""
    started = time.monotonic()
    parts = sorted_scores.require().parts
    columns = ["quality_index", "score"]
    row, place, values = image_columns(sorted_scores, parts, images.first, images.last, columns, ".places.parquet")
    index = scattered(row - images.first, place, images.n_images, -1)
    score = scattered(row - images.first, values, images.n_images, np.nan)
    del row, place, values
    lowest = read_span(sorted_scores, 0, 1, ["score"])["score"][0].as_py()
    return _write_index(dataset, images, index, score, lowest, started)


def _write_index(
    dataset: Dataset, images: ImageSpan, index: np.ndarray, score: np.ndarray, lowest: float, started: float
) -> Part:
    """Write a part of quality indices; `score` is NaN and `index` -1 where an image has no score."""
    nullable_scores = pa.array(score, from_pandas=True)  # NaN stands for null
    table = pa.table([np.arange(images.first, images.last), index, nullable_scores], schema=schemas.QUALITY_INDEX)
    return dataset.write_part(
        images.index,
        {".parquet": table},
        n_rows=len(table),
        stats={"n_scored": int((index >= 0).sum()), "n_tied_with_lowest": int((score == lowest).sum())},
        duration_s=time.monotonic() - started,
        row_group_rows=INDEX_GROUP,  # parts of pairs read their own rows
    )
