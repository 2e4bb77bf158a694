"""The backbone inside a checkpoint, found by its entries: under whatever keys and prefixes training put it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.formats.checkpoints import State, some_of, unwrap
from fiqa_ray.public_uri import public_uri

logger = logging.getLogger(__name__)

HEADS = frozenset(
    {"arc", "arcface", "classifier", "cosface", "criterion", "fc", "head", "kernel", "logits", "metric_fc", "parallel_fc",
     "partial_fc", "product", "proxies", "weight"}
)  # fmt: skip
"""First names of the entries of a margin loss, which training leaves beside the backbone."""
_LOSS_WORDS = ("loss", "margin", "softmax")
"""Words within such names, as in `fc_loss`."""
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch puts into names where a part of a network is compiled, sharded or computed again."""
_COUNTER = "num_batches_tracked"
_MAX_DEPTH = 8


@dataclass(frozen=True)
class _Candidate:
    """Tensors that may be the backbone.

    Attributes:
        path: keys that lead to the dict that holds them.
        prefix: what their names begin with there.
        entries: the tensors, without the prefix.
        left: names of what else the dict holds.
    """

    path: tuple[str, ...]
    prefix: str
    entries: dict[str, Tensor]
    left: tuple[str, ...]

    def missing(self, wanted: Mapping[str, Tensor]) -> int:
        """Return how many wanted entries are not there with their shape; batch counters may be missing."""
        return sum(
            (k not in self.entries and not k.endswith(_COUNTER))
            or (k in self.entries and self.entries[k].shape != tensor.shape)
            for k, tensor in wanted.items()
        )

    def fits(self, wanted: Mapping[str, Tensor]) -> bool:
        """Return whether the entries are those of the backbone and at most a margin loss."""
        return self.missing(wanted) == 0 and all(
            _of_a_margin_loss(key, tensor) for key, tensor in self.entries.items() if key not in wanted
        )

    @property
    def place(self) -> str:
        """Where the tensors lie, in words."""
        words = [repr(key) for key in self.path] + ([f"the prefix {self.prefix!r}"] if self.prefix else [])
        return ", ".join(words) or "the file itself"


def find_backbone(loaded: object, wanted: Mapping[str, Tensor], name: str) -> State:
    """Find a network's entries in a loaded checkpoint.

    Args:
        loaded: what the file holds: a state dict, or a dict that holds one at some depth.
        wanted: the network's own state dict; missing counters of batches are taken from it.
        name: what to call the file in messages.

    Returns:
        The entries that fit strictly or, if none do, those that come nearest.

    Raises:
        FiqaRayError: there is no dict of tensors, or several unlike ones fit.
    """
    candidates = list(_candidates(loaded, wanted))
    fitting = [c for c in candidates if c.fits(wanted)]
    if not fitting:
        nearest = min(candidates, key=lambda c: c.missing(wanted), default=None)
        if nearest is None or nearest.missing(wanted) > len(wanted) // 2:
            return unwrap(loaded, name)
        return State(nearest.entries, nearest.prefix)
    chosen = _choose(fitting, wanted, name)
    extra = [chosen.prefix + key for key in chosen.entries if key not in wanted]
    left = [*extra, *chosen.left, *_siblings(loaded, chosen.path)]
    others = [c.place for c in fitting if (c.path, c.prefix) != (chosen.path, chosen.prefix)]
    if chosen.path or chosen.prefix or left:
        said = f"; left out: {some_of(left)}" if left else ""
        said += f"; the same network also lies under {' and '.join(others)}" if others else ""
        logger.warning("%s: the network lies under %s%s", public_uri(name), chosen.place, said)
    counters = {key: torch.zeros_like(tensor) for key, tensor in wanted.items() if key.endswith(_COUNTER)}
    entries = {key: chosen.entries.get(key, counters.get(key)) for key in wanted}
    return State({key: tensor for key, tensor in entries.items() if tensor is not None}, chosen.prefix)


def _candidates(loaded: object, wanted: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    anchor = max(wanted, key=lambda key: (key.count("."), not key.endswith(_COUNTER)))
    for path, state in _dicts(loaded, ()):
        if not any(key.endswith(anchor) for key in state):
            state = {_without_wrappers(key): tensor for key, tensor in state.items()}
        prefixes = {key[: -len(anchor)] for key in state if key == anchor or key.endswith(f".{anchor}")}
        for prefix in sorted(prefixes, key=len):
            entries = {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}
            yield _Candidate(path, prefix, entries, tuple(key for key in state if not key.startswith(prefix)))


def _without_wrappers(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _dicts(
    loaded: object, path: tuple[str, ...], outer: Collection[int] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dict with tensors, outer ones first; a dict within itself is passed over."""
    items = _items(loaded)
    if not items or len(path) > _MAX_DEPTH or id(loaded) in outer:
        return
    tensors = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in items:
        yield from _dicts(value, (*path, str(key)), (*outer, id(loaded)))


def _items(loaded: object) -> list[tuple[Any, Any]]:
    """Return the entries of a dict, or those of a list with their numbers."""
    if isinstance(loaded, Mapping):
        return list(loaded.items())
    return list(enumerate(loaded)) if isinstance(loaded, list | tuple) else []


def _siblings(loaded: Any, path: tuple[str, ...]) -> list[str]:
    """Return the keys beside those of a path."""
    beside = []
    for i, key in enumerate(path):
        items = _items(loaded)
        beside += [".".join((*path[:i], str(other))) for other, _ in items if str(other) != key]
        loaded = next(value for other, value in items if str(other) == key)
    return beside


def _of_a_margin_loss(key: str, tensor: Tensor) -> bool:
    first = key.split(".")[0]
    is_head = first in HEADS or any(word in first for word in _LOSS_WORDS)
    return is_head and (tensor.ndim < 2 or (tensor.ndim == 2 and min(tensor.shape) > 1))


def _choose(fitting: list[_Candidate], wanted: Mapping[str, Tensor], name: str) -> _Candidate:
    """Return the only one that fits, one of equal ones, or the one that is no running average."""
    unlike = [fitting[0]]
    for candidate in fitting[1:]:
        if not any(_equal(candidate, other, wanted) for other in unlike):
            unlike.append(candidate)
    trained = [c for c in unlike if not any("ema" in word.lower() for word in (*c.path, c.prefix))]
    if len(unlike) > 1 and len(trained) != 1:
        raise FiqaRayError(
            f"{name}: holds {len(unlike)} unlike networks that fit, under {' and '.join(c.place for c in unlike)}; save the "
            "one to use: torch.save(network.state_dict(), PATH)"
        )
    return trained[0] if trained else unlike[0]


def _equal(a: _Candidate, b: _Candidate, wanted: Mapping[str, Tensor]) -> bool:
    return all(
        torch.equal(a.entries[k], b.entries[k])
        for k in wanted
        if k in a.entries and k in b.entries and _COUNTER not in k
    )
