"""Lists of the face images that people have, without opening an image.

Every list is a table (`fiqa_ray.datasets.schemas.SOURCE_FACES`), sorted by (identity, image_id), of the columns

    uri        where the image is: a URL, or a local path (made absolute)
    image_id   its name within the data set, with forward slashes; unique
    identity   whose face it is
    landmarks  x1, y1 .. x5, y5 in px of the image, in the order of `fiqa_ray.core.align`; null where none are known

A data set is listed once, by one walk or from its own list files; nothing is asked about single files. The layouts of
VGGFace2 are those of ox-vgg/vgg_face2.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa

from fiqa_ray.errors import FiqaRayError
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
from fiqa_ray.storage import filesystem, storage_errors


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


def read_face_bytes(uris: Sequence[str], n_threads: int = 16) -> list[bytes | None]:
    """Contents of image files, in order; None for a file that is not there.

    The URIs may lie on different storages. Files are fetched concurrently. Other faults than a missing file raise
    FiqaRayError naming the URI: they mean that storage is in trouble, not that an image is bad.
    """
    systems: dict[tuple[str, str], fsspec.AbstractFileSystem] = {}

    def open_system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        head, _, chain = uri.partition("::")
        key = (head.partition("://")[0] if "://" in head else "", chain)
        if key not in systems:
            systems[key] = filesystem(uri)[0]
        return systems[key], systems[key]._strip_protocol(head)

    def read(uri: str, fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
        try:
            with storage_errors(uri):
                return fs.cat_file(path)
        except FiqaRayError as exc:
            if isinstance(exc.__cause__, FileNotFoundError) and "bucket does not exist" not in str(exc.__cause__):
                return None
            raise

    located = [(uri, *open_system(uri)) for uri in uris]
    if len(located) <= 1 or n_threads <= 1:
        return [read(*where) for where in located]
    with ThreadPoolExecutor(min(n_threads, len(located))) as pool:
        return list(pool.map(lambda where: read(*where), located))
