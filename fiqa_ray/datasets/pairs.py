"""Mated pairs in storage: how they are cut into parts, laid out, and read or made again.

A part holds the pairs of some neighbouring embedding parts: a file of clusters, and per repeat a file of similarities, 4
bytes per pair. Images and mates are not stored: the pairs that an image opens follow one another, and drawing its mates
again from clusters and seed takes less time than reading them. With `pair.keep: false` only the clusters are stored, and the
similarities are computed again from the embeddings wherever they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from fiqa_ray.config import PairSettings
from fiqa_ray.core.pairs import Pairs, mated_pairs, redraw_mates
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, FileContent, Manifest, Part
from fiqa_ray.datasets.parquet import plain_bytes, table_bytes

MIN_PART_IMAGES, USUAL_PART_IMAGES, MAX_PART_IMAGES = 8_192, 32_768, 262_144
N_PARTS, MAX_PARTS = 32, 2_048


@dataclass(frozen=True)
class PairShard:
    """The embedding parts whose pairs make one part of pairs; `first` is their first image row."""

    index: int
    first: int
    embeddings: tuple[Part, ...]

    @property
    def n_rows(self) -> int:
        """Return the number of images."""
        return sum(p.n_rows for p in self.embeddings)


def part_images(n_images: int) -> int:
    """Return how many images a part of pairs should have.

    A set has 32 parts, unless they would be smaller than 8,192 images or larger than 32,768: smaller ones cost more time in
    all (of 830,879 images, parts of 8,192 instead of 26,000 took 1.4 times as long), larger ones more memory. Above 67
    million images it has 2,048 parts.
    """
    n_for_parts = min(-(-n_images // N_PARTS), USUAL_PART_IMAGES)
    return min(MAX_PART_IMAGES, max(MIN_PART_IMAGES, n_for_parts, -(-n_images // MAX_PARTS)))


def pair_shards(embeddings: Manifest) -> list[PairShard]:
    """Cut a face set into shards of `part_images` images, where embedding parts allow.

    So 1,000 cores have work at WebFace42M's size. Labels do not depend on the cut (raise `DRAWS_VERSION` with it: stored
    parts have these sizes), and the cut depends on the embeddings alone, so that any cluster continues what another began.
    """
    sizes = [part.n_rows for part in embeddings.parts]
    runs = neighbours(sizes, part_images(embeddings.n_rows))
    firsts = np.cumsum([0, *(sum(sizes[run]) for run in runs)]).tolist()
    return [PairShard(i, firsts[i], tuple(embeddings.parts[run])) for i, run in enumerate(runs)]


def pair_part_sizes(n_images: int, rows_per_part: int) -> tuple[int, int]:
    """Return the parts of pairs, and the images of the largest, of embedding parts of `rows_per_part` images."""
    whole, rest = divmod(n_images, rows_per_part)
    sizes = [rows_per_part] * whole + [rest] * (rest > 0)
    runs = neighbours(sizes, part_images(n_images))
    return len(runs), max(sum(sizes[run]) for run in runs)


def neighbours(sizes: Sequence[int], limit: int) -> list[slice]:
    """Cut neighbouring items into runs whose sizes add up to at most `limit`, or of one larger item; at least one run."""
    runs, first, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > limit:
            runs.append(slice(first, i))
            first, total = i, 0
        total += size
    return [*runs, slice(first, len(sizes))]


@dataclass(frozen=True)
class StoredPairs:
    """A finished part of pairs and the shard it was made from."""

    shard: PairShard
    part: Part

    def n_pairs(self, repeat: int) -> int:
        """Return the number of pairs of one repeat."""
        return int(self.part.stats["n_pairs"][str(repeat)])


@dataclass(frozen=True)
class PairGroup:
    """What one task takes: neighbouring parts of pairs, and some repeats of them."""

    index: int
    repeats: tuple[int, ...]
    stored: tuple[StoredPairs, ...]


def pair_groups(stored: list[StoredPairs], n_repeats: int, keep: bool, max_pairs: int) -> list[PairGroup]:
    """Cut parts of pairs into groups of up to `max_pairs` per repeat. The cut depends on the pairs alone.

    A group holds one repeat. Where pairs are not stored it holds all repeats, because a part's pairs are made all at once.
    """
    groups = neighbours([s.n_pairs(0) for s in stored], max_pairs)
    repeats = [(r,) for r in range(n_repeats)] if keep else [tuple(range(n_repeats))]
    return [PairGroup(i, r, tuple(stored[g])) for i, (r, g) in enumerate((r, g) for r in repeats for g in groups)]


@dataclass(frozen=True)
class PairReader:
    """Reads the pairs of a dataset, or makes them again where they are not stored."""

    pairs: Dataset
    embeddings: Dataset
    settings: PairSettings
    seed: int

    @property
    def needs_gpu(self) -> bool:
        """Return whether `read` makes the pairs on a GPU."""
        return self.settings.device == "cuda" and not self.settings.keep

    def stored(self) -> list[StoredPairs]:
        """Return all parts; raise `IncompleteError` where the stage that makes them has not finished."""
        parts = self.pairs.require().parts
        return [StoredPairs(s, p) for s, p in zip(pair_shards(self.embeddings.require()), parts, strict=True)]

    def similarities(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield repeats and their `(L,) float32` similarities. Memory: as `read`."""
        if not self.settings.keep:
            yield from ((p.repeat, p.similarity) for p in self.read(stored, repeats))
            return
        for r in repeats:
            yield r, self._similarity(stored.part, r)

    def read(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[Pairs]:
        """Yield the pairs of some repeats, with positions in the part; the cluster is -1 where there is no embedding.

        Memory: 12 bytes per pair of one repeat; where pairs are not stored, of all repeats.
        """
        if not self.settings.keep:
            yield from self._make_again(stored, repeats)
            return
        clusters: _Clusters | None = None
        for r in repeats:
            if clusters is None or self.settings.recluster:
                clusters = self._clusters(stored.part, r)
            similarity = self._similarity(stored.part, r)
            yield Pairs(r, clusters.cluster, clusters.n_opened, clusters.mates(r, self.seed), similarity)

    def _make_again(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[Pairs]:
        fits = range(self.settings.n_repeats if self.settings.recluster else 1)
        clusters = [self._clusters(stored.part, r).cluster for r in fits]
        pieces = list(make_pairs(stored.shard, self.embeddings, self.settings, self.seed, clusters))
        for r in repeats:
            n_opened = np.zeros(stored.shard.n_rows, np.int32)
            for piece in pieces:
                n_opened[piece.rows] = piece.pairs[r].n_opened
            mate = np.concatenate([p.rows[p.pairs[r].mate] for p in pieces])
            similarity = np.concatenate([p.pairs[r].similarity for p in pieces])
            yield Pairs(r, clusters[r if self.settings.recluster else 0], n_opened, mate, similarity)

    def _similarity(self, part: Part, repeat: int) -> np.ndarray:
        return np.asarray(self.pairs.read(part, suffix=schemas.repeat_suffix(repeat))["similarity"])

    def _clusters(self, part: Part, repeat: int) -> _Clusters:
        suffix = schemas.cluster_suffix(repeat if self.settings.recluster else 0)
        table = self.pairs.read(part, ["identity_row", "cluster", "n_opened"], suffix)
        return _Clusters(*(table[name].to_numpy() for name in ("identity_row", "cluster", "n_opened")))


@dataclass(frozen=True)
class _Clusters:
    """The clusters of a part: `(I,) int32` columns."""

    identity_row: np.ndarray
    cluster: np.ndarray
    n_opened: np.ndarray

    @cached_property
    def _drawn_from(self) -> tuple[np.ndarray, ...]:
        """Return the rows with an embedding, and what `redraw_mates` takes for them."""
        rows = np.flatnonzero(self.cluster >= 0).astype(np.int32)
        return rows, self.cluster[rows], *_identities(self.identity_row[rows])

    def mates(self, repeat: int, seed: int) -> np.ndarray:
        """Return the positions `(L,) int32` of one repeat's mates in the part."""
        rows, cluster, bounds, identities = self._drawn_from
        mate = redraw_mates(cluster, bounds, identities, [repeat], seed=seed)[1][0]
        return mate if len(rows) == len(self.cluster) else np.asarray(rows[mate])


def _identities(identity_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds `(K + 1,)` and rows `(K,)` of the identities of neighbouring images."""
    starts = np.flatnonzero(np.diff(identity_row, prepend=-1))
    return np.append(starts, len(identity_row)), identity_row[starts].astype(np.int64)


@dataclass(frozen=True)
class PairPiece:
    """The pairs of one embedding part.

    Attributes:
        identity_row: `(I,)` identities of all images.
        rows: `int32` positions in the shard of the images with an embedding; `pairs` refers to those.
        pairs: One per repeat.
    """

    identity_row: np.ndarray
    rows: np.ndarray
    pairs: list[Pairs]


def make_pairs(
    shard: PairShard, embeddings: Dataset, settings: PairSettings, seed: int, clusters: Sequence[np.ndarray] = ()
) -> Iterator[PairPiece]:
    """Make the pairs of a shard, one embedding part at a time.

    `clusters` are stored ones, `(I,) int32` per clustering; nothing is clustered then.

    Memory: one embedding part and what `mated_pairs` takes for it.
    """
    first = 0  # of the part, in the shard
    for part in shard.embeddings:
        table = embeddings.read(part, ["identity_row", "embedding"])
        values, rows_in_part = columns.embedding_values(table)
        identity_row = table["identity_row"].to_numpy()
        bounds, identities = _identities(identity_row[rows_in_part])
        rows = (first + rows_in_part).astype(np.int32)
        pairs = mated_pairs(
            values,
            bounds,
            identities,
            n_clusters=settings.n_clusters,
            n_repeats=settings.n_repeats,
            seed=seed,
            recluster=settings.recluster,
            clustering=settings.clustering,
            init=settings.init,
            clusters=[c[rows] for c in clusters],
            device=settings.device,
        )
        yield PairPiece(identity_row, rows, pairs)
        first += len(table)


def pair_files(
    shard: PairShard, pieces: Iterable[PairPiece], settings: PairSettings
) -> tuple[dict[str, FileContent], dict[str, Any]]:
    """Return the files of a part by suffix, or the functions that make them, and the part's counts.

    Memory: 4 bytes per pair of all repeats where they are stored, 4 more for those of the repeat that is made into a file.
    """
    fits = range(settings.n_repeats if settings.recluster else 1)
    image_rows = np.arange(shard.first, shard.first + shard.n_rows)
    identity_row = np.empty(shard.n_rows, np.int32)
    cluster = np.full((len(fits), shard.n_rows), -1, np.int32)
    n_opened = np.zeros_like(cluster)
    similarity: list[list[np.ndarray]] = [[] for _ in range(settings.n_repeats)]
    n_pairs = [0] * settings.n_repeats
    first = n_without = 0
    for piece in pieces:
        n = len(piece.identity_row)
        identity_row[first : first + n] = piece.identity_row
        first += n
        n_without += n - len(piece.rows)
        for fit in fits:
            cluster[fit, piece.rows] = piece.pairs[fit].cluster
            n_opened[fit, piece.rows] = piece.pairs[fit].n_opened
        for r, pairs in enumerate(piece.pairs):
            n_pairs[r] += len(pairs.similarity)
            if settings.keep:
                similarity[r].append(pairs.similarity)
    files: dict[str, FileContent] = {}
    for fit in fits:
        columns = {
            "image_row": image_rows,
            "identity_row": identity_row,
            "cluster": cluster[fit],
            "n_opened": n_opened[fit],
        }
        files[schemas.cluster_suffix(fit)] = table_bytes(pa.table(columns, schema=schemas.CLUSTERS))
    for r in range(settings.n_repeats if settings.keep else 0):
        files[schemas.repeat_suffix(r)] = partial(_similarity_file, similarity[r])
    sizes = np.unique(identity_row[cluster[0] >= 0], return_counts=True)[1]  # (K,) images with an embedding
    counts = {
        "n_pairs": {str(r): n for r, n in enumerate(n_pairs)},
        "n_identities": len(sizes),
        "n_identities_of_one_image": int((sizes == 1).sum()),
        "n_identities_below_n_clusters": int((sizes < settings.n_clusters).sum()),
        "n_images_without_embedding": n_without,
    }
    return files, counts


def _similarity_file(similarity: list[np.ndarray]) -> pa.Buffer:
    return plain_bytes(pa.table([pa.chunked_array(similarity, pa.float32())], schema=schemas.PAIRS))
