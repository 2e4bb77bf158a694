"""Conversion between numpy arrays and Arrow columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

NO_DIRECTION = "the embedding is zeros alone: it has no direction, and so no similarity to another"
"""The error of images with the status "no_direction"."""


def embedding_column(values: NDArray[np.float32], rows: NDArray[np.int64], n_rows: int) -> pa.Array:
    """Return embeddings as a column of fixed-size binaries; rows without an embedding are null.

    Fixed-size binaries, because a `pa.list_(pa.float32(), 512)` column takes 3 times as long to write and 7 times as long
    to read (`pq.write_table` and `ParquetFile.read` in memory, 4096 rows, medians of 20: 15 and 5 to 8 ms, not 5 and 0.7).

    Args:
        values: `(N, D) float32` embeddings.
        rows: `(N,)` row of each embedding.
        n_rows: Rows of the column.
    """
    dim = values.shape[1]
    stored = np.zeros((n_rows, dim), "<f4")
    stored[rows] = values
    is_valid = np.zeros(n_rows, bool)
    is_valid[rows] = True
    bitmap = pa.py_buffer(np.packbits(is_valid, bitorder="little"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * dim), n_rows, [bitmap, pa.py_buffer(stored)])


def embedding_values(table: pa.Table) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the `(N, D) float32` embeddings of a table and the `(N,)` rows they belong to; nulls are left out."""
    chunks = table["embedding"]
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()  # which copies
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    present = column.drop_null() if column.null_count else column
    dim = column.type.byte_width // 4
    if len(present) == 0:
        return np.empty((0, dim), np.float32), rows
    values = np.frombuffer(present.buffers()[1], dtype="<f4")[present.offset * dim :][: len(present) * dim]
    return values.reshape(len(present), dim).astype(np.float32, copy=False), rows


def seed_score_column(values: NDArray[np.floating], rows: NDArray[np.int64], n_rows: int) -> pa.Array:
    """Return the scores of a regressor's training seeds as a column of lists; rows without scores are null.

    Args:
        values: `(N, S)` scores of S seeds.
        rows: `(N,)` row of each, ascending.
        n_rows: Rows of the column.
    """
    n_seeds = values.shape[1]
    has_scores = np.zeros(n_rows, bool)
    has_scores[rows] = True
    offsets = np.concatenate([[0], np.cumsum(has_scores * n_seeds)]).astype(np.int32)
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~has_scores))


def seed_scores(table: pa.Table) -> NDArray[np.float64]:
    """Return the `(I, S) float64` scores of a regressor's S training seeds, NaN in rows without; see `REGRESSOR_SCORES`.

    The column `score` of the same table is their mean.
    """
    column = table["seed_scores"].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    values = column.drop_null().flatten().to_numpy().astype(np.float64)
    n_seeds = len(values) // len(rows) if len(rows) else 1
    scores = np.full((len(column), n_seeds), np.nan)
    scores[rows] = values.reshape(len(rows), n_seeds)
    return scores


def embedding_lists(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of fixed-size binaries as one of lists of D float32, for readers outside this package."""
    dim = column.type.byte_width // 4

    def lists_of(chunk: pa.FixedSizeBinaryArray) -> pa.Array:
        floats = np.frombuffer(chunk.buffers()[1], "<f4")[chunk.offset * dim :][: len(chunk) * dim]
        mask = chunk.is_null() if chunk.null_count else None
        return pa.FixedSizeListArray.from_arrays(pa.array(floats), dim, mask=mask)

    return pa.chunked_array([lists_of(chunk) for chunk in column.chunks], pa.list_(pa.float32(), dim))
