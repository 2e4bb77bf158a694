"""Landmarks of a source: five points of each image, from the columns of a table or CSV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.core.landmark_order import LandmarkOrder, judge_order
from fiqa_ray.datasets.schemas import SOURCE_FACES
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.listing import TEXT, parse_csv, refuse, refuse_duplicates
from fiqa_ray.sources.paths import absolute
from fiqa_ray.sources.read_table import refuse_foreign
from fiqa_ray.storage import read_bytes

COORDINATES = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]


_LANDMARK_HEADER = ["NAME_ID", *(f"P{point}{axis}" for point in range(1, 6) for axis in "XY")]


def _landmark_column(values: NDArray[np.float64], missing: NDArray[np.bool_]) -> pa.Array:
    """Return `(I, 10)` numbers, and `(I,)` where they are missing, as the column `landmarks`."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 10, mask=pa.array(missing))


def landmarks_of(keys: pa.Array, landmarks_uri: str | None) -> pa.Array:
    """Return the landmarks of each key from a CSV in VGGFace2's form; null for keys without a row."""
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
    uri = absolute(uri)
    data = read_bytes(uri)
    refuse_foreign(uri, data)
    header = data[:4096].split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    if [c.strip(' "\r').upper() for c in header.split(",")] != _LANDMARK_HEADER:
        raise FiqaRayError(f"{uri}: the first line is {header[:80]!r} instead of {','.join(_LANDMARK_HEADER)!r}")
    return parse_csv(
        uri,
        data,
        {"NAME_ID": TEXT, **dict.fromkeys(_LANDMARK_HEADER[1:], pa.float64())},
        column_names=_LANDMARK_HEADER,
    )


def table_landmarks(table: pa.Table, uri: str) -> pa.Array:
    """Return landmarks from the columns `landmarks` or `x1,y1,..,x5,y5`; null if there are none. Errors show `uri`."""
    if "landmarks" in table.column_names:
        column = table["landmarks"].combine_chunks()
        try:
            return column.cast(SOURCE_FACES.field("landmarks").type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
            raise FiqaRayError(
                f"{uri}: the column landmarks ({column.type}) must hold lists of ten numbers; in CSV use the columns "
                f"{','.join(COORDINATES)}"
            ) from exc
    absent = [c for c in COORDINATES if c not in table.column_names]
    if len(absent) == len(COORDINATES):
        return pa.nulls(table.num_rows, SOURCE_FACES.field("landmarks").type)
    if absent:
        raise FiqaRayError(f"{uri}: landmarks need all of {','.join(COORDINATES)}; missing: {', '.join(absent)}")
    values = np.column_stack([table[c].cast(pa.float64()).to_numpy() for c in COORDINATES])
    n_missing = np.isnan(values).sum(axis=1)
    partly = (n_missing > 0) & (n_missing < 10)
    refuse(pa.array(partly), table["uri"], f"{uri}: incomplete landmarks")
    return _landmark_column(values, n_missing == 10)


@dataclass(frozen=True)
class LandmarkFit:
    """How the landmarks of a set fit the template.

    Attributes:
        order: name of the order in which they were read.
        n_images: images with landmarks.
        residual_px: median residual of the similarity fit in px of the crop.
        is_forced: whether the settings insist on an order that another one beats; single images are then not judged.
    """

    order: str
    n_images: int
    residual_px: float
    is_forced: bool

    def __str__(self) -> str:
        note = ", although another order fits better" if self.is_forced else ""
        return (
            f"landmarks of {self.n_images:,} images, read as {self.order}, lie {self.residual_px:.1f} px from the "
            f"template (median){note}"
        )


def arrange_landmarks(faces: pa.Table, order_name: str | None) -> tuple[pa.Table, LandmarkFit | None]:
    """Bring the landmarks of a list into the template's order.

    Args:
        faces: a finished list, with the column `landmarks` as it was given.
        order_name: order of the settings; None: the template's, if no other order fits the set clearly better.

    Returns:
        The list with its landmarks in the template's order, and how well they fit; None if no image has usable landmarks.

    Raises:
        FiqaRayError: another order fits clearly better and the settings name none.
    """
    column = faces["landmarks"].combine_chunks()
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    if not len(rows):
        return faces, None
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 10)
    order = LandmarkOrder.parse(order_name) if order_name else LandmarkOrder()
    verdict = judge_order(values, order)
    if verdict is None:
        return faces, None
    given, better = verdict
    if better is not None and order_name is None:
        raise FiqaRayError(
            f"the landmarks of {len(rows):,} images do not fit the order {order.name} ({order.describe()}): their median "
            f"distance from the template is {given.residual_px:.1f} px and their median roll {given.roll_deg:.0f} degrees; "
            f"as {better.order.name} ({better.order.describe()}) {better.residual_px:.1f} px and {better.roll_deg:.0f} "
            f"degrees. Compare the points with a picture and set landmark_order: {better.order.name} in this source if "
            f"that is their order, or landmark_order: {order.name} to take them as they are"
        )
    if order != LandmarkOrder():
        arranged = np.zeros((len(faces), 10))
        arranged[rows] = order.arrange(values).reshape(-1, 10)
        missing = np.ones(len(faces), np.bool_)
        missing[rows] = False
        column = _landmark_column(arranged, missing)
        faces = faces.set_column(faces.column_names.index("landmarks"), "landmarks", column)
    return faces, LandmarkFit(order.name, len(rows), round(given.residual_px, 3), better is not None)
