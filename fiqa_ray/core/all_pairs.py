"""Error-versus-discard curves of all pairs of a set of images: n (n - 1) / 2 of them, none of them stored.

Images stand in one row from the worst to the best. The pair quality is that of the worse image, so the pairs of the first
image go first, then those of the second with all that follow it. The row is taken from its end: the pairs seen so far are
those that a discard level leaves. Similarities are counted in steps of 2^-23, which is float32's own resolution; only
mated pairs are listed. Adience's 187 million pairs need some 0.3 GB and, for each score, one product of the embeddings
with themselves.

Curves are those of `fiqa_ray.core.edc.edc_curve` for the list of pairs (i, j), i < j, in order, if no two images have the
same quality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.edc import EDC
from fiqa_ray.core.kernels.all_pairs import N_KEYS, add_rows, top_keys
from fiqa_ray.core.kernels.discard import N_LEVELS, threshold_below, threshold_nearest
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS, unit_vectors
from fiqa_ray.core.verification import FloatArray, IntArray, allowed_false_matches, check_finite, exact_fmr
from fiqa_ray.errors import FiqaRayError

_BLOCK_IMAGES = 256

Cell = tuple[str, float]
"""A convention and a false match rate."""


def all_pairs_curves(
    embeddings: NDArray[np.float32], person: IntArray, quality: FloatArray, cells: Sequence[Cell]
) -> dict[Cell, EDC]:
    """Return one curve per cell of all pairs of the images.

    Args:
        embeddings: `(I, D)` of any length.
        person: `(I,)` int, equal numbers for images of one person.
        quality: `(I,)` float, larger is better. Equal qualities are discarded in the order of the images.
        cells: conventions (`paper`, `nearest`, `dasec`) with rates.

    Raises:
        FiqaRayError: A quality is not finite, or there is no pair of one kind.

    Memory: the embeddings, 8 bytes per mated pair, and 0.2 GB.
    """
    quality = check_finite("quality", quality)
    order = np.argsort(quality, kind="stable")
    images = _Images(unit_vectors(embeddings)[order], np.asarray(person, np.int64)[order], order)
    levels = list(_walk(images, [cell for cell in cells if cell[0] != "dasec"]))[::-1]
    whole = levels[0]
    n_tied = _n_tied(quality[order])
    curves = {}
    for cell in cells:
        if cell[0] == "dasec":
            curves[cell] = _step_curve(images, quality[order], whole, cell[1], n_tied)
        else:
            curves[cell] = _level_curve(levels, cell, n_tied)
    return curves


def n_all_pairs(n_images: int) -> int:
    """Return the number of pairs of so many images."""
    return n_images * (n_images - 1) // 2


@dataclass(frozen=True)
class _Images:
    """Images from the worst to the best: unit vectors `(I, D)`, persons `(I,)`, and their rows in the data set."""

    units: NDArray[np.float32]
    person: IntArray
    row: IntArray

    @property
    def n_mated(self) -> int:
        """Number of mated pairs."""
        return sum(n_all_pairs(int(n)) for n in np.unique(self.person, return_counts=True)[1])

    def first_pair(self, image: IntArray | int) -> IntArray:
        """Return how many pairs are discarded before the first one of an image goes."""
        i = np.asarray(image, np.int64)
        return i * (len(self.row) - 1) - i * (i - 1) // 2


@dataclass
class _Counts:
    """The pairs seen so far: non-mated ones by key, mated ones listed."""

    nonmated: NDArray[np.int32]
    mated_key: NDArray[np.int32]
    mated_image: NDArray[np.int32]
    n_mated: int = 0
    n_nonmated: int = 0

    def add(self, images: _Images, products: NDArray[np.float32], first: int) -> None:
        """Count the pairs of a block of images with all that follow them."""
        before = self.n_mated
        self.n_mated = add_rows(
            products, first, images.person, self.nonmated, self.mated_key, self.mated_image, self.n_mated
        )
        n, columns = products.shape
        self.n_nonmated += n * columns - n * (n + 1) // 2 - (self.n_mated - before)

    def add_some(self, images: _Images, image: int, partners: IntArray) -> None:
        """Count the pairs of one image with some of those that follow it."""
        if len(partners) == 0:
            return
        products = np.concatenate([[0], images.units[partners] @ images.units[image]]).astype(np.float32)
        person = np.append(images.person[image], images.person[partners])
        before = self.n_mated
        self.n_mated = add_rows(
            products[None], 0, person, self.nonmated, self.mated_key, self.mated_image, self.n_mated
        )
        self.mated_image[before : self.n_mated] = image
        self.n_nonmated += len(partners) - (self.n_mated - before)

    def units(self, fmr: float) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the non-mated pairs that decide thresholds up to a rate, in the terms of `kernels.discard`."""
        n_wanted = min(int(fmr * self.n_nonmated) + 2, self.n_nonmated)
        keys = np.empty(min(n_wanted + 2, N_KEYS), np.int64)
        keys = keys[: top_keys(self.nonmated, n_wanted, keys)]
        n = self.nonmated[keys].astype(np.int64)
        return n, n, similarity_of(keys)


