"""Mated pairs in storage: how they are cut into parts, laid out, and read or made again.

A part holds the pairs of some neighbouring embedding parts: a file of clusters, and per repeat a file of mates and
similarities, 8 bytes per pair. A pair's image is not stored: each image opens ``n_pairs`` pairs, one behind the other. With
``pair.keep`` false only the clusters are stored; the pairs follow from them, the embeddings and the seed, and are made
again where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fiqa_ray import schemas
from fiqa_ray.config import PairSettings
from fiqa_ray.core.pairs import Pairs, mated_pairs
from fiqa_ray.lineage import Job
from fiqa_ray.storage import Dataset, Manifest, Part, table_bytes

MAX_PART_IMAGES = 262_144
N_PARTS = 64
PLAIN: dict[str, Any] = {
    "column_encoding": None,
    "compression": "NONE",
    "write_statistics": False,
    "data_page_size": 1 << 20,
}


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


def pair_shards(embeddings: Manifest) -> list[PairShard]:
    """Cuts a face set into about 64 shards, of no more than 262,144 images where embedding parts allow.

    Depends on the embeddings alone, so that any cluster continues what another began.
    """
    target = min(MAX_PART_IMAGES, -(-embeddings.n_rows // N_PARTS))
    shards: list[PairShard] = []
    pending: list[Part] = []
    first = n = 0
    for part in embeddings.parts:
        if pending and n + part.n_rows > target:
            shards.append(PairShard(len(shards), first, tuple(pending)))
            pending, first, n = [], first + n, 0
        pending.append(part)
        n += part.n_rows
    return [*shards, PairShard(len(shards), first, tuple(pending))]


@dataclass(frozen=True)
class StoredPairs:
    """A finished part of pairs and the shard it was made from."""

    shard: PairShard
    part: Part

    def n_pairs(self, repeat: int) -> int:
        """Pairs of one repeat."""
        return int(self.part.stats["n_pairs"][str(repeat)])


@dataclass(frozen=True)
class RepeatPairs:
    """One repeat of a part: (n_pairs,) image and mate positions in the part, int32, and similarities, float32."""

    repeat: int
    image: np.ndarray
    mate: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class PairReader:
    """Reads the parts of a pair dataset, or makes their pairs again where they were not kept."""

    pairs: Dataset
    embeddings: Dataset
    settings: PairSettings
    seed: int

    @staticmethod
    def of(job: Job) -> PairReader:
        """The job's pairs."""
        return PairReader(job.pairs(), job.embeddings("train"), job.settings.pair, job.settings.seed)

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
            table = self.pairs.read(stored.part, ["similarity"], schemas.repeat_suffix(r))
            yield r, table["similarity"].to_numpy()

    def read(self, stored: StoredPairs, repeats: Sequence[int]) -> Iterator[RepeatPairs]:
        """The repeats' pairs. Memory: 16 bytes per pair of one repeat; where pairs are not kept, of all repeats."""
        shard, recluster = stored.shard, self.settings.recluster
        if not self.settings.keep:
            fits = range(self.settings.n_repeats if recluster else 1)
            clusters = [self._clusters(stored.part, r)["cluster"].to_numpy() for r in fits]
            made = make_pairs(shard, self.embeddings, self.settings, self.seed, clusters)
            for r in repeats:
                yield RepeatPairs(r, made.image(r), made.mate(r), made.similarity(r))
            return
        image = np.empty(0, np.int32)
        for n, r in enumerate(repeats):
            table = self.pairs.read(stored.part, suffix=schemas.repeat_suffix(r))
            if n == 0 or recluster:
                n_pairs = self._clusters(stored.part, r if recluster else 0)["n_pairs"].to_numpy()
                image = np.repeat(np.arange(len(n_pairs), dtype=np.int32), n_pairs)
            mate = table["mate_row"].to_numpy() - np.int32(shard.first)
            yield RepeatPairs(r, image, mate, table["similarity"].to_numpy())

    def _clusters(self, part: Part, fit: int) -> pa.Table:
        return self.pairs.read(part, suffix=schemas.cluster_suffix(fit))


