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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.bootstrap import AreaDraws
from fiqa_ray.core.conventions import Cell, Convention
from fiqa_ray.core.edc import EDC
from fiqa_ray.core.floor import RANDOM, expected_curve
from fiqa_ray.core.intervals import Errors, IntervalSettings
from fiqa_ray.core.kernels.all_pairs import N_KEYS, add_rows, top_keys
from fiqa_ray.core.kernels.discard import threshold_below, threshold_nearest
from fiqa_ray.core.kernels.gram import SIMILARITY_STEPS, unit_vectors
from fiqa_ray.core.levels import n_allowed, upper_wrong
from fiqa_ray.core.verification import FloatArray, IntArray, check_finite, exact_fmr
from fiqa_ray.errors import FiqaRayError, UsageError

_BLOCK_IMAGES = 256


def all_pairs_areas(
    embeddings: NDArray[np.float32],
    person: IntArray,
    qualities: Mapping[str, FloatArray],
    cells: Mapping[Cell, Convention],
    *,
    random_orders: Sequence[FloatArray] = (),
    limits: Sequence[float] = (),
    n_draws: int = 0,
) -> AreaDraws:
    """Return the areas of all scorers; nothing is resampled, so that all draws are NaN.

    Args:
        embeddings: `(I, D)` of any length.
        person: `(I,)` int, equal numbers for images of one person.
        qualities: per scorer `(I,)` float.
        cells: see `all_pairs_curves`.
        random_orders: each `(I,)` float: adds the scorer `floor.RANDOM`, their expectation.
        limits: discard fractions up to which areas are wanted, beside each curve's own limit.
        n_draws: length of the draws.
    """
    curves: dict[tuple[str, Cell], EDC] = {}
    for name, quality in qualities.items():
        curves |= {(name, cell): c for cell, c in all_pairs_curves(embeddings, person, quality, cells).items()}
    of_orders = [all_pairs_curves(embeddings, person, order, cells) for order in random_orders]
    for cell, convention in cells.items() if of_orders else ():
        if convention.step is None:
            curves[RANDOM, cell] = _flat_curve(of_orders[0][cell])
        else:
            curves[RANDOM, cell] = expected_curve([c[cell] for c in of_orders])
    draws = {
        (name, cell, limit): np.full(n_draws, np.nan)
        for (name, cell), curve in curves.items()
        for limit in {*limits, *(c.defined_limit for (_, other), c in curves.items() if other == cell)}
        if limit <= curve.end
    }
    first = next(iter(curves))[0]
    errors = {cell: Errors(cell[1], int(curves[first, cell].n_false_nonmatches[0])) for cell in cells}
    n_mated, n_nonmated = (int(getattr(curves[first, next(iter(cells))], n)[0]) for n in ("n_mated", "n_nonmated"))
    settings = IntervalSettings(0.95, "pairs", n_mated, n_nonmated, n_draws, 0)
    return AreaDraws(curves, draws, errors, dict.fromkeys(cells, n_mated), settings)


