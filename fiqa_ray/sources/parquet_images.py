"""Images inside Parquet as Hugging Face's datasets stores them: a struct of bytes and path, or plain binary.

Names of integer labels (ClassLabel) come from the schema's metadata `huggingface`:
`{"info": {"features": {"label": {"names": [...], "_type": "ClassLabel"}}}}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fiqa_ray.datasets.schemas import SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import MAX_ENTRY_BYTES, Content, Fault
from fiqa_ray.sources.landmarks import table_landmarks
from fiqa_ray.sources.listing import joined, refuse, refuse_duplicates, sorted_faces
from fiqa_ray.sources.paths import absolute, expand
from fiqa_ray.sources.read_table import refuse_twice
from fiqa_ray.storage import filesystem, storage_errors

TEXT = pa.large_string()
_ROWS_AT_ONCE = 64  # images decoded from their pages at a time

MIN_IMAGE_BYTES, FEW_ROWS = 16, 10_000
MAX_GROWN_BYTES = 1 << 30
"""A row group of images that unpacks to more than this and a thousand times its size is refused unread."""


def list_parquet_images(uri: str, *, identity_key: str | None = None, left_out: Counter[str] | None = None) -> pa.Table:
    """List the images of Parquet files as a table of `schemas.SOURCE_RECORDS`; offset is the row in the file.

    The image column is `image`, else the only one of binary or of structs with `bytes`. Integer labels become their
    ClassLabel name, or text. image_id is a column of that name, else the images' paths if they are all there and unlike,
    else `<file>/<row>`. Landmarks are as in `fiqa_ray.sources.table.list_table`. Pixels are not read.

    Args:
        uri: one file, a glob, or a folder with all `.parquet` files below it.
        identity_key: column of the identity; default: identity, else label.
        left_out: counts by reason what is no data.

    Raises:
        FiqaRayError: names file, column and row of what is missing or does not fit.
    """
    files = _files(absolute(uri), left_out)
    tables = [_list_file(file, identity_key) for file in files]
    table = pa.concat_tables(tables, promote_options="default")
    if not len(table):
        raise FiqaRayError(f"{uri}: {len(files)} Parquet file(s) without rows")
    if "image_id" in table.column_names:
        image_id = table["image_id"].combine_chunks()
        refuse(pc.is_null(image_id), image_id, f"{uri}: empty image_id")
        refuse_duplicates(image_id, uri, "image_id")
    else:
        image_id = table["path"].combine_chunks()
        if image_id.null_count or pc.count_distinct(image_id).as_py() < len(image_id):
            file = pa.concat_arrays(
                [pa.repeat(pa.scalar(f, TEXT), len(t)) for f, t in zip(files.values(), tables, strict=True)]
            )
            row = pc.utf8_lpad(table["offset"].combine_chunks().cast(TEXT), 8, "0")
            image_id = joined(file, "/", row)
    columns = {c: table[c] for c in ("uri", "identity", "landmarks", "offset")}
    columns |= {"image_id": image_id, "length": pa.nulls(len(table), pa.int64())}
    return sorted_faces(pa.table(columns), SOURCE_RECORDS)


def read_parquet_images(faces: pa.Table) -> Iterator[tuple[int, Content]]:
    """Yield row and content of the images of a list, in the order of the files.

    A row group is read once, a few images at a time. A row without bytes has status "missing", one that cannot be read
    "bad_record".
    """
    uris, offsets = faces["uri"].to_pylist(), faces["offset"].to_numpy()
    for uri in dict.fromkeys(uris):
        rows = np.array([row for row, u in enumerate(uris) if u == uri])
        with open_parquet(uri) as file:
            name, kind = _image_column(file.schema_arrow, uri)
            column = f"{name}.bytes" if pa.types.is_struct(kind) else name
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                wanted = {
                    int(offsets[row]) - first: int(row)
                    for row in rows[(offsets[rows] >= first) & (offsets[rows] < last)]
                }
                first = last
                if wanted:
                    yield from _read_group(file, group, column, wanted)


def _read_group(file: pq.ParquetFile, group: int, column: str, wanted: dict[int, int]) -> Iterator[tuple[int, Content]]:
    """Yield the images of one row group; `wanted` maps a row of the group to a row of the list."""
    left = dict(wanted)
    at = 0
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
            values = batch.column(0)
            values = values.field(0) if pa.types.is_struct(values.type) else values
            for i in range(len(values)):
                if at + i in left:
                    yield left.pop(at + i), _content(values[i])
            at += len(values)
            if not left:
                return
    except (pa.ArrowException, OSError) as exc:
        if getattr(exc, "errno", None):  # storage is in trouble; damaged pages have no number
            raise
        for row in left.values():
            yield row, Fault("bad_record", f"row group {group} cannot be read: {' '.join(str(exc).split())[:120]}")


def _content(value: pa.Scalar) -> Content:
    if not value.is_valid:
        return Fault("missing", "the row has no image bytes")
    size = value.as_buffer().size
    if size > MAX_ENTRY_BYTES:
        return Fault("too_large", f"an entry of {size} bytes; the limit is {MAX_ENTRY_BYTES}")
    content: bytes = value.as_py()
    return content


# --- files and columns ------------------------------------------------------------------------------------------------


def _files(uri: str, left_out: Counter[str] | None) -> dict[str, str]:
    """Return the URIs of the files, each with its name below their common folder, without ending."""
    files = expand(uri, (".parquet",), left_out)
    if not files:
        raise FiqaRayError(f"{uri}: no Parquet files found; check the path")
    return {file: name.removesuffix(".parquet") for file, name in files.items()}


@contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file on any storage; raise `FiqaRayError` if it is none."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        # what pyarrow asks for goes to storage as it is: fsspec's readahead would fetch columns that nobody wants
        with fs.open(path, "rb", cache_type="none") as source:
            try:
                file = pq.ParquetFile(source, buffer_size=1 << 22, pre_buffer=False)
            except (pa.ArrowInvalid, OSError) as exc:
                if getattr(exc, "errno", None):
                    raise
                raise FiqaRayError(f"{uri}: not a Parquet file ({' '.join(str(exc).split())[:120]})") from exc
            yield file


def _list_file(uri: str, identity_key: str | None) -> pa.Table:
    with open_parquet(uri) as file:
        schema = file.schema_arrow
        image, kind = _image_column(schema, uri)
        _refuse_bomb(file.metadata, image, uri)
        identity = next((n for n in (identity_key, "identity", "label") if n in schema.names), None)
        if identity is None or identity_key not in (None, identity):
            raise FiqaRayError(
                f"{uri}: no column {identity_key or 'identity or label'} (found: {', '.join(schema.names)}); "
                "source.identity_key names the column that tells whose face it is"
            )
        has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        known = {"image_id", "landmarks", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy")}
        refuse_twice(uri, schema.names, (image, identity, *known))
        wanted = [identity, *(n for n in schema.names if n in known and n != identity)]
        try:
            table = file.read(wanted + [f"{image}.path"] * has_path, use_threads=False)
        except (pa.ArrowException, OSError) as exc:
            if getattr(exc, "errno", None):
                raise
            raise FiqaRayError(f"{uri}: damaged ({' '.join(str(exc).split())[:120]}); fetch it again") from exc
    n = len(table)
    offset = pa.array(np.arange(n))
    rows = table.append_column("uri", offset.cast(TEXT)) if "uri" not in table.column_names else table
    columns = {
        "uri": pa.repeat(pa.scalar(uri, TEXT), n),
        "identity": _identities(table[identity].combine_chunks(), _class_names(schema, identity), uri),
        "landmarks": table_landmarks(rows, uri),
        "offset": offset,
        "path": pc.struct_field(table[image], "path").cast(TEXT) if has_path else pa.nulls(n, TEXT),
    }
    if "image_id" in table.column_names:
        columns["image_id"] = table["image_id"].cast(TEXT)
    return pa.table(columns)


def _image_column(schema: pa.Schema, uri: str) -> tuple[str, pa.DataType]:
    """Return name and type of the column that holds the images."""

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    names = [f.name for f in schema if holds_bytes(f.type)]
    if "image" not in names and len(names) != 1:
        raise FiqaRayError(
            f"{uri}: {'several columns' if names else 'no column'} of image bytes ({', '.join(names or schema.names)}); the "
            "images' column must be called image, or be the only one of binary or of structs with bytes"
        )
    name = "image" if "image" in names else names[0]
    return name, schema.field(schema.names.index(name)).type


def _refuse_bomb(metadata: pq.FileMetaData, image: str, uri: str) -> None:
    """Refuse files that would fill the memory: many rows without images, or a column that grows a thousandfold to over 1 GB.

    Image files hardly compress, so no honest file looks like that.
    """
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        columns = (group.column(c) for c in range(group.num_columns))
        chunks = [c for c in columns if c.path_in_schema.split(".")[0] == image]
        n_bytes = sum(c.total_uncompressed_size for c in chunks)
        if n_bytes < MIN_IMAGE_BYTES * (group.num_rows - FEW_ROWS):
            raise FiqaRayError(
                f"{uri}: row group {g} has {group.num_rows:,} rows and {n_bytes:,} bytes in its column {image}; files "
                "without images are not read"
            )
        for chunk in chunks:
            grown = chunk.total_uncompressed_size
            if grown > max(MAX_GROWN_BYTES, 1000 * chunk.total_compressed_size):
                raise FiqaRayError(
                    f"{uri}: row group {g} of {image} grows from {chunk.total_compressed_size} to {grown} bytes when "
                    "unpacked, which no images do; do not trust this file"
                )


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names of a ClassLabel column, or None."""
    try:
        info: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = info["info"]["features"][column]["names"]
        return [str(n) for n in names]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _identities(values: pa.Array, names: list[str] | None, uri: str) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    refuse(pc.is_null(values), values, f"{uri}: no identity")
    if pa.types.is_floating(values.type) and pc.all(pc.equal(values, pc.floor(values))).as_py():
        values = values.cast(pa.int64())  # as pandas writes whole numbers beside gaps
    if pa.types.is_integer(values.type):
        if names is None:
            return values.cast(TEXT)
        refuse(
            pc.or_(pc.less(values, 0), pc.greater_equal(values, len(names))),
            values,
            f"{uri}: the label is none of the {len(names)} names in the file's metadata",
        )
        return pa.array(names, TEXT).take(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.cast(TEXT)
    raise FiqaRayError(f"{uri}: the identity column is of type {values.type}; it must hold text or whole numbers")
