"""Reading released checkpoints: safe unpickling, the authors' wrappings, strict loading.

The wrappings: bare (ArcFace, ElasticFace, CR-FIQA, CurricularFace); `module.` (data parallel, SDD-FIQA);
`state_dict` with `features.module.` and a shard of class weights (MagFace, `IrvingMeng/MagFace
inference/network_inf.py`). `wrappings` finds the backbone in other files, `mxnet_params` reads SER-FIQ's.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.file_kinds import ZIP, damaged_entry, foreign_kind, is_safetensors
from fiqa_ray.models.networks.iresnet import BLOCKS_PER_STAGE
from fiqa_ray.storage import read_bytes


class State(dict[str, Tensor]):
    """A state dict, and the prefix that its file had before every entry."""

    def __init__(self, entries: Mapping[str, Tensor], wrapping: str = "") -> None:
        super().__init__(entries)
        self.wrapping = wrapping


# Tried in this order; a prefix counts only if every entry but the class weights carries it. The backbone's own
# `fc.weight` is therefore never mistaken for class weights.
MAGFACE_PREFIXES = ("features.module.", "module.features.", "features.")
CVLFACE_PREFIXES = ("model.net.", "net.")
ADAFACE_PREFIX = "model."
PREFIXES = (*MAGFACE_PREFIXES[:2], "module.", "features.", "base_model.")
CLASS_WEIGHTS = frozenset({"fc.weight", "parallel_fc.weight", "module.fc.weight"})
N_KEYS_SHOWN = 4


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict's names, dtypes, shapes and values, in its order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """Return the file that `torch.save` makes of a state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_state_dict(source: bytes | str | os.PathLike[str], *, name: str | None = None) -> State:
    """Read a torch checkpoint and return its backbone's state dict without the authors' wrapping.

    Args:
        source: the file's bytes, its path, or any fsspec URL.
        name: what to call the file in messages; by default the path.

    Raises:
        FiqaRayError: if the file cannot be read, is truncated, is not a torch file, needs code to be unpickled, or
            holds no tensors.
    """
    if isinstance(source, bytes):
        data, name = source, name or "checkpoint"
    else:
        data, name = read_bytes(os.fspath(source)), name or os.fspath(source)
    return unwrap(read_checkpoint(data, name), name)


def read_checkpoint(data: bytes, name: str) -> object:
    """Return what a file of torch or safetensors holds; its format is told by its first bytes.

    Args:
        data: the file's bytes.
        name: what to call the file in messages.

    Raises:
        FiqaRayError: as `load_state_dict`; or an entry of a zip does not fit its checksum.
    """
    foreign = foreign_kind(data)
    if foreign:
        raise FiqaRayError(f"{name}: {foreign}")
    damaged = damaged_entry(data)
    if damaged:
        raise FiqaRayError(
            f"{name}: damaged: its entry {damaged!r} does not fit its checksum; copy or fetch the file again"
        )
    try:
        if is_safetensors(data):
            return safetensors.torch.load(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise nearly anything
        raise FiqaRayError(_unreadable(data, name, error)) from error


def _unreadable(data: bytes, name: str, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and data.startswith((ZIP, b"\x80")):
        return (
            f"{name}: holds pickled Python objects, not only tensors, and unpickling them could run code. "
            "Load it where you trust it and save the tensors alone: torch.save(model.state_dict(), path)"
        )
    return (
        f"{name}: not a readable torch checkpoint ({len(data):,} bytes; {type(error).__name__}). "
        "The download may be cut off; fetch it again and compare its size and SHA-256"
    )


def unwrap(loaded: object, name: str) -> State:
    """Take the tensors out of a loaded checkpoint: `state_dict` entry, prefix, class weights.

    Raises:
        FiqaRayError: if there is no dict of tensors.
    """
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(t, Tensor) for t in loaded.values()):
        what = f"keys {some_of(list(map(str, loaded)))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise FiqaRayError(
            f"{name}: no state dict of tensors inside (found {what}{_no_network(loaded)}); save model.state_dict()"
        )
    state = {str(key): tensor for key, tensor in loaded.items()}
    for prefix in PREFIXES:
        wrapped = {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}
        others = {key for key in state if not key.startswith(prefix)}
        if wrapped and others <= CLASS_WEIGHTS:
            return State(wrapped, prefix)
    return State(state)


