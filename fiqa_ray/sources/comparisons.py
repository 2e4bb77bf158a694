"""What a benchmark compares: images, or templates of several images; by a list of pairs, or all with all.

The evaluation sees units only: rows of what is compared, one embedding and one quality for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.config import BenchmarkSettings, PairListSettings
from fiqa_ray.core.all_pairs import n_all_pairs
from fiqa_ray.core.templates import Templates, subjects_of, template_embeddings, template_qualities
from fiqa_ray.core.verification import BoolArray, FloatArray, IntArray
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.ijb import TemplatePairs, read_ijb_pairs
from fiqa_ray.sources.keys import rows_of_keys
from fiqa_ray.sources.kinds import PROTOCOLS
from fiqa_ray.sources.known_sets import check_expected
from fiqa_ray.sources.protocols import VerificationPairs, pair_rows
from fiqa_ray.storage import storage_errors


@dataclass(frozen=True)
class Comparisons:
    """Pairs of a benchmark by rows of its units.

    Attributes:
        row_a: `(L,) int64` row of each pair's first unit; -1 where the source lacks it.
        row_b: `(L,) int64` row of the second.
        mated: `(L,) bool`.
        fold: `(L,) int64`; -1 where the list has none.
        group: `(L,)` str objects, the group of each pair as the list names it; None where it names none.
        templates: the images of each unit, where units are templates; None: units are images.
        detector_score: `(I,) float64` weight of each image in its template; None: all weigh the same.
        settings: how templates are made.
    """

    row_a: IntArray
    row_b: IntArray
    mated: BoolArray
    fold: IntArray
    templates: Templates | None
    detector_score: FloatArray | None
    settings: PairListSettings
    group: NDArray[np.object_] | None = None

    def names(self, image_id: pa.Array) -> pa.Array:
        """Return the name of each unit."""
        return image_id if self.templates is None else pa.array(self.templates.name).cast(pa.string())

    def qualities(self, score: FloatArray) -> FloatArray:
        """Return the quality of each unit from the `(I,)` scores of images."""
        if self.templates is None:
            return score
        return template_qualities(score, self.templates, self.settings.template_quality)

    def embeddings(self, values: np.ndarray, rows: IntArray, n_images: int) -> tuple[np.ndarray, IntArray]:
        """Return `(N, D)` embeddings of units and their `(N,)` rows, from those of images; units without one have no row."""
        if self.templates is None:
            return values, rows
        position = np.full(n_images, -1, np.int64)
        position[rows] = np.arange(len(rows))
        templates = template_embeddings(
            values,
            self.templates.renumbered(position),
            weight=None if self.detector_score is None else self.detector_score[rows],
            norm=self.settings.template_norm,
        )
        has_embedding = np.isfinite(templates[:, 0])
        return templates[has_embedding], np.flatnonzero(has_embedding)

    def subjects(self) -> IntArray:
        """Return the person of each unit, as the mated pairs tell."""
        known = np.flatnonzero(self.mated & (self.row_a >= 0) & (self.row_b >= 0))
        n = 0 if self.templates is None else len(self.templates)
        return subjects_of(n, self.row_a[known], self.row_b[known])


MAX_LISTED_PAIRS = 4_000_000
"""Up to so many pairs of `all_pairs` are listed: those of 2,800 images. Of larger sets so many are drawn."""


def n_listed_pairs(benchmark: BenchmarkSettings, n_images: int) -> int:
    """Return the number of pairs that are listed of a benchmark."""
    if benchmark.pairs.kind == "all_pairs":
        return min(n_all_pairs(n_images), MAX_LISTED_PAIRS)
    return len(read_pairs(benchmark.pairs).mated)


def list_all_pairs(benchmark: BenchmarkSettings, identity: pa.Array) -> Comparisons:
    """Return all pairs of the images of a set, or a sample of them; mated where the source names one person."""
    n = len(identity)
    person = pc.dictionary_encode(identity).indices.to_numpy(zero_copy_only=False)
    if n_all_pairs(n) <= MAX_LISTED_PAIRS:
        row_a, row_b = (side.astype(np.int64) for side in np.triu_indices(n, 1))
    else:
        rng = np.random.default_rng(0)
        row_a, row_b = rng.integers(n, size=(2, MAX_LISTED_PAIRS))
        row_b = (row_a + 1 + row_b % (n - 1)) % n
    is_mated = person[row_a] == person[row_b]
    return Comparisons(row_a, row_b, is_mated, np.full(len(row_a), -1, np.int64), None, None, benchmark.pairs)


def read_pairs(settings: PairListSettings) -> VerificationPairs | TemplatePairs:
    """Return the pairs of a benchmark as its list names them.

    Raises:
        FiqaRayError: The list is missing or faulty, or its counts are not the expected ones.
    """
    if settings.kind == "ijb":
        return _read_templates(settings.uri)
    protocol = PROTOCOLS[settings.kind]
    with storage_errors(settings.uri):
        pairs = protocol.read_pairs(settings.uri, **{name: getattr(settings, name) for name in protocol.options})
    if settings.expect is not None and isinstance(pairs, VerificationPairs):
        check_expected(settings.expect, pairs, settings.uri, are_images_merged=settings.kind == "bin")
    return pairs


@lru_cache(maxsize=1)
def _read_templates(uri: str) -> TemplatePairs:
    """Read a list of templates; a process reads it once."""
    return read_ijb_pairs(uri)


def match_pairs(benchmark: BenchmarkSettings, image_id: pa.Array) -> Comparisons:
    """Return the pairs of a benchmark by rows of its units.

    Args:
        benchmark: settings.
        image_id: names of its images.

    Raises:
        FiqaRayError: The list names an image or template that is not there, unless partial copies are allowed.
    """
    settings = benchmark.pairs
    pairs = read_pairs(settings)
    if isinstance(pairs, TemplatePairs):
        return _match_templates(benchmark, pairs, image_id)
    row_a, row_b = pair_rows(
        pairs,
        image_id,
        settings.key_rule,
        list_uri=settings.uri,
        source_uri=benchmark.source.uri,
        allow_partial=settings.allow_partial,
    )
    return Comparisons(row_a, row_b, pairs.mated, pairs.fold, None, None, settings, pairs.group)


def _match_templates(benchmark: BenchmarkSettings, pairs: TemplatePairs, image_id: pa.Array) -> Comparisons:
    """Match templates with the images that are there; a template without any is absent."""
    settings = benchmark.pairs
    row = rows_of_keys(pairs.image_id, image_id, settings.key_rule)
    is_there = row >= 0
    if not is_there.all() and not (settings.allow_partial and is_there.any()):
        raise FiqaRayError(
            f"{settings.uri}: {int((~is_there).sum()):,} images of the templates are not in {benchmark.source.uri}, such as "
            f"{pairs.image_id[int(np.argmin(is_there))]}; correct source.uri, or set pairs.allow_partial: true"
        )
    listed = Templates.of(pairs.template, pairs.medium)
    templates = Templates.of(pairs.template[is_there], pairs.medium[is_there], row[is_there])
    for names in (pairs.template_a, pairs.template_b):
        unknown = np.flatnonzero(listed.rows_of(names) < 0)
        if len(unknown):
            raise FiqaRayError(
                f"{settings.uri}: pair {unknown[0] + 1} names the template {names[unknown[0]]}, which has no image"
            )
    weight = None
    if settings.detector_weight:
        weight = np.ones(len(image_id))
        weight[row[is_there]] = pairs.detector_score[is_there]
    rows = templates.rows_of(pairs.template_a), templates.rows_of(pairs.template_b)
    return Comparisons(*rows, pairs.mated, np.full(len(pairs), -1, np.int64), templates, weight, settings)
