"""MXNet `.params` files without MXNet, and the InsightFace LResNet100E-IR of SER-FIQ among them.

A file is little endian: u64 0x112, u64 0, u64 number of arrays, the arrays, u64 number of names, and per name u64 length
and UTF-8 bytes. An array is u32 number of axes and u32 sizes (the legacy form), or u32 0xF993FAC8 (V1), respectively
0xF993FAC9 and i32 storage type 0 (V2), then u32 number of axes and i64 sizes; then i32 device type, i32 device number,
i32 type (0: float32) and the values.
"""

from __future__ import annotations

import math
import re
import struct

import numpy as np
import torch
from torch import Tensor

from fiqa_ray.errors import FiqaRayError

MAGIC = struct.pack("<QQ", 0x112, 0)
V1, V2 = 0xF993FAC8, 0xF993FAC9
MAX_AXES = 8
SMALLEST_ARRAY_BYTES = 20

# InsightFace's parts of a name and those of `IResNet`.
_LEAVES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_OUTSIDE_STAGES = {
    "conv0": "conv1", "bn0": "bn1", "relu0": "prelu", "bn1": "bn2", "pre_fc1": "fc", "fc1": "features",
}  # fmt: skip
_IN_BLOCK = {
    "bn1": "bn1", "conv1": "conv1", "bn2": "bn2", "relu1": "prelu", "conv2": "conv2", "bn3": "bn3",
    "conv1sc": "downsample.0", "sc": "downsample.1",
}  # fmt: skip
_NAME = re.compile(
    r"(?:arg|aux):(?:stage(?P<stage>\d)_unit(?P<unit>\d+)_)?(?P<layer>\w+?)_"
    r"(?P<leaf>weight|bias|gamma|beta|moving_mean|moving_var)"
)


class _Reader:
    """Takes values off the front of a file; every length is checked against what is left before it is used."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = memoryview(data), name, 0

    def damaged(self, why: str) -> FiqaRayError:
        return FiqaRayError(
            f"{self.name}: damaged MXNet parameter file at byte {self.at:,} of {len(self.data):,} ({why}); "
            "fetch it again and compare its size and SHA-256"
        )

    def take(self, n_bytes: int) -> memoryview:
        if n_bytes > len(self.data) - self.at:
            raise self.damaged(f"{n_bytes:,} bytes are wanted and {len(self.data) - self.at:,} are left")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, kind: str) -> int:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def count(self, smallest_bytes: int) -> int:
        n = self.number("Q")
        if n * smallest_bytes > len(self.data) - self.at:
            raise self.damaged(f"{n:,} entries cannot follow")
        return n

    def array(self) -> np.ndarray:
        head = self.number("I")
        if head == V2 and (storage := self.number("i")) != 0:
            raise self.damaged(f"storage type {storage}, only dense arrays (0) are known")
        n_axes = self.number("I") if head in (V1, V2) else head
        if not 1 <= n_axes <= MAX_AXES:
            raise self.damaged(f"an array of {n_axes:,} axes, or of an unknown version")
        shape = [self.number("q" if head in (V1, V2) else "I") for _ in range(n_axes)]
        if min(shape) < 1:
            raise self.damaged(f"an array of shape {tuple(shape)}")
        self.take(8)  # the device it was saved from
        kind = self.number("i")
        if kind != 0:
            raise self.damaged(f"values of type {kind}, only float32 (0) is known")
        return np.frombuffer(self.take(4 * math.prod(shape)), "<f4").reshape(shape)


def is_mxnet(data: bytes) -> bool:
    """Return whether the file's first bytes are those of an MXNet parameter file."""
    return data.startswith(MAGIC)


def read_params(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Read an MXNet parameter file.

    Args:
        data: the file's bytes.
        name: what to call it in messages.

    Returns:
        Name, with its `arg:` or `aux:`, to read-only float32 array.

    Raises:
        FiqaRayError: if the file is something else, cut, or says lengths that it does not have.
    """
    if not is_mxnet(data):
        raise FiqaRayError(f"{name}: not an MXNet parameter file ({len(data):,} bytes); give the released .params file")
    reader = _Reader(data, name)
    reader.take(len(MAGIC))
    arrays = [reader.array() for _ in range(reader.count(SMALLEST_ARRAY_BYTES))]
    n_names = reader.count(8)
    if n_names != len(arrays):
        raise reader.damaged(f"{n_names:,} names for {len(arrays):,} arrays")
    try:
        names = [bytes(reader.take(reader.number("Q"))).decode() for _ in arrays]
    except UnicodeDecodeError as error:
        raise reader.damaged("a name is not UTF-8") from error
    if reader.at != len(data):
        raise reader.damaged("more follows than the file says")
    if len(set(names)) != len(names):
        raise reader.damaged("a name stands twice")
    return dict(zip(names, arrays, strict=True))


def load_mxnet_iresnet(data: bytes, *, name: str) -> dict[str, Tensor]:
    """Read an InsightFace LResNet-E-IR as the state dict of `IResNet`.

    The last batch norm has its scale fixed at 1 (`fix_gamma`): the stored one is ignored, as MXNet does. Counters of
    batches, which MXNet does not have, are 0.

    Raises:
        FiqaRayError: as `read_params`, and for a name that is none of InsightFace's.
    """
    state: dict[str, Tensor] = {}
    for key, array in read_params(data, name).items():
        match = _NAME.fullmatch(key)
        parts = _OUTSIDE_STAGES if match is None or match["stage"] is None else _IN_BLOCK
        if match is None or match["layer"] not in parts:
            raise FiqaRayError(f"{name}: array {key!r} belongs to no LResNet-E-IR; give the file that SER-FIQ released")
        layer = parts[match["layer"]]
        if match["stage"] is not None:
            layer = f"layer{match['stage']}.{int(match['unit']) - 1}.{layer}"
        leaf = _LEAVES.get(match["leaf"], match["leaf"])
        state[f"{layer}.{leaf}"] = torch.from_numpy(array.copy())
        if leaf == "running_mean":
            state[f"{layer}.num_batches_tracked"] = torch.tensor(0)
    if "features.weight" in state:
        state["features.weight"] = torch.ones_like(state["features.weight"])
    return state
