"""The labels of stage optimize: images sorted by optimized index receive the prior scores in ascending order.

Where one task can hold all images, it sorts them (`label_images`). Else three steps do (`datasets.sorted_runs`):

    1. `sort_indices`: the optimized indices of a span of images, sorted, and samples of them,
    2. `deal_scores`: a range of optimized indices, merged from all spans; its rows get the prior scores of their places,
    3. `label_span`: the labels of a span of images, from the scores of all ranges.

Images stand by optimized index, equal ones by quality index, whichever way is taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.core.kernels.sorting import stable_order
from fiqa_ray.core.label_result import sign_advice, sign_facts
from fiqa_ray.core.labels import reassign_scores, scale_to_unit
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
    read_image_rows,
    read_span,
    sample_rows,
    scattered,
)
from fiqa_ray.datasets.parquet import table_bytes, tables_bytes
from fiqa_ray.datasets.sorted_runs import SortedRuns, SortRange
from fiqa_ray.engine.cost import Cost, Scale, Units
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job, LabelSet

NAME_BYTES = 12
"""Stored bytes of an image's name: compressed, neighbours share most of theirs."""
LABEL_BYTES = 260
"""Memory per image, as measured, of `label_images`, which takes a method's images all at once."""
SORT_BYTES = 70
"""Memory per row of a task of the sort in ranges: an upper estimate from peaks of whole processes."""
SPAN_BYTES = 80
"""Memory per image of `label_span`: an upper estimate from peaks of whole processes."""
FACT_IMAGES = 50_000
"""Images by which the sign of a method's scores is judged: enough to see a correlation of 0.02."""
LABEL_GROUP = 1 << 17
"""Rows of a row group of labels in several parts: what a task holds of all columns at once."""


@dataclass(frozen=True)
class LabelData:
    """One method and theta, and what its labels are made from."""

    labels: Dataset
    method: str
    theta: float
    index_scale: str
    ranks: Dataset
    quality_index: Dataset
    optimized_index: Dataset
    faces: Dataset
    runs: SortedRuns
    sorted_scores: Dataset
    sorted_indices: Dataset

    @staticmethod
    def all_of(job: Job) -> list[LabelData]:
        """Return the data of each method's and theta's labels; where theta is to be chosen, it must have been."""
        return [
            LabelData(
                job.optimized_labels(method, theta),
                method.label,
                job.theta_of(LabelSet(method, theta)),
                job.settings.optimize.index_scale,
                job.similarity_ranks(),
                job.quality_index(method),
                job.optimized_index(),
                job.faces("train"),
                SortedRuns(job.index_runs(method, theta), "optimized_index", "quality_index"),
                job.sorted_scores(method),
                job.sorted_indices(method, theta),
            )
            for method in job.settings.methods
            for theta in job.settings.optimize.thetas
        ]

    @property
    def suffix(self) -> str:
        """Return the suffix of the files of optimized indices."""
        return schemas.index_suffix(self.method, self.theta)

    def sums(self, n_scored: int, mean_ranks_moved: float) -> dict[str, Any]:
        """Return what the record of the first part says of all images; the other parts leave it out."""
        n_pairs = self.ranks.require().parts[0].n_rows
        raw = self.index_scale == "raw"
        return {
            "theta": self.theta,
            "n_pairs_per_repeat": n_pairs,
            "theta_effective": self.theta * (n_pairs / n_scored if raw and n_scored else 1.0),
            "mean_move_fraction": mean_ranks_moved / max(n_scored, 1),
        }


@dataclass(frozen=True)
class LabelSpan:
    """A span of images, and the parts of faces that hold their names."""

    images: ImageSpan
    faces: PartRange


def label_steps(job: Job) -> Iterator[list[Step]]:
    """Plan the labels of all methods and thetas; nothing without mode rank."""
    if not job.settings.optimize.thetas:
        return
    faces = job.faces("train").require()
    n_images = faces.n_rows
    sets = LabelData.all_of(job)
    step = partial(Step, "optimize", unit="images")
    spans = image_spans(n_images)
    named = [LabelSpan(s, PartRange.of(faces).between(s.first, s.last)) for s in spans]
    if is_one_task(n_images):
        memory = LABEL_BYTES * n_images
        steps = [step(s.labels, named, stateless_worker(label_images, s), n_images, memory_bytes=memory) for s in sets]
        yield _saying_doubts(steps, sets)
        return
    memory = SORT_BYTES * range_rows(n_images)
    yield [
        step(s.runs.dataset, spans, stateless_worker(sort_indices, s, sample_rows()), n_images, memory_bytes=memory)
        for s in sets
    ]
    steps = []
    for s in sets:
        runs = s.runs.dataset.require()
        ranges = s.runs.ranges(runs.parts, n_image_ranges(n_images))
        worker, n_scored = stateless_worker(deal_scores, s), runs.stats["n_scored"]
        steps.append(step(s.sorted_indices, ranges, worker, n_scored, memory_bytes=memory))
    yield steps
    memory = SPAN_BYTES * range_rows(n_images)
    steps = [step(s.labels, named, stateless_worker(label_span, s), n_images, memory_bytes=memory) for s in sets]
    yield _saying_doubts(steps, sets)


