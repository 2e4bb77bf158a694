"""Tables that people write: CSV of any usual separator, or Parquet, each fault one error with file, column and remedy."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fiqa_ray.errors import FiqaRayError, StorageError
from fiqa_ray.storage import filesystem, read_bytes, storage_errors

TEXT = pa.large_string()
"""Type of text columns: one array may hold more than 2 GB."""

SEPARATORS = (",", ";", "\t")
"""Separators that are tried, in this order, if none is given."""

MAX_ROWS_PER_BYTE = 64
"""Rows of a Parquet file per byte of it, beyond which it is refused: a row has a name of its own."""
_HEAD_BYTES = 1 << 16
_FOREIGN = {  # first bytes of files that are no table -> what they are, and what to do
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "gzip; unpack it",
    b"PK\x03\x04": "a zip archive or a workbook; save its sheet as CSV",
    b"\x80\x02": "a Python pickle, which may run code and is not read; write it as CSV",
    b"\x80\x03": "a Python pickle, which may run code and is not read; write it as CSV",
    b"\x80\x04": "a Python pickle, which may run code and is not read; write it as CSV",
    b"\x80\x05": "a Python pickle, which may run code and is not read; write it as CSV",
    b"<html": "a web page; fetch the file itself",
    b"<!DOC": "a web page; fetch the file itself",
    b"version https://git-lfs": "a pointer of git-LFS; run git lfs pull",
}


def read_table(
    uri: str, types: Mapping[str, pa.DataType], needed: Sequence[str], what: str, separator: str | None = None
) -> pa.Table:
    """Read the columns of a table that have a type here; others are ignored.

    Args:
        uri: CSV with a header, or Parquet (told by its first bytes, whatever its name).
        types: the columns that are wanted, with their types. Columns without a cast to that type are refused; those whose
            wanted type is a list come as they are.
        needed: columns that must be there.
        what: what the table is for, to end error messages with, such as `a list of faces needs uri and identity`.
        separator: of a CSV; None: the first of `SEPARATORS` whose header holds a needed column.

    Raises:
        FiqaRayError: the file is no table, a needed column is missing, a wanted one stands twice or has another type.
    """
    if read_head(uri)[:4] == b"PAR1":
        return _read_parquet(uri, types, needed, what)
    data = read_bytes(uri)
    refuse_foreign(uri, data)
    if uri.lower().endswith((".parquet", ".pq")):
        raise FiqaRayError(f"{uri}: not a Parquet file; {what}")
    if not data.strip():
        raise FiqaRayError(f"{uri} cannot be read as a table: Empty CSV file; mend the file; {what}")
    return _read_csv(uri, data, types, needed, what, separator)


def read_head(uri: str) -> bytes:
    """Return the first bytes of a file, up to 64 KiB."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        head: bytes = fs.cat_file(path, start=0, end=_HEAD_BYTES)
    return head


def refuse_foreign(uri: str, data: bytes) -> None:
    """Raise FiqaRayError if the content is no text, with what it is."""
    start = data[:512].lstrip()
    for first, name in _FOREIGN.items():
        if start.startswith(first) or start.lower().startswith(first):
            raise FiqaRayError(f"{uri}: this is {name}")
    if b"\0" in data[:4096]:
        raise FiqaRayError(f"{uri}: neither Parquet nor text (it holds zero bytes); give a CSV or Parquet file")


