"""Golden files and the deterministic fill that belongs to them (``_about`` in forward_checks.json)."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "golden"


@cache
def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def fill(model: nn.Module) -> nn.Module:
    """Give every entry of the state dict its golden value; returns the model in evaluation mode."""
    state = model.state_dict()
    for key, tensor in state.items():
        stem, _, leaf = key.rpartition(".")
        u = np.random.RandomState(zlib.crc32(key.encode())).uniform(-1, 1, tensor.numel()).reshape(tuple(tensor.shape))
        if leaf == "num_batches_tracked":
            u = 0 * u
        elif leaf == "running_mean" or leaf == "bias":
            u = 0.1 * u
        elif leaf == "running_var":
            u = 1 + 0.2 * u
        elif tensor.ndim >= 2:
            u = u * np.sqrt(3 / np.prod(tensor.shape[1:]))
        elif f"{stem}.running_mean" in state:
            u = 0.8 + 0.1 * u
        else:
            u = 0.25 + 0.05 * u
        tensor.copy_(torch.from_numpy(np.asarray(u)))
    return model.eval()


def golden_input() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(12345).uniform(-1, 1, (2, 3, 112, 112)))
