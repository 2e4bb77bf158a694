"""Rows of images across the parts of a dataset, and how many images a task takes where a step sorts all of them.

Up to `2 * IMAGES_PER_RANGE` images are sorted by one task, into one part. More are cut into spans of neighbouring images and
into ranges of sorted values. Both depend on the number of images alone, so that any cluster continues what another began.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa

from fiqa_ray.datasets.dataset import Dataset, Manifest, Part

IMAGES_PER_RANGE = 1 << 22
"""Images of a span and of a range. Raise `SCHEMA_VERSION` with it: stored parts have this size."""
SAMPLES_PER_RUN = 256
"""Sampled rows of a sorted span; ranges then differ in size by a few per cent."""


@dataclass(frozen=True)
class ImageSpan:
    """Neighbouring images first:last, which make one part."""

    index: int
    first: int
    last: int

    @property
    def n_images(self) -> int:
        """Return the number of images."""
        return self.last - self.first


def is_one_task(n_images: int) -> bool:
    """Return whether one task sorts so many images."""
    return n_images <= 2 * IMAGES_PER_RANGE


def n_image_ranges(n_images: int) -> int:
    """Return the number of spans of images, which is also that of ranges of sorted values."""
    return 1 if is_one_task(n_images) else math.ceil(n_images / IMAGES_PER_RANGE)


def image_spans(n_images: int) -> list[ImageSpan]:
    """Cut images into spans of `IMAGES_PER_RANGE`, of which the last may be smaller."""
    n = n_image_ranges(n_images)
    bounds = [0, *(IMAGES_PER_RANGE * i for i in range(1, n)), n_images]
    return [ImageSpan(i, bounds[i], bounds[i + 1]) for i in range(n)]


def range_rows(n_images: int) -> int:
    """Return the images of the largest span."""
    return n_images if is_one_task(n_images) else IMAGES_PER_RANGE


def sample_rows() -> int:
    """Return the rows of a sorted span that one sample stands for."""
    return max(1, IMAGES_PER_RANGE // SAMPLES_PER_RUN)


@dataclass(frozen=True)
class PartRange:
    """Neighbouring parts of a dataset, and the first row of the first of them."""

    first: int
    parts: tuple[Part, ...]

    @staticmethod
    def of(manifest: Manifest) -> PartRange:
        """Return all parts of a dataset."""
        return PartRange(0, tuple(manifest.parts))

    def between(self, first: int, last: int) -> PartRange:
        """Return the parts that hold something of the rows first:last."""
        starts = [*accumulate((p.n_rows for p in self.parts), initial=self.first)]
        chosen = [i for i, p in enumerate(self.parts) if starts[i] < last and starts[i] + p.n_rows > first]
        return PartRange(starts[chosen[0]] if chosen else first, tuple(self.parts[i] for i in chosen))


def read_image_rows(
    dataset: Dataset, parts: Sequence[Part], first: int, last: int, columns: list[str], suffix: str = ".parquet"
) -> pa.Table:
    """Read the rows of the images first:last, part after part, with their `image_row`.

    Of each part only the row groups are read that hold some of the images.

    Args:
        dataset: A dataset whose first column is `image_row`.
        parts: The parts that may hold some of the images.
        first: The first image.
        last: The image after the last.
        columns: Names of other columns.
        suffix: Of the files.

    Memory: the rows, and two row groups of each part.
    """

    def read(part: Part) -> pa.Table:
        table = dataset.read_range(part, first, last, suffix, ["image_row", *columns])
        rows = table["image_row"].to_numpy()
        is_wanted = (rows >= first) & (rows < last)
        return table if is_wanted.all() else table.filter(pa.array(is_wanted))

    return pa.concat_tables(dataset.read_each(parts, read))


def image_columns(
    dataset: Dataset, parts: Sequence[Part], first: int, last: int, columns: list[str], suffix: str = ".parquet"
) -> list[np.ndarray]:
    """Return `image_row` and other columns as arrays, of the images first:last that have a value in each of them.

    The arguments are those of `read_image_rows`. Memory: the columns, twice for a moment.
    """
    table = read_image_rows(dataset, parts, first, last, columns, suffix)
    if any(column.null_count for column in table.columns):
        table = table.drop_null()
    arrays = [table[name].to_numpy() for name in ("image_row", *columns)]
    del table
    pa.default_memory_pool().release_unused()  # Arrow keeps what is freed for a while
    return arrays


def read_span(dataset: Dataset, first: int, last: int, columns: list[str]) -> pa.Table:
    """Read the rows first:last of a dataset, counted over its parts, from the row groups that hold them."""
    parts = PartRange.of(dataset.require()).between(first, last)
    starts = accumulate((p.n_rows for p in parts.parts), initial=parts.first)

    def read(part_and_start: tuple[Part, int]) -> pa.Table:
        part, start = part_and_start
        return dataset.read_rows(part, max(first - start, 0), min(last - start, part.n_rows), columns)

    return pa.concat_tables(dataset.read_each(zip(parts.parts, starts, strict=False), read))


def scattered(rows: np.ndarray, values: np.ndarray, n_rows: int, missing: float) -> np.ndarray:
    """Return an array `(n_rows,)` with values at the given rows and `missing` elsewhere."""
    result = np.full(n_rows, missing, values.dtype)
    result[rows] = values
    return result
