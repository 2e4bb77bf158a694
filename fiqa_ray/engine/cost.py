"""What a step will cost: each stage estimates its steps, and `fiqa-ray plan` adds them up.

A step's work is shared out by shards, so its time is that of the busiest worker; steps follow one another. On a cluster each
worker also waits for its share of the bytes. benchmarks/cost_model.py checks the estimates against runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fiqa_ray.datasets.dataset import Dataset

PROCESS_BYTES = 400e6
"""Memory of a worker before its first shard: Python, torch, Arrow, numba."""
RECORD_BYTES = 4000
"""What a shard sends through Ray and its object store: its part's record. Data go between tasks by storage alone."""
START_S = 5.0
"""Time before a worker's first shard: its imports, and the loading of compiled code."""
CONTENTION = 1.25
"""How much slower a core works when the others, with whom it shares memory and cache, work too (benchmarks/full_size.py)."""
FACE_BYTES = 20_000
"""A stored face, rounded up: a packed crop of a photograph takes 15 kB on average, a 112x112 source its own file."""
FACE_MEMORY = 30_000
"""Memory of a worker per face of the part it has read: the encoded face, its row, and copies on the way."""


@dataclass(frozen=True)
class Scale:
    """The size of label optimization.

    Attributes:
        n_images: Images.
        n_identities: Identities.
        dim: Dimensions of an embedding.
        n_clusters: C.
        n_repeats: R.
        n_methods: FIQA methods, each of which gives one prior.
        n_thetas: Label sets of each method.
        engine: Ranking engine.
        n_ranges: Key ranges per repeat of the engine `sort`.
        keep: Whether pairs are stored.
        rows_per_part: Images of an embedding part.
        size_spread: Mean size of an image's identity, averaged over images, against the mean over identities: 1 where all
            are of one size, 1.2 in VGGFace2's shape. The work per image grows with the size of its identity.
    """

    n_images: int
    n_identities: int
    dim: int = 512
    n_clusters: int = 20
    n_repeats: int = 10
    n_methods: int = 1
    n_thetas: int = 1
    engine: Literal["counting", "sort"] = "counting"
    n_ranges: int = 8
    keep: bool = True
    rows_per_part: int = 4096
    size_spread: float = 1.2

    @property
    def mean_images(self) -> float:
        """Return the images per identity."""
        return self.n_images / max(self.n_identities, 1)

    @property
    def n_pairs(self) -> float:
        """Return the pairs of a repeat, as if all identities were of the mean size."""
        return self.n_images * max(0.0, min(self.n_clusters, self.mean_images) - 1)

    @property
    def pairs_per_image(self) -> float:
        """Return the pairs of a repeat that an image opens."""
        return self.n_pairs / max(self.n_images, 1)

    @property
    def embedding_bytes(self) -> float:
        """Return the bytes of all embeddings."""
        return self.n_images * (4.0 * self.dim + 8)


@dataclass(frozen=True)
class Units:
    """Unit costs on one core: seconds per image, pair or byte, as each name ends.

    `fiqa_ray.tools.unit_costs.measure_units` measures them on this machine.
    """

    pack_image: float
    pair_image: float
    count_pair: float
    sort_pair: float
    merge_pair: float
    sum_pair: float
    sum_pair_method: float
    index_image: float
    label_image: float
    head_image: float
    read_byte: float
    write_byte: float

    def storage(self, read: float, written: float) -> float:
        """Return the seconds that reading and writing so many bytes takes a core."""
        return read * self.read_byte + written * self.write_byte


@dataclass(frozen=True)
class Workload:
    """What stages estimate from.

    Attributes:
        scale: Size of label optimization.
        units: Unit costs of numerics.
        n_images: Images of each face set.
        embed_s: Seconds per image of each FR model on one core, by its label.
        score_s: Seconds per image of each method that runs a model.
    """

    scale: Scale
    units: Units
    n_images: Mapping[str, int]
    embed_s: Mapping[str, float]
    score_s: Mapping[str, float]

    @property
    def part_rows(self) -> int:
        """Return the images of a part of faces."""
        return min(self.scale.rows_per_part, max(self.n_images.values()))

    def n_parts(self, face_set: str) -> int:
        """Return the parts of a face set."""
        return math.ceil(self.n_images[face_set] / self.scale.rows_per_part)


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one step.

    Attributes:
        stage: Name of the stage.
        what: What the step makes.
        n_rows: Rows of its dataset.
        n_shards: Shards.
        work_s: Seconds of one core.
        memory_bytes: Memory of a worker beside `PROCESS_BYTES`.
        read_bytes: Bytes read from storage by all shards.
        written_bytes: Bytes written to storage.
        start_s: Seconds before the first shard.
        datasets: The datasets of a job that the step makes, where it is a job's.
    """

    stage: str
    what: str
    n_rows: int
    n_shards: int
    work_s: float
    memory_bytes: float
    read_bytes: float
    written_bytes: float
    start_s: float = 0.0
    datasets: tuple[Dataset, ...] = ()

    def wall_s(self, n_workers: int, bandwidth: float | None = None) -> float:
        """Return the seconds of the clock on so many workers.

        Args:
            n_workers: Workers, one core each.
            bandwidth: Bytes/s between each worker and storage; None where storage is a local disk.
        """
        share = math.ceil(self.n_shards / n_workers) / max(self.n_shards, 1)  # of the busiest worker
        slowdown = CONTENTION if n_workers > 1 else 1.0
        wait = (self.read_bytes + self.written_bytes) * share / bandwidth if bandwidth else 0.0
        return self.start_s + slowdown * self.work_s * share + wait
