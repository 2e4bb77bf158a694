"""The pictures of some rows of packed faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.images import face_picture


def read_pictures(
    faces: Dataset, rows: Sequence[int], picture: Callable[[bytes], bytes] = face_picture
) -> dict[int, tuple[bytes, str]]:
    """Return the picture, an image file, and the image_id of some rows, by row. Memory: the faces of one part.

    Args:
        faces: The packed faces.
        rows: Which of them.
        picture: Makes the image file from the stored face.
    """
    manifest = faces.require()
    pictures: dict[int, tuple[bytes, str]] = {}
    for part, first in zip(manifest.parts, manifest.first_rows[:-1], strict=True):
        in_part = [r - first for r in rows if first <= r < first + part.n_rows]
        if in_part:
            table = faces.read(part, ["face", "image_id"]).take(pa.array(in_part))
            columns = (table["face"].to_pylist(), table["image_id"].to_pylist())
            for r, face, image_id in zip(in_part, *columns, strict=True):
                pictures[first + r] = (face and picture(face), image_id)
    return pictures