@dataclass(frozen=True)
class _Level:
    """What a discard level leaves, and per cell the threshold and the wrong decisions."""

    n_mated: int
    n_nonmated: int
    threshold: dict[Cell, float]
    n_false_nonmatches: dict[Cell, int]
    n_false_matches: dict[Cell, int]
    counts: _Counts


def _walk(images: _Images, cells: Sequence[Cell]) -> Iterator[_Level]:
    """Yield the levels from the last, which leaves the fewest pairs, to the first, which leaves all."""
    n, n_mated = len(images.row), images.n_mated
    n_pairs = n_all_pairs(n)
    if n_mated in (0, n_pairs):
        missing = "mated" if n_mated == 0 else "non-mated"
        raise FiqaRayError(f"there is no {missing} pair among all pairs of {n} images: both kinds are needed")
    counts = _Counts(np.zeros(N_KEYS, np.int32), *(np.empty(n_mated, np.int32) for _ in range(2)))
    cuts = np.arange(N_LEVELS) * n_pairs // N_LEVELS
    starts = images.first_pair(np.arange(n))
    cut_images = (
        np.searchsorted(starts, cuts, side="right") - 1
    )  # the last image whose pairs begin at or before the cut
    end = n  # images from here on are done
    level = N_LEVELS - 1
    while level >= 0:
        image = int(cut_images[level])
        _add_blocks(images, counts, image + 1, end)
        partners = image + 1 + np.argsort(images.row[image + 1 :], kind="stable")  # in the order of the list of pairs
        left = len(partners)  # of these, the ones from here on are done
        while level >= 0 and cut_images[level] == image:
            n_gone = int(cuts[level] - starts[image])
            counts.add_some(images, image, partners[n_gone:left])
            left = n_gone
            yield _level(counts, cells)
            level -= 1
        counts.add_some(images, image, partners[:left])
        end = image


def _add_blocks(images: _Images, counts: _Counts, start: int, end: int) -> None:
    """Count the pairs of the images start .. end with all that follow them, from the last block to the first."""
    while end > start:
        first = max(start, end - _BLOCK_IMAGES)
        counts.add(images, images.units[first:end] @ images.units[first:].T, first)
        end = first


