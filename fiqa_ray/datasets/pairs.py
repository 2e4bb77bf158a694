"""Mated pairs in storage: how they are cut into parts, laid out, and read or made again.

A part holds the pairs of some neighbouring embedding parts: a file of clusters, and per repeat a file of similarities, 4
bytes per pair. Images and mates are not stored: each image opens ``n_pairs`` pairs, one behind the other, and its mates are
drawn again from clusters and seed, which takes less time than reading them. With ``pair.keep`` false only the clusters are
stored; the similarities too follow, from the embeddings, and are made again where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa

from fiqa_ray.config import PairSettings
from fiqa_ray.core.pairs import Pairs, mated_pairs, redraw_mates
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, FileContent, Manifest, Part
from fiqa_ray.datasets.parquet import plain_bytes, table_bytes

MIN_PART_IMAGES, MAX_PART_IMAGES = 32_768, 262_144
N_PARTS = 64


@dataclass(frozen=True)
class PairShard:
    """The embedding parts whose pairs make one part; ``first``: their first image row."""

    index: int
    first: int
    embeddings: tuple[Part, ...]

    @property
    def n_rows(self) -> int:
        """Images."""
        return sum(p.n_rows for p in self.embeddings)


def part_images(n_images: int) -> int:
    """Images that a part of pairs should have."""
    return min(MAX_PART_IMAGES, max(MIN_PART_IMAGES, -(-n_images // N_PARTS)))


def pair_shards(embeddings: Manifest) -> list[PairShard]:
    """Cut a face set into about 64 shards, of 32,768 to 262,144 images where embedding parts allow.

    In smaller ones the fixed costs of a shard, and of its look-ups in tables of all similarities, would show. Depends on the
    embeddings alone, so that any cluster continues what another began.
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
        """Pairs of one repeat."""
        return int(self.part.stats["n_pairs"][str(repeat)])


@dataclass(frozen=True)
class PairGroup:
    """Neighbouring parts of pairs, and the repeats of them, that one task takes."""

    index: int
    repeats: tuple[int, ...]
    stored: tuple[StoredPairs, ...]


def pair_groups(stored: list[StoredPairs], n_repeats: int, keep: bool, max_pairs: int) -> list[PairGroup]:
    """Cut parts of pairs into groups of up to `max_pairs` per repeat. Depends on the pairs alone.

    A group holds one repeat; where pairs are not kept, and each part's must be made again, it holds all repeats.
    """
    groups = neighbours([s.n_pairs(0) for s in stored], max_pairs)
    repeats = [(r,) for r in range(n_repeats)] if keep else [tuple(range(n_repeats))]
    return [PairGroup(i, r, tuple(stored[g])) for i, (r, g) in enumerate((r, g) for r in repeats for g in groups)]


