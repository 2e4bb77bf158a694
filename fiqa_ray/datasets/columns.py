"""Values in and out of Arrow columns: embeddings and histograms."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def embedding_values(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(n_ok, dim) float32 embeddings of a table and the (n_ok,) positions of their rows; nulls are left out."""
    chunks = table["embedding"]
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()  # which copies
    good = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    kept = column.drop_null() if column.null_count else column
    dim = column.type.byte_width // 4
    if len(kept) == 0:
        return np.empty((0, dim), np.float32), good
    values = np.frombuffer(kept.buffers()[1], dtype="<f4")[kept.offset * dim :][: len(kept) * dim]
    return values.reshape(len(kept), dim).astype(np.float32, copy=False), good


def counts_column(counts: np.ndarray) -> pa.Array:
    """Histogram rows (n_blocks, 64) as the column ``n_pairs``."""
    kind = pa.binary(64 * counts.itemsize)
    little = np.ascontiguousarray(counts, counts.dtype.newbyteorder("<"))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(counts), [None, pa.py_buffer(little)])


def histogram_values(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Blocks (n_blocks,) int32 and counts (n_blocks, 64), int64 where they take 8 bytes, else unsigned, of either table."""
    column = table["n_pairs"].combine_chunks()
    n_bytes = column.type.byte_width // 64
    values = np.frombuffer(column.buffers()[1], dtype="<i8" if n_bytes == 8 else f"<u{n_bytes}")
    return table["block"].to_numpy(), values[64 * column.offset :][: 64 * len(column)].reshape(-1, 64)
