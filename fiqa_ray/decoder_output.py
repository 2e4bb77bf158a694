"""Catches the lines that libjpeg prints on stderr about a damaged picture, so that the caller can name the image.

Other lines that are printed meanwhile still go to stderr.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import BinaryIO

_BEGINNINGS = (b"Corrupt JPEG data", b"Premature end of JPEG", b"Invalid ", b"Inconsistent ", b"Warning: unknown JFIF")
"""How the lines of libjpeg's table of warnings begin."""
_lock = threading.Lock()  # stderr belongs to the process: one picture at a time


@contextmanager
def decoder_lines() -> Iterator[list[str]]:
    """Yield a list that holds, after the block, the lines that libjpeg printed in it."""
    lines: list[str] = []
    with _lock:
        with suppress(AttributeError, OSError, ValueError):  # a process without stderr
            sys.stderr.flush()
        try:
            stderr = os.dup(2)
        except OSError:
            yield lines
            return
        file = _file()
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if os.lseek(file.fileno(), 0, os.SEEK_CUR):
                _share_out(file, lines)


@cache
def _file() -> BinaryIO:
    """Return the file that takes the place of stderr."""
    return tempfile.TemporaryFile(buffering=0)


def _share_out(file: BinaryIO, lines: list[str]) -> None:
    """Empty the file: libjpeg's lines go into the list, all others to stderr."""
    file.seek(0)
    content = file.read()
    file.seek(0)
    file.truncate()
    for line in content.splitlines(keepends=True):
        if line.startswith(_BEGINNINGS):
            lines.append(line.decode("ascii", "replace").strip())
        else:
            os.write(2, line)