@dataclass(frozen=True)
class PairReader:
    """Reads the parts of a pair dataset, or makes their pairs again where they were not kept."""

    pairs: Dataset
    embeddings: Dataset
    settings: PairSettings
    seed: int

    @property
    def needs_gpu(self) -> bool:
        """Return whether `read` makes the pairs on a GPU."""
        return self.settings.device == "cuda" and not self.settings.keep

    def stored(self) -> list[StoredPairs]:
        """All parts; `IncompleteError` where the stage that makes them has not finished."""
        parts = self.pairs.require().parts
        return [StoredPairs(s, p) for s, p in zip(pair_shards(self.embeddings.require()), parts, strict=True)]

    def similarities(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Each repeat's (n_pairs,) float32 similarities. Memory: as `read`."""
        if not self.settings.keep:
            yield from ((p.repeat, p.similarity) for p in self.read(stored, repeats))
            return
        for r in repeats:
            yield r, self._similarity(stored.part, r)

    def read(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[Pairs]:
        """The repeats' pairs; positions in the part, cluster -1 where there is no embedding.

        Memory: 12 bytes per pair of one repeat; where pairs are not kept, 12 of all repeats.
        """
        if not self.settings.keep:
            yield from self._made_again(stored, repeats)
            return
        drawn: _Clusters | None = None
        for r in repeats:
            if drawn is None or self.settings.recluster:
                drawn = self._clusters(stored.part, r)
            similarity = self._similarity(stored.part, r)
            yield Pairs(r, drawn.cluster, drawn.n_pairs, drawn.mates(r, self.seed), similarity)

    def _made_again(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[Pairs]:
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
        return self.pairs.read(part, suffix=schemas.repeat_suffix(repeat))["similarity"].to_numpy()

    def _clusters(self, part: Part, repeat: int) -> _Clusters:
        suffix = schemas.cluster_suffix(repeat if self.settings.recluster else 0)
        table = self.pairs.read(part, ["identity_row", "cluster", "n_pairs"], suffix)
        return _Clusters(*(table[name].to_numpy() for name in ("identity_row", "cluster", "n_pairs")))


@dataclass(frozen=True)
class _Clusters:
    """A part's table of clusters: (n_images,) int32 each."""

    identity_row: np.ndarray
    cluster: np.ndarray
    n_pairs: np.ndarray

    @cached_property
    def _drawn_from(self) -> tuple[np.ndarray, ...]:
        """Rows with an embedding, and what `redraw_mates` takes for them."""
        rows = np.flatnonzero(self.cluster >= 0).astype(np.int32)
        return rows, self.cluster[rows], *_identities(self.identity_row[rows])

    def mates(self, repeat: int, seed: int) -> np.ndarray:
        """(n_pairs,) int32 positions of one repeat's mates in the part."""
        rows, cluster, starts, own = self._drawn_from
        mate = redraw_mates(cluster, starts, own, [repeat], seed=seed)[1][0]
        return mate if len(rows) == len(self.cluster) else rows[mate]


def _identities(identity_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (n_identities + 1,) and rows (n_identities,) of identities that lie one behind the other."""
    starts = np.flatnonzero(np.diff(identity_row, prepend=-1))
    return np.append(starts, len(identity_row)), identity_row[starts].astype(np.int64)


@dataclass(frozen=True)
class PairPiece:
    """The pairs of one embedding part.

    ``identity_row`` and ``has_embedding``: (n_images,). ``rows``: int32, the places in the shard of the images with an
    embedding, to which the positions in ``pairs``, one per repeat, refer.
    """

    identity_row: np.ndarray
    has_embedding: np.ndarray
    rows: np.ndarray
    pairs: list[Pairs]


def make_pairs(
    shard: PairShard, embeddings: Dataset, settings: PairSettings, seed: int, clusters: Sequence[np.ndarray] = ()
) -> Iterator[PairPiece]:
    """Make the pairs of a shard, one embedding part at a time.

    `clusters` are stored ones, `(I,) int32` per clustering; nothing is clustered then.

    Memory: one embedding part and what `mated_pairs` takes for it.
    """
    at = 0
    for part in shard.embeddings:
        table = embeddings.read(part, ["identity_row", "embedding"])
        values, good = columns.embedding_values(table)
        identity_row = table["identity_row"].to_numpy()
        bounds, own = _identities(identity_row[good])
        rows = (at + good).astype(np.int32)
        pairs = mated_pairs(
            values,
            bounds,
            own,
            n_clusters=settings.n_clusters,
            n_repeats=settings.n_repeats,
            seed=seed,
            recluster=settings.recluster,
            clustering=settings.clustering,
            clusters=[c[rows] for c in clusters],
            device=settings.device,
        )
        has_embedding = np.zeros(len(table), bool)
        has_embedding[good] = True
        yield PairPiece(identity_row, has_embedding, rows, pairs)
        at += len(table)


def pair_files(
    shard: PairShard, pieces: Iterable[PairPiece], settings: PairSettings
) -> tuple[dict[str, FileContent], PairCounts]:
    """The files of a part, by suffix, or what makes them, and what was counted on the way.

    Memory: 4 bytes per pair of all repeats where they are kept, 4 more for those of the repeat that is made into a file.
    """
    fits = range(settings.n_repeats if settings.recluster else 1)
    image_rows = np.arange(shard.first, shard.first + shard.n_rows)
    identity_row = np.empty(shard.n_rows, np.int32)
    cluster = np.full((len(fits), shard.n_rows), -1, np.int32)
    n_opened = np.zeros_like(cluster)
    similarity: list[list[np.ndarray]] = [[] for _ in range(settings.n_repeats)]
    n_pairs = [0] * settings.n_repeats
    at = n_without = 0
    for piece in pieces:
        identity_row[at : at + len(piece.identity_row)] = piece.identity_row
        at += len(piece.identity_row)
        n_without += int((~piece.has_embedding).sum())
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
            "n_pairs": n_opened[fit],
        }
        files[schemas.cluster_suffix(fit)] = table_bytes(pa.table(columns, schema=schemas.CLUSTERS))
    for r in range(settings.n_repeats if settings.keep else 0):
        files[schemas.repeat_suffix(r)] = partial(_similarity_file, similarity[r])
    sizes = np.unique(identity_row[cluster[0] >= 0], return_counts=True)[1]
    return files, PairCounts(n_pairs, sizes, n_without)


def _similarity_file(similarity: list[np.ndarray]) -> pa.Buffer:
    return plain_bytes(pa.table([pa.chunked_array(similarity, pa.float32())], schema=schemas.PAIRS))


@dataclass(frozen=True)
class PairCounts:
    """``n_pairs`` per repeat; ``sizes`` (n_identities,): images with an embedding; how many images have none."""

    n_pairs: list[int]
    sizes: np.ndarray
    n_without: int