def _no_network(loaded: object) -> str:
    """Say what a checkpoint without a network is, if its keys show it."""
    keys = set(loaded) if isinstance(loaded, Mapping) else set()
    if "shadow_params" in keys:
        return ": a running average, whose tensors have no names; copy it into the network first: ema.copy_to()"
    if "param_groups" in keys or "optimizer" in keys:
        return ": the state of an optimizer, not of a network"
    return ""


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copy `state` into `model`; every entry must exist on both sides with the same shape.

    Raises:
        FiqaRayError: naming missing and unexpected entries, wrong shapes, and the architecture the file looks like.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if not (missing or unexpected or reshaped):
        unlike = [
            k for k, t in state.items() if t.layout != torch.strided or t.is_complex() or t.is_meta or t.is_quantized
        ]
        if unlike:
            raise FiqaRayError(
                f"{name}: {len(unlike)} entries hold no plain real numbers ({some_of(unlike)}): they are sparse, complex, "
                "quantized or without values; save the network as float32: torch.save(model.float().state_dict(), PATH)"
            )
        broken = [k for k, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise FiqaRayError(
                f"{name}: {len(broken)} entries hold NaN or infinity ({some_of(broken)}): the training broke down, or the "
                "file is damaged; take another checkpoint"
            )
        model.load_state_dict(dict(state), strict=True)
        return
    faults = [
        f"{len(keys)} {what} ({some_of(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    guess = likely_architecture(state)
    hint = f"; this looks like {guess}" if guess else ""
    advice = "Choose the model that the file belongs to"
    if guess is not None and guess == likely_architecture(wanted):
        hint, advice = "", f"It is of the right kind, {guess}, but not whole or changed: save model.state_dict() again"
    raise FiqaRayError(
        f"{name}: does not fit the network, {len(wanted)} entries wanted, {len(state)} found: {', '.join(faults)}{hint}. "
        f"{advice}"
    )


def some_of(keys: list[str]) -> str:
    """Return the first few keys of a list, for a message."""
    return ", ".join(keys[:N_KEYS_SHOWN]) + (", ..." if len(keys) > N_KEYS_SHOWN else "")


def likely_architecture(state: Mapping[str, Tensor]) -> str | None:
    """Name the architecture whose entries `state` seems to hold; None if it is not recognised."""
    if "regressor.weight" in state or "mlp.l2.weight" in state:
        base = {key.removeprefix("base_model."): t for key, t in state.items() if key.startswith("base_model.")}
        backbone = likely_architecture(base) or "another backbone"
        return f"a quality regressor on {backbone}" if "regressor.weight" in state else f"eDifFIQA on {backbone}"
    for mark, describe in _MARKS.items():
        if mark in state:
            return describe(state)
    return None


def _iresnet(state: Mapping[str, Tensor]) -> str:
    blocks = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{s}.")}) for s in (1, 2, 3, 4))
    depth = next((str(d) for d, known in BLOCKS_PER_STAGE.items() if known == blocks), f" with blocks {blocks}")
    # MagFace's entries are those of ArcFace: only the way they are wrapped tells.
    magface = "MagFace's " if isinstance(state, State) and state.wrapping in MAGFACE_PREFIXES else ""
    head = " with CR-FIQA's quality head" if "qs.weight" in state else ""
    return f"{magface}iresnet{depth}{head or (' with the quality head of SynFIQA++' if 'qs.9.weight' in state else '')}"


def _ir(state: Mapping[str, Tensor]) -> str:
    n_blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
    if "body.0.res_layer.5.weight" not in state:  # a third batch norm makes six modules of five
        return f"two-BN IR with {n_blocks} blocks" + (", SDD-FIQA" if "quality.1.weight" in state else "")
    depth = next((d for d, known in {18: 8, 50: 24, 101: 49}.items() if known == n_blocks), None)
    names = f": adaface_ir{depth} (BGR), or cvlface_ir{depth} (RGB)" if depth else ""
    return f"three-BN IR with {n_blocks} blocks{names}"


def _mobilefacenet(state: Mapping[str, Tensor]) -> str:
    if "linear.weight" in state:
        return "ediffiqa_mobilefacenet"
    return "sddfiqa_mobilefacenet" if "quality.1.weight" in state else "curricularface_mobilefacenet"


def _vit(state: Mapping[str, Tensor]) -> str:
    patch, width = state["patch_embed.proj.weight"], len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    size = f"with {width} blocks of {len(patch)} numbers and patches of {patch.shape[-1]} px"
    if "feature.0.weight" not in state:
        return f"timm's vision transformer {size}"
    for mark, name in (
        ("head_qs.1.weight", "ViT-FIQA"),
        ("senet.0.weight", "TransFace"),
        ("mask_token", "arcface_vit"),
    ):
        if mark in state:
            return f"{name} {size}"
    return f"cvlface_vit {size}"


_MARKS: dict[str, Callable[[Mapping[str, Tensor]], str]] = {
    "layer1.0.bn1.weight": _iresnet,
    "body.0.res_layer.1.weight": _ir,
    "conv_6_sep.conv.weight": _mobilefacenet,
    "conv_sep.layers.0.weight": lambda _: "arcface_torch_mobilefacenet",
    "layers.4.weight": lambda _: "PCNet's head",
    "layers.0.blocks.0.attn.relative_position_bias_table": lambda _: "swinface",
    "blocks.0.attn.qkv.weight": _vit,
}
"""An entry of each architecture that others do not have, and how its name is made."""


def fill_randomly(model: nn.Module, seed: int) -> None:
    """Give a network reproducible random weights, for tests and trial runs.

    Each tensor depends on (seed, its name) alone. Matrices and kernels keep the variance of what passes through;
    batch-norm weights lie in 0.7..0.9, so that 49 residual blocks do not overflow; biases are 0. Fixed parameters stay.
    """
    for name, parameter in model.named_parameters():
        key = np.array([seed, crc32(name.encode())], dtype=np.uint64)
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
            continue
        uniform = 2 * np.random.Generator(np.random.Philox(key=key)).random(tuple(parameter.shape), np.float32) - 1
        if parameter.ndim >= 2:
            uniform *= math.sqrt(3.0 / math.prod(parameter.shape[1:]))
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm1d | nn.BatchNorm2d):
            uniform = 0.8 + 0.1 * uniform
        else:
            continue
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(uniform))
