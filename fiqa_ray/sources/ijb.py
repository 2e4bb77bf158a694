"""IJB-B and IJB-C as InsightFace's package has them: loose crops, and templates of several images that are compared 1:1.

    loose_crop/                             images 1.jpg, 2.jpg ...
    meta/<db>_name_5pts_score.txt           image, x and y of five landmarks in the crop, detector score: a line per image
    meta/<db>_face_tid_mid.txt              image, template, medium: line i is the same image as line i above
    meta/<db>_template_pair_label.txt       template, template, 1 mated or 0

Lists are read by Arrow: IJB-C's has 15.7 million pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.listing import TEXT, below, refuse_duplicates, sorted_faces
from fiqa_ray.sources.paths import absolute
from fiqa_ray.storage import filesystem, join, read_bytes, storage_errors

_IMAGES, _TEMPLATES, _PAIRS = "_name_5pts_score.txt", "_face_tid_mid.txt", "_template_pair_label.txt"
_POINTS = [f"{axis}{i}" for i in range(1, 6) for axis in "xy"]
_TYPES = {"image": TEXT, "score": pa.float64(), **dict.fromkeys(_POINTS, pa.float64())}


@dataclass(frozen=True)
class TemplatePairs:
    """Templates and their comparisons in the order of the list.

    Attributes:
        image_id: `(E,)` text, the image of each entry.
        template: `(E,) int64` its template.
        medium: `(E,) int64` its medium.
        detector_score: `(E,) float64`.
        template_a: `(L,)` first template of each pair.
        template_b: `(L,)` second template.
        mated: `(L,) bool`.
    """

    image_id: pa.Array
    template: NDArray[np.int64]
    medium: NDArray[np.int64]
    detector_score: NDArray[np.float64]
    template_a: NDArray[np.int64]
    template_b: NDArray[np.int64]
    mated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.mated)


def list_ijb(uri: str) -> pa.Table:
    """List the images of IJB-B or IJB-C as a table of `schemas.SOURCE_FACES`, with landmarks; identity is "".

    Raises:
        FiqaRayError: The list is missing or faulty.
    """
    uri = absolute(uri)
    table = _read_list(_list_file(uri, _IMAGES), ["image", *_POINTS, "score"])
    names = table["image"].combine_chunks()
    refuse_duplicates(names, _list_file(uri, _IMAGES), "image")
    points = np.stack([table[name].to_numpy() for name in _POINTS], axis=1)
    columns = {
        "uri": below(join(uri, "loose_crop"), names),
        "image_id": names,
        "identity": pa.repeat(pa.scalar("", TEXT), len(names)),
        "landmarks": pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), 10),
    }
    return sorted_faces(pa.table(columns))


def ijb_lists(uri: str) -> dict[str, str]:
    """Return the lists that say which images and pairs there are, by name."""
    return {
        "images": _list_file(uri, _IMAGES),
        "templates": _list_file(uri, _TEMPLATES),
        "pairs": _list_file(uri, _PAIRS),
    }


def read_ijb_pairs(uri: str) -> TemplatePairs:
    """Read templates and pairs from the root of IJB-B or IJB-C.

    Raises:
        FiqaRayError: A list is missing or faulty, or two lists name different images.
    """
    images = _read_list(_list_file(uri, _IMAGES), ["image", *_POINTS, "score"])
    entries_uri = _list_file(uri, _TEMPLATES)
    entries = _read_list(entries_uri, ["image", "template", "medium"])
    if not entries["image"].equals(images["image"]):
        raise FiqaRayError(f"{entries_uri}: its images are not those of {_list_file(uri, _IMAGES)}, line by line")
    pairs_uri = _list_file(uri, _PAIRS)
    pairs = _read_list(pairs_uri, ["template_a", "template_b", "label"])
    label = pairs["label"].to_numpy()
    odd = np.flatnonzero((label != 0) & (label != 1))
    if len(odd):
        raise FiqaRayError(f"{pairs_uri}, line {odd[0] + 1}: the label is {label[odd[0]]}; 1 or 0 was expected")
    return TemplatePairs(
        entries["image"].combine_chunks(),
        entries["template"].to_numpy(),
        entries["medium"].to_numpy(),
        images["score"].to_numpy(),
        pairs["template_a"].to_numpy(),
        pairs["template_b"].to_numpy(),
        label == 1,
    )


def _list_file(uri: str, ending: str) -> str:
    """Return the one list with this ending, in the root, in `meta` or in such as `IJBC_meta`."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        entries = fs.ls(path, detail=True)
        names = [_name(e) for e in entries if e["type"] != "directory"]
        for folder in sorted(_name(e) for e in entries if e["type"] == "directory" and "meta" in _name(e).lower()):
            names += [f"{folder}/{_name(e)}" for e in fs.ls(f"{path.rstrip('/')}/{folder}", detail=True)]
    lists = sorted(name for name in names if name.endswith(ending))
    if len(lists) != 1:
        what = f"{len(lists)} files end in {ending} ({', '.join(lists)})" if lists else f"no file ends in {ending}"
        raise FiqaRayError(f"{uri}: {what}; the root of IJB-B or IJB-C holds loose_crop and meta with one of each list")
    return join(uri, *lists[0].split("/"))


def _name(entry: dict[str, str]) -> str:
    return entry["name"].rstrip("/").rsplit("/", 1)[-1]


def _read_list(uri: str, columns: Sequence[str]) -> pa.Table:
    """Return the columns of a list without a header, parted by single spaces."""
    data = read_bytes(uri)
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=list(columns)),
            parse_options=pacsv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types={name: _TYPES.get(name, pa.int64()) for name in columns}),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as exc:
        raise FiqaRayError(
            f"{uri}: {str(exc).splitlines()[0][:200]}; a line is '{' '.join(columns)}' with single spaces; fetch it again"
        ) from exc
    if any(column.null_count for column in table.columns) or pc.any(pc.equal(table.column(0).cast(TEXT), "")).as_py():
        raise FiqaRayError(
            f"{uri}: a field is empty; a line is '{' '.join(columns)}' with single spaces; fetch it again"
        )
    return table
