"""How loops are compiled, and three things that every kernel of this folder does for speed.

Array operations pass over memory once each; a compiled loop does all the work on a pair while it is in a register. So each
kernel here replaces some lines of numpy, which its docstring gives, and does the same in one pass.

- `np.uint64` indices. numba supports negative indices, so it checks each signed index and adds the length to a negative
  one. An unsigned index needs no check. Nothing checks the upper bound either: the Python function that calls a kernel
  makes sure that indices fit.
- Masks instead of branches. `a & -flag` is `a if flag else 0`. A branch that goes either way at random costs a processor
  some 15 cycles each time it guesses wrong, a mask costs one.
- `prefetch`. A look-up in a table larger than the cache waits for memory. Asked for some pairs ahead, many look-ups wait at
  the same time.

The compiled code is kept on disk in a folder named by the hash of all sources in this folder. Whoever edits a kernel or a
constant gets new code; numba alone would look at the file of the edited function only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

config: Any = numba.config  # numba fills this module from the environment
F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile `function` at its first call, and let threads run it side by side.

    That takes a second or two; later processes load the code. Sums are taken in the order written and products are not
    fused: the same bits on every processor.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    folder = cache_folder()
    if folder is None:  # no folder to keep code in: a read-only installation without a home
        return cast(F, njit(function, **options))
    before, config.CACHE_DIR = config.CACHE_DIR, folder  # numba reads it when a function is decorated
    try:
        return cast(F, njit(function, cache=True, **options))
    finally:
        config.CACHE_DIR = before


@lru_cache(maxsize=1)
def cache_folder() -> str | None:
    """Return the folder of compiled code, or None where none can be written.

    It lies in `NUMBA_CACHE_DIR` where that is set, else beside the kernels, else in the user's own cache.
    """
    here = Path(__file__).parent
    roots = [config.CACHE_DIR] if config.CACHE_DIR else [here / "__pycache__", Path("~/.cache/fiqa_ray").expanduser()]
    for root in roots:
        folder = Path(root) / f"kernels-{sources_hash()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return None


def sources_hash() -> str:
    """Return 16 hex digits that stand for the sources of all kernels."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def _prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Return the types and the code of `prefetch`, as numba asks for them."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        call = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        function = builder.module.globals.get("llvm.prefetch.p0i8") or ir.Function(
            builder.module, call, "llvm.prefetch.p0i8"
        )
        for_reading, keep_in_all_caches, is_data = whole(0), whole(3), whole(1)
        address = builder.bitcast(builder.gep(data, [values[1]]), byte)
        builder.call(function, [address, for_reading, keep_in_all_caches, is_data])
        return context.get_dummy_value()

    return types.void(array, at), generate


def _no_prefetch(array: np.ndarray, at: Any) -> None:
    """Do nothing: `prefetch` where nothing is compiled (NUMBA_DISABLE_JIT=1)."""


prefetch = cast(Callable[[np.ndarray, Any], None], _no_prefetch if config.DISABLE_JIT else intrinsic(_prefetch))
"""`prefetch(array, at)`, inside kernels: ask for array[at] (1-D) to be brought into the cache, and do not wait for it.

Any `at` is allowed, also beyond the array. Benchmark: `benchmarks/ranking.py`.
"""
