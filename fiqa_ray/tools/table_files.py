"""Tables as files that other programs read: Parquet, CSV, or NumPy's .npz, written a table at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fiqa_ray.errors import UsageError
from fiqa_ray.storage import filesystem, is_local, storage_errors, whole_file

PARQUET = (".parquet", ".pq")


def check_ending(output: str, endings: Sequence[str]) -> None:
    """Raise UsageError unless `output` ends in one of `endings`."""
    if not output.endswith(tuple(endings)):
        raise UsageError(f"output {output!r} must end in {', '.join(endings[:-1])} or {endings[-1]}")


def write_tables(tables: Iterable[pa.Table], output: str) -> int:
    """Write tables of one schema as one file, by the ending of `output`, and return the number of rows.

    Args:
        tables: at least one.
        output: `.parquet`, `.pq` or `.csv`, or `.npz` with one array per column; a path or any fsspec URL.

    Raises:
        UsageError: another ending.
        FiqaRayError: storage refuses the file.

    Memory: one table; for .npz all of them.
    """
    check_ending(output, (*PARQUET, ".csv", ".npz"))
    n_rows = 0

    def write(path: str) -> None:
        nonlocal n_rows
        if output.endswith(".npz"):
            whole = pa.concat_tables(tables)
            n_rows = len(whole)
            with open(path, "wb") as file:
                np.savez(file, **{name: _numpy(whole[name]) for name in whole.column_names})  # type: ignore[arg-type]
            return
        writer = None
        try:
            for table in tables:
                if writer is None:
                    writer = (pq.ParquetWriter if output.endswith(PARQUET) else pacsv.CSVWriter)(path, table.schema)
                writer.write_table(table)
                n_rows += len(table)
        finally:
            if writer is not None:
                writer.close()

    _write_file(output, write)
    return n_rows


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array that `np.load` reads without pickle: text as fixed-width, lists as rows, null as NaN."""
    if pa.types.is_fixed_size_list(column.type):
        n, dim = len(column), column.type.list_size
        values = np.full((n, dim), np.nan, np.float32)
        valid = column.is_valid().to_numpy()
        values[valid] = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        return values
    if pa.types.is_string(column.type):
        return np.array(["" if v is None else v for v in column.to_pylist()], dtype=str)
    return column.to_numpy()


def _write_file(uri: str, write: Callable[[str], None]) -> None:
    """Let `write` fill a temporary file, then give it its name in one step, or upload it."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        if not is_local(fs):
            with tempfile.TemporaryDirectory() as folder:
                temporary = os.path.join(folder, "table")
                write(temporary)
                fs.put_file(temporary, path)
            return
        with whole_file(path) as temporary:
            write(temporary)
