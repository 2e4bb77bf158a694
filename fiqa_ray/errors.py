"""Errors that a user can correct: their text names the value, where it stands and the remedy."""

from __future__ import annotations

from fiqa_ray.public_uri import public_text


class FiqaRayError(Exception):
    """A mistake or fault that the user can correct; the command line prints its text without a traceback.

    User info and query strings of URIs are cut from the text.

    Attributes:
        exit_code: 1 for an error, 2 for wrong usage or settings, 3 for an incomplete run.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(public_text(a) if isinstance(a, str) else a for a in args))


class UsageError(FiqaRayError, ValueError):
    """Wrong settings, arguments or command line (exit code 2); a `ValueError` for callers of the Python API."""

    exit_code = 2


class IncompleteError(FiqaRayError):
    """Some parts are missing; running the same command again continues (exit code 3).

    Attributes:
        is_end_of_process: Whether the process cannot go on, as when the head of its Ray cluster is lost.
    """

    exit_code = 3
    is_end_of_process = False


class StorageError(FiqaRayError):
    """Storage gave an error.

    Attributes:
        may_pass: Whether it was tried for a long time because it may pass by itself, as with a store that is away.
        is_refused: Whether the location may not be written: a read-only disk, or no rights.
    """

    def __init__(self, *args: object, may_pass: bool = False, is_refused: bool = False) -> None:
        super().__init__(*args)
        self.may_pass, self.is_refused = may_pass, is_refused
