"""Lists of the face images that people have, without opening an image.

Every list is a table (`fiqa_ray.schemas.SOURCE_FACES`), sorted by (identity, image_id), of the columns

    uri        where the image is: a URL, or a local path (made absolute)
    image_id   its name within the data set, with forward slashes; unique
    identity   whose face it is
    landmarks  x1, y1 .. x5, y5 in px of the image, in the order of `fiqa_ray.core.align`; null where none are known

A data set is listed once, by one walk or from its own list files; nothing is asked about single files. The layouts of
VGGFace2 are those of ox-vgg/vgg_face2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.schemas import SOURCE_FACES
from fiqa_ray.storage import filesystem, join, read_bytes, storage_errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Endings, in any case, of the files that count as images."""

_COORDINATES = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]
_LANDMARK_HEADER = ["NAME_ID", *(f"P{point}{axis}" for point in range(1, 6) for axis in "XY")]
_TEXT = pa.large_string()  # one array may hold more than 2 GB; the finished columns come in pieces below that
_PIECE_ROWS = 1 << 22


# --- what people have -------------------------------------------------------------------------------------------------


def list_folder(
    uri: str,
    *,
    extensions: Sequence[str] = EXTENSIONS,
    identity_level: int | None = 0,
    landmarks_uri: str | None = None,
) -> pa.Table:
    """Lists the images below a folder.

    Parameters
    ----------
    uri: folder; local, ``s3://``, ``memory://`` or another fsspec URL.
    extensions: endings that count as images, in any case. Names that begin with a dot are left out.
    identity_level: which folder below ``uri`` names the person: 0 for ``<person>/a.jpg``, 2 for
        ``Data/Images/<person>/frontal/01.jpg``. None where folders name nobody (flat benchmark sets): identity is "".
    landmarks_uri: CSV in VGGFace2's form (``NAME_ID,P1X,P1Y,..,P5X,P5Y``); NAME_ID is the image_id without ending.

    Raises FiqaRayError where the folder is missing or has no images, where an image lies above its identity's folder,
    and for a faulty landmark file.
    """
    uri = absolute(uri)
    names = _image_names(uri, extensions)
    image_id = text_column(names, uri)
    columns = {
        "uri": _below(uri, image_id),
        "image_id": image_id,
        "identity": _identities(image_id, identity_level, uri),
        "landmarks": _landmarks_of(_without_ending(image_id), landmarks_uri),
    }
    return sorted_faces(pa.table(columns))


def list_vggface2(uri: str, *, splits: Sequence[str] = ("train", "test")) -> pa.Table:
    """Lists VGGFace2 as it is distributed.

    Images are ``<split>/n000002/0001_01.jpg``; that is also their image_id, and ``n000002`` the identity. They come from
    ``<split>_list.txt`` or ``<split>.txt`` (lines ``n000002/0001_01.jpg``) at the root, in ``meta/``, in the split's
    folder or in its ``meta/``, and without such a file from the split's folder. Landmarks come from
    ``loose_landmark_<split>.csv`` at the root or in ``bb_landmark/``; images without a row there have none, and nor
    has any image where there is no such file.

    Raises FiqaRayError where a split is not there, for an unsafe or malformed line and for a faulty landmark file.
    """
    uri = absolute(uri)
    tables = []
    for split in splits:
        folder = join(uri, split)
        lists = [
            f"{place}{name}.txt"
            for place in ("", "meta/", f"{split}/", f"{split}/meta/")
            for name in (f"{split}_list", split)
        ]
        list_uri = _first_file(uri, lists)
        if list_uri is not None:
            names = text_column(_listed_names(list_uri, split), list_uri)
        else:
            try:
                names = text_column(_image_names(folder, EXTENSIONS), folder)
            except FiqaRayError as exc:
                raise FiqaRayError(
                    f"{exc}. VGGFace2's {split} part needs its images in {folder} or a list {split}_list.txt; "
                    f"leave {split} out of the splits if you do not have it"
                ) from exc
        landmarks_uri = _first_file(uri, [f"bb_landmark/loose_landmark_{split}.csv", f"loose_landmark_{split}.csv"])
        tables.append(
            pa.table(
                {
                    "uri": _below(folder, names),
                    "image_id": joined(split + "/", names),
                    "identity": _identities(names, 0, list_uri or folder),
                    "landmarks": _landmarks_of(_without_ending(names), landmarks_uri),
                }
            )
        )
    return sorted_faces(pa.concat_tables(tables))


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


