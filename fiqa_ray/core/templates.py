"""Templates: several images of one person that are compared as one (IJB-B and IJB-C, 1:1).

The embedding of a template is the sum over its media of the mean embedding of each medium's images (the frames of a video
are one medium), scaled to length 1. With equally many images in all media this is the mean of all images; with others it
is not. Source: deepinsight/insightface, recognition/arcface_torch/eval_ijbc.py; CVLface and timm-face do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.kernels.pair_cosines import pair_cosines
from fiqa_ray.core.verification import FloatArray, IntArray
from fiqa_ray.errors import FiqaRayError, UsageError

TemplateQuality = Literal["min", "mean", "max"]
"""Quality of a template: the lowest of its images (CR-FIQA), their mean, or the highest."""

_BLOCK_IMAGES = 16_384


@dataclass(frozen=True)
class Templates:
    """Which images belong to which template and medium.

    Attributes:
        name: `(T,) int64` the templates' numbers in their list, rising.
        image_row: `(I,) int64` image of each entry, sorted by template and medium.
        bounds: `(T + 1,) int64`; template t has the entries from bounds[t] to bounds[t + 1].
        medium: `(I,) int64` number of each entry's medium.
    """

    name: IntArray
    image_row: IntArray
    bounds: IntArray
    medium: IntArray

    @classmethod
    def of(cls, template: IntArray, medium: IntArray, image_row: IntArray | None = None) -> Templates:
        """Sort the entries of a list.

        Args:
            template: `(I,)` template of each entry.
            medium: `(I,)` medium of each entry.
            image_row: `(I,)` image of each entry; None: entry i is image i.
        """
        rows = np.arange(len(template)) if image_row is None else image_row
        order = np.lexsort((rows, medium, template))
        name, first = np.unique(template[order], return_index=True)
        return cls(name, rows[order], np.append(first, len(order)), medium[order])

    def __len__(self) -> int:
        return len(self.name)

    def renumbered(self, row_of_image: IntArray) -> Templates:
        """Return the same templates with image i called `row_of_image[i]`, and without the images called -1."""
        rows = row_of_image[self.image_row]
        bounds = np.append(0, np.cumsum(rows >= 0))[self.bounds]
        return Templates(self.name, rows[rows >= 0], bounds, self.medium[rows >= 0])

    def rows_of(self, names: IntArray) -> IntArray:
        """Return the row of each template by its number; -1 for an unknown one."""
        row = np.searchsorted(self.name, names).clip(max=len(self.name) - 1)
        return np.where(self.name[row] == names, row, -1)


def template_embeddings(
    embeddings: NDArray[np.floating],
    templates: Templates,
    *,
    weight: FloatArray | None = None,
    norm: Literal["keep", "unit"] = "keep",
) -> NDArray[np.floating]:
    """Return the embeddings of templates, `(T, D)` of length 1 in the type of `embeddings`.

    Args:
        embeddings: `(I, D)` of the images, after flip; a row with NaN has none and is left out of its medium's mean.
        templates: their images.
        weight: `(I,)` factor of each image, such as the detector's score. Means divide by the number of images.
        norm: `unit` scales each image's embedding to length 1 before its weight, `keep` leaves its length.

    Returns:
        Rows of NaN for templates without an image that has an embedding.

    Memory: blocks of some 16,000 images in float64.
    """
    n, dim = len(templates), embeddings.shape[1]
    out = np.full((n, dim), np.nan, embeddings.dtype)
    has_embedding = np.isfinite(embeddings[:, 0])
    for start, end in _blocks(templates.bounds):
        entries = slice(templates.bounds[start], templates.bounds[end])
        template = np.repeat(np.arange(start, end), np.diff(templates.bounds[start : end + 1]))
        rows, medium = templates.image_row[entries], templates.medium[entries]
        chosen = has_embedding[rows]
        rows, medium, template = rows[chosen], medium[chosen], template[chosen]
        if not len(rows):
            continue
        values = embeddings[rows].astype(np.float64)
        if norm == "unit":
            values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        if weight is not None:
            values *= weight[rows, None]
        first = np.flatnonzero(np.append(True, (np.diff(medium) != 0) | (np.diff(template) != 0)))  # of each medium
        means = np.add.reduceat(values, first) / np.diff(np.append(first, len(rows)))[:, None]
        of_medium = template[first]
        starts = np.flatnonzero(np.append(True, np.diff(of_medium) != 0))  # of each template
        sums = np.add.reduceat(means, starts)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        out[of_medium[starts]] = sums / np.where(length > 0, length, 1)
    return out


def _blocks(bounds: IntArray) -> list[tuple[int, int]]:
    """Return runs of templates of about `_BLOCK_IMAGES` images each."""
    blocks, start = [], 0
    while start < len(bounds) - 1:
        end = max(start + 1, int(np.searchsorted(bounds, bounds[start] + _BLOCK_IMAGES, side="right")) - 1)
        blocks.append((start, end))
        start = end
    return blocks


def template_qualities(quality: FloatArray, templates: Templates, how: TemplateQuality = "min") -> FloatArray:
    """Return one quality per template, `(T,) float64`; NaN where none of its images has one.

    Args:
        quality: `(I,)` of the images; NaN where an image has none, which is left out.
        templates: their images.
        how: `min`, `mean` or `max`.

    Raises:
        UsageError: `how` is none of these.
    """
    if how not in ("min", "mean", "max"):
        raise UsageError(f"template quality {how!r} is unknown: choose min, mean or max")
    values = np.asarray(quality, np.float64)[templates.image_row]
    is_known, starts = np.isfinite(values), templates.bounds[:-1]
    n_known = np.add.reduceat(is_known, starts, dtype=np.int64)
    if how == "mean":
        total = np.add.reduceat(np.where(is_known, values, 0.0), starts)
        return np.where(n_known > 0, total / np.maximum(n_known, 1), np.nan)
    reduce, absent = (np.minimum, np.inf) if how == "min" else (np.maximum, -np.inf)
    return np.where(n_known > 0, reduce.reduceat(np.where(is_known, values, absent), starts), np.nan)


def pair_similarities(embeddings: NDArray[np.floating], row_a: IntArray, row_b: IntArray) -> FloatArray:
    """Return the cosine of each pair, `(L,) float64` in [-1, 1]. The embeddings of pairs are not copied.

    Args:
        embeddings: `(I, D)` of any length.
        row_a: `(L,)` int, rows of the first embeddings.
        row_b: `(L,)` int, rows of the second ones.

    Raises:
        FiqaRayError: A row is outside the embeddings.
    """
    for rows in (row_a, row_b):
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(embeddings)):
            raise FiqaRayError(f"pairs name the rows {rows.min()} to {rows.max()} of {len(embeddings)} embeddings")
    similarity = np.empty(len(row_a))
    pair_cosines(np.ascontiguousarray(unit_vectors(embeddings)), row_a, row_b, similarity)
    return similarity


def subjects_of(n: int, mated_a: IntArray, mated_b: IntArray) -> IntArray:
    """Return the person of each of `n` templates, `(n,) int64`, as mated pairs tell: what they link is one person.

    Args:
        n: templates.
        mated_a: `(L,)` rows of the first templates of the mated pairs.
        mated_b: `(L,)` rows of the second ones.
    """
    links = coo_array((np.ones(len(mated_a), np.int8), (mated_a, mated_b)), shape=(n, n))
    _, person = connected_components(links, directed=False)
    return np.asarray(person, np.int64)
