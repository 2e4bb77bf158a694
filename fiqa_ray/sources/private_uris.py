"""Lists of images whose URIs hold secrets, such as presigned ones: stored without them, and listed again to read."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.public_uri import public_uri


def public_column(uris: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return URIs without user info and query strings; the same object where none has any."""
    suspect = pc.match_substring_regex(uris, r"://.*[?@]")
    if not pc.any(suspect).as_py():
        return uris
    return pa.array([None if uri is None else public_uri(uri) for uri in uris.to_pylist()], uris.type)


def public_faces(faces: pa.Table) -> tuple[pa.Table, bool]:
    """Return a list of images with public URIs, and whether that changed any."""
    written = faces["uri"]
    public = public_column(written)
    if public is written or public.to_pylist() == written.to_pylist():
        return faces, False
    at = faces.column_names.index("uri")
    return faces.set_column(at, faces.schema.field("uri"), public), True


def private_faces(stored: pa.Table, listed: pa.Table, where: str) -> pa.Table:
    """Return the images of a stored list with the URIs of one that was listed again.

    Raises:
        FiqaRayError: the two name different images.
    """
    public, _ = public_faces(listed)
    if len(public) != len(stored) or any(
        public[name].to_pylist() != stored[name].to_pylist() for name in ("uri", "image_id", "identity")
    ):
        raise FiqaRayError(
            f"{where}: its images are not those that the run began with, and the run stores no secrets of their URIs; "
            "restore the list, or choose another run_uri"
        )
    return listed
