"""The device that a model runs on."""

from __future__ import annotations

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
