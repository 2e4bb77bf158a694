"""The released file of a model: where it lies, under which licence, and a copy of it, checked by its hash."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.hub import PROTOCOL, fetch_hub_file, pinned
from fiqa_ray.models.formats.checkpoints import sha256_of
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.options import near_name
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.storage import read_bytes, write_atomic


@dataclass(frozen=True)
class ReleasedFile:
    """A model's file as its authors released it.

    Attributes:
        name: name of the model.
        uri: where it is fetched.
        source: repository of the authors.
        licence: what they state.
        sha256: its hash, None if none is published.
        is_recognizer: whether the model is an FR model.
    """

    name: str
    uri: str
    source: str
    licence: str
    sha256: str | None
    is_recognizer: bool


def file_of(name: str) -> ReleasedFile:
    """Return the released file of a model of the tables.

    Raises:
        UsageError: an unknown name, or a model whose file cannot be fetched by a program.
    """
    network = RECOGNIZERS.get(name) or (METHODS[name].network if name in METHODS else None)
    if name in METHODS and network is None:
        raise UsageError(f"{name} works on any FR model and has no file of its own")
    if network is None:
        known = [*RECOGNIZERS, *METHODS]
        raise UsageError(f"{name!r} is no FR model or FIQA method{near_name(name, known)}; see fiqa-ray models")
    if network.fetch_uri is None:
        raise UsageError(
            f"{name}: its authors keep {network.released_file} where a program cannot fetch it; get it by hand from "
            f"{network.source} ({network.licence}), and give its path as weights"
        )
    return ReleasedFile(name, network.fetch_uri, network.source, network.licence, network.sha256, name in RECOGNIZERS)


def fetch_file(file: ReleasedFile, output: str | None = None) -> str:
    """Fetch a file, check its hash and write it; return what was done, and how the file is used.

    Args:
        file: from `file_of`.
        output: path or any fsspec URL; by default the file's own name in the current folder.

    Raises:
        FiqaRayError: it cannot be fetched or is another file than the released one.
    """
    uri = file.uri
    if uri.startswith(PROTOCOL):
        path, commit = fetch_hub_file(uri)
        data, uri = path.read_bytes(), pinned(uri, commit)
    else:
        data = read_bytes(uri)
    sha256 = sha256_of(data)
    if file.sha256 is not None and sha256 != file.sha256:
        raise FiqaRayError(
            f"{uri}: has the SHA-256 {sha256}, and the released file has {file.sha256}; it was changed or cut off, and is "
            "not written"
        )
    target = output or os.path.basename(uri)
    write_atomic(target if "://" in target else os.path.abspath(target), data)
    option = "--recognizer" if file.is_recognizer else "--model"
    lines = [f"{target}: {len(data):,} bytes, SHA-256 {sha256}", f"use it: {option} {file.name} --weights {target}"]
    if uri.startswith(PROTOCOL):
        lines.append(f"or, in a job, without a copy: weights: {uri}")
    return "\n".join(lines)
