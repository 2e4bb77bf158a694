"""Checks of names and options that a user gives, with a message that names the value and what is valid."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fiqa_ray.errors import UsageError


def check_options(name: str, options: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Check that a model knows all options.

    Raises:
        UsageError: an option is not among `allowed`; the message gives the nearest valid one.
    """
    for option in options:
        if option not in allowed:
            valid = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise UsageError(f"{name}: no option {option!r}{near_name(option, allowed)}; {valid}")


def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def near_name(name: str, valid: Iterable[str]) -> str:
    """Return ` (did you mean ...?)` if a valid name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_whole(method: str, least: int, **values: Any) -> None:
    """Raise UsageError unless every value is a whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{method}: {name}={value!r} must be a whole number of at least {least}")


def check_number(method: str, name: str, value: Any, low: float, high: float, where: str) -> None:
    """Raise UsageError unless `low <= value < high`; `where` says the same in words."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise UsageError(f"{method}: {name}={value!r} must lie {where}")
