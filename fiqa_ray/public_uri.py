"""URIs and texts without secrets: what may be stored, printed and hashed.

User info (`s3://KEY:SECRET@bucket/a`) and query strings (`?X-Amz-Signature=...`, `?sig=...`, `?token=...`) give access to
data. They are cut, so that what remains names the file and no more.
"""

from __future__ import annotations

import re
from typing import Any

_AWS_USER = re.compile(r"(?<=://)[A-Z0-9]{16,}:[^@\s]*@")
"""An access key and its secret, which may hold slashes."""
_USER = re.compile(r"(?<!\bgithub)(?<!\babfs)(?<!\babfss)(?<!\bwasb)(?<!\bwasbs)://[^/\s'\"]*@")
"""User info before a host; GitHub's and Azure's addresses have the repository and the container there."""
_WHOLE_QUERY = re.compile(r"\?[\w.~%$-]+=.*?(?=::|$)", re.DOTALL)
_QUERY = re.compile(r"\?[\w.~%$-]+=[^\s'\"<>|]*?(?=::|[)\]},;:.]*(?:[\s'\"<>|]|$))")
_WEB_QUERY = re.compile(r"(\bhttps?://[^\s'\"<>|?]*)\?[^\s'\"<>|]*?(?=::|[)\]},;:.]*(?:[\s'\"<>|]|$))")
_CELL_QUERY = re.compile(r"(://[^\s?'\",;]*)\?[\w.~%$-]+=[^\s'\",;]*")
_LOCAL = ("/", "file://", "local://")


def public_uri(uri: str) -> str:
    """Return a URI without user info and query string; each link of a chain `a::b` loses its own.

    A local path stays as it is, and so does a question mark that is a wildcard, as in `s3://bucket/part-??.tar`.
    """
    if "://" not in uri or uri.startswith(_LOCAL):
        return uri
    return _WEB_QUERY.sub(r"\1", _WHOLE_QUERY.sub("", _USER.sub("://", _AWS_USER.sub("", uri))))


def private_parts(uri: str) -> list[str]:
    """Return the user info and query strings of a URI: what `public_uri` cuts."""
    if public_uri(uri) == uri:
        return []
    users = [user.removeprefix("://").rstrip("@") for pattern in (_AWS_USER, _USER) for user in pattern.findall(uri)]
    queries = [query.lstrip("?") for query in _WHOLE_QUERY.findall(uri)]
    return [part for part in (*users, *queries) if len(part) > 3]  # shorter ones stand in many words


def public_text(text: str) -> str:
    """Return a message or log line in which all URIs are public."""
    if "://" not in text or ("?" not in text and "@" not in text):
        return text
    return _WEB_QUERY.sub(r"\1", _QUERY.sub("", _USER.sub("://", _AWS_USER.sub("", text))))


def public_table(text: str) -> str:
    """Return the text of a CSV or of another list in which all URIs are public; other columns stay whole."""
    return _CELL_QUERY.sub(r"\1", _USER.sub("://", _AWS_USER.sub("", text))) if "://" in text else text


def public_values(value: Any) -> Any:
    """Return nested dicts, lists and tuples in which each text that is a URI is public."""
    if isinstance(value, str):
        return public_uri(value)
    if isinstance(value, dict):
        return {key: public_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(public_values(item) for item in value)
    return value
