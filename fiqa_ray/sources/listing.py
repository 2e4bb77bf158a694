"""What the readers of several sources share: columns of names, their checks, and the order of a list."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from fiqa_ray.datasets.schemas import SOURCE_FACES
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import filesystem, join, read_bytes, split_chain, storage_errors

TEXT = pa.large_string()  # one array may hold more than 2 GB; the finished columns come in pieces below that


_PIECE_ROWS = 1 << 22


def below(uri: str, names: pa.Array) -> pa.Array:
    """Return the URIs of relative names below a folder; in `zip://folder::archive` they go before the `::`."""
    head, chain = split_chain(uri)
    folder = head.rstrip("/") + "/"
    return joined(folder + "/" if folder.endswith(":/") else folder, names, chain)  # zip:// is the archive's root


def first_file(uri: str, names: Sequence[str]) -> str | None:
    """Return the URI of the first of some names that is a file in a folder, or None."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        return next((join(uri, n) for n in names if fs.isfile(join(path, n))), None)


def text_lines(uri: str) -> list[str]:
    """Return the lines of a text file; raise `FiqaRayError` if it is not UTF-8."""
    try:
        return read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise FiqaRayError(f"{uri}: not a UTF-8 text file ({exc.reason} at byte {exc.start})") from exc


def text_column(names: list[str], uri: str) -> pa.Array:
    """Return names as large_string; raise FiqaRayError for one that is not UTF-8."""
    try:
        return pa.array(names, TEXT)
    except UnicodeEncodeError as exc:
        raise FiqaRayError(f"{uri}: the file name {exc.object!r} is not UTF-8; rename the file") from exc


def joined(*parts: pa.Array | str) -> pa.Array:
    """Return texts put together, row by row."""
    texts = [pa.scalar(part, TEXT) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", TEXT))


def without_ending(names: pa.Array) -> pa.Array:
    """Return file names without their last ending."""
    return pc.replace_substring_regex(names, r"\.[^./]*$", "")


def leaves_root(names: pa.Array) -> pa.Array:
    """Return which names lead out of their folder by `..`."""
    return pc.match_substring_regex(names, r"(^|[/\\])\.\.([/\\]|$)")


def refuse(bad: pa.Array, shown: pa.Array, message: str) -> None:
    """Raise FiqaRayError for the first row where `bad` holds."""
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise FiqaRayError(f"{message}: {shown[row].as_py()!r} (data row {row + 1})")


def identities_of(names: pa.Array, level: int | None, uri: str) -> pa.Array:
    """Return the folder at a level of each path."""
    if level is None:
        return pa.repeat(pa.scalar("", TEXT), len(names))
    match = pc.extract_regex(names, rf"^(?:[^/]*/){{{level}}}(?P<identity>[^/]+)/")
    refuse(
        pc.is_null(match),
        names,
        f"{uri}: an image lies above the folder that names its identity (identity_level {level})",
    )
    return match.field("identity")


def refuse_duplicates(values: pa.Array, uri: str, what: str) -> None:
    """Raise FiqaRayError if a value occurs more than once."""
    if pc.count_distinct(values).as_py() < len(values):
        counts = pc.value_counts(values)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        others = f", as do {len(twice) - 1} others" if len(twice) > 1 else ""
        raise FiqaRayError(f"{uri}: the {what} {twice[0].as_py()!r} occurs more than once{others}; each must be unique")


def sorted_faces(table: pa.Table, schema: pa.Schema = SOURCE_FACES) -> pa.Table:
    """Return a finished list: sorted by (identity, image_id), cast to its schema."""
    order = pc.sort_indices(table, [("identity", "ascending"), ("image_id", "ascending")])
    pieces = [
        table.take(order.slice(i, _PIECE_ROWS)).select(schema.names).cast(schema)
        for i in range(0, len(order), _PIECE_ROWS)
    ]
    return pa.concat_tables(pieces)


def checked_column(table: pa.Table, name: str, uri: str) -> pa.Array:
    """Return a text column without gaps; numbers become text."""
    values = table[name].cast(TEXT).combine_chunks()
    bad = pc.fill_null(pc.equal(values, ""), True)
    if name != "identity":
        refuse(bad, values, f"{uri}: empty {name}")
    else:
        refuse(pc.is_null(values), values, f"{uri}: empty {name}")
    return values


def parse_csv(
    uri: str, data: bytes, types: dict[str, pa.DataType], column_names: Sequence[str] | None = None
) -> pa.Table:
    """Parse a CSV with a header; `column_names` replace those of the header."""
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
