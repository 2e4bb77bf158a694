"""A table of images (CSV or Parquet) as a source."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.landmarks import _COORDINATES, table_landmarks
from fiqa_ray.sources.listing import (
    _TEXT,
    _below,
    _column,
    _leaves_root,
    _parse_csv,
    refuse,
    refuse_duplicates,
    sorted_faces,
)
from fiqa_ray.sources.paths import absolute
from fiqa_ray.storage import filesystem, read_bytes, storage_errors


def list_table(uri: str) -> pa.Table:
    """Lists the images that a table names: CSV with a header, or Parquet (``.parquet``, ``.pq``).

    Columns: ``uri`` (relative ones start at the table's folder), ``identity``; optional ``image_id`` (else the uri as it
    is written; give one where uris are absolute, or results cannot be joined elsewhere) and landmarks: ``x1,y1,..,x5,y5``,
    or in Parquet ``landmarks``, lists of these ten numbers. All ten empty means none. Other columns are ignored.

    Raises FiqaRayError naming the row for missing columns or values, duplicate image_ids, incomplete landmarks and
    relative uris that leave the table's folder.
    """
    uri = absolute(uri)
    table = _read_parquet(uri) if uri.lower().endswith((".parquet", ".pq")) else _read_csv(uri)
    for column in ("uri", "identity"):
        if column not in table.column_names:
            raise FiqaRayError(
                f"{uri}: no column {column!r} (found: {', '.join(table.column_names)}); a list of faces needs the columns "
                "uri and identity, and may have image_id and x1,y1,..,x5,y5"
            )
    if table.num_rows == 0:
        raise FiqaRayError(f"{uri}: the table has no rows")
    written = _column(table, "uri", uri)
    relative = pc.invert(pc.match_substring_regex(written, r"^(/|[A-Za-z][A-Za-z0-9+.\-]*:)"))
    refuse(pc.and_(relative, _leaves_root(written)), written, f"{uri}: the uri leaves the table's folder")
    folder = uri.rpartition("/")[0]
    image_id = _column(table, "image_id", uri) if "image_id" in table.column_names else written
    refuse_duplicates(image_id, uri, "image_id")
    columns = {
        "uri": pc.if_else(relative, _below(folder, written), written),
        "image_id": image_id,
        "identity": _column(table, "identity", uri),
        "landmarks": table_landmarks(table, uri),
    }
    return sorted_faces(pa.table(columns))


def _read_csv(uri: str) -> pa.Table:
    types = {**dict.fromkeys(("uri", "image_id", "identity"), _TEXT), **dict.fromkeys(_COORDINATES, pa.float64())}
    return _parse_csv(uri, read_bytes(uri), types)


def _read_parquet(uri: str) -> pa.Table:
    wanted = {"uri", "image_id", "identity", "landmarks", *_COORDINATES}
    with storage_errors(uri):
        fs, path = filesystem(uri)
        with fs.open(path, "rb") as f:
            try:
                file = pq.ParquetFile(f)
                return file.read([c for c in file.schema_arrow.names if c in wanted])
            except (pa.ArrowInvalid, pa.ArrowKeyError) as exc:
                raise FiqaRayError(f"{uri}: not a Parquet file ({exc})") from exc