def read_face_bytes(uris: Sequence[str], n_threads: int = 16) -> list[bytes | None]:
    """Contents of image files, in order; None for a file that is not there.

    The URIs may lie on different storages. Files are fetched concurrently. Other faults than a missing file raise
    FiqaRayError naming the URI: they mean that storage is in trouble, not that an image is bad.
    """
    systems: dict[tuple[str, str], fsspec.AbstractFileSystem] = {}

    def open_system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        head, _, chain = uri.partition("::")
        key = (head.partition("://")[0] if "://" in head else "", chain)
        if key not in systems:
            systems[key] = filesystem(uri)[0]
        return systems[key], systems[key]._strip_protocol(head)

    def read(uri: str, fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
        try:
            with storage_errors(uri):
                return fs.cat_file(path)
        except FiqaRayError as exc:
            if isinstance(exc.__cause__, FileNotFoundError) and "bucket does not exist" not in str(exc.__cause__):
                return None
            raise

    located = [(uri, *open_system(uri)) for uri in uris]
    if len(located) <= 1 or n_threads <= 1:
        return [read(*where) for where in located]
    with ThreadPoolExecutor(min(n_threads, len(located))) as pool:
        return list(pool.map(lambda where: read(*where), located))


# --- listing ----------------------------------------------------------------------------------------------------------


def absolute(uri: str) -> str:
    """A local path as an absolute one: workers do not share the caller's folder. URLs stay as they are."""
    return uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _below(uri: str, names: pa.Array) -> pa.Array:
    """URIs of relative names below a folder; in ``zip://folder::archive`` they go before the ``::``."""
    head, separator, chain = uri.partition("::")
    return joined(head.rstrip("/") + "/", names, separator + chain)


def _image_names(uri: str, extensions: Sequence[str]) -> list[str]:
    """Paths of the images relative to a folder, with forward slashes, unsorted."""
    endings = tuple(e.lower() for e in extensions)
    with storage_errors(uri):
        fs, path = filesystem(uri)
        found = _walk(path) if isinstance(fs, LocalFileSystem) else _find(fs, path)
    names = [n for n in found if n.lower().endswith(endings) and "/." not in f"/{n}" and not n.startswith("__MACOSX/")]
    if not names:
        raise FiqaRayError(
            f"{uri}: no images found; looked in it and in all folders below for names ending in "
            f"{', '.join(endings)}; check the path"
        )
    return names


def _find(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    root = fs._strip_protocol(path).rstrip("/")
    return [p[len(root) :].lstrip("/") for p in fs.find(path)]


def _walk(root: str) -> list[str]:
    """All files below a local folder; unlike fsspec's walk it asks the disk about folders only, not about each file.

    Links to folders are followed, except to a folder that contains them. A folder that cannot be read is an error.
    """

    def fail(exc: OSError) -> None:
        raise exc

    names: list[str] = []
    for folder, subfolders, files in os.walk(root, onerror=fail, followlinks=True):
        here = os.path.realpath(folder) + os.sep
        subfolders[:] = [
            s
            for s in subfolders
            if not os.path.islink(p := os.path.join(folder, s)) or not here.startswith(os.path.realpath(p) + os.sep)
        ]
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        names += files if prefix == "./" else [prefix + name for name in files]
    return names


def _first_file(uri: str, names: Sequence[str]) -> str | None:
    with storage_errors(uri):
        fs, path = filesystem(uri)
        return next((join(uri, n) for n in names if fs.isfile(join(path, n))), None)


def _listed_names(list_uri: str, split: str) -> list[str]:
    """Lines of a VGGFace2 list file, without the part's folder that some copies put in front."""
    lines = _lines(list_uri)
    names = [line.strip().removeprefix(f"{split}/") for line in lines]
    for number, name in enumerate(names, 1):
        parts = name.split("/")
        if name and (len(parts) < 2 or not parts[0] or ".." in parts):
            raise FiqaRayError(
                f"{list_uri}, line {number}: {lines[number - 1]!r} is not a path such as n000002/0001_01.jpg below the "
                f"folder {split}"
            )
    names = [name for name in names if name]
    if not names:
        raise FiqaRayError(f"{list_uri}: the list is empty; remove the file to have the folder {split} listed instead")
    return names


def _lines(uri: str) -> list[str]:
    try:
        return read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise FiqaRayError(f"{uri}: not a UTF-8 text file ({exc.reason} at byte {exc.start})") from exc


# --- tables -----------------------------------------------------------------------------------------------------------


def text_column(names: list[str], uri: str) -> pa.Array:
    """Names as large_string; FiqaRayError for one that is not UTF-8."""
    try:
        return pa.array(names, _TEXT)
    except UnicodeEncodeError as exc:
        raise FiqaRayError(f"{uri}: the file name {exc.object!r} is not UTF-8; rename the file") from exc


def joined(*parts: pa.Array | str) -> pa.Array:
    """Texts put together, row by row."""
    texts = [pa.scalar(part, _TEXT) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", _TEXT))


def _without_ending(names: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(names, r"\.[^./]*$", "")


def _leaves_root(names: pa.Array) -> pa.Array:
    return pc.match_substring_regex(names, r"(^|[/\\])\.\.([/\\]|$)")


def refuse(bad: pa.Array, shown: pa.Array, message: str) -> None:
    """Raises for the first row where ``bad`` holds."""
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise FiqaRayError(f"{message}: {shown[row].as_py()!r} (data row {row + 1})")


def _identities(names: pa.Array, level: int | None, uri: str) -> pa.Array:
    """The folder at a level of each path."""
    if level is None:
        return pa.repeat(pa.scalar("", _TEXT), len(names))
    found = pc.extract_regex(names, rf"^(?:[^/]*/){{{level}}}(?P<identity>[^/]+)/")
    refuse(
        pc.is_null(found),
        names,
        f"{uri}: an image lies above the folder that names its identity (identity_level {level})",
    )
    return found.field("identity")


def refuse_duplicates(values: pa.Array, uri: str, what: str) -> None:
    """Raises FiqaRayError where a value occurs more than once."""
    if pc.count_distinct(values).as_py() < len(values):
        counts = pc.value_counts(values)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise FiqaRayError(
            f"{uri}: the {what} {twice[0].as_py()!r} occurs more than once, as do {len(twice) - 1} others; "
            "each must be unique"
        )


def sorted_faces(table: pa.Table, schema: pa.Schema = SOURCE_FACES) -> pa.Table:
    """A finished list: sorted by (identity, image_id), cast to its schema."""
    order = pc.sort_indices(table, [("identity", "ascending"), ("image_id", "ascending")])
    pieces = [
        table.take(order.slice(i, _PIECE_ROWS)).select(schema.names).cast(schema)
        for i in range(0, len(order), _PIECE_ROWS)
    ]
    return pa.concat_tables(pieces)


def _column(table: pa.Table, name: str, uri: str) -> pa.Array:
    """A text column without gaps; numbers become text."""
    values = table[name].cast(_TEXT).combine_chunks()
    bad = pc.fill_null(pc.equal(values, ""), True)
    if name != "identity":
        refuse(bad, values, f"{uri}: empty {name}")
    else:
        refuse(pc.is_null(values), values, f"{uri}: empty {name}")
    return values


# --- landmarks --------------------------------------------------------------------------------------------------------


def _landmark_column(values: NDArray[np.float64], missing: NDArray[np.bool_]) -> pa.Array:
    """``(n_images, 10)`` and ``(n_images,)`` as the column ``landmarks``."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 10, mask=pa.array(missing))


def _landmarks_of(keys: pa.Array, landmarks_uri: str | None) -> pa.Array:
    """Landmarks of each key from a CSV in VGGFace2's form; null for keys without a row."""
    if landmarks_uri is None:
        return pa.nulls(len(keys), SOURCE_FACES.field("landmarks").type)
    table = _read_landmark_csv(landmarks_uri)
    names = table["NAME_ID"].combine_chunks()
    refuse_duplicates(names, landmarks_uri, "NAME_ID")
    values = np.column_stack([table[c].to_numpy() for c in _LANDMARK_HEADER[1:]])
    row = pc.fill_null(pc.index_in(keys, value_set=names), -1).to_numpy()
    if len(row) and (row < 0).all():
        raise FiqaRayError(
            f"{landmarks_uri}: no row belongs to any image; its NAME_ID is like {names[0].as_py() if len(names) else ''!r}, "
            f"the images are like {keys[0].as_py()!r} (path without ending)"
        )
    return _landmark_column(values[np.maximum(row, 0)], row < 0)


def _read_landmark_csv(uri: str) -> pa.Table:
    data = read_bytes(absolute(uri))
    header = data[:4096].split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    if [c.strip(' "\r').upper() for c in header.split(",")] != _LANDMARK_HEADER:
        raise FiqaRayError(f"{uri}: the first line is {header[:80]!r} instead of {','.join(_LANDMARK_HEADER)!r}")
    return _parse_csv(
        uri,
        data,
        {"NAME_ID": _TEXT, **dict.fromkeys(_LANDMARK_HEADER[1:], pa.float64())},
        column_names=_LANDMARK_HEADER,
    )


def _read_csv(uri: str) -> pa.Table:
    types = {**dict.fromkeys(("uri", "image_id", "identity"), _TEXT), **dict.fromkeys(_COORDINATES, pa.float64())}
    return _parse_csv(uri, read_bytes(uri), types)


def _parse_csv(
    uri: str, data: bytes, types: dict[str, pa.DataType], column_names: Sequence[str] | None = None
) -> pa.Table:
    """Parses a CSV with a header; ``column_names`` replace those of the header."""
    try:
        return pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=column_names, skip_rows=1 if column_names else 0),
            convert_options=pacsv.ConvertOptions(column_types=types),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as exc:
        raise FiqaRayError(
            f"{uri}: {str(exc).splitlines()[0] if str(exc) else 'not a CSV file'}; mend the file"
        ) from exc


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


def table_landmarks(table: pa.Table, uri: str) -> pa.Array:
    """Landmarks from the columns ``landmarks`` or ``x1,y1,..,x5,y5``; null where there are none. Errors show ``uri``."""
    if "landmarks" in table.column_names:
        column = table["landmarks"].combine_chunks()
        try:
            return column.cast(SOURCE_FACES.field("landmarks").type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
            raise FiqaRayError(
                f"{uri}: the column landmarks ({column.type}) must hold lists of ten numbers; in CSV use the columns "
                f"{','.join(_COORDINATES)}"
            ) from exc
    absent = [c for c in _COORDINATES if c not in table.column_names]
    if len(absent) == len(_COORDINATES):
        return pa.nulls(table.num_rows, SOURCE_FACES.field("landmarks").type)
    if absent:
        raise FiqaRayError(f"{uri}: landmarks need all of {','.join(_COORDINATES)}; missing: {', '.join(absent)}")
    values = np.column_stack([table[c].cast(pa.float64()).to_numpy() for c in _COORDINATES])
    n_missing = np.isnan(values).sum(axis=1)
    partly = (n_missing > 0) & (n_missing < 10)
    refuse(pa.array(partly), table["uri"], f"{uri}: incomplete landmarks")
    return _landmark_column(values, n_missing == 10)
