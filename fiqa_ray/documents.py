"""JSON documents and state files that carry a sum of their own content: one function writes the sum, one checks it.

A document is a JSON object with the entry `document_sha256`: the SHA-256 of its other entries and of the name that it is
bound to. White space and the order of entries do not count. The name is one such as `v=0123/_part-00000.json`: a sound
document that was copied over another one is refused as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fiqa_ray.errors import FiqaRayError, StorageError
from fiqa_ray.storage import exists, json_bytes, put_if_absent, read_bytes, read_if_there, read_shown, write_atomic

SUM_KEY = "document_sha256"
_ITEMS_AT_ONCE = 1000
_SEAL = b"\nsha256 "
_SEAL_BYTES = len(_SEAL) + 64


def document_bytes(values: Mapping[str, Any], bound_name: str = "") -> bytes:
    """Return a JSON object as a document with its sum.

    Args:
        values: JSON-ready entries.
        bound_name: Name that the document is bound to; empty for a document that may be copied.

    Raises:
        TypeError: A value has no form in JSON.
        ValueError: A number is NaN or infinite.
    """
    plain = json.loads(json.dumps(dict(values), allow_nan=False))
    plain.pop(SUM_KEY, None)
    return json_bytes({**plain, SUM_KEY: _sum(plain, bound_name)})


def parse_document(data: bytes, uri: str, remedy: str, bound_name: str = "") -> dict[str, Any]:
    """Return the entries of a document, without its sum.

    Args:
        data: Content of the file.
        uri: The file, for messages.
        remedy: What the user can do about damage.
        bound_name: As at writing.

    Raises:
        FiqaRayError: The content is no document, has no sum, or does not fit its sum.
    """
    values = parse_object(data, uri, remedy)
    stored = values.pop(SUM_KEY, None)
    if stored is None:
        raise damaged(uri, "it has no sum of its content, as if an earlier version of fiqa_ray wrote it", remedy)
    try:
        fits = stored == _sum(values, bound_name)
    except (ValueError, RecursionError):  # NaN and lone surrogates are never written
        fits = False
    if not fits:
        raise damaged(uri, "its content does not fit its sum, or it belongs elsewhere", remedy)
    return values


def parse_object(data: bytes, uri: str, remedy: str) -> dict[str, Any]:
    """Return a JSON object without a look at its sum; raise `FiqaRayError` if the content is something else."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise damaged(uri, f"it is no JSON ({' '.join(str(exc).split())[:120]})", remedy) from exc
    if not isinstance(values, dict):
        raise damaged(uri, f"it holds {type(values).__name__}, wanted a JSON object", remedy)
    return values


def read_document(uri: str, remedy: str, bound_name: str = "") -> dict[str, Any] | None:
    """Return the entries of a stored document, or None where there is no such file; raise as `parse_document`."""
    data = read_if_there(uri)
    return None if data is None else parse_document(data, uri, remedy, bound_name)


def read_written(uri: str, remedy: str, bound_name: str = "") -> dict[str, Any]:
    """Return the entries of a document that this run wrote or found a moment ago; raise as `parse_document`."""
    data = read_shown(uri)
    if data is None:
        raise StorageError(
            f"{uri}: was written a moment ago and is not there; check that the storage shows what was written, and run the "
            "same command again",
            may_pass=True,
        )
    return parse_document(data, uri, remedy, bound_name)


def write_document(uri: str, values: Mapping[str, Any], bound_name: str = "") -> None:
    """Write a document whole, in one step."""
    write_atomic(uri, document_bytes(values, bound_name))


def create_document(uri: str, values: Mapping[str, Any], bound_name: str = "") -> bool:
    """Write a document unless the file is there; return whether it was written."""
    try:
        return put_if_absent(uri, document_bytes(values, bound_name))
    except StorageError as exc:
        if exc.is_refused and exists(uri):  # a finished run on a read-only disk
            return False
        raise


def sealed(data: bytes, bound_name: str) -> bytes:
    """Return the content of a state file with the SHA-256 of its bound name and content behind it, for `read_sealed`."""
    return data + _SEAL + hashlib.sha256(bound_name.encode() + b"\n" + data).hexdigest().encode()


def read_sealed(uri: str, remedy: str, bound_name: str) -> bytes:
    """Return the content that `sealed` got; raise `FiqaRayError` if the file does not fit its SHA-256."""
    content = read_bytes(uri)
    data, seal = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if seal != sealed(data, bound_name)[-_SEAL_BYTES:]:
        raise damaged(uri, "its content does not fit the SHA-256 at its end, or it belongs elsewhere", remedy)
    return data


def damaged(uri: str, how: str, remedy: str) -> FiqaRayError:
    """Return the error for a damaged file: what is wrong, and what to do."""
    return FiqaRayError(f"{uri} is damaged: {how}; {remedy}")


def _sum(values: Mapping[str, Any], bound_name: str) -> str:
    """Return the SHA-256 of `[bound_name, values]` as compact JSON with sorted keys; item by item, as lists may be long."""
    digest = hashlib.sha256(f"[{_text(bound_name)},{{".encode())
    for i, (key, value) in enumerate(sorted(values.items())):
        digest.update(f"{',' if i else ''}{_text(key)}:".encode())
        if isinstance(value, list):
            digest.update(b"[")
            for first in range(0, len(value), _ITEMS_AT_ONCE):
                items = _text(value[first : first + _ITEMS_AT_ONCE])[1:-1]
                digest.update(f"{',' if first else ''}{items}".encode())
            digest.update(b"]")
        else:
            digest.update(_text(value).encode())
    digest.update(b"}]")
    return digest.hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
