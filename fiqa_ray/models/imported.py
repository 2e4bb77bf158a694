"""A user's own code (`module:function`), and the options of networks and methods."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError

IMPORTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def call_imported(name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Any:
    """Import ``module:function`` and return ``function(weights=weights, **options)``.

    Raises:
        FiqaRayError: one message for whatever goes wrong on the way, with the user's own error in it.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise FiqaRayError(
                f"{name}: there is no module {error.name!r}; its folder must be on PYTHONPATH, on every machine"
            ) from error
        raise FiqaRayError(f"{name}: importing {module_name} fails: {error}") from error
    except Exception as error:  # the user's module may raise anything
        raise FiqaRayError(f"{name}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise FiqaRayError(f"{name}: {module_name} has no function {function_name!r}{near_name(function_name, names)}")
    try:
        return function(weights=weights, **options)
    except FiqaRayError:
        raise
    except Exception as error:  # likewise
        given = ", ".join(f"{key}={value!r}" for key, value in {"weights": weights, **options}.items())
        raise FiqaRayError(f"{name}({given}) fails: {type(error).__name__}: {error}") from error


def call_network(name: str, network: nn.Module, x: Tensor) -> Any:
    """Return `network(x)`; a fault of the user's network becomes a `FiqaRayError` that names it."""
    try:
        return network(x)
    except FiqaRayError:
        raise
    except Exception as error:  # a user's network may raise anything
        raise FiqaRayError(
            f"{name}: fails on faces of shape {tuple(x.shape)}, {x.dtype}: {type(error).__name__}: {error}. "
            "It must take (b, 3, 112, 112) floats for any b"
        ) from error


def check_options(name: str, options: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise UsageError if ``options`` holds a name that ``name`` does not know."""
    for option in options:
        if option not in allowed:
            known = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise UsageError(f"{name}: no option {option!r}{near_name(option, allowed)}; {known}")


def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def near_name(name: str, known: Any) -> str:
    """Return `` (did you mean ...?)`` if a known name is close, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
