"""A folder of images as a source: which path component names the person is a setting."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from fiqa_ray.sources.landmarks import _landmarks_of
from fiqa_ray.sources.listing import (
    EXTENSIONS,
    _below,
    _identities,
    _image_names,
    _without_ending,
    absolute,
    sorted_faces,
    text_column,
)


def list_folder(
    uri: str,
    *,
    extensions: Sequence[str] = EXTENSIONS,
    identity_level: int | None = 0,
    landmarks_uri: str | None = None,
) -> pa.Table:
    """Lists the images below a folder.

    Parameters
    ----------
    uri: folder; local, ``s3://``, ``memory://`` or another fsspec URL.
    extensions: endings that count as images, in any case. Names that begin with a dot are left out.
    identity_level: which folder below ``uri`` names the person: 0 for ``<person>/a.jpg``, 2 for
        ``Data/Images/<person>/frontal/01.jpg``. None where folders name nobody (flat benchmark sets): identity is "".
    landmarks_uri: CSV in VGGFace2's form (``NAME_ID,P1X,P1Y,..,P5X,P5Y``); NAME_ID is the image_id without ending.

    Raises FiqaRayError where the folder is missing or has no images, where an image lies above its identity's folder,
    and for a faulty landmark file.
    """
    uri = absolute(uri)
    names = _image_names(uri, extensions)
    image_id = text_column(names, uri)
    columns = {
        "uri": _below(uri, image_id),
        "image_id": image_id,
        "identity": _identities(image_id, identity_level, uri),
        "landmarks": _landmarks_of(_without_ending(image_id), landmarks_uri),
    }
    return sorted_faces(pa.table(columns))
