"""VGGFace2 as a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.landmarks import landmarks_of
from fiqa_ray.sources.leftovers import EXTENSIONS
from fiqa_ray.sources.listing import (
    below,
    first_file,
    identities_of,
    joined,
    sorted_faces,
    text_column,
    text_lines,
    without_ending,
)
from fiqa_ray.sources.paths import absolute, image_names
from fiqa_ray.storage import join


def list_vggface2(
    uri: str, *, splits: Sequence[str] = ("train", "test"), left_out: Counter[str] | None = None
) -> pa.Table:
    """List VGGFace2 as it is distributed.

    Images are `<split>/n000002/0001_01.jpg`; that is also their image_id, and `n000002` the identity. They come from
    `<split>_list.txt` or `<split>.txt` (lines `n000002/0001_01.jpg`) at the root, in `meta/`, in the split's folder or in
    its `meta/`, and without such a file from the split's folder. Landmarks come from `loose_landmark_<split>.csv` at the
    root or in `bb_landmark/`. Images without a row there have none.

    Args:
        uri: root of the data set.
        splits: parts to read.
        left_out: counts by reason what is no image.

    Returns:
        A table of `schemas.SOURCE_FACES`.

    Raises:
        FiqaRayError: a split is not there, a line is unsafe or malformed, or the landmark file is faulty.
    """
    uri = absolute(uri)
    tables = []
    for split in splits:
        folder = join(uri, split)
        lists = [
            f"{folder_of_lists}{name}.txt"
            for folder_of_lists in ("", "meta/", f"{split}/", f"{split}/meta/")
            for name in (f"{split}_list", split)
        ]
        list_uri = first_file(uri, lists)
        if list_uri is not None:
            names = text_column(_listed_names(list_uri, split), list_uri)
        else:
            try:
                names = text_column(image_names(folder, EXTENSIONS, left_out), folder)
            except FiqaRayError as exc:
                raise FiqaRayError(
                    f"{exc}. VGGFace2's {split} part needs its images in {folder} or a list {split}_list.txt; "
                    f"leave {split} out of the splits if you do not have it"
                ) from exc
        landmarks_uri = first_file(uri, [f"bb_landmark/loose_landmark_{split}.csv", f"loose_landmark_{split}.csv"])
        tables.append(
            pa.table(
                {
                    "uri": below(folder, names),
                    "image_id": joined(split + "/", names),
                    "identity": identities_of(names, 0, list_uri or folder),
                    "landmarks": landmarks_of(without_ending(names), landmarks_uri),
                }
            )
        )
    return sorted_faces(pa.concat_tables(tables))


def _listed_names(list_uri: str, split: str) -> list[str]:
    """Lines of a VGGFace2 list file, without the part's folder that some copies put in front."""
    lines = text_lines(list_uri)
    names = [line.strip().removeprefix(f"{split}/") for line in lines]
    for number, name in enumerate(names, 1):
        parts = name.split("/")
        if name and (len(parts) < 2 or not parts[0] or ".." in parts):
            raise FiqaRayError(
                f"{list_uri}, line {number}: {lines[number - 1]!r} is not a path such as n000002/0001_01.jpg below the "
                f"folder {split}"
            )
    names = [name for name in names if name]
    if not names:
        raise FiqaRayError(f"{list_uri}: the list is empty; remove the file to have the folder {split} listed instead")
    return names
