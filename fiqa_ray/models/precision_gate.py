"""Holds models of a lower precision against float32 on the first faces that a worker sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fiqa_ray.errors import FiqaRayError

Models = Callable[[torch.Tensor, NDArray[np.int64]], list[NDArray[np.float32]]]
N_FACES = 256
"""Faces that are compared, or those of the worker's first part if it has fewer."""
MIN_COSINE, MIN_SPEARMAN = 0.9999, 0.999
"""Mean cosine of embeddings to those of float32, and rank correlation of scores, below which a precision is refused."""


class PrecisionGate:
    """Compares outputs with those of the same models in float32, which it loads, and refuses what differs too much.

    Args:
        load_exact: loads the models in float32.
        names: of the models, for the message.
        is_embedding: whether they return embeddings, not scores.
        precision: the lower precision.
    """

    def __init__(
        self, load_exact: Callable[[], Models], names: Sequence[str], is_embedding: bool, precision: str
    ) -> None:
        self._names, self._is_embedding, self._precision = names, is_embedding, precision
        self._exact: Models | None = load_exact()
        self._pairs: list[tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]] = []
        self._n_seen = 0

    def see(self, faces: torch.Tensor, rows: NDArray[np.int64], outputs: list[NDArray[np.float32]]) -> None:
        """Take the outputs `(n, ...)` of the first n faces of a batch; raise as `judge` does once there are enough."""
        if self._exact is None:
            return
        n = len(outputs[0])
        self._pairs.append((outputs, [values[:n] for values in self._exact(faces, rows)]))
        self._n_seen += n
        if self._n_seen >= N_FACES:
            self.judge()

    def judge(self) -> None:
        """Compare what was seen, and let go of the models in float32.

        Raises:
            FiqaRayError: the outputs of a model differ too much; the message has the figures.
        """
        if self._exact is None or self._n_seen < 2:
            return
        self._exact = None
        for m, name in enumerate(self._names):
            lower, exact = (np.concatenate([pair[side][m] for pair in self._pairs]) for side in (0, 1))
            agreement = mean_cosine(lower, exact) if self._is_embedding else rank_agreement(lower, exact)
            least, what = (
                (MIN_COSINE, "mean cosine of its embeddings")
                if self._is_embedding
                else (MIN_SPEARMAN, "Spearman's rho")
            )
            if not agreement >= least:
                raise FiqaRayError(
                    f"{name}: in {self._precision} it does not agree with float32 on {self._n_seen} faces of this run: "
                    f"{what} {agreement:.6f}, wanted at least {least}; set compute.precision=float32"
                )
        self._pairs = []


def mean_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the mean cosine of the rows of `(N, D)` embeddings; NaN where one of them is not finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(((x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))).mean())


def rank_agreement(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return Spearman's rank correlation of `(N,)` scores; 1 where they are equal, NaN where one is not finite."""
    x, y = (np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1) for values in (a, b))
    return 1.0 if np.array_equal(x, y) else float(spearmanr(x, y)[0])
