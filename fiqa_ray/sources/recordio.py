"""MXNet RecordIO as InsightFace and im2rec write it (`train.rec` with `train.idx`), without MXNet.

A record is `magic, word, data, padding to 4 bytes` (dmlc-core `recordio.h`); the word's upper 3 bits say whether it
is whole (0) or the first (1), a middle (2) or the last (3) of pieces between which the magic itself stood in the data;
the lower 29 are the piece's length. Data are `flag, label, id, id2` (MXNet `recordio.py`, "IfQQ"), then `flag` float32
labels, then the image. `.idx` has lines `key<TAB>offset`.

InsightFace (`face2rec2.py`): record 0 has no image and the labels (n, m): images have the keys 1..n-1 and records
n..m-1 stand for identities, with the labels (first, last + 1) of the identity's keys. float32 holds such numbers
exactly up to 2^24 only; beyond that, and for files of im2rec, labels are read from every record or from `.lst`.
"""

from __future__ import annotations

import logging
import struct
from array import array
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from fiqa_ray.datasets.schemas import SOURCE_FACES, SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import Content, Fault, read_entries, read_ranges
from fiqa_ray.sources.listing import refuse_duplicates, sorted_faces
from fiqa_ray.sources.paths import absolute
from fiqa_ray.storage import exists, filesystem, join, read_bytes, storage_errors

