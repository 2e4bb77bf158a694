"""Pickles of {path: vector} and {path: number}, as users of the authors' code hold them, read without running their code.

The reader is that of `insightface_bin`, which builds numbers, text, lists and bytes alone; here also dictionaries, floats
and numpy's arrays of numbers. Whatever else a pickle asks for is refused.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.insightface_bin import OPCODES, BuiltByFunction, BuiltType, PlainUnpickler
from fiqa_ray.storage import read_bytes

_MORE_OPCODES = ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BINFLOAT", "FLOAT", "POP", "POP_MARK")
_TYPES = {"f2", "f4", "f8", "float16", "float32", "float64"}
_TYPES |= {f"{kind}{n}" for kind in "iu" for n in (1, 2, 4, 8)} | {
    f"{k}int{n}" for k in ("", "u") for n in (8, 16, 32, 64)
}


def read_pickle(uri: str) -> Any:
    """Return the content of a pickle: dictionaries, lists, numbers, text and numpy arrays.

    Raises:
        FiqaRayError: the file is no pickle, or it asks for anything else.
    """
    data = read_bytes(uri)
    try:
        for n, (opcode, argument, at) in enumerate(pickletools.genops(data)):
            if not OPCODES.fullmatch(opcode.name) and opcode.name not in _MORE_OPCODES:
                raise pickle.UnpicklingError(f"opcode {opcode.name} at byte {at}")
            if opcode.name.endswith("PUT") and int(argument or 0) > n:
                raise pickle.UnpicklingError(f"memo number {argument} at byte {at}")
        return _plain(_VectorUnpickler(data).load())
    except FiqaRayError:
        raise
    except Exception as exc:  # a made-up pickle may raise anything
        raise FiqaRayError(
            f"{uri}: not a pickle of {{path: vector}}, or not a safe one ({str(exc)[:160] or type(exc).__name__}); it may "
            "hold dictionaries, lists, numbers, text and numpy arrays (torch tensors: write them as numpy first)"
        ) from exc


class _VectorUnpickler(PlainUnpickler):
    """Also builds numpy arrays of numbers; of bytes, for each byte of the file at most two."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._stand_ins |= {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Numbers(self),
            ("numpy.core.numeric", "_frombuffer"): lambda data, dtype, shape, order="C": self.array(
                data, dtype, shape, order
            ),
            ("numpy.core.multiarray", "scalar"): lambda dtype, data: self.array(data, dtype, (), "C"),
            ("collections", "OrderedDict"): lambda *pairs: dict(*pairs),
        }

    def array(self, data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
        """Return the array that bytes, type and shape describe."""
        order = order.decode() if isinstance(order, bytes) else order
        if not isinstance(dtype, _NumberType) or dtype.code.lstrip("<>=|") not in _TYPES:
            raise pickle.UnpicklingError(f"an array of {getattr(dtype, 'code', type(dtype).__name__)}, not of numbers")
        if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise pickle.UnpicklingError("an array in a form that numpy does not write")
        values = np.frombuffer(self._counted(bytes(data)), np.dtype(dtype.code))
        if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) != len(values):
            raise pickle.UnpicklingError(f"an array of {len(values)} numbers with the shape {str(shape)[:50]}")
        return values.reshape(shape, order=order)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a function or class; a type of numpy keeps its byte order."""
        if (module, name) == ("numpy", "dtype"):
            return BuiltByFunction(lambda name, *_: _NumberType(name))
        return super().find_class(module, name)


class _NumberType(BuiltType):
    """Stands for a numpy dtype of numbers.

    Attributes:
        code: its name, after the state is set with its byte order in front.
    """

    __slots__ = ("code",)

    def __init__(self, name: Any) -> None:
        super().__init__(name)
        self.code = self.name

    def __setstate__(self, state: Any) -> None:
        """Take the byte order, the second entry of the state."""
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.code = order + self.name.lstrip("<>=|")


class _Numbers:
    """Stands for a numpy array until its state is known."""

    __slots__ = ("_reader", "value")

    def __init__(self, reader: _VectorUnpickler) -> None:
        self._reader = reader
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = self._reader.array(data, dtype, shape, "F" if is_fortran else "C")


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value with arrays in place of their stand-ins; text that Python 2 wrote as bytes becomes text."""
    if depth > 3:
        raise pickle.UnpicklingError("values nested more than three deep")
    if isinstance(value, _Numbers):
        return value.value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_plain(k, depth + 1): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in value]
    if value is not None and not isinstance(value, str | bool | int | float | np.ndarray):
        raise pickle.UnpicklingError(f"a value of type {type(value).__name__.strip('_')}")
    return value