def label_costs(s: Scale, units: Units) -> list[Cost]:
    """Return the cost of each step at a scale: one, or the three of the sort in ranges."""
    n_sets = s.n_methods * s.n_thetas
    n = s.n_images * n_sets
    work_s = n * units.label_image
    read, written = 30.0 + NAME_BYTES, 40.0 + NAME_BYTES
    if is_one_task(s.n_images):
        return [Cost("optimize", "labels", s.n_images, n_sets, work_s, LABEL_BYTES * s.n_images, read * n, written * n)]
    n_shards, rows = n_image_ranges(s.n_images) * n_sets, range_rows(s.n_images)
    steps = (  # what, share of a single task's work, memory per image, bytes read and written per image
        ("sorted runs of indices", 0.4, SORT_BYTES, 14.0, 16.0),
        ("sorted indices", 0.4, SORT_BYTES, 27.0, 12.0),
        ("labels", 0.7, SPAN_BYTES, read + 12, written),
    )
    return [
        Cost("optimize", what, s.n_images, n_shards, share * work_s, memory * rows, read * n, written * n)
        for what, share, memory, read, written in steps
    ]


def _saying_doubts(steps: list[Step], sets: list[LabelData]) -> list[Step]:
    """Return the steps of the labels, of which the first of each method doubts the sign of its scores."""
    methods = [s.method for s in sets]
    return [
        replace(step, check=partial(_say_doubts, method)) if methods.index(method) == i else step
        for i, (step, method) in enumerate(zip(steps, methods, strict=True))
    ]


def _say_doubts(method: str, manifest: Manifest) -> None:
    """Print a doubt of the sign of a method's scores, by the facts that the labels' first part recorded."""
    for text in sign_advice(method, manifest.stats):
        note(text)


def label_images(data: LabelData, span: LabelSpan) -> Part:
    """Write the labels of all images, sorted at once. Memory: up to `LABEL_BYTES` per image."""
    started = time.monotonic()
    s, n_images = data, span.images.n_images
    with ThreadPoolExecutor(1) as pool:  # the names are read while the images are sorted
        names = pool.submit(_image_ids, s.faces, span, 0, n_images)
        source = s.quality_index.read_all(["quality_index", "prior_score"])
        index, prior = source["quality_index"].to_numpy(), source["prior_score"].to_numpy()
        del source
        table = s.optimized_index.read_all(suffix=s.suffix)
        rows, optimized = table["image_row"].to_numpy(), table["optimized_index"].to_numpy()
        n_scored = len(rows)
        scored_prior, scored_index = (prior, index) if n_scored == n_images else (prior[rows], index[rows])
        score, label, mean_ranks_moved = reassign_scores(scored_prior, scored_index, optimized)
        facts = _sign_facts(scored_index, table)
        del scored_prior, scored_index
        labels = _label_table(0, names.result(), prior, index, table, score, label)
    return s.labels.write_part(
        0,
        {".parquet": labels},
        n_rows=n_images,
        stats=_counts(table) | s.sums(n_scored, mean_ranks_moved) | facts,
        duration_s=time.monotonic() - started,
    )


def sort_indices(data: LabelData, rows_per_sample: int, images: ImageSpan) -> Part:
    """Write the sorted optimized indices of a span of images. Memory: `SORT_BYTES` per image."""
    started = time.monotonic()
    s = data
    where = images.first, images.last
    parts = PartRange.of(s.optimized_index.require()).between(*where).parts
    row, optimized = image_columns(s.optimized_index, parts, *where, ["optimized_index"], s.suffix)
    parts = PartRange.of(s.quality_index.require()).between(*where).parts
    _, index = image_columns(s.quality_index, parts, *where, ["quality_index"])
    index = index[row - images.first]
    order = stable_order(optimized, index)
    run = pa.table([optimized[order], index[order], row[order]], schema=schemas.INDEX_RUNS)
    del row, optimized, index, order
    return s.runs.dataset.write_part(
        images.index,
        s.runs.files(run, rows_per_sample),
        n_rows=images.n_images,
        stats={"n_scored": len(run)},
        duration_s=time.monotonic() - started,
    )


def deal_scores(data: LabelData, sort_range: SortRange) -> Part:
    """Write the new scores of a range of optimized indices. Memory: `SORT_BYTES` per row of the range."""
    started = time.monotonic()
    s = data
    first, (optimized, index, row) = s.runs.read(sort_range, ["optimized_index", "quality_index", "image_row"])
    order = stable_order(optimized, index, in_runs=True)
    del optimized
    last = first + len(order)
    move = int(np.abs(np.arange(first, last) - index[order]).sum())
    score = np.empty(len(order))
    if len(order):
        score[order] = read_span(s.sorted_scores, first, last, ["score"])["score"].to_numpy()
    new = pa.table([row, score], schema=schemas.NEW_SCORES)
    return s.sorted_indices.write_part(
        sort_range.index,
        {".parquet": table_bytes(new, row_group_rows=1 << 16)},
        n_rows=len(new),
        stats={"total_move": move},  # by how many ranks the images of the range moved
        duration_s=time.monotonic() - started,
    )


