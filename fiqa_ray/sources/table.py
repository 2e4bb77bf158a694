"""A table of images (CSV or Parquet) as a source."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.landmarks import COORDINATES, table_landmarks
from fiqa_ray.sources.listing import (
    below,
    checked_column,
    leaves_root,
    refuse,
    refuse_duplicates,
    sorted_faces,
)
from fiqa_ray.sources.paths import absolute
from fiqa_ray.sources.private_uris import public_column
from fiqa_ray.sources.read_table import TEXT, read_table
from fiqa_ray.storage import exists, join

_TYPES = {
    **dict.fromkeys(("uri", "image_id", "identity"), TEXT),
    **dict.fromkeys(COORDINATES, pa.float64()),
    "landmarks": pa.list_(pa.float64(), 10),
}


def list_table(uri: str) -> pa.Table:
    """List the images that a table names: CSV with a header, or Parquet.

    Columns are `uri` (relative ones start at the table's folder) and `identity`; optional are `image_id` (else the uri as it
    is written, without user info and query string; give one where uris are absolute, or results cannot be joined elsewhere)
    and landmarks: `x1,y1,..,x5,y5`, or in Parquet `landmarks`, lists of these ten numbers. All ten empty means none. Other
    columns are ignored.

    Raises:
        FiqaRayError: names the row of missing columns or values, duplicate image_ids, incomplete landmarks and uris that
            leave the table's folder.
    """
    uri = absolute(uri)
    table = read_table(
        uri,
        _TYPES,
        ("uri", "identity"),
        "a list of faces needs the columns uri and identity, and may have image_id and x1,y1,..,x5,y5",
    )
    if table.num_rows == 0:
        raise FiqaRayError(f"{uri}: the table has no rows")
    written = checked_column(table, "uri", uri)
    relative = pc.invert(pc.match_substring_regex(written, r"^(/|[A-Za-z][A-Za-z0-9+.\-]*:)"))
    refuse(pc.and_(relative, leaves_root(written)), written, f"{uri}: the uri leaves the table's folder")
    folder = uri.rpartition("/")[0]
    _refuse_windows_paths(written, folder, uri)
    image_id = checked_column(table, "image_id", uri) if "image_id" in table.column_names else public_column(written)
    refuse_duplicates(image_id, uri, "image_id")
    columns = {
        "uri": pc.if_else(relative, below(folder, written), written),
        "image_id": image_id,
        "identity": checked_column(table, "identity", uri),
        "landmarks": table_landmarks(table, uri),
    }
    return sorted_faces(pa.table(columns))


def _refuse_windows_paths(written: pa.Array, folder: str, uri: str) -> None:
    """Refuse uris with backslashes, unless the first of them is a file of that very name."""
    suspects = written.filter(pc.match_substring_regex(written, r"^[A-Za-z]:\\|^[^/]*\\[^/]*$"))
    if len(suspects) and not exists(join(folder, suspects[0].as_py())):
        raise FiqaRayError(
            f"{uri}: {len(suspects):,} uris are Windows paths, such as {suspects[0].as_py()!r}; write them with forward "
            "slashes, relative to the table"
        )
