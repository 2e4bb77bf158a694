"""A user's own code, named as `module:function` or `file.py:function`; whatever goes wrong in it becomes one message.

The function takes faces `(N, 3, 112, 112)`, float32 RGB in [0, 1], and returns what the model returns; or it is a factory,
which takes `weights` and options as keywords and returns such a function or a torch module.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.options import near_name


def call_function(name: str, weights: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Any:
    """Import a function and return the model that it is or makes.

    Weights that it draws are the same in every process: each worker of a run, and each later command, loads it again.

    Returns:
        `function(weights=weights, **options)` of a factory; a plain function of faces itself, with its options bound; a
        torch module as it is.

    Raises:
        FiqaRayError: the import or the call fails; the message contains the user's own error.
    """
    module_name, _, function_name = name.rpartition(":")
    try:
        with _same_random_numbers():
            module = _import(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise FiqaRayError(
                f"{name}: there is no module {error.name!r}; its folder must be on PYTHONPATH, on every machine"
            ) from error
        raise FiqaRayError(f"{name}: importing {module_name} fails: {error}") from error
    except FiqaRayError:
        raise
    except Exception as error:  # the user's module may raise anything
        raise FiqaRayError(f"{name}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise FiqaRayError(f"{name}: {module_name} has no function {function_name!r}{near_name(function_name, names)}")
    if isinstance(function, nn.Module) or _takes_faces(function):
        if weights is not None:
            raise UsageError(f"{name} is a function of faces, which takes no weights; leave out weights={weights!r}")
        return _with_options(name, function, options)
    try:
        with _same_random_numbers():  # anew, as the module may have been imported before
            return function(weights=weights, **options)
    except FiqaRayError:
        raise
    except Exception as error:  # the user's function may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in {"weights": weights, **options}.items())
        raise FiqaRayError(
            f"{name}({given}) fails: {type(error).__name__}: {error}. A function of one argument gets faces "
            "(b, 3, 112, 112), float32 RGB in [0, 1]; one that takes weights makes such a function"
        ) from error


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore them in the end."""
    legacy, standard = np.random.get_state(), random.getstate()  # what a user's code may draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(legacy)
            random.setstate(standard)


def as_network(name: str, model: Any) -> nn.Module:
    """Return a user's recogniser as a torch module; a function is wrapped in one.

    Raises:
        FiqaRayError: it cannot be called.
    """
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise FiqaRayError(f"{name}: returned {type(model).__name__}, wanted a torch.nn.Module or a function of faces")
    return FunctionNetwork(model)


class FunctionNetwork(nn.Module):
    """A user's function of faces as a network without weights; numpy arrays that it returns become tensors."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Return the function's embeddings of faces."""
        y = self.function(x)
        return y if isinstance(y, tuple | list | Tensor) else torch.as_tensor(y, device=x.device)


def _import(name: str) -> ModuleType:
    """Import a module by name, or from a file; a file is imported once per process."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).absolute()
    if not path.is_file():
        raise FiqaRayError(
            f"{name}: there is no such file in {Path.cwd()}; on a cluster it must be there on every machine"
        )
    unique = f"fiqa_ray_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
    return sys.modules[unique]


def _takes_faces(function: Any) -> bool:
    """Return whether a function needs one argument that is not `weights`: it is a function of faces, and no factory."""
    if inspect.isclass(function):
        return False
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in positional]
    return len(needed) == 1 and "weights" not in [p.name for p in parameters]


def _with_options(name: str, function: Any, options: Mapping[str, Any]) -> Any:
    if not options:
        return function
    known = [] if isinstance(function, nn.Module) else list(inspect.signature(function).parameters)[1:]
    for key in options:
        if key not in known:
            raise UsageError(f"{name} has no option {key!r}{near_name(key, known)}")
    return partial(function, **options)
