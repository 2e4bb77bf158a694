"""The device that a model runs on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fiqa_ray.errors import FiqaRayError


def resolve_device(device: str) -> str:
    """Return the device that `auto` means in this process: cuda if there is one, else cpu; other names stay."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def find_device(device: str) -> torch.device:
    """Return the torch device of that name.

    Raises:
        FiqaRayError: the name is unknown, or this machine has no such device.
    """
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FiqaRayError(f"device {device!r} is not available on this machine ({reason}); use cpu") from error
    return torch_device


def fed_to(device: str, batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield batches on a device; on CUDA the next one is copied, from pinned memory by a stream of its own, meanwhile."""
    if not device.startswith("cuda"):
        yield from batches
        return
    copies = torch.cuda.Stream(device)

    def copy(batch: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(copies):
            return batch.pin_memory().to(device, non_blocking=True)

    ahead: torch.Tensor | None = None
    for batch in batches:
        copied, ahead = ahead, None
        if copied is not None:
            torch.cuda.current_stream(device).wait_stream(copies)
            copied.record_stream(torch.cuda.current_stream(device))
            ahead = copy(batch)
            yield copied
        else:
            ahead = copy(batch)
    if ahead is not None:
        torch.cuda.current_stream(device).wait_stream(copies)
        ahead.record_stream(torch.cuda.current_stream(device))
        yield ahead


def set_cuda_precision(precision: str) -> None:
    """Set how this process computes on CUDA: float32 in full, the same way each time; a lower precision as fast as it can.

    In full means without TF32, which torch allows convolutions by default. As fast as it can means that cuDNN tries its
    algorithms on the first batch, so last bits may differ between machines.
    """
    is_full = precision == "float32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not is_full
    torch.backends.cudnn.benchmark = not is_full
