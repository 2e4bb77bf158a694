"""What storage raises: whether it may pass by itself, and the sentence with the remedy."""

from __future__ import annotations

import errno
import os
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

_PASSING_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "InternalFailure",
        "RequestTimeout",
        "RequestTimeoutException",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "OperationAborted",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
    }
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_NAMES = frozenset(
    {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionClosedError",
        "ReadTimeoutError",
        "ProxyConnectionError",
        "HTTPClientError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "IncompleteRead",
        "ResponseParserError",
        "ClientConnectorError",
        "ClientConnectionError",
        "ClientOSError",
        "ClientPayloadError",
        "ContentLengthError",
        "ServerDisconnectedError",
        "ServerTimeoutError",
        "FSTimeoutError",
        "NetworkError",
        "TimeoutException",
        "RemoteProtocolError",
    }
)
_PASSING_NUMBERS = frozenset(
    {
        errno.EBUSY,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
    }
)
_FULL_CODES = frozenset(
    {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull", "InsufficientCapacity"}
)
_HINTS_BY_CODE = {
    "SlowDown": "the store asks for fewer requests; run the same command again, or with fewer workers (compute.n_workers)",
    "RequestTimeTooSkewed": "the clock of this machine is wrong, so the store refuses its signatures; set the clock",
    "InvalidObjectState": "the object is archived; restore it, or copy it to a storage class that can be read at once",
    "InternalError": "the store itself failed; run the same command again later, it continues",
}
"""Of S3's error codes, which s3fs turns into other errors."""
_NETWORK_PACKAGES = frozenset(
    {
        "botocore",
        "aiobotocore",
        "aiohttp",
        "urllib3",
        "requests",
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "huggingface_hub",
    }
)
_NOT_THERE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def answer_code(exc: BaseException) -> str:
    """Return the error code in the store's answer, such as `SlowDown`, or an empty text."""
    for link in _chain(exc):
        code = _answer(link).get("Error", {}).get("Code")
        if code:
            return str(code)
    return ""


def may_pass(exc: BaseException) -> bool:
    """Return whether what a file system raised may pass: overload, a lost connection, a cut body, an old token.

    Missing files, refused access, a full disk and a used-up quota do not pass by themselves.
    """
    code = answer_code(exc)
    if is_expired(exc):
        return "AWS_SESSION_TOKEN" not in os.environ  # that one stays the same
    if code in _PASSING_CODES:
        return True
    status = _status(exc)
    if is_full(exc) or isinstance(exc, (*_NOT_THERE, PermissionError)):
        return False
    names = {kind.__name__ for link in _chain(exc) for kind in type(link).__mro__}
    if names & _PASSING_NAMES or isinstance(exc, ConnectionError | TimeoutError):
        return True  # before the status: aiohttp gives a cut body the number 400
    if status:
        return status in _PASSING_STATUS
    return isinstance(exc, OSError) and exc.errno in _PASSING_NUMBERS


def is_expired(exc: BaseException) -> bool:
    """Return whether the store refused credentials that were good before."""
    code = answer_code(exc)
    # the answer to HEAD has no body, so all that is left of an expired token is its number
    return code in _EXPIRED_CODES or (code == "400" and "HeadObject" in str(next(reversed([*_chain(exc)]))))


def is_full(exc: BaseException) -> bool:
    """Return whether a disk is full or a quota used up."""
    number = getattr(exc, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or answer_code(exc) in _FULL_CODES or _status(exc) == 507


def is_refused(exc: BaseException) -> bool:
    """Return whether a location may not be written: a read-only disk, or no rights."""
    return any(
        isinstance(link, PermissionError) or getattr(link, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM)
        for link in _chain(exc)
    )


def fault_text(exc: BaseException, uri: str = "") -> str | None:
    """Return what went wrong and the remedy, or None if storage has nothing to do with it.

    Args:
        exc: what a file system raised.
        uri: where; its bucket is named if it does not exist.
    """
    code, name = answer_code(exc), type(exc).__name__
    if code in _HINTS_BY_CODE:
        return f"{_HINTS_BY_CODE[code]} ({code})"
    if is_full(exc):
        return "the disk is full or over quota; free some space and run the same command again, it continues"
    if is_expired(exc):
        return f"the credentials have expired ({code}); renew them and run the same command again, it continues"
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
    if getattr(exc, "errno", None) == errno.EROFS:
        return "the file system is read-only; choose another run_uri or output, or mount it for writing"
    if isinstance(exc, PermissionError) or code in (
        "AccessDenied",
        "403",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
    ):
        return f"access denied ({code or exc}); check the credentials and the rights on this location"
    if code == "NoSuchBucket" or "NoSuchBucket" in str(exc) or "bucket does not exist" in str(exc):
        bucket = uri.partition("://")[2].partition("/")[0]
        return f"the bucket {bucket}{' ' if bucket else ''}does not exist; create it or correct the name"
    if isinstance(exc, ValueError) and str(exc).startswith("Invalid endpoint"):
        return f"{_one_line(exc)}; AWS_ENDPOINT_URL must begin with http:// or https://"
    if "WRONG_VERSION_NUMBER" in str(exc):
        return "the store speaks http, not https; write http:// in AWS_ENDPOINT_URL"
    if may_pass(exc):
        what = "is overloaded" if code or _status(exc) else "cannot be reached"
        return f"{what} ({_one_line(exc)}); check the network and AWS_ENDPOINT_URL, and run the same command again"
    if isinstance(exc, FileNotFoundError):
        return "not found; check the path"
    if isinstance(exc, IsADirectoryError):
        return "is a folder; give a file"
    if isinstance(exc, NotADirectoryError):
        return "a part of this path is a file, not a folder; choose another path"
    if name == "ParamValidationError":
        return f"not a valid bucket or key; correct the name ({' '.join(str(exc).split())[:120]})"
    if isinstance(exc, zipfile.BadZipFile | tarfile.TarError):
        return f"the archive is damaged or of another kind ({_one_line(exc)}); fetch it again"
    if isinstance(exc, OSError) and exc.errno == errno.ENXIO:
        return "nobody reads this pipe or socket; remove it, or start its reader first"
    if isinstance(exc, OSError):
        return str(exc) or name
    if name == "HfUriError":
        return f"not a valid address on the Hugging Face Hub; correct it ({_one_line(exc)})"
    if type(exc).__module__.split(".")[0] in _NETWORK_PACKAGES:
        return f"{name}: {_one_line(exc)}; check the network and AWS_ENDPOINT_URL, and run the same command again"
    return None


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    for _ in range(8):
        if exc is None:
            return
        yield exc
        exc = exc.__cause__


def _answer(exc: BaseException) -> dict[str, Any]:
    response = getattr(exc, "response", None)
    return response if isinstance(response, dict) else {}


def _status(exc: BaseException) -> int:
    """Return the HTTP status of the store's answer, or 0."""
    for link in _chain(exc):
        status = _answer(link).get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status is None:
            status = getattr(link, "status", None)
        if status is None:  # not asked of aiohttp's errors, where it is deprecated
            status = getattr(link, "code", None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return 0
