"""Groups of people: of images, by a table of faces, or of pairs, by a column of their list."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.read_table import TEXT, read_table


def read_groups(uri: str) -> pa.Table:
    """Read a table of `image_id` and `group`; an empty group means none.

    Raises:
        FiqaRayError: The file is no such table.
    """
    types = {"image_id": TEXT, "group": TEXT}
    return read_table(uri, types, list(types), "groups need image_id and group")


def groups_of_images(uri: str, image_id: pa.Array) -> NDArray[np.object_]:
    """Return the group of each image, "" where the table names none.

    Raises:
        FiqaRayError: The table names none of the images.
    """
    table = read_groups(uri)
    names = table["image_id"].combine_chunks()
    rows = pc.index_in(image_id.cast(pa.large_string()), value_set=names.cast(pa.large_string()))
    if rows.null_count == len(rows):
        raise FiqaRayError(f"{uri}: none of its images is in the benchmark: it has {names[0]}, not {image_id[0]}")
    groups = pc.fill_null(table["group"].combine_chunks().take(rows), "")
    return np.array(groups.to_pylist(), dtype=object)


def groups_of_pairs(groups: NDArray[np.object_], row_a: np.ndarray, row_b: np.ndarray) -> NDArray[np.object_]:
    """Return the group of each pair: that of both images, or "" where they differ."""
    return np.where(groups[row_a] == groups[row_b], groups[row_a], "")
