"""Images that a command line names: files, folders, globs and plain tars, on disk or at any fsspec URL.

Members of a tar are read by their byte ranges; nothing is unpacked. Their URIs are fsspec's own, `tar://a/b.jpg::faces.tar`.
A tar's headers are read first, in large blocks: one of small images in a bucket crosses the network twice.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import read_ranges
from fiqa_ray.sources.files import read_face_bytes
from fiqa_ray.sources.leftovers import EXTENSIONS, count_text, reason_left_out
from fiqa_ray.sources.paths import absolute, expand, kind_of
from fiqa_ray.storage import filesystem, public_uri, split_chain, storage_errors

MAX_MEMBER_BYTES = 1 << 28
"""A tar with a larger image is refused: no face needs it, and members are read whole."""

_LEAVES_ROOT = re.compile(r"^([/\\]|[A-Za-z]:)|(^|[/\\])\.\.([/\\]|$)")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK_BYTES = 1 << 23


class ImageFile(NamedTuple):
    """Where one image's bytes lie: a whole file, or `size` bytes of a tar from `start` on.

    `name` is its path below the folder that was given, in a tar that of the member; of a single file the file's name.
    """

    uri: str
    tar: str | None = None
    start: int = 0
    size: int = 0
    name: str = ""


def list_images(locations: Sequence[str], left_out: Counter[str] | None = None) -> list[ImageFile]:
    """List the images of files, folders (with all folders below), globs and plain tars, in order, without repeats.

    Tars count wherever they lie. Of two members with one name the last one counts, as for tar itself.

    Args:
        locations: paths or fsspec URLs; a file is taken whatever its ending.
        left_out: counts by reason what is no image.

    Raises:
        FiqaRayError: a location has no image, a tar is compressed or damaged, its members leave its root, are links or are
            larger than `MAX_MEMBER_BYTES`, or a name is not UTF-8.
    """
    images: dict[tuple[str, str], ImageFile] = {}
    for location in locations:
        head, chain = split_chain(location)
        if head.startswith("tar://"):
            raise FiqaRayError(
                f"{location}: give the tar itself, {chain.removeprefix('::') or head.removeprefix('tar://')}"
            )
        if head.lower().endswith(_COMPRESSED_TARS):
            raise FiqaRayError(
                f"{location}: a compressed tar has no byte ranges to read images by; unpack it, or write it plain"
            )
        refused: Counter[str] = Counter()
        listed = [image for uri, name in _files(location, refused).items() for image in _images(uri, name, refused)]
        if left_out is not None:
            left_out.update(refused)
        if not listed:
            why = f"; left out: {count_text(refused)}" if refused else ""
            raise FiqaRayError(
                f"no image ({', '.join(EXTENSIONS)}) in {location}, in folders below it or in their tars{why}"
            )
        for image in listed:  # `crops/` and `crops/a.png` name one file
            images.setdefault(
                (absolute(image.tar), split_chain(image.uri)[0]) if image.tar else (absolute(image.uri), ""), image
            )
    for image in images.values():
        try:
            image.uri.encode()
        except UnicodeEncodeError as exc:
            raise FiqaRayError(f"the file name {image.uri!r} is not UTF-8; rename the file") from exc
    return list(images.values())


def read_images(images: Sequence[ImageFile]) -> list[bytes | None]:
    """Return the contents of images, in order; None for a file that is not there. Other faults of storage are raised."""
    whole = [image for image in images if image.tar is None]
    content = dict(zip(whole, read_face_bytes([image.uri for image in whole]), strict=True))
    members = [image for image in images if image.tar is not None]
    start, size = (np.array(values, np.int64) for values in ([m.start for m in members], [m.size for m in members]))
    content |= {members[row]: data for row, data in read_ranges([m.tar or "" for m in members], start, size)}
    return [content[image] for image in images]


def _files(location: str, left_out: Counter[str]) -> dict[str, str]:
    """Return URIs and names of the images and tars at a location; a file is taken at its word, whatever its ending."""
    kind = kind_of(location)
    if kind == "file":
        return {location: split_chain(public_uri(location))[0].replace("\\", "/").rpartition("/")[2]}
    files = expand(absolute(location), (*EXTENSIONS, ".tar"), left_out)
    if kind is None and list(files) == [absolute(location)]:
        raise FiqaRayError(f"{location}: not found; give image files, folders, globs or tars")
    return files


def _images(uri: str, name: str, left_out: Counter[str]) -> list[ImageFile]:
    is_tar = public_uri(split_chain(uri)[0]).lower().endswith(".tar")
    return _tar_members(uri, left_out) if is_tar else [ImageFile(uri, name=name)]


def _tar_members(uri: str, left_out: Counter[str]) -> list[ImageFile]:
    """Return the images of one tar, by one pass over its headers."""

    def refuse(fault: str) -> FiqaRayError:
        return FiqaRayError(f"{uri}: {fault}")

    members: dict[str, ImageFile] = {}
    with storage_errors(uri):
        fs, path = filesystem(uri)
        with fs.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        name = member.name
                        if _LEAVES_ROOT.search(name):
                            raise refuse(f"its member {name!r} leads out of the archive; do not trust this file")
                        reason = None if member.isdir() else reason_left_out(name.removeprefix("./"), EXTENSIONS)
                        if reason is not None:
                            left_out[reason] += 1
                        if member.isdir() or reason is not None:
                            continue
                        if not member.isreg() or member.issparse():
                            raise refuse(
                                f"its member {name!r} is a link or no plain file; pack it with tar --dereference"
                            )
                        if member.size > MAX_MEMBER_BYTES:
                            raise refuse(
                                f"its member {name!r} has {member.size:,} bytes; the limit is {MAX_MEMBER_BYTES:,}"
                            )
                        members[name] = ImageFile(
                            f"tar://{name}::{uri}", uri, member.offset_data, member.size, name.removeprefix("./")
                        )
                    end = tar.offset
            except tarfile.TarError as exc:
                raise refuse(f"not a whole, uncompressed tar ({exc}); fetch it again, or unpack it") from exc
            file.seek(end)
            block = file.read(tarfile.BLOCKSIZE)
            if not block or any(block):  # tarfile takes a damaged header for the end
                raise refuse(f"cut off or damaged at byte {end:,}: tar's end mark is not there; fetch it again")
    return list(members.values())
