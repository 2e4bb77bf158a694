"""The calibration of FROQ: which layers of a recogniser tell quality, by labels of faces or by FROQ's own quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.images import decode_faces, prepare_face
from fiqa_ray.models.methods.froq import layer_norms, pseudo_quality, seeded_noise, select_layers
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.sources.files import read_face_bytes
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.scores import scores_by_id
from fiqa_ray.storage import storage_errors

_BATCH = 8
_LEAST_IMAGES = 10


@dataclass(frozen=True)
class FroqLayers:
    """The outcome of a calibration.

    Attributes:
        layers: names of the chosen layers, for the option `layers` of the method froq.
        n_images: faces that were used.
        n_layers: layers that were compared.
    """

    layers: list[str]
    n_images: int
    n_layers: int


def calibrate(
    recognizer: Recognizer,
    images: str,
    labels: str | None = None,
    label_column: str = "label",
    max_images: int = 500,
    seed: int = 0,
) -> FroqLayers:
    """Choose FROQ's layers on a recogniser.

    Args:
        recognizer: the FR model.
        images: folder with one folder of aligned 112x112 crops per person.
        labels: CSV or Parquet with the columns `image_id` and `label_column`, larger is better, such as `fiqa-ray labels`
            writes it for one method and theta; None: FROQ's own quality, at 75 more passes per image.
        label_column: column of the labels.
        max_images: faces to use at most; more are drawn from by `seed`.
        seed: of that draw and of the noise of FROQ's own quality.

    Raises:
        FiqaRayError: too few usable images, an image without a label, or no layer that grows with the labels.
    """
    network = recognizer.with_gradients("froq")
    table = list_folder(images)
    rows = np.arange(len(table))
    if len(rows) > max_images:
        rows = np.sort(np.random.Generator(np.random.Philox(key=seed)).choice(rows, max_images, replace=False))
        table = table.take(rows)
    faces, usable = _faces(table["uri"].to_pylist())
    if usable.sum() < _LEAST_IMAGES:
        raise FiqaRayError(
            f"{images}: {usable.sum()} usable 112x112 crops; a calibration needs {_LEAST_IMAGES} or more"
        )
    quality = None
    if labels is not None:
        ids = table["image_id"].combine_chunks()
        quality = scores_by_id(ids, labels, score_column=label_column, allow_others=True)[usable]
    layers = {name: layer for name, layer in network.backbone.named_modules() if name}
    norms, own_quality = [], []
    noise = seeded_noise(seed)
    for batch in faces[torch.from_numpy(usable)].split(_BATCH):
        x = network.preprocess(batch.to(torch.float32) / 255)
        norms.append(layer_norms(network.backbone, x, layers))
        if quality is None:
            with torch.inference_mode():
                own_quality.append(pseudo_quality(network.backbone, x, noise).numpy())
    names = [name for name in norms[0] if all(name in norms_of_face for norms_of_face in norms)]
    lengths = np.stack([np.concatenate([norms_of_face[name].numpy() for norms_of_face in norms]) for name in names])
    chosen = select_layers(lengths, np.concatenate(own_quality) if quality is None else quality)
    return FroqLayers([names[i] for i in chosen], int(usable.sum()), len(names))


def _faces(uris: list[str]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Return `(I, 3, 112, 112) uint8` faces, and which of them are usable crops."""
    faces, usable = torch.zeros(len(uris), 3, 112, 112, dtype=torch.uint8), np.zeros(len(uris), bool)
    for at in range(0, len(uris), _BATCH):
        part = uris[at : at + _BATCH]
        with storage_errors(part[0]):
            prepared = [prepare_face(content, None) for content in read_face_bytes(part)]
        good = [i for i, face in enumerate(prepared) if face.status == "ok"]
        if good:
            decoded, ok = decode_faces([prepared[i].face for i in good])
            for i, face in zip(np.array(good)[ok], decoded[ok], strict=True):
                faces[at + i], usable[at + i] = torch.from_numpy(face), True
    return faces, usable
