"""Values in and out of Arrow columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def embedding_values(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings `(n_ok, D) float32` of a table and the positions `(n_ok,)` of their rows, without nulls."""
    chunks = table["embedding"]
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()  # which copies
    good = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    valid = column.drop_null() if column.null_count else column
    dim = column.type.byte_width // 4
    if len(valid) == 0:
        return np.empty((0, dim), np.float32), good
    values = np.frombuffer(valid.buffers()[1], dtype="<f4")[valid.offset * dim :][: len(valid) * dim]
    return values.reshape(len(valid), dim).astype(np.float32, copy=False), good