def label_span(data: LabelData, span: LabelSpan) -> Part:
    """Write the labels of a span of images, a row group at a time. Memory: `SPAN_BYTES` per image."""
    started = time.monotonic()
    s, images = data, span.images
    ranges, scores = s.sorted_indices.require(), s.sorted_scores.require()
    row, dealt = image_columns(s.sorted_indices, ranges.parts, images.first, images.last, ["optimized_score"])
    score = scattered(row - images.first, dealt, images.n_images, np.nan)
    del row, dealt
    ends = (0, scores.n_rows - 1)
    low, high = (read_span(s.sorted_scores, i, i + 1, ["score"])["score"][0].as_py() for i in ends)
    indices, optimized = PartRange.of(s.quality_index.require()), PartRange.of(s.optimized_index.require())
    counts = {"n_scored": 0, "n_without_pairs": 0}
    facts: dict[str, float] = {}  # filled by the first row group of all

    def row_groups() -> Iterator[pa.Table]:
        for first in range(images.first, images.last, LABEL_GROUP):
            last = min(first + LABEL_GROUP, images.last)
            parts = indices.between(first, last).parts
            source = read_image_rows(s.quality_index, parts, first, last, ["quality_index", "prior_score"])
            parts = optimized.between(first, last).parts
            columns = ["optimized_index", "mean_similarity_rank", "n_owned_pairs"]
            table = read_image_rows(s.optimized_index, parts, first, last, columns, s.suffix)
            for name, n in _counts(table).items():
                counts[name] += n
            values = score[table["image_row"].to_numpy() - images.first]
            names = _image_ids(s.faces, span, first, last)
            prior, index = source["prior_score"].to_numpy(), source["quality_index"].to_numpy()
            if first == 0:
                facts.update(_sign_facts(index[table["image_row"].to_numpy()], table))
            yield _label_table(first, names, prior, index, table, values, scale_to_unit(values, (low, high)))

    content = tables_bytes(row_groups(), schemas.OPTIMIZED_LABELS, LABEL_GROUP)
    mean_ranks_moved = ranges.stats["total_move"] / max(scores.n_rows, 1)
    sums = s.sums(scores.n_rows, mean_ranks_moved) if images.index == 0 else {}
    return s.labels.write_part(
        images.index,
        {".parquet": content},
        n_rows=images.n_images,
        stats=counts | sums | facts,
        duration_s=time.monotonic() - started,
    )


def _counts(optimized: pa.Table) -> dict[str, int]:
    """Return the images with a score, and those of them without a pair."""
    n_without = pc.sum(pc.equal(optimized["n_owned_pairs"], 0)).as_py() or 0
    return {"n_scored": len(optimized), "n_without_pairs": n_without}


def _sign_facts(index: np.ndarray, optimized: pa.Table) -> dict[str, float]:
    """Return the facts of the first `FACT_IMAGES` images with a score; `index` holds their quality indices."""
    return sign_facts(index[:FACT_IMAGES], optimized["mean_similarity_rank"][:FACT_IMAGES].to_numpy())


def _label_table(
    first: int,
    names: pa.ChunkedArray,
    prior: np.ndarray,
    index: np.ndarray,
    optimized: pa.Table,
    score: np.ndarray,
    label: np.ndarray,
) -> pa.Table:
    """Return labels of neighbouring images as a table.

    Args:
        first: The first image.
        names: `(I,)` their image_id.
        prior: `(I,)` scores, NaN where an image has none.
        index: `(I,)` quality indices, -1 where an image has no score.
        optimized: The rows of `schemas.OPTIMIZED_INDEX` of the images with a score.
        score: New scores of the images with a score.
        label: Their labels.
    """
    n_images, n_scored = len(index), len(optimized)
    rows = optimized["image_row"].to_numpy() - first

    def spread(values: np.ndarray | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Return values of the images with a score as a column of all images, null elsewhere."""
        if n_scored == n_images:
            return values
        row_of_image = np.full(n_images, -1)
        row_of_image[rows] = np.arange(n_scored)
        return pa.table([values], names=[""]).take(pa.array(row_of_image, mask=row_of_image < 0)).column(0)

    columns = {
        "image_row": np.arange(first, first + n_images),
        "image_id": names,
        "prior_score": pa.array(prior, from_pandas=True),  # NaN stands for null
        "quality_index": pa.array(index, mask=index < 0),
        "n_owned_pairs": spread(optimized["n_owned_pairs"]),
        "mean_similarity_rank": spread(optimized["mean_similarity_rank"]),
        "optimized_index": spread(optimized["optimized_index"]),
        "optimized_score": spread(score),
        "label": spread(label),
    }
    return pa.table(columns, schema=schemas.OPTIMIZED_LABELS)


def _image_ids(faces: Dataset, span: LabelSpan, first: int, last: int) -> pa.ChunkedArray:
    """Return the names of the images first:last of a span; of each part of faces only that column is read."""
    return read_image_rows(faces, span.faces.between(first, last).parts, first, last, ["image_id"])["image_id"]