def all_pairs_curves(
    embeddings: NDArray[np.float32], person: IntArray, quality: FloatArray, cells: Mapping[Cell, Convention]
) -> dict[Cell, EDC]:
    """Return one curve per cell of all pairs of the images.

    Args:
        embeddings: `(I, D)` of any length.
        person: `(I,)` int, equal numbers for images of one person.
        quality: `(I,)` float, larger is better. Equal qualities are discarded in the order of the images.
        cells: conventions and rates: those that discard from all pairs in steps and set the threshold again at each, and
            those that discard from the mated pairs at each quality.

    Raises:
        UsageError: A convention is of another kind.
        FiqaRayError: A quality is not finite, or there is no pair of one kind.

    Memory: the embeddings, 8 bytes per mated pair, and 0.2 GB.
    """
    for convention in cells.values():
        is_stepped = (convention.pool, convention.threshold, convention.ties) == ("all", "recomputed", "cut")
        if not is_stepped and (convention.pool, convention.step, convention.starting_fnmr) != ("mated", None, None):
            raise UsageError(
                f"convention {convention.name!r} cannot be computed for all pairs of a large set; paper, nearest, dasec can"
            )
    quality = check_finite("quality", quality)
    order = np.argsort(quality, kind="stable")
    images = _Images(unit_vectors(embeddings)[order], np.asarray(person, np.int64)[order], order)
    n_pairs, n_tied = n_all_pairs(len(order)), _n_tied(quality[order])
    cuts = {cell: np.arange(c.n_levels) * n_pairs // c.n_levels for cell, c in cells.items() if c.step is not None}
    levels = {level.cut: level for level in _walk(images, cells, cuts)}
    return {
        cell: _level_curve([levels[cut] for cut in cuts[cell].tolist()], cell, convention, n_tied)
        if cell in cuts
        else _step_curve(images, quality[order], levels[0].counts, cell, convention, n_tied)
        for cell, convention in cells.items()
    }


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
    """What is left when `cut` pairs are discarded: the numbers of pairs, and per cell what `EDC` holds of a level.

    `counts` are the pairs seen at the end, which are all of them.
    """

    cut: int
    n_mated: int
    n_nonmated: int
    threshold: dict[Cell, float]
    n_false_nonmatches: dict[Cell, int]
    n_false_matches: dict[Cell, int]
    counts: _Counts


def _walk(images: _Images, cells: Mapping[Cell, Convention], cuts: Mapping[Cell, IntArray]) -> Iterator[_Level]:
    """Yield the levels from the last, which leaves the fewest pairs, to the first, which leaves all."""
    n, n_mated = len(images.row), images.n_mated
    if n_mated in (0, n_all_pairs(n)):
        missing = "mated" if n_mated == 0 else "non-mated"
        raise FiqaRayError(f"there is no {missing} pair among all pairs of {n} images: both kinds are needed")
    counts = _Counts(np.zeros(N_KEYS, np.int32), np.empty(n_mated, np.int32), np.empty(n_mated, np.int32))
    starts = images.first_pair(np.arange(n))
    wanted = np.unique(np.concatenate([[0], *cuts.values()])).astype(np.int64)
    # the last image whose pairs begin at or before the cut
    cut_images = np.searchsorted(starts, wanted, side="right") - 1
    end = n  # images from here on are done
    for image in np.unique(cut_images)[::-1].tolist():
        _add_blocks(images, counts, image + 1, end)
        partners = image + 1 + np.argsort(images.row[image + 1 :], kind="stable")  # in the order of the list of pairs
        left = len(partners)  # of these, the ones from here on are done
        for cut in wanted[cut_images == image][::-1].tolist():
            n_gone = int(cut - starts[image])
            counts.add_some(images, image, partners[n_gone:left])
            left = n_gone
            yield _level(counts, cut, {cell: cells[cell] for cell, all_cuts in cuts.items() if cut in all_cuts})
        counts.add_some(images, image, partners[:left])
        end = image


def _add_blocks(images: _Images, counts: _Counts, start: int, end: int) -> None:
    """Count the pairs of the images start .. end with all that follow them, from the last block to the first."""
    while end > start:
        first = max(start, end - _BLOCK_IMAGES)
        counts.add(images, images.units[first:end] @ images.units[first:].T, first)
        end = first


def _level(counts: _Counts, cut: int, cells: Mapping[Cell, Convention]) -> _Level:
    level = _Level(cut, counts.n_mated, counts.n_nonmated, {}, {}, {}, counts)
    if not cells or counts.n_mated == 0 or counts.n_nonmated == 0:
        return level
    units = counts.units(max(fmr or 0 for _, fmr in cells))
    mated = similarity_of(np.sort(counts.mated_key[: counts.n_mated]))
    ones = np.ones(len(mated), np.int64)
    for cell, convention in cells.items():
        target = exact_fmr(cell[1] or 1e-3)
        if convention.count == "nearest":
            doubled = 2 * target.numerator * counts.n_nonmated
            threshold, n_false = threshold_nearest(*units, ones, ones, mated, 0, doubled, target.denominator, True)
        else:
            threshold, n_false = threshold_below(
                *units, 0, int(n_allowed(convention, float(target), np.array(counts.n_nonmated)))
            )
        level.threshold[cell], level.n_false_matches[cell] = float(threshold), int(n_false)
        level.n_false_nonmatches[cell] = int(np.searchsorted(mated, upper_wrong(convention, threshold), side="right"))
    return level


def similarity_of(key: NDArray[np.integer]) -> FloatArray:
    """Return the similarities that keys stand for."""
    return (np.asarray(key, np.float64) - SIMILARITY_STEPS) / SIMILARITY_STEPS


def _level_curve(levels: Sequence[_Level], cell: Cell, convention: Convention, n_tied: int) -> EDC:
    threshold = np.array([level.threshold.get(cell, np.nan) for level in levels])
    n_mated, n_nonmated = (np.array([getattr(x, name) for x in levels]) for name in ("n_mated", "n_nonmated"))
    n_errors = np.array([level.n_false_nonmatches.get(cell, 0) for level in levels])
    return EDC(
        convention=convention,
        fmr=cell[1],
        discard_fraction=np.arange(len(levels)) / len(levels),
        fnmr=np.where(np.isnan(threshold), np.nan, n_errors / np.maximum(n_mated, 1)),
        threshold=threshold,
        n_mated=n_mated,
        n_nonmated=n_nonmated,
        n_false_nonmatches=n_errors,
        n_false_matches=np.array([level.n_false_matches.get(cell, 0) for level in levels]),
        n_allowed=n_allowed(convention, cell[1] or 1e-3, n_nonmated),
        n_tied=n_tied,
    )


def _step_curve(
    images: _Images, quality: FloatArray, counts: _Counts, cell: Cell, convention: Convention, n_tied: int
) -> EDC:
    """Return a curve with one threshold and a level for each quality of a mated pair, and the closing point (1, 0)."""
    n, fmr = len(images.row), cell[1] or 1e-3
    allowed = int(n_allowed(convention, fmr, np.array(counts.n_nonmated)))
    threshold, n_above = threshold_below(*counts.units(fmr), 0, allowed)
    is_wrong = similarity_of(counts.mated_key) <= upper_wrong(convention, threshold)
    n_of_image = np.bincount(counts.mated_image, minlength=n)
    n_wrong = np.bincount(counts.mated_image[is_wrong], minlength=n)
    has_pair = np.flatnonzero(n_of_image)
    first = np.flatnonzero(np.append(True, np.diff(quality[has_pair]) != 0))  # of each distinct quality
    ends = np.append(first, len(has_pair))
    n_discarded = np.append(0, np.cumsum(n_of_image[has_pair]))[ends]
    n_errors = n_wrong.sum() - np.append(0, np.cumsum(n_wrong[has_pair]))[ends]
    n_mated = counts.n_mated - n_discarded
    return EDC(
        convention=convention,
        fmr=fmr,
        discard_fraction=n_discarded / counts.n_mated,
        fnmr=n_errors / np.maximum(n_mated, 1),
        threshold=np.full(n_mated.size, threshold),
        n_mated=n_mated,
        n_nonmated=np.full(n_mated.size, counts.n_nonmated),
        n_false_nonmatches=n_errors,
        n_false_matches=np.full(n_mated.size, n_above),
        n_allowed=np.full(n_mated.size, allowed),
        n_tied=n_tied,
    )


def _flat_curve(curve: EDC) -> EDC:
    """Return the curve of a quality that is equal everywhere: all pairs go together, FNMR stays what it is."""
    ends = {name: getattr(curve, name)[[0, -1]] for name in ("threshold", "n_mated", "n_nonmated", "n_allowed")}
    wrong = {name: getattr(curve, name)[[0, -1]] for name in ("n_false_nonmatches", "n_false_matches")}
    return replace(
        curve, discard_fraction=np.array([0.0, 1.0]), fnmr=np.array([curve.fnmr[0], 0.0]), n_tied=0, **ends, **wrong
    )


def _n_tied(quality: FloatArray) -> int:
    """Return the number of pairs whose quality another pair shares; `quality` of the images rises."""
    first = np.flatnonzero(np.append(True, np.diff(quality) != 0))
    n = len(quality)
    n_pairs = np.add.reduceat(n - 1 - np.arange(n), first)
    return int(n_pairs[n_pairs > 1].sum())
