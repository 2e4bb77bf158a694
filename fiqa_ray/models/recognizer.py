"""The recogniser as the rest sees it: pixels in, embeddings out, checked; and the pass that several methods share."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.networks.iresnet import SplitNetwork

logger = logging.getLogger(__name__)


FACE_SHAPE = (3, 112, 112)


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pixels: ``(v - mean) / scale`` for v in 0..255, channels in the order ``colour``.

    Raises:
        UsageError: if ``colour`` is not RGB or BGR, or ``mean`` and ``scale`` are not numbers, ``scale`` not positive.
    """

    colour: str = "RGB"
    mean: float = 127.5
    scale: float = 127.5

    def __post_init__(self) -> None:
        if self.colour not in ("RGB", "BGR"):
            raise UsageError(f"colour={self.colour!r}: must be RGB or BGR")
        for name in ("mean", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(f"{name}={value!r}: must be a number on the scale 0..255")
        if self.scale <= 0:
            raise UsageError(f"scale={self.scale!r}: must be positive")

    def __call__(self, x: Tensor) -> Tensor:
        """Map RGB faces ``(b, 3, h, w)`` float in [0, 1] to the network's input; differentiable."""
        x = x.flip(1) if self.colour == "BGR" else x
        # For 127.5 and 127.5 this is bit for bit the released (x - 0.5) / 0.5.
        return (x - self.mean / 255) * (255 / self.scale)


UNIT_PIXELS = Preprocessing(mean=0.0, scale=255.0)
"""RGB in [0, 1]."""
ARCFACE_PIXELS = Preprocessing()
"""RGB in [-1, 1], as most recognisers want it."""


class Recognizer(nn.Module):
    """A frozen network with its preprocessing, in evaluation mode.

    Attributes:
        name: table name, ``module:function`` or ONNX location it was loaded by.
        options: the options it was loaded with.
        dim: number of values of an embedding.
        weights_sha256: of the weights file, or of the values where there is no single file.
        is_random: whether the weights are those of ``random:SEED``.
        differentiable: whether a gradient reaches the input (FaceQAN needs it).
        backbone: the bare network; takes preprocessed float faces.
        preprocessing: what turns faces in [0, 1] into the backbone's input.
        trainable_names: the backbone's parameters that were trainable before freezing.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        preprocessing: Preprocessing,
        dim: int,
        weights_sha256: str,
        *,
        options: Mapping[str, Any] | None = None,
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        self.name = name
        self.is_random = False
        self.options = dict(options or {})
        self.dim = dim
        self.weights_sha256 = weights_sha256
        self.differentiable = differentiable
        self.preprocessing = preprocessing
        self.trainable_names = tuple(key for key, value in backbone.named_parameters() if value.requires_grad)
        self.backbone = backbone
        self.requires_grad_(False).eval()

    def embed_unit(self, x: Tensor) -> Tensor:
        """Embed RGB faces given as numbers in [0, 1]; differentiable with respect to ``x``.

        Args:
            x: ``(b, 3, 112, 112)``, any float dtype; computed in the network's own.

        Returns:
            ``(b, dim)`` raw embeddings in the network's dtype.

        Raises:
            FiqaRayError: if the network returns anything else.
        """
        embeddings = self.backbone(self._input(x))
        check_embeddings(embeddings, self.dim, self.name, n_images=len(x))
        return embeddings

    def _input(self, x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.backbone.parameters()), torch.float32)
        return self.preprocessing(x.to(dtype))

    def forward(self, faces: Tensor) -> Tensor:
        """Embed aligned RGB faces.

        Args:
            faces: ``(b, 3, 112, 112)`` uint8.

        Returns:
            ``(b, dim)`` float32 raw embeddings. A row is not finite where the network broke down on that face. On a CPU
            with one torch thread a face's bits depend on the batch size, but not on its place or its neighbours.

        Raises:
            FiqaRayError: if ``faces`` or the network's output has another shape or dtype.
        """
        check_faces(faces)
        return self.embed_unit(faces.to(torch.float32) / 255).to(torch.float32)

    def split(self, method: str) -> SplitNetwork:
        """Return the backbone as trunk and tail.

        Raises:
            UsageError: naming ``method``, which needs them, if the backbone has none.
        """
        if not isinstance(self.backbone, SplitNetwork):
            raise UsageError(
                f"{method} starts from the layer before a recogniser's dropout, and {self.name} does not say where that "
                "is; take an IResNet or IR network, or make yours a fiqa_ray.models.iresnet.SplitNetwork"
            )
        return self.backbone


class CleanPass:
    """A batch of faces on its way through a network; what several methods start from is made once, when first asked for.

    Attributes:
        faces: ``(b, 3, 112, 112)`` uint8, on the network's device.
    """

    def __init__(self, network: Recognizer | None, faces: Tensor) -> None:
        self._network, self.faces = network, faces

    @cached_property
    def features(self) -> Tensor:
        """The trunk's output, ``(b, n_features)`` in the network's dtype; only for a ``SplitNetwork``."""
        assert self._network is not None
        assert isinstance(self._network.backbone, SplitNetwork)
        with torch.inference_mode():
            return self._network.backbone.trunk(self._network._input(self.faces.to(torch.float32) / 255))

    @cached_property
    def output(self) -> Tensor:
        """The network's output, ``(b, dim)`` float32."""
        assert self._network is not None
        with torch.inference_mode():
            if isinstance(self._network.backbone, SplitNetwork):
                return self._network.backbone.tail(self.features).to(torch.float32)
            return self._network(self.faces)


def check_faces(faces: Tensor) -> None:
    """Raise FiqaRayError unless ``faces`` is ``(b, 3, 112, 112)`` uint8."""
    if faces.dtype != torch.uint8 or faces.shape[1:] != FACE_SHAPE:
        raise FiqaRayError(
            f"faces are {tuple(faces.shape)} {faces.dtype}; wanted (b, 3, 112, 112) uint8, RGB, aligned to the template"
        )


def check_embeddings(embeddings: Any, dim: int | None, name: str, *, n_images: int | None = None) -> None:
    """Check what a recogniser returned: ``(n_images, dim)`` floats, as a tensor or an array; None leaves a size open.

    Values that are not finite pass: they are a fault of single images, see ``finite_rows``.

    Raises:
        FiqaRayError: naming the recogniser, and the shape or dtype got and wanted.
    """
    wanted = f"({'b' if n_images is None else n_images}, {'dim' if dim is None else dim}) floats"
    if not isinstance(embeddings, Tensor | np.ndarray):
        kind = type(embeddings).__name__
        raise FiqaRayError(f"{name}: returned {kind}, wanted {wanted}; return the embeddings alone, as one tensor")
    if isinstance(embeddings, Tensor):
        floating = embeddings.is_floating_point()
    else:
        floating = np.issubdtype(embeddings.dtype, np.floating)
    shape = tuple(embeddings.shape)
    sizes_agree = len(shape) == 2 and n_images in (None, shape[0]) and dim in (None, shape[1])
    if not floating or not sizes_agree:
        raise FiqaRayError(
            f"{name}: returned embeddings of shape {shape}, {embeddings.dtype}; wanted {wanted}, one row per face"
        )


def finite_rows(array: np.ndarray) -> np.ndarray:
    """Return ``(n_images,)`` bool: which rows of ``(n_images, ...)`` hold finite numbers only."""
    return np.isfinite(array).reshape(len(array), -1).all(axis=1)