_log = logging.getLogger("fiqa_ray")

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_LENGTH_MASK = (1 << 29) - 1
_LABEL_HEADER = struct.Struct("<IfQQ")
_EXACT = 1 << 24  # float32 holds every whole number up to here
_RECORD_START = np.dtype(
    [("magic", "<u4"), ("word", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("labels", "<f4", 2)]
)


_SCAN_BYTES = 1 << 22
_REMAKE = "remove the .idx to have the .rec read once for its records"


class RecordError(ValueError):
    """A record that is not what its index or its header says."""


def recordio_uris(uri: str) -> tuple[str, str]:
    """Return the `.rec` that a URI names (itself, or `train.rec` in that folder) and its `.idx`."""
    rec = uri if uri.endswith(".rec") else join(uri, "train.rec")
    return rec, rec.removesuffix(".rec") + ".idx"


def recordio_lists(uri: str) -> dict[str, str]:
    """Return the files beside a `.rec` that list its records and labels."""
    rec, index = recordio_uris(uri)
    return {"list": index, "labels": rec.removesuffix(".rec") + ".lst"}


def list_recordio(uri: str) -> pa.Table:
    """List the images of a RecordIO file as a table of `schemas.SOURCE_RECORDS`.

    image_id is the key, 8 digits; identity is the label as a whole number, "" if no record of the image's range tells it.
    Each row's range is what lies between its offset and the next. With InsightFace's identity records one label per
    identity is read; else those of an im2rec `.lst` (`key<TAB>label<TAB>path`) that covers the records, or each record's.

    Args:
        uri: the `.rec`, or a folder with `train.rec`. The `.idx` lies beside it; without one the file is read once.

    Raises:
        FiqaRayError: the index is faulty, or index and file or header do not agree in number.
    """
    rec, idx = recordio_uris(absolute(uri))
    keys, offset, length = _read_index(rec, idx) if exists(idx) else _scan(rec)
    is_image, label = _insightface_labels(rec, keys, offset, length)
    if label is None:
        lst = rec.removesuffix(".rec") + ".lst"
        label = _listed_labels(lst, keys) if exists(lst) else None
    if label is None:
        heads = _read_heads(rec, offset, length)
        label, is_image = _first_label(heads), ~_is_range(heads)
    columns = {
        "uri": pa.repeat(pa.scalar(rec, pa.large_string()), int(is_image.sum())),
        "image_id": pc.utf8_lpad(pa.array(keys[is_image]).cast(pa.large_string()), 8, "0"),
        "identity": _label_text(label[is_image]),
        "landmarks": pa.nulls(int(is_image.sum()), SOURCE_FACES.field("landmarks").type),
        "offset": offset[is_image],
        "length": length[is_image],
    }
    if not is_image.any():
        raise FiqaRayError(f"{rec}: no images; none of its {len(keys)} records holds one")
    n_unlabelled = int((label[is_image] == -1).sum())
    if n_unlabelled:
        _log.warning(
            "%s: %d images have the label -1, which often means unlabelled; they count as one person", rec, n_unlabelled
        )
    return sorted_faces(pa.table(columns), SOURCE_RECORDS)


def read_recordio(faces: pa.Table) -> Iterator[tuple[int, Content]]:
    """Yield row and content of the images of a list; a faulty record has status "bad_record"."""
    identity = faces["identity"].to_pylist()
    for row, content in read_entries(faces):
        if isinstance(content, bytes):
            try:
                labels, image = unpack_record(content)
                label = _label_text(labels[:1])[0].as_py()
                if not label or label != identity[row]:
                    raise RecordError(f"its label is {labels[0]:g}, its identity in the list {identity[row] or 'none'}")
                content = image
            except RecordError as exc:
                content = Fault("bad_record", str(exc))
        yield row, content


def unpack_record(data: bytes) -> tuple[NDArray[np.float32], bytes]:
    """Return the labels `(n_labels,) float32` and the image file of one record.

    Args:
        data: all bytes up to the next record.

    Raises:
        RecordError: they are not exactly one record.
    """
    pieces: list[bytes] = []
    at, piece_kind = 0, 1
    while piece_kind in (1, 2):
        if at + 8 > len(data):
            raise RecordError(f"the record ends early, after {len(data)} bytes")
        magic, word = struct.unpack_from("<II", data, at)
        if magic != _MAGIC:
            raise RecordError(f"no record begins here (0x{magic:08x} instead of 0x{_MAGIC:08x})")
        piece_kind, length = word >> 29, word & _LENGTH_MASK
        if piece_kind not in ((2, 3) if pieces else (0, 1)):
            raise RecordError(f"piece {len(pieces) + 1} of the record has the continuation flag {piece_kind}")
        end = at + 8 + length
        if end > len(data):
            raise RecordError(
                f"its header announces {length} bytes where {len(data) - at - 8} lie before the next record"
            )
        pieces.append(data[at + 8 : end])
        at = end + -length % 4
    if at < len(data):
        raise RecordError(f"{len(data) - at} bytes after the record belong to no record of the index")
    body = _MAGIC_BYTES.join(pieces)
    if len(body) < _LABEL_HEADER.size:
        raise RecordError(f"a record of {len(body)} bytes has no header")
    n_labels, label, _, _ = _LABEL_HEADER.unpack_from(body)
    image = _LABEL_HEADER.size + 4 * n_labels
    if image > len(body):
        raise RecordError(f"its header announces {n_labels} labels where the record has {len(body)} bytes")
    labels = np.frombuffer(body, "<f4", n_labels, _LABEL_HEADER.size) if n_labels else np.array([label], np.float32)
    return labels, body[image:]


# --- the index --------------------------------------------------------------------------------------------------------


def _read_index(rec: str, idx: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return keys in ascending order, and each record's first byte and number of bytes."""
    with storage_errors(rec):
        fs, path = filesystem(rec)
        size = int(fs.size(path))
    table = _read_columns(idx, {"key": pa.int64(), "offset": pa.int64()}, "a line is '<key><TAB><offset>'; " + _REMAKE)
    if not len(table):
        raise FiqaRayError(f"{idx}: the index is empty; {_REMAKE}")
    refuse_duplicates(table["key"].combine_chunks(), idx, "key")
    refuse_duplicates(table["offset"].combine_chunks(), idx, "offset")
    table = table.sort_by("offset")
    offset = table["offset"].to_numpy()
    n_outside = int(((offset < 0) | (offset >= size)).sum())
    if n_outside or offset[0] != 0:
        what = f"{n_outside} of {len(offset)} records lie beyond its end at byte {size}"
        raise FiqaRayError(
            f"{rec}: {what if n_outside else f'records before byte {offset[0]} are missing'} in the index {idx}; "
            f"the file is cut off or the index is another file's: fetch both again, or {_REMAKE}"
        )
    return _in_order_of_keys(table["key"].to_numpy(), offset, size)


def _in_order_of_keys(
    key: NDArray[np.int64], offset: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    length = np.diff(offset, append=size)
    order = np.argsort(key)
    return key[order], offset[order], length[order]


def _scan(rec: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return what an index would hold, from the records' headers: one pass over the file, as rec2idx makes it."""
    _log.warning("%s has no .idx beside it; the file is read once to find its records", rec)
    keys, offsets = array("Q"), array("q")
    at = 0
    with storage_errors(rec):
        fs, path = filesystem(rec)
        size = int(fs.size(path))
        with fs.open(path, "rb", block_size=_SCAN_BYTES) as file:
            while at < size:
                file.seek(at)
                head = file.read(8 + _LABEL_HEADER.size)
                magic, word = struct.unpack_from("<II", head.ljust(8, b"\0"))
                flag, length = word >> 29, word & _LENGTH_MASK
                end = at + 8 + length + -length % 4
                if magic != _MAGIC or end > size or (not offsets and flag not in (0, 1)):
                    raise FiqaRayError(
                        f"{rec}: no whole record begins at byte {at:,} of {size:,}; the file is cut off or damaged: fetch "
                        "it again, or put its .idx beside it"
                    )
                if flag in (0, 1):
                    keys.append(_LABEL_HEADER.unpack_from(head, 8)[2] if len(head) == 8 + _LABEL_HEADER.size else 0)
                    offsets.append(at)
                at = end
    if not offsets:
        raise FiqaRayError(f"{rec}: the file is empty")
    key = np.array(keys)
    if len(np.unique(key)) < len(key) or key.max() >= 1 << 62:
        raise FiqaRayError(f"{rec} needs its index beside it, because its records carry no keys; fetch its .idx")
    return _in_order_of_keys(key.astype(np.int64), np.array(offsets, np.int64), size)


def _read_columns(uri: str, types: dict[str, pa.DataType], grammar: str) -> pa.Table:
    data = read_bytes(uri)
    if not data.strip():
        return pa.schema(list(types.items())).empty_table()
    try:
        return pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=list(types)),
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types=types, null_values=[]),
        )
    except pa.ArrowInvalid as exc:
        raise FiqaRayError(f"{uri}: {str(exc).splitlines()[0]!a:.200}; {grammar}") from exc


def _listed_labels(lst: str, keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the first label of each key in an im2rec list.

    im2rec leaves out images that it cannot read and splits one list into several files, so a list may hold more keys.

    Raises:
        FiqaRayError: the file is no such list, holds a key twice, or lacks keys of the index.
    """
    remedy = "without this file labels are read from the records: remove the .lst if you can do without it"
    grammar = f"a line is '<key><TAB><label><TAB><path>', as im2rec writes it; {remedy}"
    n_columns = read_bytes(lst).split(b"\n", 1)[0].count(b"\t") + 1  # more than three where images have several labels
    if n_columns < 3:
        raise FiqaRayError(f"{lst}: its first line has {n_columns} column(s); {grammar}")
    others = {f"column {i}": pa.string() for i in range(3, n_columns + 1)}
    table = _read_columns(lst, {"key": pa.int64(), "label": pa.float64(), **others}, grammar)
    listed, label = table["key"].to_numpy(), table["label"].to_numpy()
    order = np.argsort(listed, kind="stable")
    row = order[np.minimum(np.searchsorted(listed, keys, sorter=order), len(order) - 1)]
    if not (listed[row] == keys).all() or len(np.unique(listed)) < len(listed):
        n_both = len(np.intersect1d(listed, keys))
        raise FiqaRayError(
            f"{lst}: {len(listed)} images where the index has {len(keys)} records, {n_both} of them the same; {remedy}"
        )
    return label[row]


# --- labels -----------------------------------------------------------------------------------------------------------


def _label_text(label: NDArray[np.floating]) -> pa.Array:
    """Return labels as text; "" for what is no whole number that float32 holds exactly."""
    whole = np.isfinite(label) & (np.abs(np.nan_to_num(label)) <= _EXACT) & (np.mod(np.nan_to_num(label), 1) == 0)
    text = pa.array(np.where(whole, np.nan_to_num(label), 0).astype(np.int64)).cast(pa.large_string())
    return pc.if_else(pa.array(whole), text, pa.scalar("", pa.large_string()))


def _read_heads(rec: str, offset: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the first 40 bytes of records, `(n,)` of `_RECORD_START`; zeros beyond a shorter record's end."""
    heads = np.zeros((len(offset), _RECORD_START.itemsize), np.uint8)
    short = np.minimum(length, _RECORD_START.itemsize)
    for row, data in read_ranges([rec] * len(offset), offset, short):
        heads[row, : len(data)] = np.frombuffer(data, np.uint8)
    return heads.view(_RECORD_START)[:, 0]


def _first_label(heads: NDArray[np.void]) -> NDArray[np.float64]:
    """Return each record's (first) label; NaN where no record begins."""
    with np.errstate(invalid="ignore"):  # damaged records hold any bits
        label = np.where(heads["flag"] > 0, heads["labels"][:, 0], heads["label"]).astype(np.float64)
    return np.where(heads["magic"] == _MAGIC, label, np.nan)


def _is_range(heads: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return which records hold two labels and nothing else."""
    return (heads["magic"] == _MAGIC) & (heads["word"] == _RECORD_START.itemsize - 8) & (heads["flag"] == 2)


def _insightface_labels(
    rec: str, keys: NDArray[np.int64], offset: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64] | None]:
    """Return which records are images, and their labels by way of the identity records; None where there are none."""
    is_image = np.ones(len(keys), np.bool_)
    if keys[0] != 0:
        return is_image, None
    head = _read_heads(rec, offset[:1], length[:1])
    if not _is_range(head)[0]:
        return is_image, None
    n, m = head["labels"][0].tolist()
    if not (1 <= n <= m <= 2**40):
        raise FiqaRayError(
            f"{rec}: record 0 announces {n:g} and {m:g} keys, which is no number of images; fetch it again"
        )
    if max(n, m) > _EXACT:
        return is_image, None
    n, m = int(n), int(m)
    if not np.array_equal(keys, np.arange(m)):
        raise FiqaRayError(
            f"{rec}: record 0 announces {n - 1} images and {m - n} identities, together {m} records, but the index "
            f"lists {len(keys)}, the last with key {keys[-1]}; the index is another file's or incomplete: fetch both again"
        )
    is_image = (keys > 0) & (keys < n)
    label = np.full(m, np.nan)
    ranges = _read_heads(rec, offset[n:], length[n:])
    labels = np.where(_is_range(ranges)[:, None], ranges["labels"], 0)
    bounds = np.nan_to_num(labels).clip(-1, _EXACT).astype(np.int64)
    bounds = bounds[(bounds[:, 0] >= 1) & (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 1] <= n)]
    in_range = np.zeros(m + 1, np.int64)
    np.add.at(in_range, bounds[:, 0], 1)
    np.add.at(in_range, bounds[:, 1], -1)
    in_range = np.cumsum(in_range)[:m]
    if (in_range > 1).any():
        raise FiqaRayError(
            f"{rec}: identity records overlap, such as at image {np.argmax(in_range > 1)}; fetch it again"
        )

    def read_labels(wanted: NDArray[np.int64]) -> None:
        label[wanted] = _first_label(_read_heads(rec, offset[wanted], length[wanted]))

    # one label for each identity, and those of images that no (readable) identity record covers
    read_labels(np.concatenate([bounds[:, 0], np.flatnonzero(is_image & (in_range == 0))]))
    for first, last in bounds:
        if np.isnan(label[first]):  # a damaged record: another one of the identity tells
            read_labels(np.arange(first, last))
        known = label[first:last][~np.isnan(label[first:last])]
        label[first:last] = known[0] if len(known) else np.nan
    return is_image, label
