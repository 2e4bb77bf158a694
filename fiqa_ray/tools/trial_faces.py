"""Faces of known people to try a model on, and damaged copies of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.core.landmark_order import LandmarkOrder
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import decode_faces, prepare_face
from fiqa_ray.sources.files import read_face_bytes
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.landmarks import LandmarkFit, arrange_landmarks
from fiqa_ray.sources.table import list_table
from fiqa_ray.storage import storage_errors
from fiqa_ray.synthetic.damage import DEGRADATION_KINDS, Degradation, degrade
from fiqa_ray.synthetic.dataset import HELDOUT_PART, aligned_faces

N_IMAGES_EACH = 4
_SEED = 20_000
"""Seed of synthetic people that no other part of the project draws."""


@dataclass(frozen=True)
class TrialFaces:
    """Aligned RGB faces of known people.

    Attributes:
        faces: `(I, 3, 112, 112) uint8`.
        damaged: damaged copies of the faces, of the same shape.
        person: `(I,)` number of each face's person.
        source: where the faces come from.
        landmarks: how the landmarks by which the faces were aligned fit the template; None if they came as crops.
    """

    faces: torch.Tensor
    damaged: torch.Tensor
    person: NDArray[np.int64]
    source: str
    landmarks: LandmarkFit | None = None


def load_trial_faces(
    images: str | None = None, n_people: int = 32, landmarks: str | None = None, landmark_order: str | None = None
) -> TrialFaces:
    """Return faces to try a model on: synthetic ones, or those of the first people in a folder.

    Args:
        images: folder (any fsspec URL) with one folder of images per person, or a table (.csv, .parquet) of images with
            their people, which may hold landmarks. Without landmarks they are aligned 112x112 crops. Four images of each
            person are taken; people with only one usable image are left out.
        n_people: people to take.
        landmarks: landmarks of a folder's images, a CSV in VGGFace2's form.
        landmark_order: order of the ten numbers; None: that of the template, unless another one fits clearly better.

    Raises:
        FiqaRayError: fewer than three people remain, or landmarks are in another order than `landmark_order`.
    """
    fit = None
    if images is None:
        people = [aligned_faces((_SEED, HELDOUT_PART, k, N_IMAGES_EACH))[::2] for k in range(n_people)]
        source = "synthetic faces"
    else:
        table, fit = arrange_landmarks(_list_faces(images, landmarks), landmark_order)
        people = list(_people_of(table, n_people, fit))
        source = images
        if len(people) < 3:
            raise FiqaRayError(
                f"{images}: {len(people)} people with two or more 112x112 crops; at least three are needed, each in a "
                "folder of their own. Align the images first: fiqa-ray run JOB.yaml --stages pack"
            )
    faces = np.concatenate(people)
    return TrialFaces(
        faces=_channels_first(faces),
        damaged=_channels_first(np.stack([_damage(face, i) for i, face in enumerate(faces)])),
        person=np.repeat(np.arange(len(people)), [len(p) for p in people]),
        source=source,
        landmarks=fit,
    )


def _list_faces(images: str, landmarks: str | None) -> pa.Table:
    if not images.lower().endswith((".csv", ".parquet", ".pq")):
        return list_folder(images, landmarks_uri=landmarks)
    if landmarks is not None:
        raise UsageError(f"--landmarks {landmarks}: the table {images} holds its own landmarks; leave it out")
    return list_table(images)


def _people_of(table: pa.Table, n_people: int, fit: LandmarkFit | None) -> Iterator[NDArray[np.uint8]]:
    fractions = fit is not None and LandmarkOrder.parse(fit.order).fractions
    points = table["landmarks"].to_pylist()
    identity = np.array(table["identity"].to_pylist(), dtype=object)
    uris = table["uri"].to_pylist()
    for name in dict.fromkeys(identity):
        if n_people == 0:
            return
        rows = np.flatnonzero(identity == name)[:N_IMAGES_EACH]
        with storage_errors(uris[rows[0]]):
            contents = read_face_bytes([uris[i] for i in rows])
        prepared = [
            prepare_face(content, points[i], fractions=fractions, check_order=fit is not None and not fit.is_forced)
            for i, content in zip(rows, contents, strict=True)
        ]
        faces, ok = decode_faces([p.face for p in prepared if p.status == "ok"])
        if ok.sum() >= 2:
            n_people -= 1
            yield faces[ok].transpose(0, 2, 3, 1)


def _channels_first(faces: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(faces.transpose(0, 3, 1, 2)))


def _damage(face: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(index)
    kind = DEGRADATION_KINDS[index % len(DEGRADATION_KINDS)]
    return degrade(np.ascontiguousarray(face), TEMPLATE, Degradation(kind, rng.uniform(0.5, 1.0)), rng)
