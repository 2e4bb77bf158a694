"""The disk of this machine: whole files in one step, and nothing but regular files is read.

A named pipe would hold its reader until somebody writes, and a device may never end.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fiqa_ray.errors import FiqaRayError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class RegularFiles(LocalFileSystem):
    """fsspec's local file system, which refuses to read pipes, sockets and devices."""

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        if "r" in mode:
            regular(self._strip_protocol(path))
        return super()._open(path, mode, block_size, **kwargs)


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system is this machine's disk."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def regular(path: str) -> str:
    """Return a local path; raise `FiqaRayError` if something stands there that is neither a file nor a folder."""
    kind = _special(path)
    if kind:
        raise FiqaRayError(f"{path}: is {kind}, not a file; write its content to a file, and give that")
    return path


def _special(path: str) -> str | None:
    """Return what stands at a path that is neither a file nor a folder; None for those and where there is nothing."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None  # whoever opens it meets the fault


def is_special(path: str) -> bool:
    """Return whether a pipe, a socket or a device stands at a path."""
    return _special(path) is not None


@contextmanager
def whole_file(path: str, *, is_new: bool = False) -> Iterator[str]:
    """Give a temporary path to write to; what it holds then gets its name in one step.

    A pipe or device, such as `/dev/stdout`, keeps its place: the content is copied into it.

    Args:
        path: The name.
        is_new: Raise FileExistsError where the name is taken.
    """
    if is_special(path) and not is_new:
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, "whole")
            yield temporary
            with open(temporary, "rb") as source, open(path, "wb", opener=_open_special) as target:
                shutil.copyfileobj(source, target)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.link(temporary, path) if is_new else os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _open_special(path: str, _: int) -> int:
    """Open a pipe or device for writing; a pipe that nobody reads is an error (ENXIO), not a wait without end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def local_sizes(folder: str) -> dict[str, int]:
    """Return the sizes of the regular files below a local folder; ten times as fast as fsspec's listing."""
    if not os.path.isdir(folder):
        return {"": os.path.getsize(folder)} if os.path.exists(folder) else {}
    sizes: dict[str, int] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(f"{below}{entry.name}/")
                else:
                    with suppress(FileNotFoundError):  # a temporary file that has got its name
                        status = entry.stat()
                        if stat.S_ISREG(status.st_mode):
                            sizes[below + entry.name] = status.st_size
    return {name: sizes[name] for name in sorted(sizes)}
