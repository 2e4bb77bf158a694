"""Read, list and write files at any fsspec URL; fingerprints and content hashes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa

from fiqa_ray.errors import FiqaRayError, StorageError, UsageError
from fiqa_ray.hub import PROTOCOL, check_hub_address, read_hub_file
from fiqa_ray.public_uri import private_parts, public_table, public_text
from fiqa_ray.storage.faults import answer_code, fault_text, is_refused, may_pass
from fiqa_ray.storage.local import RegularFiles, is_local, local_sizes, regular, whole_file
from fiqa_ray.storage.patience import PatientFileSystem, one_try, patiently, shown

SLASH = "/"
_NO_FILES = fsspec.AbstractFileSystem()

_CHAINING = ("zip", "tar", "libarchive", "simplecache", "filecache", "blockcache", "cached", "reference", "dir")
"""Protocols that may stand before `::`; other names that hold these two characters are names."""


def split_chain(uri: str) -> tuple[str, str]:
    """Return the first part of a URI such as `zip://a.jpg::s3://b/c.zip`, and `::` with the rest; `/a::b` is no chain."""
    head, separator, rest = uri.partition("::")
    is_chain = separator and head.partition("://")[0] in _CHAINING and ("://" in head or not os.path.lexists(uri))
    return (head, separator + rest) if is_chain else (uri, "")


def _guarded(fs: fsspec.AbstractFileSystem) -> Any:
    """Return a file system that outlasts a store that is away; of this machine's disk one that reads regular files only."""
    if is_local(fs):
        return RegularFiles()
    if fs.protocol == "memory":
        return fs
    if not hasattr(fs, "_patient"):
        fs._patient = PatientFileSystem(fs)
    return fs._patient


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI (an `fsspec.AbstractFileSystem` or what stands for one) and the path within it."""
    options: dict[str, Any] = {}
    if uri.startswith(("s3://", "s3a://")):
        if not uri.partition("://")[2].strip(SLASH):
            raise UsageError(f"{uri}: names no bucket; wanted s3://BUCKET/FOLDER")
        if "@" in uri and private_parts(uri.partition("?")[0]):
            raise UsageError(
                f"{uri}: an S3 address holds no keys; leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        # stores other than AWS reject the checksums that newer clients add unasked
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        # a single request is tried again within seconds; `patience.py` outlasts a store that is away
        retries = {"mode": "standard", "total_max_attempts": 3}
        options = {"use_listings_cache": False, "config_kwargs": {"max_pool_connections": 32, "retries": retries}}
        if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
            options["config_kwargs"]["s3"] = {"addressing_style": "path"}
    if "\0" in uri:
        raise UsageError(f"{uri!r}: a path cannot hold a zero byte; correct it")
    outer = split_chain(uri)[1].rpartition("::")[2] or uri
    if outer.startswith(PROTOCOL):
        check_hub_address(outer)
    try:
        if uri.startswith("/") or ("::" in uri and not split_chain(uri)[1]):  # fsspec would split the name
            protocol = "file" if uri.startswith("/") else fsspec.core.split_protocol(uri)[0] or "file"
            fs = fsspec.filesystem(protocol, **options)
            return _guarded(fs), fs._strip_protocol(uri)
        if split_chain(uri)[1]:  # opens the outer file
            regular(outer.removeprefix("file://"))
            fs, path = patiently(lambda: fsspec.core.url_to_fs(uri, **options), _NO_FILES, uri)
        else:
            fs, path = fsspec.core.url_to_fs(uri, **options)
        return _guarded(fs), path
    except (ValueError, ImportError) as exc:
        raise FiqaRayError(
            f"cannot open {uri}: {exc}; use a local path, s3://, memory:// or another fsspec URL"
        ) from exc


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what storage raises into one `FiqaRayError` that names the URI, the cause and the remedy."""
    try:
        yield
    except FiqaRayError:
        raise
    except Exception as exc:
        text = fault_text(exc, uri)
        if text is None:
            raise
        for part in private_parts(uri):  # a library may name them without their URI
            text = text.replace(part, "***")
        raise StorageError(f"{uri}: {text}", may_pass=may_pass(exc), is_refused=is_refused(exc)) from exc


