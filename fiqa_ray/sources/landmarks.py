"""Landmarks of a source: five points of each image, from the columns of a table or CSV."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.datasets.schemas import SOURCE_FACES
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.listing import _TEXT, _parse_csv, absolute, refuse, refuse_duplicates
from fiqa_ray.storage import read_bytes

_COORDINATES = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]


_LANDMARK_HEADER = ["NAME_ID", *(f"P{point}{axis}" for point in range(1, 6) for axis in "XY")]


def _landmark_column(values: NDArray[np.float64], missing: NDArray[np.bool_]) -> pa.Array:
    """``(n_images, 10)`` and ``(n_images,)`` as the column ``landmarks``."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 10, mask=pa.array(missing))


def _landmarks_of(keys: pa.Array, landmarks_uri: str | None) -> pa.Array:
    """Landmarks of each key from a CSV in VGGFace2's form; null for keys without a row."""
    if landmarks_uri is None:
        return pa.nulls(len(keys), SOURCE_FACES.field("landmarks").type)
    table = _read_landmark_csv(landmarks_uri)
    names = table["NAME_ID"].combine_chunks()
    refuse_duplicates(names, landmarks_uri, "NAME_ID")
    values = np.column_stack([table[c].to_numpy() for c in _LANDMARK_HEADER[1:]])
    row = pc.fill_null(pc.index_in(keys, value_set=names), -1).to_numpy()
    if len(row) and (row < 0).all():
        raise FiqaRayError(
            f"{landmarks_uri}: no row belongs to any image; its NAME_ID is like {names[0].as_py() if len(names) else ''!r}, "
            f"the images are like {keys[0].as_py()!r} (path without ending)"
        )
    return _landmark_column(values[np.maximum(row, 0)], row < 0)


def _read_landmark_csv(uri: str) -> pa.Table:
    data = read_bytes(absolute(uri))
    header = data[:4096].split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    if [c.strip(' "\r').upper() for c in header.split(",")] != _LANDMARK_HEADER:
        raise FiqaRayError(f"{uri}: the first line is {header[:80]!r} instead of {','.join(_LANDMARK_HEADER)!r}")
    return _parse_csv(
        uri,
        data,
        {"NAME_ID": _TEXT, **dict.fromkeys(_LANDMARK_HEADER[1:], pa.float64())},
        column_names=_LANDMARK_HEADER,
    )


def table_landmarks(table: pa.Table, uri: str) -> pa.Array:
    """Landmarks from the columns ``landmarks`` or ``x1,y1,..,x5,y5``; null where there are none. Errors show ``uri``."""
    if "landmarks" in table.column_names:
        column = table["landmarks"].combine_chunks()
        try:
            return column.cast(SOURCE_FACES.field("landmarks").type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
            raise FiqaRayError(
                f"{uri}: the column landmarks ({column.type}) must hold lists of ten numbers; in CSV use the columns "
                f"{','.join(_COORDINATES)}"
            ) from exc
    absent = [c for c in _COORDINATES if c not in table.column_names]
    if len(absent) == len(_COORDINATES):
        return pa.nulls(table.num_rows, SOURCE_FACES.field("landmarks").type)
    if absent:
        raise FiqaRayError(f"{uri}: landmarks need all of {','.join(_COORDINATES)}; missing: {', '.join(absent)}")
    values = np.column_stack([table[c].cast(pa.float64()).to_numpy() for c in _COORDINATES])
    n_missing = np.isnan(values).sum(axis=1)
    partly = (n_missing > 0) & (n_missing < 10)
    refuse(pa.array(partly), table["uri"], f"{uri}: incomplete landmarks")
    return _landmark_column(values, n_missing == 10)
