"""Files that a path, a folder or a pattern names.

What exists under its literal name is that; only else is it read as a pattern. Folders called `train [v2]` or `a{b}` are
common, and nobody means a pattern by them.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence

from fsspec.implementations.local import LocalFileSystem

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.leftovers import keep_data, reason_left_out
from fiqa_ray.storage import filesystem, is_special, public_uri, split_chain, storage_errors

MAX_FILES = 1_000_000
"""Braces that stand for more names are refused."""

NO_FILE = "pipe, socket or device"
"""Why these are left out of a folder."""

_WILDCARDS = re.compile(r"[*?\[]")
_MAGIC = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")


def absolute(uri: str) -> str:
    """Return a local path as an absolute one, because workers do not share the caller's folder. URLs stay as they are."""
    is_url = "://" in uri and not uri.startswith(("/", "~", "."))
    if is_url:
        return uri if uri.endswith("://") else uri.rstrip("/")
    return os.path.abspath(uri if os.path.lexists(uri) else os.path.expanduser(uri))  # a folder may be called ~


def image_names(uri: str, extensions: Sequence[str], left_out: Counter[str] | None = None) -> list[str]:
    """Return the paths of the images below a folder, relative to it, with forward slashes, unsorted.

    Args:
        uri: the folder.
        extensions: endings that count as images, in any case.
        left_out: counts by reason what is no image.

    Raises:
        FiqaRayError: the folder is missing or holds no images.
    """
    endings = [e.lower() for e in extensions]
    refused: Counter[str] = Counter()
    names = keep_data(names_below(uri, refused), endings, refused)
    if left_out is not None:
        left_out.update(refused)
    if not names:
        others = f"; left out: {', '.join(f'{reason} {n}' for reason, n in refused.most_common(5))}" if refused else ""
        raise FiqaRayError(
            f"{uri}: no images found; looked in it and in all folders below for names ending in "
            f"{', '.join(endings)}; check the path{others}"
        )
    return names


