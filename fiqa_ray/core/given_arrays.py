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
