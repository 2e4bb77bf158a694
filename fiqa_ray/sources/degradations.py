"""What is recorded of a benchmark's images: kind of damage and true quality."""

from __future__ import annotations

import pyarrow as pa

from fiqa_ray.sources.read_table import TEXT, read_table


def read_degradations(uri: str) -> pa.Table:
    """Read a table of `image_id`, `kind` (text) and `quality` (float64, larger is better).

    Raises:
        FiqaRayError: the file is no such table.
    """
    types = {"image_id": TEXT, "kind": TEXT, "quality": pa.float64()}
    return read_table(uri, types, list(types), "degradations need image_id, kind and quality, a number")
