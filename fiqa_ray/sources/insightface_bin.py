"""InsightFace's verification files (`lfw.bin`, `cfp_fp.bin` ...): a pickle of (encoded images, same person or not).

Pair i is images 2i and 2i + 1 (arcface_torch `eval/verification.py`); images are bytes or uint8 arrays of encoded
JPEGs. The pickle is never trusted: its opcodes are walked first and only those of lists, numbers and bytes accepted, and
what it may name are the stand-ins below, which build bytes and numbers and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fiqa_ray.datasets.schemas import SOURCE_FACES, SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import MAX_ENTRY_BYTES, Content, Fault
from fiqa_ray.sources.listing import sorted_faces
from fiqa_ray.sources.paths import absolute
from fiqa_ray.sources.protocols import VerificationPairs
from fiqa_ray.storage import filesystem, read_bytes, storage_errors

MAX_FILE_BYTES = 1 << 31
"""The file is held in memory: larger ones (2 GB; those of InsightFace have about 0.1) are refused."""

N_FOLDS = 10
"""Folds are consecutive tenths of the pairs, as InsightFace's evaluation cuts them."""


@dataclass(frozen=True)
class _Bin:
    images: list[Any]  # bytes, or what is no image
    first: NDArray[np.int64]  # (n_images,) position of the first image with the same bytes
    mated: NDArray[np.bool_]  # (n_pairs,)

    def image_id(self, position: int) -> str:
        return f"{position:05d}"


def list_bin(uri: str) -> pa.Table:
    """List the distinct images of a `.bin` as a table of `schemas.SOURCE_RECORDS`; offset is the position in its list.

    image_id is the position of the image's first occurrence, 5 digits. The file names nobody: images that mated pairs link
    are one identity, called after its first image, and all others are identities of one image.

    Raises:
        FiqaRayError: the file is no such pickle, or it asks for more than bytes and numbers.
    """
    uri = absolute(uri)
    content = _read(uri)
    a, b = content.first[0::2][content.mated], content.first[1::2][content.mated]
    n = len(content.images)
    _, component = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)
    positions = np.unique(content.first)
    _, first, inverse = np.unique(component[positions], return_index=True, return_inverse=True)
    columns = {
        "uri": pa.repeat(pa.scalar(uri, pa.large_string()), len(positions)),
        "image_id": [content.image_id(p) for p in positions],
        "identity": [content.image_id(p) for p in positions[first][inverse]],
        "landmarks": pa.nulls(len(positions), SOURCE_FACES.field("landmarks").type),
        "offset": positions,
        "length": pa.nulls(len(positions), pa.int64()),
    }
    return sorted_faces(pa.table(columns), SOURCE_RECORDS)


def read_bin_pairs(uri: str) -> VerificationPairs:
    """Return the pairs of a `.bin` in their order, by the image_ids of `list_bin`; ten folds. Errors as there."""
    content = _read(absolute(uri))
    ids = np.array([content.image_id(p) for p in content.first], dtype=object)
    fold = np.repeat(np.arange(N_FOLDS), [len(part) for part in np.array_split(content.mated, N_FOLDS)])
    return VerificationPairs(ids[0::2], ids[1::2], content.mated, fold.astype(np.int64))


def read_bin(faces: pa.Table) -> Iterator[tuple[int, Content]]:
    """Yield row and content of the images of a list; what is no bytes has status "bad_record"."""
    uris, positions = faces["uri"].to_pylist(), faces["offset"].to_pylist()
    images = _read(uris[0]).images if uris else []
    for row, position in enumerate(positions):
        image = images[position]
        if not isinstance(image, bytes):
            yield (
                row,
                Fault(
                    "bad_record", f"entry {position} is {type(image).__name__.strip('_')}, not the bytes of an image"
                ),
            )
        elif len(image) > MAX_ENTRY_BYTES:
            yield row, Fault("too_large", f"an entry of {len(image)} bytes; the limit is {MAX_ENTRY_BYTES}")
        else:
            yield row, image


