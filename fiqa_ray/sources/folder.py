"""A folder of images as a source: which path component names the person is a setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from fiqa_ray.sources.landmarks import landmarks_of
from fiqa_ray.sources.leftovers import EXTENSIONS
from fiqa_ray.sources.listing import below, identities_of, sorted_faces, text_column, without_ending
from fiqa_ray.sources.paths import absolute, image_names


def list_folder(
    uri: str,
    *,
    extensions: Sequence[str] = EXTENSIONS,
    identity_level: int | None = 0,
    landmarks_uri: str | None = None,
    left_out: Counter[str] | None = None,
) -> pa.Table:
    """List the images below a folder.

    Args:
        uri: folder; local, `s3://`, `memory://` or another fsspec URL.
        extensions: endings that count as images, in any case; `fiqa_ray.sources.leftovers` says what never counts.
        identity_level: which folder below `uri` names the person: 0 for `<person>/a.jpg`, 2 for
            `Data/Images/<person>/frontal/01.jpg`. None if folders name nobody (flat benchmark sets): identity is "".
        landmarks_uri: CSV in VGGFace2's form (`NAME_ID,P1X,P1Y,..,P5X,P5Y`); NAME_ID is the image_id without ending.
        left_out: counts by reason what is no image.

    Returns:
        A table of `schemas.SOURCE_FACES`.

    Raises:
        FiqaRayError: the folder is missing or has no images, an image lies above its identity's folder, or the landmark
            file is faulty.
    """
    uri = absolute(uri)
    names = image_names(uri, extensions, left_out)
    image_id = text_column(names, uri)
    columns = {
        "uri": below(uri, image_id),
        "image_id": image_id,
        "identity": identities_of(image_id, identity_level, uri),
        "landmarks": landmarks_of(without_ending(image_id), landmarks_uri),
    }
    return sorted_faces(pa.table(columns))