def names_below(uri: str, left_out: Counter[str] | None = None) -> list[str]:
    """Return the paths of all files below a folder, relative to it, unsorted; links that are not followed are counted."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        if isinstance(fs, LocalFileSystem):
            return _walk(path, left_out)
        root = fs._strip_protocol(path).rstrip("/")
        return [p[len(root) :].lstrip("/") for p in fs.find(path)]


def _walk(root: str, left_out: Counter[str] | None) -> list[str]:
    """Return all files below a local folder; unlike fsspec's walk it asks the disk about folders only, not about each file.

    Links to folders are followed, except to a folder that contains them and to folders of the same set, whose images are
    there already. A folder that cannot be read is an error, unless nothing in it would be data (`lost+found`).
    """

    def fail(exc: OSError) -> None:
        below = os.path.relpath(str(exc.filename), root).replace(os.sep, "/")
        reason = None if below == "." else reason_left_out(f"{below}/file", [""])
        if reason is None:
            raise exc
        if left_out is not None:
            left_out[reason] += 1

    whole = os.path.realpath(root) + os.sep
    refused = Counter[str]() if left_out is None else left_out
    names: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        folder = os.path.join(root, prefix[:-1]) if prefix else root
        here = os.path.realpath(folder) + os.sep
        for entry in _entries(folder, fail):
            is_link = entry.is_symlink()
            target = os.path.realpath(entry.path) + os.sep if is_link else ""
            if not (os.path.isdir(entry.path) if is_link else entry.is_dir()):
                if is_special(entry.path) if is_link else not entry.is_file():
                    refused[NO_FILE] += 1
                else:  # a broken link is a missing image
                    names.append(prefix + entry.name)
            elif is_link and (here.startswith(target) or target.startswith(whole)):
                refused["link to a folder of the same set"] += 1
            else:
                pending.append(f"{prefix}{entry.name}/")
    return names


def _entries(folder: str, fail: Callable[[OSError], None]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as exc:
        fail(exc)
        return []


def expand(
    uri: str, endings: Sequence[str], left_out: Counter[str] | None = None, *, braces: bool = False
) -> dict[str, str]:
    """Return the files that a path, folder or pattern names: each URI with its name below their common folder.

    Args:
        uri: a file, which is taken whatever its name; a folder, with all files below it; or a pattern.
        endings: endings that count in folders and for patterns.
        left_out: counts by reason what is no data.
        braces: whether `{0000..0127}` and `{a,b}` belong to patterns.

    Returns:
        URIs in order, without repeats. Names made by braces need not exist. Empty if nothing fits the pattern.

    Raises:
        FiqaRayError: storage cannot be read.
    """
    kind = kind_of(uri)
    if kind == "folder":
        names = sorted(keep_data(names_below(uri, left_out), endings, left_out))
        return dict(zip(below(uri, names), names, strict=True))
    head, chain = split_chain(uri)
    if head.startswith(("http://", "https://")):  # a question mark opens the query there
        head, mark, query = head.partition("?")
        chain = mark + query + chain
    folder, pattern = _literal_folder(head, chain)
    if kind == "file" or not _MAGIC.search(pattern):
        return {uri: head.rpartition("/")[2]}
    files: dict[str, str] = {}
    for name in _expand_braces(pattern, uri) if braces else [pattern]:
        if _WILDCARDS.search(name):
            files |= _glob(folder, name, chain, endings, left_out)
        else:
            files[f"{folder}{name}{chain}"] = name
    return files


def kind_of(uri: str) -> str | None:
    """Return whether a URI is a `folder` or a `file` under its literal name; None for neither.

    A web server is not asked, because it would send the whole file: an address without a pattern is a file.
    """
    if uri.startswith(("http://", "https://")):
        return None if _MAGIC.search(public_uri(uri)) else "file"
    try:
        with storage_errors(uri):
            fs, path = filesystem(uri)
            return "folder" if fs.isdir(path) else "file" if fs.exists(path) else None
    except FiqaRayError:
        if _BRACES.search(uri):  # names many files; whoever reads them meets the fault
            return None
        raise


def _literal_folder(head: str, chain: str) -> tuple[str, str]:
    """Split a path after the longest folder that has no magic character or exists under its literal name."""
    at = head.rfind("/") + 1
    while at > 0 and _MAGIC.search(head[:at]) and kind_of(head[: at - 1] + chain) != "folder":
        at = head.rfind("/", 0, at - 1) + 1
    return head[:at], head[at:]


def _glob(
    folder: str, pattern: str, chain: str, endings: Sequence[str], left_out: Counter[str] | None
) -> dict[str, str]:
    uri = f"{folder}{pattern}{chain}"
    with storage_errors(uri):
        fs, path = filesystem(f"{folder}{chain}" if folder else "./")
        root = path.rstrip("/") + "/"
        listed = fs.glob(glob.escape(root) + pattern, detail=True)
    paths = sorted(name for name, info in listed.items() if info["type"] != "other")  # no pipes, sockets, devices
    if left_out is not None and len(paths) < len(listed):
        left_out[NO_FILE] += len(listed) - len(paths)
    fixed = _WILDCARDS.split(pattern)[0].rpartition("/")[0]
    skip = len(fixed) + 1 if fixed else 0
    names = [name.removeprefix(root)[skip:] for name in paths]
    data = keep_data(names, endings, left_out)
    start = folder + (fixed + "/" if fixed else "")
    return {f"{start}{name}{chain}": name for name in data}


def below(uri: str, names: Sequence[str]) -> list[str]:
    """Return the URIs of files below a folder, which may lie in an archive (a chain of URIs)."""
    head, chain = split_chain(uri)
    return [f"{head.rstrip('/')}/{name}{chain}" for name in names]


def _expand_braces(pattern: str, uri: str) -> list[str]:
    """Return the names that braces stand for, in order."""
    choices: list[list[str]] = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part) if i % 2 else None
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            if not 0 <= last - first < MAX_FILES:
                raise FiqaRayError(
                    f"{uri}: {{{part}}} names {last - first + 1} files; give a range such as {{0000..0127}}"
                )
            choices.append([str(k).zfill(len(numbers[1])) for k in range(first, last + 1)])
        elif i % 2 and "," not in part:
            choices.append([f"{{{part}}}"])  # as a shell does
        else:
            choices.append(part.split(",") if i % 2 else [part])
    if math.prod(map(len, choices)) > MAX_FILES:
        raise FiqaRayError(f"{uri}: names more than {MAX_FILES} files; give fewer")
    return ["".join(parts) for parts in itertools.product(*choices)]
