"""What the benchmarks share: embeddings in the shape of known face databases, and a watch over memory.

The embeddings come as arrays or as a job's inputs in Parquet. They are synthetic: an identity's centre, a few poses, and
noise whose strength differs from image to image, so that mated cosines spread from 0.1 to 0.9 as those of real faces do.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from fiqa_ray.config import Settings, make_settings
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Part
from fiqa_ray.job import Job

DIM = 512
PART_IMAGES = 4096


@dataclass(frozen=True)
class Shape:
    """A face database in numbers: images per identity are gamma distributed within limits."""

    n_identities: int
    mean_images: float
    shape: float
    least: int
    most: int

    def sizes(self, share: float, seed: int = 0) -> np.ndarray:
        """(n,) images of each of a share of the identities."""
        n = max(1, round(self.n_identities * share))
        drawn = np.random.default_rng(seed).gamma(self.shape, self.mean_images / self.shape, n)
        return np.clip(np.rint(drawn), self.least, self.most).astype(np.int64)

    @property
    def size_spread(self) -> float:
        """Of the cost model's `Scale`, before the limits: the second moment of the sizes over the square of their mean."""
        return 1 + 1 / self.shape


SHAPES = {
    "vggface2": Shape(9_131, 362.6, 6.0, 80, 843),
    "webface42m": Shape(2_059_906, 20.6, 2.0, 3, 400),
}


def make_identities(rows: range, sizes: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n_images, 512) float32 embeddings of some identities, by identity row; the same whoever makes them."""
    made = []
    for row in rows:
        n = int(sizes[row])
        rng = np.random.default_rng([seed, row])
        x = rng.standard_normal((n, DIM), np.float32)
        x *= rng.gamma(6.0, 0.11, (n, 1)).astype(np.float32)
        poses = 0.4 * rng.standard_normal((6, DIM), np.float32)
        x += poses[rng.integers(0, 6, n)]
        x += rng.standard_normal(DIM, np.float32)
        made.append(x)
    return np.concatenate(made) if made else np.empty((0, DIM), np.float32)


def write_inputs(job: Job, sizes: np.ndarray, n_workers: int) -> None:
    """Write what pack, embed and score would leave for identities of these sizes; of faces only their names."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    cuts, first = [], 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + PART_IMAGES, side="right")) - 1)
        cuts.append(range(first, last))
        first = last
    call = partial(_write_part, job, sizes, starts)
    with ProcessPoolExecutor(n_workers, get_context("spawn")) as pool:
        for _ in pool.map(call, range(len(cuts)), cuts, chunksize=8):
            pass
    for dataset in (job.faces("train"), job.embeddings("train"), *_scores(job)):
        dataset.write_plan({"stage": "given", "n_parts": len(cuts), "n_rows": int(starts[-1])})
        dataset.commit(len(cuts))


def _scores(job: Job) -> list:
    return [job.prior_scores("train", m) for m in job.settings.methods]


def _write_part(job: Job, sizes: np.ndarray, starts: np.ndarray, index: int, rows: range) -> Part:
    x = make_identities(rows, sizes)
    n = len(x)
    own = {
        "image_row": np.arange(starts[rows.start], starts[rows.stop]),
        "identity_row": np.repeat(np.arange(rows.start, rows.stop, dtype=np.int32), sizes[rows.start : rows.stop]),
        "status": ["ok"] * n,
        "error": pa.nulls(n, pa.string()),
    }
    stats = {"status": dict(Counter(own["status"]))}
    buffer = pa.py_buffer(np.ascontiguousarray(x))
    own["embedding"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * DIM), n, [None, buffer])
    identities = [f"n{k:06d}" for k in rows for _ in range(sizes[k])]
    own["image_id"] = [f"{name}/{row:07d}_01.jpg" for name, row in zip(identities, own["image_row"], strict=True)]
    names = pa.table({"image_row": own["image_row"], "image_id": own["image_id"], "identity": identities})
    job.faces("train").write_part(index, {".parquet": names}, n_rows=n, stats=stats)
    schema = schemas.embeddings(DIM)
    table = pa.table({name: own[name] for name in schema.names}, schema=schema)
    job.embeddings("train").write_part(index, {".parquet": table}, n_rows=n, stats=stats)
    for i, dataset in enumerate(_scores(job)):
        own["score"] = np.random.default_rng([i, index]).beta(5, 2, n)
        schema = schemas.QUALITY_SCORES
        table = pa.table({name: own[name] for name in schema.names}, schema=schema)
        dataset.write_part(index, {".parquet": table}, n_rows=n, stats=stats)
    return Part(index, n, {})


def label_settings(run_uri: str, n_methods: int, thetas: list[float], **changes: object) -> Settings:
    """Return settings of a job that only optimizes labels; its models are never loaded."""
    return make_settings(
        {
            "name": "benchmark",
            "run_uri": run_uri,
            "source": {"kind": "folder", "uri": "nowhere"},
            "recognizer": {"name": "none"},
            "methods": [{"name": f"prior{i}"} for i in range(n_methods)],
            "optimize": {"theta": thetas},
            **changes,
        }
    )


@dataclass
class MemoryWatch:
    """Peak memory in bytes, of this process and its descendants.

    ``own``: pages of their own and of shared memory, all processes together; ``resident``: the sum of their resident sets,
    which counts files and libraries once for each process that maps them; ``largest``: the largest one's own pages.
    """

    own: int = 0
    resident: int = 0
    largest: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def _look(self, every_s: float) -> None:
        import psutil  # late: whoever asks for no watch, such as gpu.py, needs the package alone

        while not self._stop.wait(every_s):
            me = psutil.Process()
            found = [_resident(p.pid) for p in [me, *me.children(recursive=True)]]
            own = [anonymous + shared for anonymous, _, shared in found]
            self.own = max(self.own, sum(own))
            self.resident = max(self.resident, sum(sum(f) for f in found))
            self.largest = max(self.largest, *own)

    def megabytes(self) -> dict[str, int]:
        """Return the peaks in MB."""
        return {name: getattr(self, name) // 10**6 for name in ("own", "resident", "largest")}


def _resident(pid: int) -> tuple[int, int, int]:
    """Anonymous, file and shared resident bytes of a process; zeros where it is gone. Linux only."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0, 0, 0
    kinds = ("RssAnon", "RssFile", "RssShmem")
    anonymous, file, shared = (1024 * int(lines.get(kind, "0 kB").split()[0]) for kind in kinds)
    return anonymous, file, shared


@contextmanager
def memory_watch(every_s: float = 1.0) -> Iterator[MemoryWatch]:
    """Watches this process and its descendants, by default once a second."""
    watch = MemoryWatch()
    thread = threading.Thread(target=watch._look, args=(every_s,), daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch._stop.set()
        thread.join()
