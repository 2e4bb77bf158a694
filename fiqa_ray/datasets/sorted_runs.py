"""Sorted runs in storage, and the ranges that tasks merge: the one sample sort of all stages.

    1. A task per run sorts its rows and writes them with samples (`SortedRuns.files`),
    2. the driver plans ranges from the samples of all runs (`SortedRuns.ranges`),
    3. a task per range reads its rows of each run (`SortedRuns.read`) and merges them.

A run is written in row groups of `sample_rows` rows, and its samples are the first rows of the row groups. So a task reads
only the row groups that may hold rows of its range, and the same look tells it how many rows of the run lie below: no pass
counts them. Numerics are `core.sample_sort`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from fiqa_ray.core.sample_sort import Cut, choose_cuts, float_key, n_below
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.parquet import table_bytes

_END = 1 << 62


@dataclass(frozen=True)
class RunRows:
    """Rows first:last of a run, which may lie in a range."""

    part: Part
    first: int
    last: int


@dataclass(frozen=True)
class SortRange:
    """The rows of all runs from one cut to the next; None is open.

    Attributes:
        index: Number of the range.
        low: The first (key, tie) of the range.
        high: The first (key, tie) above it.
        rows: Where its rows may lie.
    """

    index: int
    low: Cut | None
    high: Cut | None
    rows: tuple[RunRows, ...]


@dataclass(frozen=True)
class SortedRuns:
    """Runs of a dataset, one per part.

    Attributes:
        dataset: Its parts hold the runs.
        key: The column that they are sorted by: whole numbers, or finite float64.
        tie: The column that decides between equal keys; None where equal keys may stay together.
        suffix: Of the files that hold the runs.
    """

    dataset: Dataset
    key: str
    tie: str | None = None
    suffix: str = ".parquet"

    def files(self, run: pa.Table, sample_rows: int) -> dict[str, pa.Buffer]:
        """Return the files of a sorted run by suffix: its rows, and one sample of each `sample_rows` rows."""
        at = np.arange(0, len(run), sample_rows)
        key, tie = self._order(run.take(at))
        columns = {"run_row": at, "sort_key": key, "sort_tie": np.zeros_like(at) if tie is None else tie}
        samples = pa.table(columns, schema=schemas.RUN_SAMPLES)
        rows = table_bytes(run, row_group_rows=sample_rows, write_statistics=False)
        return {self.suffix: rows, self._samples_suffix: table_bytes(samples)}

    def ranges(self, parts: Sequence[Part], n_ranges: int, first_index: int = 0) -> list[SortRange]:
        """Plan ranges of about one size. Memory: the samples.

        Args:
            parts: The runs.
            n_ranges: Number of ranges.
            first_index: Number of the first range.
        """
        tables = self.dataset.read_each(parts, lambda part: self.dataset.read(part, suffix=self._samples_suffix))
        names = ("run_row", "sort_key", "sort_tie")
        samples = [tuple(table[name].to_numpy() for name in names) for table in tables]
        empty = np.empty(0, np.int64)
        keys = np.concatenate([empty, *(key for _, key, _ in samples)])
        ties = np.concatenate([empty, *(tie for _, _, tie in samples)])
        bounds = [None, *choose_cuts(keys, ties, n_ranges), None]
        ranges = []
        for index, (low, high) in enumerate(pairwise(bounds), first_index):
            rows = []
            for part, (row, key, tie) in zip(parts, samples, strict=True):
                n_low = 0 if low is None else n_below(key, tie, low)
                n_high = len(row) if high is None else n_below(key, tie, high)
                first = int(row[n_low - 1]) if n_low else 0  # the cut lies behind this sample
                last = int(row[n_high]) if n_high < len(row) else _END
                rows.append(RunRows(part, first, last))
            ranges.append(SortRange(index, low, high, tuple(rows)))
        return ranges

    def read(self, sort_range: SortRange, columns: list[str]) -> tuple[int, list[np.ndarray]]:
        """Return how many rows of all runs lie below a range, and columns of its rows, run after run.

        Memory: the columns, twice for a moment, and two row groups of each run.
        """
        n_lower, pieces = 0, []
        for rows, piece in zip(sort_range.rows, self.dataset.read_each(sort_range.rows, self._read_rows), strict=True):
            key, tie = self._order(piece)
            low = 0 if sort_range.low is None else n_below(key, tie, sort_range.low)
            high = len(piece) if sort_range.high is None else n_below(key, tie, sort_range.high)
            n_lower += rows.first + low
            pieces.append(piece.slice(low, high - low))
        arrays = [np.concatenate([piece[name].to_numpy() for piece in pieces]) for name in columns]
        del pieces
        pa.default_memory_pool().release_unused()  # Arrow keeps what is freed for a while
        return n_lower, arrays

    def _read_rows(self, rows: RunRows) -> pa.Table:
        return self.dataset.read_rows(rows.part, rows.first, rows.last, None, self.suffix)

    def _order(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray | None]:
        """Return keys and ties of rows."""
        key = table[self.key].to_numpy()
        if key.dtype == np.float64:
            key = float_key(key)
        return key, None if self.tie is None else table[self.tie].to_numpy()

    @property
    def _samples_suffix(self) -> str:
        return f".samples{self.suffix}"
