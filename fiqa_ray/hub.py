"""Files of the Hugging Face Hub, as `hf://OWNER/REPOSITORY/FILE` or, at a named commit, `hf://OWNER/REPOSITORY@COMMIT/FILE`.

They are fetched by the Hub's own package, which keeps them in its cache: a file at a named commit is fetched once, and needs
no network after that.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from fiqa_ray.errors import FiqaRayError, StorageError, UsageError

logger = logging.getLogger(__name__)

PROTOCOL = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")
_BELOW = re.compile(
    r"hf://(?:(?:datasets|spaces|models|buckets)/)?(?P<owner>[^/@]+)/(?P<name>[^/@]+)(?:@[^/]+)?(?:/.*)?"
)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_KINDS = ("datasets", "spaces", "models", "buckets")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_hub_address(uri: str) -> None:
    """Raise `UsageError` unless a URI can name a repository of the Hub or what lies in it: the Hub is not asked."""
    match = _BELOW.fullmatch(uri)
    names = (match["owner"], match["name"]) if match else ()
    if not names or names[0] in _KINDS or not all(_NAME.fullmatch(name) for name in names):
        raise UsageError(
            f"{uri}: is no address on the Hub; wanted hf://datasets/OWNER/REPOSITORY/PATH, or, for files of a model, "
            "hf://OWNER/REPOSITORY/PATH"
        )


def read_hub_file(uri: str) -> bytes:
    """Return the content of a file of the Hub.

    Raises:
        UsageError: `uri` is no address of a file.
        FiqaRayError: the Hub's package is not installed.
        StorageError: the file is not there, or the Hub cannot be reached.
    """
    path, commit = fetch_hub_file(uri)
    if _parse(uri)["revision"] != commit:
        logger.warning("%s: commit %s was read; to name it: %s", uri, commit, pinned(uri, commit))
    return path.read_bytes()


def pinned(uri: str, commit: str) -> str:
    """Return the address of the same file at a commit."""
    address = _parse(uri)
    return f"{PROTOCOL}{address['repository']}@{commit}/{address['file']}"


def fetch_hub_file(uri: str) -> tuple[Path, str]:
    """Bring a file of the Hub into the cache; return its path and its commit. Raises as `read_hub_file`."""
    address = _parse(uri)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise FiqaRayError(f"{uri}: needs {error.name}, which is not installed: pip install 'fiqa-ray[hub]'") from error
    try:
        path = huggingface_hub.hf_hub_download(address["repository"], address["file"], revision=address["revision"])
    except errors.GatedRepoError as error:
        raise StorageError(
            f"{uri}: its owner asks for a consent: accept it on huggingface.co, then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise StorageError(f"{uri}: there is no such repository, or it is private: set HF_TOKEN then") from error
    except errors.RevisionNotFoundError as error:
        raise StorageError(f"{uri}: the repository has no commit {address['revision']}; correct it") from error
    except errors.LocalEntryNotFoundError as error:
        raise StorageError(
            f"{uri}: the Hub cannot be reached and the file is not in the cache; fetch it where there is a network, and "
            "give its path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise StorageError(f"{uri}: the repository has no such file; look at its list of files") from error
    except Exception as error:  # of the package for HTTP below, whatever it is
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise StorageError(f"{uri}: cannot be fetched: {type(error).__name__}: {reason}") from error
    commit = next((part for part in Path(path).parts if _COMMIT.fullmatch(part)), address["revision"] or "main")
    return Path(path), commit


def _parse(uri: str) -> re.Match[str]:
    """Return the repository, the revision (None if there is none) and the file of an address."""
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise UsageError(
            f"{uri}: is no address of a file on the Hub; wanted hf://OWNER/REPOSITORY/FILE or hf://OWNER/REPOSITORY@COMMIT/FILE"
        )
    check_hub_address(uri)
    return match
