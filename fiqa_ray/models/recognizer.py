"""A loaded face recogniser, what methods share of its pass over clean faces, and checks of what goes in and out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fiqa_ray.core.align import FACE_SIZE
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.formats.onnx_network import OnnxNetwork
from fiqa_ray.models.networks.iresnet import SplitNetwork
from fiqa_ray.models.preprocessing import Preprocessing
from fiqa_ray.models.probe import probe_faces
from fiqa_ray.public_uri import public_uri

FACE_SHAPE = (3, FACE_SIZE, FACE_SIZE)


class Recognizer(nn.Module):
    """A frozen network with its preprocessing, in evaluation mode.

    A recogniser M maps an aligned face to a raw embedding e = M(I), the paper's FR model. Whoever compares embeddings
    normalises them. A quality network is also held in this class: its embedding is one number.

    Attributes:
        name: table name, `module:function` or ONNX location it was loaded by.
        options: the options it was loaded with.
        dim: number of values of an embedding, D.
        weights_sha256: hash of the weights file, or of the values where there is no single file.
        is_random: whether the weights are those of `random:SEED`.
        differentiable: whether a gradient can reach the input (FaceQAN needs it), see `with_gradients`.
        scaling_source: by what scaling and colour order were found where the user gave none; else empty.
        backbone: the bare network; takes preprocessed float faces.
        preprocessing: turns faces in [0, 1] into the backbone's input.
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
        is_random: bool = False,
        scaling_source: str = "",
    ) -> None:
        super().__init__()
        self.name = name
        self.is_random = is_random
        self.options = dict(options or {})
        self.dim = dim
        self.weights_sha256 = weights_sha256
        self.differentiable = differentiable
        self.preprocessing = preprocessing
        self.scaling_source = scaling_source
        self.trainable_names = tuple(key for key, value in backbone.named_parameters() if value.requires_grad)
        self.backbone = backbone
        self.requires_grad_(False).eval()

    def __repr__(self) -> str:  # the network's own would fill pages
        pixels = self.preprocessing
        return (
            f"<Recognizer {public_uri(self.name)}: {self.dim} numbers per face, {pixels.colour} pixels "
            f"(v - {pixels.mean:g}) / {pixels.scale:g}>"
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Embed aligned RGB faces.

        On a CPU with one torch thread, the bits of a face's embedding depend on the batch size, but not on the face's
        position in the batch or on the other faces.

        Args:
            faces: `(N, 3, 112, 112) uint8`.

        Returns:
            `(N, D) float32` raw embeddings. A row is not finite if the network broke down on that face.

        Raises:
            FiqaRayError: `faces` or the network's output has another shape or dtype.
        """
        check_faces(faces)
        return self.embed_unit(faces.to(torch.float32) / 255).to(torch.float32)

    def embed_unit(self, x: Tensor) -> Tensor:
        """Embed RGB faces whose pixels lie in [0, 1]; differentiable with respect to `x`.

        Args:
            x: `(N, 3, 112, 112)`, any float dtype; converted to the network's dtype.

        Returns:
            `(N, D)` raw embeddings in the network's dtype.

        Raises:
            FiqaRayError: the network returns anything else.
        """
        embeddings = self.backbone(self.preprocess(x))
        check_embeddings(embeddings, self.dim, self.name, n_images=len(x))
        return embeddings

    def preprocess(self, x: Tensor) -> Tensor:
        """Map RGB faces in [0, 1] to the backbone's input, in the backbone's dtype."""
        dtype = next((p.dtype for p in self.backbone.parameters()), torch.float32)
        return self.preprocessing(x.to(dtype))

    def with_gradients(self, what: str) -> Recognizer:
        """Return a recogniser whose embeddings have gradients: this one, or an ONNX network converted to torch.

        Args:
            what: what needs them, for the message.

        Raises:
            UsageError: the recogniser has no gradients.
            FiqaRayError: the ONNX network cannot be converted, or would compute other embeddings then.
        """
        if not self.differentiable:
            raise UsageError(f"{what} needs gradients, and {self.name} has none; give it as torch operations")
        if not isinstance(self.backbone, OnnxNetwork):
            return self
        from fiqa_ray.models.formats.onnx_gradients import ConvertedNetwork  # a package that only this needs

        network = ConvertedNetwork(self.backbone, self.preprocessing(probe_faces()).numpy())
        return Recognizer(
            self.name,
            network.to(self.backbone.onnx_file.device),
            self.preprocessing,
            self.dim,
            self.weights_sha256,
            options=self.options,
            is_random=self.is_random,
            scaling_source=self.scaling_source,
        )

    def split(self, method: str) -> SplitNetwork:
        """Return the backbone as trunk and tail.

        Args:
            method: the FIQA method that needs them, for the message.

        Raises:
            UsageError: the backbone is not a `SplitNetwork`.
        """
        if not isinstance(self.backbone, SplitNetwork):
            raise UsageError(
                f"{method} starts from the layer before a recogniser's dropout, and {self.name} does not say where that "
                "is; take an IResNet or IR network, or make yours a fiqa_ray.models.networks.iresnet.SplitNetwork"
            )
        return self.backbone


def embed_faces(recognizer: Recognizer, faces: Tensor, flip: str = "none") -> Tensor:
    """Embed aligned faces `(N, 3, 112, 112) uint8`, with their mirror images if asked.

    Args:
        recognizer: the FR model.
        faces: on the model's device.
        flip: `none`; `sum`: add the embeddings of a face and of its mirror image, as many verification scripts do;
            `concat`: join the two to one of twice the length.

    Returns:
        `(N, D) float32`, for `concat` `(N, 2 D)`.
    """
    embeddings: Tensor = recognizer(faces)
    if flip == "none":
        return embeddings
    mirrored: Tensor = recognizer(faces.flip(-1))
    return embeddings + mirrored if flip == "sum" else torch.cat([embeddings, mirrored], dim=1)


class CleanPass:
    """The pass of a batch of clean faces through a network; several methods share it, and each part is computed once.

    Attributes:
        faces: `(N, 3, 112, 112) uint8`, on the network's device.
    """

    def __init__(self, network: Recognizer | None, faces: Tensor) -> None:
        self._network, self.faces = network, faces

    @cached_property
    def features(self) -> Tensor:
        """The trunk's output, `(N, n_features)` in the network's dtype; only for a `SplitNetwork`."""
        assert self._network is not None
        assert isinstance(self._network.backbone, SplitNetwork)
        with torch.inference_mode():
            return self._network.backbone.trunk(self._network.preprocess(self.faces.to(torch.float32) / 255))

    @cached_property
    def output(self) -> Tensor:
        """The network's output, `(N, D) float32`."""
        assert self._network is not None
        with torch.inference_mode():
            if isinstance(self._network.backbone, SplitNetwork):
                return self._network.backbone.tail(self.features).to(torch.float32)
            return self._network(self.faces)


def check_faces(faces: Tensor) -> None:
    """Raise FiqaRayError unless `faces` is `(N, 3, 112, 112) uint8`."""
    if faces.dtype != torch.uint8 or faces.shape[1:] != FACE_SHAPE:
        raise FiqaRayError(
            f"faces are {tuple(faces.shape)} {faces.dtype}; wanted (b, 3, {FACE_SIZE}, {FACE_SIZE}) uint8, RGB, aligned "
            "to the template"
        )


def check_embeddings(embeddings: Any, dim: int | None, name: str, *, n_images: int | None = None) -> None:
    """Check what a recogniser returned: a tensor or an array of `(n_images, dim)` floats.

    Values that are not finite pass, because they are a fault of single images; see `finite_rows`.

    Args:
        embeddings: what the recogniser returned.
        dim: wanted values per embedding; None allows any number.
        name: the recogniser's name, for messages.
        n_images: wanted number of embeddings; None allows any number.

    Raises:
        FiqaRayError: naming the recogniser, and the shape or dtype found and wanted.
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


def finite_rows(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return `(N,) bool`: which rows of an `(N, ...)` array hold finite numbers only."""
    return np.isfinite(array).reshape(len(array), -1).all(axis=1)
