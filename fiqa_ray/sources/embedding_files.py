"""Files of embeddings that were computed elsewhere, with the names of images and people where the files have them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fiqa_ray.config.section import repeated
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.sources.protocols import list_lines
from fiqa_ray.sources.read_table import TEXT, read_table
from fiqa_ray.sources.vector_pickle import read_pickle
from fiqa_ray.storage import read_bytes

EMBEDDING_NAMES = ("embedding", "embeddings")
PICKLES = (".pkl", ".pickle")
PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Column:
    """Values of images as a file gives them.

    Attributes:
        uri: the file.
        values: `(I, ...)`.
        image_id: `(I,)` names of the images; None: the file holds the values alone, in the order of the embeddings.
        identity: `(I,)` names of the people where a file of embeddings has them.
        n_left_out: images of the file that have no embedding.

    Raises:
        FiqaRayError: an image stands in the file more than once.
    """

    uri: str
    values: NDArray[Any]
    image_id: list[str] | None = None
    identity: list[str] | None = None
    n_left_out: int = 0

    def __post_init__(self) -> None:
        """Refuse an image that stands twice: its rows may differ."""
        if twice := repeated(self.image_id or ()):
            raise FiqaRayError(
                f"{self.uri}: {len(twice):,} image_id(s) stand more than once, such as {twice[0]!r}; keep one row"
            )


def read_embeddings(uri: str) -> Column:
    """Read embeddings, with the names of images and people where the file has them; images without one are left out.

    Raises:
        FiqaRayError: the file holds no embeddings, or their lengths differ.
    """
    ending = ending_of(uri)
    if ending == ".npy":
        return Column(uri, _matrix(uri, load_numpy(uri)))
    if ending == ".npz":
        arrays = load_numpy(uri)
        names = list(arrays)
        key = next((k for k in EMBEDDING_NAMES if k in names), names[0] if len(names) == 1 else None)
        if key is None:
            raise FiqaRayError(f"{uri}: no array 'embedding' (found: {', '.join(names)}); name it so")
        image_id, identity = ([str(v) for v in arrays[k]] if k in names else None for k in ("image_id", "identity"))
        return _without_missing(Column(uri, _matrix(uri, arrays[key]), image_id, identity))
    if ending in PARQUET:
        return _parquet_embeddings(uri)
    if ending in PICKLES:
        value = read_pickle(uri)
        if isinstance(value, dict):
            return Column(uri, _matrix(uri, list(value.values())), [str(k) for k in value])
        return Column(uri, _matrix(uri, value))
    raise UsageError(f"embeddings {uri!r} must end in .npy, .npz, .parquet or .pkl")


def _parquet_embeddings(uri: str) -> Column:
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(uri)))
    except pa.ArrowException as exc:
        raise FiqaRayError(f"{uri}: not a Parquet file ({str(exc)[:100]}); write it again") from exc
    key = next((k for k in EMBEDDING_NAMES if k in table.column_names), None)
    if key is None:
        raise FiqaRayError(f"{uri}: no column 'embedding' (found: {', '.join(table.column_names)}); name it so")
    n_rows, table = len(table), table.filter(table[key].is_valid())
    if pa.types.is_fixed_size_binary(table[key].type):  # as a run stores them
        values = embedding_values(table.rename_columns(["embedding" if c == key else c for c in table.column_names]))[0]
    else:
        values = _matrix(uri, table[key].to_pylist())
    image_id, identity = (
        [str(v) for v in table[k].to_pylist()] if k in table.column_names else None for k in ("image_id", "identity")
    )
    return Column(uri, values, image_id, identity, n_rows - len(table))


def _without_missing(column: Column) -> Column:
    """Leave out the rows of NaN that `fiqa-ray embeddings` writes for images without an embedding."""
    present = ~np.isnan(column.values).all(axis=1)
    image_id, identity = (
        None if names is None else [v for v, keep in zip(names, present, strict=True) if keep]
        for names in (column.image_id, column.identity)
    )
    return Column(column.uri, column.values[present], image_id, identity, int((~present).sum()))


def read_identities(uri: str) -> Column:
    """Read whom each image shows.

    Raises:
        FiqaRayError: the file holds no such list.
    """
    ending = ending_of(uri)
    if ending == ".txt":
        lines = [line.strip() for _, line in list_lines(uri, "one name a line")]
        return Column(uri, np.array(lines, dtype=object))
    if ending == ".npy":
        return Column(uri, np.array(_names(uri, load_numpy(uri)), dtype=object))
    if ending in PICKLES:
        value = read_pickle(uri)
        pairs = value if isinstance(value, dict) else dict(enumerate(value))
        names = [str(k) for k in value] if isinstance(value, dict) else None
        return Column(uri, np.array(_names(uri, pairs.values()), dtype=object), names)
    what = "identities need the columns image_id and identity, or a .txt with one name per line"
    table = read_table(uri, {"image_id": TEXT, "identity": TEXT}, ("image_id", "identity"), what)
    return Column(uri, np.array(table["identity"].to_pylist(), dtype=object), table["image_id"].to_pylist())


def _names(uri: str, values: Iterable[Any]) -> list[str]:
    """Return identities as text; raise `FiqaRayError` for one that is missing: it would become a person called nan."""
    names = ["" if value is None or value != value else str(value) for value in values]
    if "" in names:
        row = names.index("")
        raise FiqaRayError(
            f"{uri}: row {row} has no identity ({names.count('')} such); name its person, or leave it out"
        )
    return names


def people_of(embeddings: Column) -> list[str]:
    """Return the folder of each image, which is the person in most data sets."""
    people = [str(PurePosixPath(name.replace("\\", "/")).parent) for name in embeddings.image_id or ["."]]
    if "." in people:
        raise UsageError(
            f"{embeddings.uri} does not say whom its images show; give --identities, a file with one name per embedding"
        )
    return people


def ending_of(uri: str) -> str:
    """Return a file's ending in lower case."""
    return os.path.splitext(uri)[1].lower()


def load_numpy(uri: str) -> Any:
    """Return the array of a .npy, or the arrays of a .npz; nothing in it is unpickled."""
    try:
        value = np.load(io.BytesIO(read_bytes(uri)), allow_pickle=False)
        arrays = {"": value} if isinstance(value, np.ndarray) else {name: value[name] for name in value.files}
        if any(np.iscomplexobj(array) for array in arrays.values()):
            raise ValueError("complex numbers")
        return arrays.get("", arrays)
    except (ValueError, OSError, EOFError) as exc:
        raise FiqaRayError(
            f"{uri}: cannot be read as numbers or text of numpy ({str(exc)[:100]}); arrays of objects are not read"
        ) from exc


def _matrix(uri: str, values: Any) -> NDArray[np.float32]:
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")
        matrix = np.asarray(values, np.float32)
    except (ValueError, TypeError) as exc:
        raise FiqaRayError(
            f"{uri}: the embeddings are not numbers, or their lengths differ ({str(exc)[:100]})"
        ) from exc
    if matrix.ndim == 3 and matrix.shape[1] == 1:  # one batch of one image per entry
        matrix = matrix[:, 0]
    if matrix.ndim != 2:
        raise FiqaRayError(f"{uri}: embeddings of shape {matrix.shape}; wanted (n_images, dim)")
    return matrix
