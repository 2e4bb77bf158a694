"""Sums of stored files, and tables read only after the bytes that they come from fit these sums.

A file has a CRC-32 of its whole. A Parquet file of more than 1 MiB also has one of its footer and one of each column in each
row group (a chunk), so that a few columns or rows can be read and checked alone. Arrow itself checks neither page headers
nor the footer: damage there reads as other values, or ends the process.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32

from fiqa_ray.documents import damaged
from fiqa_ray.storage import at_once, filesystem, is_local, regular, storage_errors
from fiqa_ray.storage.patience import shown

SMALL_BYTES = 1 << 20
"""A smaller file is read and checked as a whole."""
_LARGE_BYTES = 1 << 25
"""A larger remote file is fetched in pieces side by side, which takes one request more."""
_GAP_BYTES = 1 << 16
"""Ranges of a remote file that lie nearer than this are fetched by one request."""

Sums: TypeAlias = Mapping[str, Any]
"""`n_bytes` and `crc32` (8 hex digits); of a large table also `n_footer` and `chunk_crc32`: the footer, then the chunks."""

Choose: TypeAlias = Callable[[pq.FileMetaData], list[int]]
"""Returns the row groups to read."""

REMEDY = "remove this file and run again: its part is then computed again"


def file_sums(name: str, data: bytes | pa.Buffer) -> dict[str, Any]:
    """Return the sums of a file (isal computes a CRC-32 much faster than zlib; SHA-256 takes longer than the write)."""
    sums: dict[str, Any] = {"n_bytes": len(data), "crc32": _crc32(data)}
    if name.endswith(".parquet") and len(data) > SMALL_BYTES:
        view = memoryview(data)
        n_footer = int.from_bytes(view[-8:-4], "little") + 8
        metadata = pq.read_metadata(pa.BufferReader(data))
        ranges = [(len(data) - n_footer, len(data)), *_chunks(metadata, range(metadata.num_row_groups), None)]
        sums |= {"n_footer": n_footer, "chunk_crc32": [_crc32(view[start:end]) for start, end in ranges]}
    return sums


def fault_of_file(uri: str, sums: Sums) -> str:
    """Return what is wrong with a stored file as a whole, or an empty text. Memory: a remote file."""
    try:
        with _Source(uri, sums["n_bytes"]) as source:
            return source.fault_of_whole(sums)
    except FileNotFoundError:
        return "it is missing"


def read_table(uri: str, sums: Sums, columns: list[str] | None = None, choose: Choose | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns and row groups, after a check of the bytes that are decoded.

    Args:
        uri: The file.
        sums: Its sums.
        columns: Names; None for all.
        choose: Returns the row groups; None for all.

    Raises:
        FiqaRayError: The file is missing or damaged.
    """
    try:
        with _Source(uri, sums["n_bytes"]) as source:
            if source.is_whole_read(sums, choose is not None):
                fault, content = source.fault_of_whole(sums), source.whole
            else:
                fault, content = source.check_chunks(sums, columns, choose)
            if fault:
                raise damaged(uri, fault, REMEDY)
            with pq.ParquetFile(content()) as file:
                if choose is None:
                    return file.read(columns, use_threads=False)
                return file.read_row_groups(choose(file.metadata), columns=columns, use_threads=False)
    except FileNotFoundError as exc:
        raise damaged(uri, "it is missing", "run again: its part is then computed again") from exc
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as exc:
        raise damaged(uri, f"{' '.join(str(exc).split())[:120]}", REMEDY) from exc


