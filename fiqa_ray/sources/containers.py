"""Images inside larger files: few large reads for many small ranges.

A list of such images is a table of `schemas.SOURCE_RECORDS`. Damage of a container as a whole (cut off, an index that
does not fit) is refused when it is listed; damage of one entry becomes a `Fault`, so that the image keeps its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import filesystem, storage_errors

MAX_ENTRY_BYTES = 1 << 26
"""Entries of more bytes (64 MiB) are not read: no photograph of a face is that large, a forged length may be."""

N_THREADS = 16
_GAP_BYTES = 1 << 18  # what lies between two ranges is read along up to here: a request costs more than these bytes
_SPAN_BYTES = 1 << 23
_BATCH_BYTES = 1 << 26
_BATCH_SPANS = 4096


@dataclass(frozen=True)
class Fault:
    """Why a row has no image bytes.

    Attributes:
        status: one of `fiqa_ray.images.STATUSES`.
        error: what the status means here.
    """

    status: str
    error: str


Content = bytes | Fault
"""An image file's bytes, or why there are none."""


@dataclass
class _Span:
    """One request: bytes first:last of a file, and the rows whose ranges lie in it."""

    uri: str
    first: int
    last: int
    rows: list[int]

    def read(self) -> bytes:
        if self.first == self.last:
            return b""  # stores answer an empty range with an error
        with storage_errors(self.uri):
            fs, path = filesystem(self.uri)
            data: bytes = fs.cat_file(path, start=self.first, end=self.last)
        if len(data) != self.last - self.first:
            raise FiqaRayError(
                f"{self.uri}: {len(data)} bytes came where bytes {self.first} to {self.last} were asked for; the file "
                "changed since it was listed: start again, a job under another run_uri"
            )
        return data


def read_ranges(
    uris: Sequence[str], offset: NDArray[np.int64], length: NDArray[np.int64]
) -> Iterator[tuple[int, bytes]]:
    """Read byte ranges of files and yield each row's number with its bytes, in the order of (uri, offset).

    Neighbours share a request of up to 8 MB, requests run side by side, and about 64 MB are held at a time, whatever the
    number of rows.

    Args:
        uris: `(N,)` the file of each row.
        offset: `(N,)` first byte of each row.
        length: `(N,)` bytes of each row.

    Raises:
        FiqaRayError: a file is shorter than asked.
    """
    first, last = offset.tolist(), (offset + length).tolist()
    with ThreadPoolExecutor(N_THREADS) as pool:
        for batch in _batches(_spans(uris, first, last)):
            for span, data in zip(batch, pool.map(_Span.read, batch), strict=True):
                for row in span.rows:
                    yield row, data[first[row] - span.first : last[row] - span.first]


def _spans(uris: Sequence[str], first: list[int], last: list[int]) -> Iterator[_Span]:
    """Join neighbouring ranges into requests.

    fsspec's `merge_offset_ranges` does so too, but cuts a request short where one range lies within another, as a damaged
    index may have it; its `cat_ranges` holds all requests at once.
    """
    span: _Span | None = None
    for row in sorted(range(len(uris)), key=lambda row: (uris[row], first[row])):
        if (
            span is not None
            and uris[row] == span.uri
            and first[row] - span.last <= _GAP_BYTES
            and last[row] - span.first <= _SPAN_BYTES
        ):
            span.last = max(span.last, last[row])
            span.rows.append(row)
        else:
            if span is not None:
                yield span
            span = _Span(uris[row], first[row], last[row], [row])
    if span is not None:
        yield span


def _batches(spans: Iterator[_Span]) -> Iterator[list[_Span]]:
    batch: list[_Span] = []
    n_bytes = 0
    for span in spans:
        if batch and (n_bytes + span.last - span.first > _BATCH_BYTES or len(batch) >= _BATCH_SPANS):
            yield batch
            batch, n_bytes = [], 0
        batch.append(span)
        n_bytes += span.last - span.first
    if batch:
        yield batch


def read_entries(faces: pa.Table) -> Iterator[tuple[int, Content]]:
    """Yield row and content of a list whose images are byte ranges, in the order of the containers.

    A row without a range has status "missing", one of more than `MAX_ENTRY_BYTES` "too_large".
    """
    offset = pc.fill_null(faces["offset"], -1).to_numpy()
    length = pc.fill_null(faces["length"], 0).to_numpy()
    for row in np.flatnonzero(offset < 0):
        yield int(row), Fault("missing", "no image belongs to this entry")
    for row in np.flatnonzero(length > MAX_ENTRY_BYTES):
        yield int(row), Fault("too_large", f"an entry of {length[row]} bytes; the limit is {MAX_ENTRY_BYTES}")
    rows = np.flatnonzero((offset >= 0) & (length <= MAX_ENTRY_BYTES))
    uris = faces["uri"].take(pa.array(rows)).to_pylist()
    for i, data in read_ranges(uris, offset[rows], length[rows]):
        yield int(rows[i]), data
