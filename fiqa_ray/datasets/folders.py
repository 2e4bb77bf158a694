"""Finds the datasets of a run without a listing of their parts, and records of parts; removes what killed writers leave."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from fiqa_ray.datasets.records import is_record, record_name
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import SLASH, filesystem, is_local, join, list_files, remove_file, storage_errors

NAMES_PER_REQUEST = 1000
"""Names in one answer of S3."""
_REQUESTS_AT_ONCE = 16
_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp$")
A = TypeVar("A")
T = TypeVar("T")


def find_folders(run_uri: str) -> list[str]:
    """Return the folders of all datasets of a run, relative to it: those that end in `v=<fingerprint>`, sorted."""
    folders: list[str] = []
    level = [""]
    with storage_errors(run_uri):
        fs, root = filesystem(run_uri)
        while level:
            lists = in_parallel(lambda folder: list(_folders(fs, root, folder)), level, fs)
            below = [name for names in lists for name in names]
            folders += [name for name in below if name.rsplit(SLASH, 1)[-1].startswith("v=")]
            level = [n for n in below if not n.rsplit(SLASH, 1)[-1].startswith(("v=", "_"))]
    return sorted(folders)


def _folders(fs: Any, root: str, folder: str) -> Iterator[str]:
    """Yield the folders right below one, relative to the root."""
    path = SLASH.join([root.rstrip(SLASH), folder]).rstrip(SLASH)
    try:
        if is_local(fs):
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if entry.is_dir()]
        else:
            below = [i["name"].rstrip(SLASH) for i in fs.ls(path, detail=True) if i["type"] == "directory"]
            names = [name.rsplit(SLASH, 1)[-1] for name in below]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        yield f"{folder}{SLASH}{name}" if folder else name


def record_names(uri: str, n_parts: int) -> list[str]:
    """Return the names of the records that are there, sorted, of a dataset that will have so many parts.

    S3 lists a thousand names a request, one request after the other; many records are therefore listed by ranges of numbers.
    """
    with storage_errors(uri):
        fs, folder = filesystem(uri)
        if n_parts <= NAMES_PER_REQUEST or "s3" not in fs.protocol:
            return [name for name in list_files(uri) if is_record(name)]
        ranges = sorted({record_name(i).removesuffix("000.json") for i in range(0, n_parts, NAMES_PER_REQUEST)})
        lists = in_parallel(lambda prefix: fs.find(folder, prefix=prefix), ranges, fs)
    names = {path.rsplit(SLASH, 1)[-1] for paths in lists for path in paths}
    return sorted(filter(is_record, names))


def remove_leftovers(uri: str) -> None:
    """Remove files under temporary names, which killed processes leave on a disk. Call it under the run's lock."""
    if is_local(filesystem(uri)[0]):
        for name in list_files(uri):
            if _LEFTOVER.search(name):
                with suppress(FiqaRayError):  # its writer lives for another moment and has given it its name
                    remove_file(join(uri, name))


def in_parallel(call: Callable[[A], T], values: Sequence[A], fs: Any) -> list[T]:
    """Return what a call returns for each value; with many requests at once, unless a local disk is read."""
    if is_local(fs):
        return [call(value) for value in values]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(call, values))
