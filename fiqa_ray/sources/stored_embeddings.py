"""Embeddings in Parquet as a source without images: names of images and people, and their vectors.

Columns: `image_id`, `identity`, and `embedding`: lists of D numbers, or D little-endian float32 as bytes of one length, as a
run of this package stores them. `fiqa-ray embeddings` writes such a file.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.datasets.schemas import SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.public_uri import public_uri
from fiqa_ray.sources.embedding_files import EMBEDDING_NAMES, PARQUET
from fiqa_ray.sources.listing import TEXT, checked_column, refuse_duplicates, sorted_faces
from fiqa_ray.sources.parquet_images import open_parquet
from fiqa_ray.sources.paths import absolute, expand
from fiqa_ray.sources.read_table import refuse_twice

_NAMES = ("image_id", "identity")


def list_embeddings(uri: str, *, left_out: Counter[str] | None = None) -> pa.Table:
    """List the images whose embeddings lie in Parquet, as a table of `schemas.SOURCE_RECORDS`; offset is a file's row.

    Args:
        uri: one file, a glob, or a folder with all `.parquet` files below it.
        left_out: counts by reason what is no data.

    Raises:
        FiqaRayError: a file is no Parquet, a column is missing or has gaps, or two images have one name.
    """
    files = list(expand(absolute(uri), PARQUET, left_out))
    if not files:
        raise FiqaRayError(f"{uri}: no Parquet files of embeddings found; check the path")
    tables = []
    for file_uri in files:
        with open_parquet(file_uri) as file:
            _embedding_column(file.schema_arrow, file_uri)
            table = file.read(list(_NAMES))
        columns = {name: checked_column(table, name, file_uri) for name in _NAMES}
        n = len(table)
        columns |= {"uri": pa.repeat(pa.scalar(file_uri, TEXT), n), "offset": pa.array(np.arange(n))}
        columns |= {"length": pa.nulls(n, pa.int64()), "landmarks": pa.nulls(n, SOURCE_RECORDS.field("landmarks").type)}
        tables.append(pa.table(columns))
    faces = pa.concat_tables(tables)
    if not len(faces):
        raise FiqaRayError(f"{uri}: {len(files)} Parquet file(s) without rows")
    refuse_duplicates(faces["image_id"].combine_chunks(), uri, "image_id")
    return sorted_faces(faces, SOURCE_RECORDS)


def read_stored_embeddings(source_uri: str, listed: pa.Table) -> NDArray[np.float32]:
    """Return the embeddings `(N, D)` of some rows of a list, NaN for an image without one.

    Memory: the row groups of one file that hold these rows.

    Args:
        source_uri: the source's location, whose files may be named with secrets that the list does not have.
        listed: rows of `list_embeddings`.

    Raises:
        FiqaRayError: a file is damaged, or its embeddings have another length than those of the others.
    """
    private = {public_uri(file): file for file in expand(absolute(source_uri), PARQUET)}
    uris, offsets = listed["uri"].combine_chunks(), listed["offset"].to_numpy()
    result: NDArray[np.float32] | None = None
    for uri in pc.unique(uris).to_pylist():
        rows = np.flatnonzero(pc.equal(uris, uri).to_numpy(zero_copy_only=False))
        file_uri = private.get(public_uri(uri), uri)
        with open_parquet(file_uri) as file:
            values = _read_rows(file, offsets[rows], uri)
        if result is None:
            result = np.empty((len(listed), values.shape[1]), np.float32)
        if values.shape[1] != result.shape[1]:
            raise FiqaRayError(f"{uri}: embeddings of {values.shape[1]} numbers, others have {result.shape[1]}")
        result[rows] = values
    assert result is not None  # a part has at least one image
    return result


def _read_rows(file: pq.ParquetFile, offsets: NDArray[np.int64], uri: str) -> NDArray[np.float32]:
    """Return the embeddings of some rows of a file, in their order."""
    name = _embedding_column(file.schema_arrow, uri)
    first, groups, starts = 0, [], []
    for g in range(file.num_row_groups):
        n = file.metadata.row_group(g).num_rows
        if ((offsets >= first) & (offsets < first + n)).any():
            groups.append(g)
            starts.append((first, n))
        first += n
    column = file.read_row_groups(groups, columns=[name])[name]
    place, at = np.empty(first, np.int64), 0
    for start, n in starts:
        place[start : start + n] = np.arange(at, at + n)
        at += n
    return _matrix(column.take(pa.array(place[offsets])), uri)


def _matrix(column: pa.ChunkedArray, uri: str) -> NDArray[np.float32]:
    """Return a column of embeddings as `(N, D)`, NaN where one is null."""
    column = column.combine_chunks()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_binary(column.type):
        values = embedding_values(pa.table({"embedding": column}))[0]
    else:
        present = column.drop_null()
        lengths = pc.unique(pc.list_value_length(present)).to_pylist()
        if len(lengths) > 1:
            raise FiqaRayError(
                f"{uri}: embeddings of {min(lengths)} to {max(lengths)} numbers; all must be of one length"
            )
        flat = present.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        values = flat.reshape(len(present), lengths[0] if lengths else 1)
    matrix = np.full((len(column), values.shape[1]), np.nan, np.float32)
    matrix[valid] = values
    return matrix


def _embedding_column(schema: pa.Schema, uri: str) -> str:
    """Return the name of the column of embeddings, after a check of all columns."""
    name = next((n for n in EMBEDDING_NAMES if n in schema.names), None)
    missing = [n for n in ("image_id", "identity") if n not in schema.names] + ([] if name else ["embedding"])
    if missing or name is None:
        raise FiqaRayError(
            f"{uri}: no column {', '.join(missing)} (found: {', '.join(schema.names)}); embeddings need image_id, identity "
            "and embedding"
        )
    refuse_twice(uri, schema.names, ("image_id", "identity", name))
    kind = schema.field(name).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    is_number = is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    is_bytes = pa.types.is_fixed_size_binary(kind) and kind.byte_width % 4 == 0
    if not (is_number or is_bytes):
        raise FiqaRayError(f"{uri}: the column {name} is of type {kind}; it must hold lists of numbers")
    return name
