"""What is recorded of a benchmark's images: kind of damage and true quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.sources.read_table import TEXT, read_table


def read_degradations(uri: str) -> pa.Table:
    """Read a table of `image_id`, `kind` (text) and `quality` (float64, larger is better).

    Raises:
        FiqaRayError: the file is no such table.
    """
    types = {"image_id": TEXT, "kind": TEXT, "quality": pa.float64()}
    return read_table(uri, types, list(types), "degradations need image_id, kind and quality, a number")


@dataclass(frozen=True)
class Truth:
    """What is recorded of the images: `(I,)` kinds of degradation and true qualities; None and NaN where nothing is."""

    kind: np.ndarray
    quality: NDArray[np.float64]


def recorded_truth(uri: str, image_id: pa.Array) -> Truth:
    """Return what a table of degradations says of images, in their order."""
    table = read_degradations(uri)
    records = table.take(pc.index_in(image_id.cast(pa.large_string()), value_set=table["image_id"].combine_chunks()))
    quality = records["quality"].to_numpy(zero_copy_only=False)
    return Truth(np.array(records["kind"].to_pylist(), dtype=object), quality)
