"""Image files, read many at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import Content, Fault
from fiqa_ray.storage import at_once, filesystem, split_chain, storage_errors

_READ_AT_ONCE = 256


def read_files(faces: pa.Table) -> Iterator[tuple[int, Content]]:
    """Yield the row and the content of each listed file. Memory: 256 files."""
    uris = faces["uri"].to_pylist()
    for at in range(0, len(uris), _READ_AT_ONCE):
        with storage_errors(uris[at]):
            contents = read_face_bytes(uris[at : at + _READ_AT_ONCE])
        for row, content in enumerate(contents, at):
            yield row, Fault("missing", "no such file") if content is None else content


def read_face_bytes(uris: Sequence[str], n_threads: int = 16) -> list[bytes | None]:
    """Return the contents of image files, in order; None for a file that is not there.

    The URIs may lie on different storages. Files are fetched concurrently.

    Raises:
        FiqaRayError: another fault than a missing file; storage is in trouble, but no image is bad.
    """
    systems: dict[tuple[str, str], fsspec.AbstractFileSystem] = {}

    def open_system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        head, chain = split_chain(uri)
        key = (head.partition("://")[0] if "://" in head and not head.startswith("/") else "", chain)
        if key not in systems:
            systems[key] = filesystem(uri)[0]
        return systems[key], systems[key]._strip_protocol(head)

    def read(uri: str, fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
        try:
            with storage_errors(uri):
                return at_once(fs, path)
        except FiqaRayError as exc:
            cause = exc.__cause__
            if isinstance(cause, FileNotFoundError) and "bucket does not exist" not in str(cause):
                return None
            if isinstance(cause, OSError) and cause.errno == errno.ELOOP:  # a link to itself, broken as others are
                return None
            raise

    located = [(uri, *open_system(uri)) for uri in uris]
    if len(located) <= 1 or n_threads <= 1:
        return [read(*where) for where in located]
    with ThreadPoolExecutor(min(n_threads, len(located))) as pool:
        return list(pool.map(lambda where: read(*where), located))