def _read_csv(
    uri: str,
    data: bytes,
    types: Mapping[str, pa.DataType],
    needed: Sequence[str],
    what: str,
    separator: str | None,
) -> pa.Table:
    names, separator = _header(uri, data, needed, separator)
    columns = [name.strip() for name in names]
    _refuse_columns(uri, columns, types, needed, what)
    padded = [column for name, column in zip(names, columns, strict=True) if name[:1] == " " and column in types]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=_distinct(columns), skip_rows=1, use_threads=False),
            parse_options=pacsv.ParseOptions(delimiter=separator, invalid_row_handler=None),
            convert_options=pacsv.ConvertOptions(
                column_types={c: TEXT if c in padded or pa.types.is_nested(t) else t for c, t in types.items()},
                include_columns=[c for c in columns if c in types],
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as exc:
        raise FiqaRayError(f"{uri} cannot be read as a table: {_first_line(exc)}; mend the file; {what}") from exc
    for column in padded:  # 'uri, identity' and 'a, b': the space belongs to the separator
        values = [None if v is None else v.removeprefix(" ") for v in table[column].to_pylist()]
        table = table.set_column(
            table.column_names.index(column), column, _cast(uri, column, pa.array(values, TEXT), types, what)
        )
    return table


def _header(uri: str, data: bytes, needed: Sequence[str], separator: str | None) -> tuple[list[str], str]:
    """Return the names in the first line and the separator.

    A separator after the last name is left out where the rows have none, as in OFIQ's files.
    """
    line, _, row = re.split(rb"(\r\n|\r|\n|$)", data[:_HEAD_BYTES], maxsplit=1)
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise FiqaRayError(f"{uri}: not UTF-8 (byte {exc.start} of the header); save it as UTF-8") from exc
    headers = {}
    for mark in [separator] if separator else SEPARATORS:
        headers[mark] = next(csv.reader(io.StringIO(text), delimiter=mark), [])
        if any(name.strip() in needed for name in headers[mark]):
            first_row = re.split(rb"[\r\n]", row, maxsplit=1)[0].decode("utf-8", "replace")
            n_fields = len(next(csv.reader(io.StringIO(first_row), delimiter=mark), []))
            if not headers[mark][-1] and n_fields == len(headers[mark]) - 1:
                headers[mark].pop()
            return headers[mark], mark
    return next((names, mark) for mark, names in headers.items())


def refuse_twice(uri: str, columns: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise FiqaRayError if a wanted column stands twice in a table."""
    for name in wanted:
        if (n := columns.count(name)) > 1:
            raise FiqaRayError(f"{uri}: the column {name!r} stands {n} times; keep one of them")


def _refuse_columns(
    uri: str, columns: Sequence[str], types: Mapping[str, pa.DataType], needed: Sequence[str], what: str
) -> None:
    refuse_twice(uri, columns, types)
    absent = [name for name in needed if name not in columns]
    if absent:
        shown = repr(absent[0]) if len(absent) == 1 else ", ".join(absent)
        raise FiqaRayError(f"{uri}: no column {shown} (found: {', '.join(columns)[:300]}); {what}")


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, changed where one stands again (a column that nobody wants)."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}\0{seen[name]}")
    return distinct


def _read_parquet(uri: str, types: Mapping[str, pa.DataType], needed: Sequence[str], what: str) -> pa.Table:
    try:
        with storage_errors(uri):
            fs, path = filesystem(uri)
            with fs.open(path, "rb", cache_type="none") as source:
                file = pq.ParquetFile(source)
                names = file.schema_arrow.names
                _refuse_bomb(uri, file.metadata.num_rows, fs.size(path), what)
                _refuse_columns(uri, names, types, needed, what)
                wanted = [name for name in names if name in types]
                for name in wanted:
                    _refuse_type(uri, name, file.schema_arrow.field(name).type, types[name], what)
                table = file.read(wanted)
    except (pa.ArrowException, OSError, StorageError) as exc:
        if isinstance(exc, StorageError) and getattr(exc.__cause__, "errno", None):
            raise  # storage is in trouble; damaged pages have no number
        raise FiqaRayError(f"{uri} cannot be read as a table: {_first_line(exc)}; write it again; {what}") from exc
    return pa.table(
        {n: table[n] if pa.types.is_nested(types[n]) else _cast(uri, n, table[n], types, what) for n in wanted}
    )


def _refuse_bomb(uri: str, n_rows: int, n_bytes: int, what: str) -> None:
    """Refuse a file that announces more rows than its bytes can name: one of 400 kB can ask for gigabytes."""
    if n_rows > MAX_ROWS_PER_BYTE * n_bytes:
        raise FiqaRayError(
            f"{uri}: {n_rows:,} rows in {n_bytes:,} bytes, so hardly any two of them differ; write it again; {what}"
        )


def _refuse_type(uri: str, name: str, kind: pa.DataType, wanted: pa.DataType, what: str) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(value) and not pa.types.is_nested(wanted):
        raise FiqaRayError(
            f"{uri}: the column {name!r} is of type {kind}; it must hold one {_kind_name(wanted)} a row; {what}"
        )


def _cast(
    uri: str, name: str, column: pa.Array | pa.ChunkedArray, types: Mapping[str, pa.DataType], what: str
) -> pa.ChunkedArray:
    try:
        if pa.types.is_floating(column.type) and not pa.types.is_floating(
            types[name]
        ):  # 1.0 is the name 1, and NaN none
            column = column.cast(pa.int64())
        return column.cast(types[name])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise FiqaRayError(
            f"{uri}: the column {name!r} is of type {column.type}; it must hold one {_kind_name(types[name])} a row "
            f"({_first_line(exc)}); {what}"
        ) from exc


def _kind_name(kind: pa.DataType) -> str:
    return "number" if pa.types.is_floating(kind) else "text"


def _first_line(exc: BaseException) -> str:
    return str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
