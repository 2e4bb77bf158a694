"""Histograms of similarity keys in storage: what stage rank writes and stage optimize turns into ranks.

A row holds a block of 64 neighbouring keys. Rank of a pair = pairs of lower blocks + pairs of lower keys in its block +
(number of ties - 1) / 2, which `core.ranking.RankTable` computes.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from fiqa_ray.core.kernels.counting import BLOCK_KEYS
from fiqa_ray.core.ranking import Histogram
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part, part_name

PACKED = {"block": "NONE", "counts": "zstd"}
"""Compression of histograms that go from task to task: fewer bytes are worth more there than the 40 ms that zstd takes."""

KEY_SPAN = 1.2e7
"""Keys, steps of 2^-23, between the least and the greatest mated similarity of a real database."""
HISTOGRAM_S = 0.05
"""Seconds to make, add or load one histogram of a real database."""


def histogram_table(histogram: Histogram) -> pa.Table:
    """Return a histogram as a table of `schemas.key_counts`."""
    counts = histogram.count  # (B, 64)
    kind = pa.binary(64 * counts.itemsize)
    little_endian = np.ascontiguousarray(counts, counts.dtype.newbyteorder("<"))
    column = pa.FixedSizeBinaryArray.from_buffers(kind, len(counts), [None, pa.py_buffer(little_endian)])
    values = {"block": histogram.block, "counts": column}
    return pa.table(values, schema=schemas.key_counts(counts.itemsize))


def read_histogram(table: pa.Table) -> Histogram:
    """Return the histogram that `histogram_table` wrote; counts of 8 bytes are int64, others unsigned."""
    column = table["counts"].combine_chunks()
    n_bytes = column.type.byte_width // 64
    values = np.frombuffer(column.buffers()[1], dtype="<i8" if n_bytes == 8 else f"<u{n_bytes}")
    counts = values[64 * column.offset :][: 64 * len(column)].reshape(-1, 64)
    return Histogram(table["block"].to_numpy(), counts)


def parts_of_repeat(dataset: Dataset, repeat: int) -> list[Part]:
    """Return the parts that hold something of a repeat."""
    suffix = schemas.repeat_suffix(repeat)
    return [part for part in dataset.require().parts if part_name(part.index) + suffix in part.files]


def histogram_bytes(n_pairs: float) -> float:
    """Estimate the bytes of a histogram of so many pairs: blocks that have one, with counts as wide as the largest needs."""
    n_blocks = KEY_SPAN / BLOCK_KEYS
    largest = 3 * n_pairs / KEY_SPAN  # three times the mean
    width = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    return (BLOCK_KEYS * width + 2) * n_blocks * -math.expm1(-n_pairs / n_blocks)