class _Source:
    """The bytes of a file: mapped into memory if it is local, else fetched by range."""

    def __init__(self, uri: str, n_bytes: int) -> None:
        self.uri, self._open, self._is_large = uri, ExitStack(), n_bytes > _LARGE_BYTES
        with storage_errors(uri):
            self.fs, self.path = filesystem(uri)
        self.is_local = is_local(self.fs)
        self._fetched: pa.Buffer | None = None

    def __enter__(self) -> _Source:
        if self.is_local:
            self._map = self._open.enter_context(pa.memory_map(regular(self.path)))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def is_whole_read(self, sums: Sums, is_choice: bool) -> bool:
        """Return whether the file is checked as a whole: a small one, or one fetched by one request."""
        return "chunk_crc32" not in sums or (not self.is_local and not is_choice)

    def whole(self) -> pa.NativeFile:
        """Return the whole file."""
        return pa.BufferReader(self.range(0, None))

    def range(self, start: int, end: int | None) -> pa.Buffer:
        """Return a range of bytes; of a local file without a copy."""
        if self.is_local:
            self._map.seek(start)
            return self._map.read_buffer(None if end is None else end - start)
        if start or end is not None:
            return pa.py_buffer(self._fetch(start, end))
        if self._fetched is None:
            self._fetched = pa.py_buffer(self._fetch(None, None))
        return self._fetched

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        def fetch() -> bytes:
            if start is None and end is None and not self._is_large:
                return at_once(self.fs, self.path)
            return bytes(self.fs.cat_file(self.path, start=start, end=end))

        try:
            return shown(fetch, self.fs)
        except FileNotFoundError:
            raise
        except Exception as exc:
            with storage_errors(self.uri):
                raise exc

    def fault_of_whole(self, sums: Sums) -> str:
        """Return what is wrong with the whole file, or an empty text."""
        content = self.range(0, None)
        if len(content) != sums["n_bytes"]:
            return f"it has {len(content):,} bytes where its record says {sums['n_bytes']:,}"
        return "" if _crc32(content) == sums["crc32"] else "its checksum differs from its record"

    def check_chunks(
        self, sums: Sums, columns: list[str] | None, choose: Choose | None
    ) -> tuple[str, Callable[[], pa.NativeFile]]:
        """Check the footer and the wanted chunks; return what is wrong, or "", and a function that opens the bytes."""
        n_bytes, n_footer = sums["n_bytes"], sums["n_footer"]
        if self.is_local and self._map.size() != n_bytes:
            return f"it has {self._map.size():,} bytes where its record says {n_bytes:,}", self.whole
        footer = self.range(n_bytes - n_footer, n_bytes)
        if _crc32(footer) != sums["chunk_crc32"][0]:
            return "the checksum of its footer differs from its record", self.whole
        metadata = pq.read_metadata(pa.BufferReader(footer))
        if choose is None and _is_most(columns, metadata):
            return self.fault_of_whole(sums), self.whole
        groups = list(range(metadata.num_row_groups)) if choose is None else choose(metadata)
        wanted = list(_chunks(metadata, groups, columns))
        all_sums = dict(
            zip(_chunks(metadata, range(metadata.num_row_groups), None), sums["chunk_crc32"][1:], strict=True)
        )
        pieces = [(n_bytes - n_footer, footer), *self._pieces(wanted)]
        for start, end in wanted:
            piece_start, piece = next(p for p in pieces if p[0] <= start and end <= p[0] + len(p[1]))
            if _crc32(piece.slice(start - piece_start, end - start)) != all_sums[start, end]:
                return f"the checksum of its bytes {start:,} to {end:,} differs from its record", self.whole
        return "", self.whole if self.is_local else lambda: _sparse_file(n_bytes, pieces)

    def _pieces(self, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, pa.Buffer]]:
        """Yield the start and bytes of pieces that hold the wanted ranges; near ranges of a remote file come together."""
        joined: list[tuple[int, int]] = []
        for start, end in sorted(wanted):
            if joined and not self.is_local and start - joined[-1][1] <= _GAP_BYTES:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        for start, end in joined:
            yield start, self.range(start, end)


def _sparse_file(n_bytes: int, pieces: Sequence[tuple[int, pa.Buffer]]) -> pa.NativeFile:
    """Return a file in memory that holds some pieces; the rest is zeros, which take no memory."""
    content = mmap.mmap(-1, n_bytes)
    for start, piece in pieces:
        content[start : start + len(piece)] = piece.to_pybytes()
    return pa.BufferReader(pa.py_buffer(content))


def _chunks(metadata: pq.FileMetaData, groups: Sequence[int], columns: list[str] | None) -> Iterator[tuple[int, int]]:
    """Yield first and last byte of each chunk of the row groups; the last is not part of it."""
    for g in groups:
        group = metadata.row_group(g)
        for c in range(metadata.num_columns):
            chunk = group.column(c)
            if columns is None or chunk.path_in_schema.split(".")[0] in columns:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                yield start, start + chunk.total_compressed_size


def _is_most(columns: list[str] | None, metadata: pq.FileMetaData) -> bool:
    """Return whether the columns (None: all) hold more than half of the bytes of a Parquet file."""
    groups = range(metadata.num_row_groups)
    wanted, total = (sum(end - start for start, end in _chunks(metadata, groups, c)) for c in (columns, None))
    return 2 * wanted > total


def _crc32(data: Any) -> str:
    return f"{crc32(data):08x}"
