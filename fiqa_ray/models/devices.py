"""The device that a network runs on."""

from __future__ import annotations

import torch

from fiqa_ray.errors import FiqaRayError


def resolve_device(device: str) -> str:
    """Return the device that a setting names; `auto` is cuda if this machine has it, else cpu."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def find_device(device: str) -> torch.device:
    """Return the torch device of that name.

    Raises:
        FiqaRayError: if the name is unknown or the machine has no such device.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FiqaRayError(f"device {device!r} is not to be had here ({reason}); use cpu") from error
    return place
