"""Loops over images and pairs that numba compiles to machine code: one pass where array operations take ten.

A compiled function calls compiled functions of its own module only: numba keeps the code on disk and looks at that module's
file alone to see whether it is still valid. Constants and `prefetch` are compiled in: whoever changes it, or a constant that
another module imports (`SIMILARITY_STEPS`), removes the __pycache__ folders. Nothing checks bounds there: the Python
functions around do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compiles ``function`` at its first call and lets threads run it side by side.

    That takes a second or two; later processes load the code. Sums are taken in the order as written and products are not
    fused: the same bits on every processor.
    """
    try:
        return cast(F, njit(function, cache=True, nogil=True, error_model="numpy"))
    except RuntimeError:  # no place to keep code: a read-only installation without a home folder
        return cast(F, njit(function, nogil=True, error_model="numpy"))


def _prefetch(typing: Any, array: Any, at: Any) -> Any:
    """The types and the code of `prefetch`, as numba asks for them."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        call = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        function = builder.module.globals.get("llvm.prefetch.p0i8") or ir.Function(
            builder.module, call, "llvm.prefetch.p0i8"
        )
        read, keep, is_data = whole(0), whole(3), whole(1)
        builder.call(function, [builder.bitcast(builder.gep(data, [values[1]]), byte), read, keep, is_data])
        return context.get_dummy_value()

    return types.void(array, at), generate


prefetch = cast(Callable[[np.ndarray, Any], None], intrinsic(_prefetch))
"""``prefetch(array, at)``, inside compiled functions: asks for array[at] (1-D) to be brought into the cache, and does not
wait for it. Any ``at`` will do, also beyond the array.

Look-ups in a table larger than the cache each wait for memory; asked for some steps ahead, many are under way at once."""
