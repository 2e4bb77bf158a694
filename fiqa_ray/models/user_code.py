"""A user's own code, named as `module:function`; whatever goes wrong in it becomes one message."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.options import near_name


def call_function(name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Any:
    """Import `module:function` and return `function(weights=weights, **options)`.

    Raises:
        FiqaRayError: the import or the call fails; the message contains the user's own error.
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
    except Exception as error:  # the user's function may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in {"weights": weights, **options}.items())
        raise FiqaRayError(f"{name}({given}) fails: {type(error).__name__}: {error}") from error
