"""Any fsspec URL: read, list, write atomically, and say what went wrong. Fingerprints and content hashes.

One code path for local folders, `s3://` (endpoint and credentials from the usual environment variables) and `memory://` (one
process only). `datasets/dataset.py` says what is stored there; `engine/lock.py` is the lock of a run. `files.py` holds the
functions, `local.py` what this machine's disk needs, `faults.py` says which faults may pass, and `patience.py` tries those
again.
"""

from fiqa_ray.public_uri import public_uri
from fiqa_ray.storage.files import (
    SLASH,
    at_once,
    content_hash,
    exists,
    filesystem,
    fingerprint,
    join,
    json_bytes,
    list_files,
    list_hash,
    put_if_absent,
    read_bytes,
    read_if_there,
    read_json,
    read_shown,
    remove_file,
    split_chain,
    storage_errors,
    storage_quiet,
    write_atomic,
)
from fiqa_ray.storage.local import is_local, is_special, regular, whole_file

__all__ = [
    "SLASH",
    "at_once",
    "content_hash",
    "exists",
    "filesystem",
    "fingerprint",
    "is_local",
    "is_special",
    "join",
    "json_bytes",
    "list_files",
    "list_hash",
    "public_uri",
    "put_if_absent",
    "read_bytes",
    "read_if_there",
    "read_json",
    "read_shown",
    "regular",
    "remove_file",
    "split_chain",
    "storage_errors",
    "storage_quiet",
    "whole_file",
    "write_atomic",
]
