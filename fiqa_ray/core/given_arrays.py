"""Arrays that users give, as numpy arrays of real numbers: what numpy would drop without a word is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fiqa_ray.errors import UsageError


def real_array(name: str, values: ArrayLike, dtype: DTypeLike) -> NDArray[Any]:
    """Return values as an array; one that float32 cannot hold becomes infinite.

    Args:
        name: of the values, in the plural, for errors.
        values: an array or what numpy makes one of.
        dtype: a type of real numbers.

    Raises:
        UsageError: values are masked, complex or no numbers.
    """
    if isinstance(values, np.ma.MaskedArray) and np.any(values.mask):
        raise UsageError(f"{np.sum(values.mask):,} {name} are masked; leave their images or pairs out of all arrays")
    try:
        array = np.asarray(values)
        if np.iscomplexobj(array):
            raise UsageError(f"{name} are complex numbers; give real ones")
        with np.errstate(over="ignore"):
            return np.asarray(array, dtype)
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError) as exc:  # torch raises RuntimeError for a tensor with a gradient
        raise UsageError(f"{name} cannot be read as numbers: {exc}; give a numpy array") from exc


def checked_embeddings(embeddings: ArrayLike, n_named: int) -> NDArray[np.float32]:
    """Return embeddings `(I, D)` as float32.

    Args:
        embeddings: what the user gives.
        n_named: number of images that have a name of a person.

    Raises:
        UsageError: they are no finite matrix of one row per name, or a row has no direction.
    """
    values = real_array("embeddings", embeddings, np.float32)
    is_matrix = values.ndim == 2 and values.shape[1] > 0
    odd = _rows_of_odd_length(values) if is_matrix else np.zeros(0, np.int64)
    if not is_matrix or not np.isfinite(values[odd]).all():
        raise UsageError(f"embeddings must be finite and of shape (n_images, dim), got {values.shape}")
    if n_named != len(values):
        raise UsageError(f"{len(values)} embeddings but {n_named} identities: one identity per embedding")
    without = odd[~values[odd].any(axis=1)]
    if len(without):
        raise UsageError(
            f"{len(without):,} embeddings are all zeros, as of faces that failed; the first is that of image {without[0]}. "
            "They have no direction, and so no similarity: leave these images out (`embeddings.any(axis=1)` tells the rest)"
        )
    return values


def _rows_of_odd_length(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rows of `(I, D)` whose squared length is 0 or not finite: one pass, and a look at these rows is enough."""
    with np.errstate(over="ignore", invalid="ignore"):
        length2 = np.einsum("ij,ij->i", values, values)  # (I,)
    return np.flatnonzero(~(np.isfinite(length2) & (length2 > 0)))