def _read(uri: str) -> _Bin:
    with storage_errors(uri):
        fs, path = filesystem(uri)
        size = int(fs.size(path))
    if size > MAX_FILE_BYTES:
        raise FiqaRayError(f"{uri}: {size} bytes; a verification file has at most {MAX_FILE_BYTES}")
    try:
        value = _load(read_bytes(uri))
    except FiqaRayError:
        raise
    except Exception as exc:  # a made-up pickle may raise anything
        raise FiqaRayError(
            f"{uri}: not an InsightFace verification file, or not a safe one ({str(exc)[:160] or type(exc).__name__}); it "
            "must be a pickle of (list of encoded images, list of true or false) and nothing else"
        ) from exc
    if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, tuple | list) for v in value)):
        raise FiqaRayError(
            f"{uri}: the pickle holds {type(value).__name__}, not (list of images, list of true or false)"
        )
    images, same = value
    images = [image.data if isinstance(image, _Array) else image for image in images]
    if len(images) != 2 * len(same) or not same:
        raise FiqaRayError(
            f"{uri}: {len(images)} images for {len(same)} pairs; there must be two per pair: fetch it again"
        )
    odd = [i for i, s in enumerate(same) if not isinstance(s, int) or s not in (0, 1)]
    if odd:
        value = same[odd[0]]  # nested values may be far longer than their pickle: only small numbers are shown
        shown = str(value) if isinstance(value, int) and abs(value) < 1000 else type(value).__name__
        raise FiqaRayError(f"{uri}: pair {odd[0]} is neither true nor false but {shown!r}")
    seen: dict[bytes | int, int] = {}
    first = [
        seen.setdefault(hashlib.sha256(image).digest() if isinstance(image, bytes) else position, position)
        for position, image in enumerate(images)
    ]
    return _Bin(images, np.array(first, np.int64), np.array(same, np.bool_))


# --- the pickle -------------------------------------------------------------------------------------------------------

OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|MEMOIZE|((LONG_)?BIN)?(PUT|GET)|EMPTY_(LIST|TUPLE)|APPENDS?|LIST|TUPLE[123]?"
    "|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|STRING|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BINBYTES8|BYTEARRAY8|UNICODE"
    "|GLOBAL|STACK_GLOBAL|REDUCE|BUILD|NONE"
)


def _load(data: bytes) -> Any:
    for n, (opcode, argument, at) in enumerate(pickletools.genops(data)):  # also finds lengths beyond the file
        if not OPCODES.fullmatch(opcode.name):
            raise pickle.UnpicklingError(f"opcode {opcode.name} at byte {at}")
        if opcode.name.endswith("PUT") and int(argument or 0) > n:  # the unpickler makes room for all numbers below
            raise pickle.UnpicklingError(f"memo number {argument} at byte {at}")
    return PlainUnpickler(data).load()


class PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, numbers and bytes; of these, for each byte of the file at most two."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._n_bytes_left = 2 * len(data)  # an array's bytes may first be a text's
        self._stand_ins: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(self._uint8_bytes),
            ("numpy.core.numeric", "_frombuffer"): lambda data, dtype, *_: self._uint8_bytes(data, dtype),
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy", "ndarray"): lambda: None,
            ("numpy", "dtype"): lambda name, *_: BuiltType(name),
            ("_codecs", "encode"): self._encode,  # bytes in pickles that Python 3 wrote for Python 2
            ("builtins", "bytes"): lambda: b"",
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name that a pickle may use; raise `UnpicklingError` for any other."""
        stand_in = self._stand_ins.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return BuiltByFunction(stand_in)

    def _uint8_bytes(self, data: Any, dtype: Any) -> bytes | None:
        """Return the bytes of an array of uint8; None for another array."""
        is_uint8 = isinstance(dtype, BuiltType) and dtype.name in ("u1", "|u1", "uint8")
        return self._counted(bytes(data)) if is_uint8 and isinstance(data, bytes | bytearray) else None

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes in an unknown encoding")
        return self._counted(text.encode("latin1"))

    def _counted(self, data: bytes) -> bytes:
        self._n_bytes_left -= len(data)  # the same text may be named again and again
        if self._n_bytes_left < 0:
            raise pickle.UnpicklingError("it grows far beyond its size")
        return data


class BuiltByFunction:
    """What a pickle gets for a function or class that it names; cannot be changed by it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """Return what the pickle may build with these arguments."""
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it was given")


class BuiltType:
    """Stands for a numpy dtype."""

    __slots__ = ("name",)

    def __init__(self, name: Any) -> None:
        if not isinstance(name, bytes | str):
            raise pickle.UnpicklingError("a numpy type without a name")
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which single bytes do not have."""


class _Array:
    """Stands for a numpy array; `data` are the bytes of one of uint8, else None."""

    __slots__ = ("_to_bytes", "data")

    def __init__(self, to_bytes: Callable[[Any, Any], bytes | None]) -> None:
        self._to_bytes = to_bytes
        self.data: bytes | None = None

    def __setstate__(self, state: Any) -> None:
        _, _, dtype, _, data = state
        self.data = self._to_bytes(data, dtype)


def _scalar(dtype: Any, data: Any) -> int:
    if not isinstance(dtype, BuiltType) or not isinstance(data, bytes) or len(data) > 8:
        raise pickle.UnpicklingError("a numpy number that is no truth value")
    return int.from_bytes(data, "little")