def _level(counts: _Counts, cells: Sequence[Cell]) -> _Level:
    threshold: dict[Cell, float] = {}
    n_false_nonmatches, n_false_matches = dict.fromkeys(cells, 0), dict.fromkeys(cells, 0)
    if counts.n_mated == 0 or counts.n_nonmated == 0:
        return _Level(
            counts.n_mated, counts.n_nonmated, dict.fromkeys(cells, np.nan), n_false_nonmatches, n_false_matches, counts
        )
    units = counts.units(max(cell[1] for cell in cells) if cells else 0.5)
    mated_keys = np.sort(counts.mated_key[: counts.n_mated])
    ones = np.ones(len(mated_keys), np.int64)
    for cell in cells:
        target = exact_fmr(cell[1])
        wanted = target.numerator * counts.n_nonmated
        if cell[0] == "nearest":
            found = threshold_nearest(*units, ones, ones, similarity_of(mated_keys), 0, 2 * wanted, target.denominator)
        else:
            found = threshold_below(*units, 0, max(0, -(-wanted // target.denominator) - 1))
        threshold[cell], n_false_matches[cell] = float(found[0]), int(found[1])
        n_false_nonmatches[cell] = int(np.searchsorted(mated_keys, key_of(threshold[cell]), side="right"))
    return _Level(counts.n_mated, counts.n_nonmated, threshold, n_false_nonmatches, n_false_matches, counts)


def similarity_of(key: NDArray[np.integer]) -> FloatArray:
    """Return the similarities that keys stand for."""
    return (np.asarray(key, np.float64) - SIMILARITY_STEPS) / SIMILARITY_STEPS


def key_of(similarity: float) -> int:
    """Return the key of a similarity."""
    return round(similarity * SIMILARITY_STEPS) + SIMILARITY_STEPS


def _level_curve(levels: Sequence[_Level], cell: Cell, n_tied: int) -> EDC:
    threshold = np.array([level.threshold[cell] for level in levels])
    n_mated, n_nonmated = (np.array([getattr(x, name) for x in levels]) for name in ("n_mated", "n_nonmated"))
    n_errors = np.array([level.n_false_nonmatches[cell] for level in levels])
    return EDC(
        convention=cell[0],
        fmr=cell[1],
        discard_fraction=np.arange(N_LEVELS) / N_LEVELS,
        fnmr=np.where(np.isnan(threshold), np.nan, n_errors / np.maximum(n_mated, 1)),
        threshold=threshold,
        n_mated=n_mated,
        n_nonmated=n_nonmated,
        n_false_nonmatches=n_errors,
        n_false_matches=np.array([level.n_false_matches[cell] for level in levels]),
        n_tied=n_tied,
    )


def _step_curve(images: _Images, quality: FloatArray, whole: _Level, fmr: float, n_tied: int) -> EDC:
    """Return the curve in the convention `dasec`: one threshold, a level for each quality of a mated pair."""
    counts, n = whole.counts, len(images.row)
    units = counts.units(fmr)
    n_nonmated = counts.n_nonmated
    threshold, n_above = threshold_below(*units, 0, allowed_false_matches(fmr, n_nonmated))
    is_wrong = counts.mated_key <= key_of(threshold)
    n_of_image = np.bincount(counts.mated_image, minlength=n)
    n_wrong = np.bincount(counts.mated_image[is_wrong], minlength=n)
    has_pair = np.flatnonzero(n_of_image)
    first = np.flatnonzero(np.append(True, np.diff(quality[has_pair]) != 0))  # of each distinct quality
    n_discarded = np.append(0, np.cumsum(n_of_image[has_pair]))[np.append(first, len(has_pair))]
    n_errors = n_wrong.sum() - np.append(0, np.cumsum(n_wrong[has_pair]))[np.append(first, len(has_pair))]
    n_mated = counts.n_mated - n_discarded
    return EDC(
        convention="dasec",
        fmr=fmr,
        discard_fraction=n_discarded / counts.n_mated,
        fnmr=n_errors / np.maximum(n_mated, 1),
        threshold=np.full(n_mated.size, threshold),
        n_mated=n_mated,
        n_nonmated=np.full(n_mated.size, n_nonmated),
        n_false_nonmatches=n_errors,
        n_false_matches=np.full(n_mated.size, n_above),
        n_tied=n_tied,
    )


def _n_tied(quality: FloatArray) -> int:
    """Return the number of pairs whose quality another pair shares; `quality` of the images rises."""
    first = np.flatnonzero(np.append(True, np.diff(quality) != 0))
    n = len(quality)
    n_pairs = np.add.reduceat(n - 1 - np.arange(n), first)
    return int(n_pairs[n_pairs > 1].sum())
