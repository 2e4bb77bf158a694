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
        if leaf in ("relative_position_index", "attn_mask"):  # SwinFace's constants
            continue
        if leaf == "num_batches_tracked":
            centre, spread = 0.0, 0.0
        elif leaf in ("running_mean", "bias"):
            centre, spread = 0.0, 0.1
        elif leaf == "running_var":
            centre, spread = 1.0, 0.2
        elif tensor.ndim >= 2:
            centre, spread = 0.0, float(np.sqrt(3 / np.prod(tensor.shape[1:])))
        elif f"{stem}.running_mean" in state:
            centre, spread = 0.8, 0.1
        else:
            centre, spread = 0.25, 0.05
        _draw(tensor, zlib.crc32(key.encode()), centre, spread)
    return model.eval()


def _draw(tensor: torch.Tensor, seed: int, centre: float, spread: float) -> None:
    """Fill with uniform numbers in `centre +- spread`, in pieces that stay in the processor's cache."""
    values, random = tensor.detach().reshape(-1), np.random.RandomState(seed)
    for piece in values.split(1 << 18):
        piece.copy_(torch.from_numpy(centre + spread * random.uniform(-1, 1, len(piece))))


def golden_input() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(12345).uniform(-1, 1, (2, 3, 112, 112)))


def count_macs(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, int]]:
    """Output, and multiply-accumulates per image of convolutions, linear layers and attention, counted on the way."""
    macs = {"conv": 0, "linear": 0}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            macs["conv"] += y[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs["linear"] += y.numel() // len(x) // module.out_features * module.weight.numel()
        elif type(module).__name__ == "Attention":  # of all tokens, ours and timm's
            _, n_tokens, dim = inputs[0].shape
            macs["attention"] = macs.get("attention", 0) + 2 * n_tokens**2 * dim

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        return model(x), macs


def check_forward(outputs: list[torch.Tensor], expected: list[dict[str, Any]]) -> None:
    for output, wanted in zip(outputs, expected, strict=True):
        assert list(output.shape) == wanted["shape"]
        for got, value in (
            (output.norm(dim=1), wanted["l2"]),
            (output.sum(dim=1), wanted["sum"]),
            (output[:, :4], wanted["first4"]),
        ):
            # a sum may cancel to nearly nothing: its rounding is that of the numbers summed
            atol = 1e-10 * max(wanted["l2"])
            torch.testing.assert_close(got, torch.tensor(value, dtype=torch.float64), rtol=1e-9, atol=atol)
