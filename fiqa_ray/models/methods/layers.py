"""What layers inside a network get and return while it runs, for methods that look there.

Several threads may run one network at once, and several methods may look into it. So one hook stays on each layer, and does
nothing unless the thread that runs it records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Record = Callable[[nn.Module, Tensor, Tensor], None]
"""Called with a layer, its input and its output."""

_THREAD = threading.local()


def _hook(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
    record: Record | None = getattr(_THREAD, "record", None)
    if record is not None and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
        record(layer, inputs[0], output)


def watch(layers: Iterable[nn.Module]) -> None:
    """Let `recording` see layers from now on."""
    for layer in layers:
        if _hook not in layer._forward_hooks.values():
            layer.register_forward_hook(_hook)


@contextmanager
def recording(record: Record) -> Iterator[None]:
    """Call `record` with each watched layer that this thread runs."""
    _THREAD.record = record
    try:
        yield
    finally:
        _THREAD.record = None