@dataclass(frozen=True)
class MadePairs:
    """The pairs of a shard as they are made, embedding part by embedding part.

    ``identity_row`` and ``has_embedding``: (n_images,). ``pieces``: per embedding part the positions (int32) of its images
    with an embedding, and their `Pairs` per repeat.
    """

    shard: PairShard
    identity_row: np.ndarray
    has_embedding: np.ndarray
    pieces: list[tuple[np.ndarray, list[Pairs]]]

    def image(self, repeat: int) -> np.ndarray:
        """(n_pairs,) int32 positions in the shard."""
        return np.concatenate([rows[pairs[repeat].image] for rows, pairs in self.pieces])

    def mate(self, repeat: int) -> np.ndarray:
        """(n_pairs,) int32 positions in the shard."""
        return np.concatenate([rows[pairs[repeat].mate] for rows, pairs in self.pieces])

    def similarity(self, repeat: int) -> np.ndarray:
        """(n_pairs,) float32."""
        return np.concatenate([pairs[repeat].similarity for _, pairs in self.pieces])

    def cluster(self, repeat: int) -> np.ndarray:
        """(n_images,) int32, -1 where there is no embedding."""
        cluster = np.full(self.shard.n_rows, -1, np.int32)
        for rows, pairs in self.pieces:
            cluster[rows] = pairs[repeat].cluster
        return cluster


def make_pairs(
    shard: PairShard, embeddings: Dataset, settings: PairSettings, seed: int, clusters: Sequence[np.ndarray] = ()
) -> MadePairs:
    """Makes the pairs of a shard. ``clusters``: what was found before, (n_images,) int32 per fit.

    Memory: 8 bytes per pair of all repeats, one embedding part and what `mated_pairs` takes for it.
    """
    pieces, identity_rows, has_embedding, at = [], [], [], 0
    for part in shard.embeddings:
        table = embeddings.read(part, ["identity_row", "embedding"])
        values, good = schemas.embedding_values(table)
        identity_row = table["identity_row"].to_numpy()
        own = identity_row[good].astype(np.int64)
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        rows = (at + good).astype(np.int32)
        pairs = mated_pairs(
            values,
            np.append(starts, len(own)),
            own[starts],
            n_clusters=settings.n_clusters,
            n_repeats=settings.n_repeats,
            seed=seed,
            recluster=settings.recluster,
            clustering=settings.clustering,
            clusters=[c[rows] for c in clusters],
        )
        pieces.append((rows, pairs))
        identity_rows.append(identity_row)
        has_embedding.append(np.isin(np.arange(len(table)), good, assume_unique=True))
        at += len(table)
    return MadePairs(shard, np.concatenate(identity_rows), np.concatenate(has_embedding), pieces)


def pair_files(made: MadePairs, settings: PairSettings) -> dict[str, pa.Buffer]:
    """The files of a part, by suffix. Memory: 8 bytes per pair of all repeats where they are kept."""
    files: dict[str, pa.Buffer] = {}
    first, n_images = made.shard.first, made.shard.n_rows
    for r in range(settings.n_repeats):
        if r == 0 or settings.recluster:
            columns = {
                "image_row": np.arange(first, first + n_images),
                "identity_row": made.identity_row,
                "cluster": made.cluster(r),
                "n_pairs": np.bincount(made.image(r), minlength=n_images).astype(np.int32),
            }
            files[schemas.cluster_suffix(r)] = table_bytes(pa.table(columns, schema=schemas.CLUSTERS))
        if settings.keep:
            mate = made.mate(r)
            mate += np.int32(first)
            table = pa.table({"mate_row": mate, "similarity": made.similarity(r)}, schema=schemas.PAIRS)
            files[schemas.repeat_suffix(r)] = table_bytes(table, **PLAIN)
    return files
