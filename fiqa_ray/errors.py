"""The one exception for a user's mistake: its text names the value, the place and the remedy."""

from __future__ import annotations


class FiqaRayError(Exception):
    """A mistake or fault that the user can mend; the command line prints its text without a traceback.

    ``exit_code``: 1 for an error, 2 for wrong usage or settings, 3 for an incomplete run.
    """

    exit_code = 1


class UsageError(FiqaRayError):
    """Wrong settings or command line (exit code 2)."""

    exit_code = 2


class IncompleteError(FiqaRayError):
    """Some parts could not be made; running the same command again continues (exit code 3)."""

    exit_code = 3


class StorageError(FiqaRayError):
    """Storage that did not answer as it should; may pass, so one shard's fault does not end a step at once."""