def join(uri: str, *parts: str) -> str:
    """Join URI parts with single slashes."""
    return SLASH.join([uri.rstrip(SLASH), *(p.strip(SLASH) for p in parts)])


def read_bytes(uri: str) -> bytes:
    """Return the content of a file; raise `FiqaRayError` where it cannot be read."""
    if uri.startswith(PROTOCOL):
        return read_hub_file(uri)
    with storage_errors(uri):
        fs, path = filesystem(uri)
        return fs.cat_file(path)


def read_json(uri: str) -> Any | None:
    """Return parsed JSON, or None where there is no such file."""
    data = read_if_there(uri)
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise FiqaRayError(f"{uri} is damaged ({exc}); remove this file and run again") from exc


def read_if_there(uri: str) -> bytes | None:
    """Return the content of a file, or None where there is no such file."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        try:
            return at_once(fs, path)
        except FileNotFoundError:
            return None


def read_shown(uri: str) -> bytes | None:
    """Return the content of a file that was written or listed a moment ago; None if it does not show within seconds."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        try:
            return shown(lambda: at_once(fs, path), fs)
        except FileNotFoundError:
            return None


def at_once(fs: Any, path: str) -> bytes:
    """Return the content of a file by one request; by itself s3fs asks for the size first, to fetch large files in parts."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    content: bytes = fs.cat_file(path, max_concurrency=1) if "s3" in protocols else fs.cat_file(path)
    return content


def exists(uri: str) -> bool:
    """Return whether a file or folder is there."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        return fs.exists(path)


def write_atomic(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a whole object in one step: readers see all of it or nothing."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        if is_local(fs):
            with whole_file(path) as temporary:
                _fill(temporary, data)
        else:
            fs.pipe_file(path, bytes(data))


def _fill(path: str, data: bytes | pa.Buffer) -> None:
    with open(path, "wb") as file:
        file.write(data)


def remove_file(uri: str) -> None:
    """Remove one file."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        fs.rm_file(path)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Create a small object unless it is there; return True to the one caller whose content it holds."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        try:
            if is_local(fs):
                with whole_file(path, is_new=True) as temporary:
                    _fill(temporary, data)
            else:
                fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            pass
        except OSError as exc:  # stores that do not name the condition in their answer
            if answer_code(exc) not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
    # the answer to a first try may have been lost, so that a second one found the content that the first had written
    return isinstance(fs, PatientFileSystem) and bool(data) and read_shown(uri) == data


def list_files(uri: str) -> dict[str, int]:
    """Return the sizes in bytes of all files below a folder by name, relative to it; empty where there is no folder."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        if is_local(fs):
            return local_sizes(path)
        try:
            infos = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        root = fs._strip_protocol(path).rstrip(SLASH)
        sizes = {p[len(root) :].lstrip(SLASH): int(info["size"] or 0) for p, info in infos.items()}
        sizes.pop("", None)  # s3fs names the folder itself where its first file comes between two requests
        return sizes


def fingerprint(content: Any) -> str:
    """Return 16 hex digits that stand for a JSON-able value: a dataset's stage, settings, schema version and inputs."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def content_hash(uri: str) -> str:
    """Return the SHA-256 (hex) of a file's content; a process reads each file once."""
    return hashlib.sha256(read_bytes(uri)).hexdigest()


@lru_cache(maxsize=1024)
def list_hash(uri: str) -> str:
    """Return the SHA-256 (hex) of a list of files; addresses in a CSV that were signed again do not change it.

    Those in Parquet do.
    """
    data = read_bytes(uri)
    if not data.startswith(b"PAR1") and b"://" in data:
        data = public_table(data.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return hashlib.sha256(data).hexdigest()


def json_bytes(value: Any) -> bytes:
    """Return JSON whose bytes are equal for equal values."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


@contextmanager
def storage_quiet() -> Iterator[None]:
    """Try once, log a fault and go on, in what is tried again anyway, such as a lock's beat."""
    try:
        with one_try():
            yield
    except Exception as exc:  # logged, not raised: storage may be back by the next beat
        logging.getLogger("fiqa_ray").warning("storage did not answer: %s", public_text(str(exc)))
