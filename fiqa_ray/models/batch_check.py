"""Refuses a user's function whose result for a face depends on the other faces of its batch: such numbers mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.reference import ModelRef

Function = Callable[[torch.Tensor, NDArray[np.int64]], NDArray[Any]]
"""Maps `(N, 3, 112, 112) uint8` faces and their `(N,)` rows to `(N,)` scores or `(N, D)` embeddings."""
TOLERANCE, ROUNDING = 1e-2, 1e-5
"""Results are the same if they differ by less than this share of their spread, and this share of the largest one."""


class BatchCheck:
    """A function that is called again on its first batch of several faces, with other faces in place of either half.

    A function that draws random numbers passes: it differs between two calls on the same batch as well.
    """

    def __init__(self, name: str, function: Function) -> None:
        """Wrap `function`, which messages call `name`."""
        self._name, self._function, self._is_checked = name, function, False

    def __call__(self, faces: torch.Tensor, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return what the function returns.

        Raises:
            FiqaRayError: a face's result depends on the other faces.
        """
        values = self._function(faces, rows)
        if self._is_checked or len(faces) < 2:
            return values
        self._is_checked, n = True, len(faces) // 2
        for half in (np.arange(n), np.arange(n, len(faces))):
            among_others = faces[half[:1]].repeat(len(faces), 1, 1, 1)
            among_others[half] = faces[half]
            before, after = values[half], self._function(among_others, rows)[half]
            if not _is_same(before, after, values) and _is_same(values, self._function(faces, rows), values):
                at = int(np.argmax(np.nan_to_num(np.abs(before - after), nan=np.inf)))
                raise FiqaRayError(
                    f"{self._name}: a face's result depends on the other faces of its batch, such as {before.flat[at]:.4g} "
                    f"beside some and {after.flat[at]:.4g} beside others. Compute it from that face alone, without means or "
                    "extremes of the batch"
                )
        return values


def check_function(name: str, function: Function) -> Function:
    """Return a function with `BatchCheck` if its name is that of a user's own code, else the function itself."""
    return BatchCheck(name, function) if ModelRef.parse(name).kind == "function" else function


def _is_same(a: NDArray[Any], b: NDArray[Any], batch: NDArray[Any]) -> bool:
    """Return whether two results for the same faces differ by rounding alone; `batch` are all results of the first call."""
    finite = batch[np.isfinite(batch)]
    spread = float(np.std(batch, axis=0).mean()) if len(finite) == batch.size else 0.0
    largest = float(np.abs(finite).max()) if len(finite) else 0.0
    return bool(np.allclose(a, b, rtol=0, atol=TOLERANCE * spread + ROUNDING * largest, equal_nan=True))
