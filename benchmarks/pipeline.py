"""Faces per second of embed on a pretended device, against its slowest operation alone.

python benchmarks/pipeline.py [--faces-per-s 2000 5000 20000] [--seconds 20] [--engines local ray] [--json FILE]

The model only sleeps, as a device of so many faces per second would, and returns embeddings of 512 numbers. In each round
all operations are timed alone, on the same parts, with the threads that they have in the pipeline: reading parts, decoding,
the model on decoded batches, writing parts. Then embed runs whole, in one process and with one worker on Ray; there the time
from the end of the first part on counts, so that the start does not. Medians of three rounds count. `before` is what the
version did, on 2 cores, that read, computed and wrote one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fiqa_ray.config import make_settings
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine.cores import cores
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.mapper import Mapper
from fiqa_ray.engine.ray import RayMapper, ray_session
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.engine.step import PipelinedWorker, Step
from fiqa_ray.packed_faces import pack_face
from fiqa_ray.stages.infer_parts import model_worker, write_part
from fiqa_ray.synthetic.dataset import HELDOUT_PART, aligned_faces

BEFORE = {2000: 851, 5000: 1149, 20000: 1224}
BATCH, DIM, PART_ROWS = 256, 512, 4096
N_ROUNDS = 3


class PretendedDevice:
    """A model that sleeps as long as a device of so many faces per second would compute."""

    def __init__(self, faces_per_s: float) -> None:
        self.faces_per_s = faces_per_s

    def __call__(self, faces: torch.Tensor, _: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Return one embedding per face."""
        time.sleep(len(faces) / self.faces_per_s)
        return [np.ones((len(faces), DIM), np.float32)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces-per-s", type=int, nargs="+", default=[2000, 5000, 20000])
    parser.add_argument("--seconds", type=float, default=20.0, help="that the device alone computes in a run")
    parser.add_argument("--engines", nargs="+", default=["local", "ray"], choices=("local", "ray"))
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    encoded = [pack_face(f) for k in range(32) for f in aligned_faces((7, HELDOUT_PART, k, 4))]
    rows = []
    for faces_per_s in a.faces_per_s:
        with tempfile.TemporaryDirectory() as root:
            faces = write_faces(root, encoded, max(4, round(a.seconds * faces_per_s / PART_ROWS)))
            measured: dict[str, list[float]] = {}
            for round_number in range(N_ROUNDS):
                alone = operations_alone(faces, root, faces_per_s)
                for engine in a.engines:
                    run_uri = f"{root}/{engine}-{round_number}"
                    measured.setdefault(engine, []).append(whole_rate(faces, run_uri, faces_per_s, engine))
                for name, rate in alone.items():
                    measured.setdefault(f"{name} alone", []).append(rate)
        row: dict[str, Any] = {"device_faces_per_s": faces_per_s, "cores": cores(), "before": BEFORE.get(faces_per_s)}
        row |= {name: round(statistics.median(rates)) for name, rates in measured.items()}
        slowest = min(rate for name, rate in row.items() if name.endswith(" alone"))
        row |= {f"{engine}_ratio": round(row[engine] / slowest, 3) for engine in a.engines}
        rows.append(row)
        print(json.dumps(row), flush=True)
    if a.json:
        a.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def write_faces(root: str, encoded: list[bytes], n_parts: int, part_rows: int = PART_ROWS) -> Dataset:
    """Write parts of packed faces, the given ones over and over."""
    dataset = Dataset(f"{root}/faces/v=0", "faces")
    n_rows = n_parts * part_rows
    dataset.write_plan({"stage": "pack", "n_parts": n_parts, "n_rows": n_rows})
    for i in range(n_parts):
        rows = np.arange(i * part_rows, (i + 1) * part_rows)
        table = pa.table(
            {
                "image_row": rows,
                "identity_row": (rows // 100).astype(np.int32),
                "image_id": [f"{r:07d}" for r in rows],
                "identity": [f"{r // 100:05d}" for r in rows],
                "face": [encoded[r % len(encoded)] for r in rows],
                "status": ["ok"] * part_rows,
                "error": pa.nulls(part_rows, pa.string()),
            },
            schema=schemas.FACES,
        )
        compression = {"face": "NONE"} | {c: "zstd" for c in schemas.FACES.names if c != "face"}
        dataset.write_part(
            i, {".parquet": table}, n_rows=part_rows, stats={"status": {"ok": part_rows}}, compression=compression
        )
    dataset.commit(n_parts)
    return dataset


def make_worker(dataset: Dataset, faces: Dataset, faces_per_s: float) -> PipelinedWorker:
    """Return the worker that embed has, with the pretended device as its model."""
    return model_worker([dataset], faces, PretendedDevice(faces_per_s), "embedding", BATCH)


def operations_alone(faces: Dataset, root: str, faces_per_s: float) -> dict[str, float]:
    """Return faces per second of each operation alone, over a few parts."""
    parts = faces.require().parts[:4]
    n = sum(part.n_rows for part in parts)
    columns = ["image_row", "identity_row", "face", "status", "error"]
    rates, started = {}, time.perf_counter()
    tables = [faces.read(part, columns) for part in parts]
    rates["read"] = n / (time.perf_counter() - started)
    worker = make_worker(Dataset(f"{root}/alone/v={time.monotonic()}", "embeddings"), faces, faces_per_s)
    loaded = [worker.read(part) for part in parts]
    with ThreadPoolExecutor(1) as watcher:  # decoding needs somebody who takes the batches
        started = time.perf_counter()
        watcher.submit(lambda: [None for part in loaded for _ in part.batches]).result()
        rates["decode"] = n / (time.perf_counter() - started)
    device, batch = PretendedDevice(faces_per_s), torch.zeros(BATCH, 3, 112, 112, dtype=torch.uint8)
    started = time.perf_counter()
    for _ in range(n // BATCH):
        device(batch, np.arange(BATCH))
    rates["model"] = n / (time.perf_counter() - started)
    good, values = np.arange(PART_ROWS), np.ones((PART_ROWS, DIM), np.float32)
    dataset = Dataset(f"{root}/written/v={time.monotonic()}", "embeddings")
    started = time.perf_counter()
    for part, table in zip(parts, tables, strict=True):
        write_part(dataset, table, good, values, "embedding", part.index, 0.0)
    rates["write"] = n / (time.perf_counter() - started)
    return rates


class Clock:
    """A mapper that notes when each part came back."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper, self.times, self.rows = mapper, [time.perf_counter()], [0]

    def __call__(self, items: Any) -> Any:
        """Run shards."""
        for item, outcome in self.mapper(items):
            self.times.append(time.perf_counter())
            self.rows.append(getattr(outcome, "n_rows", 0))
            yield item, outcome

    def waits_for(self, items: Any) -> str:
        """Return what the mapper waits for."""
        return self.mapper.waits_for(items)


def whole_rate(faces: Dataset, run_uri: str, faces_per_s: float, engine: str) -> float:
    """Return faces per second of embed: in this process over all parts, on Ray from the end of the first part on."""
    dataset = Dataset(f"{run_uri}/v=0", "embeddings")
    manifest = faces.require()
    step = Step(
        "embed",
        dataset,
        manifest.parts,
        partial(make_worker, dataset, faces, faces_per_s),
        manifest.n_rows,
        runs_in="pool",
        uses_model=True,
    )
    if engine == "local":
        clock, first = Clock(local_map), 0
        run_steps([step], clock)
    else:
        compute = make_settings(
            {
                "name": "pipeline",
                "run_uri": run_uri,
                "source": {"kind": "folder", "uri": "pretended"},
                "recognizer": {"name": "arcface_r18", "weights": "random:0"},
                "compute": {"n_workers": 1, "device": "cpu"},
            }
        ).compute
        with ray_session(compute):
            clock, first = Clock(RayMapper(compute)), 1
            run_steps([step], clock)
    return sum(clock.rows[first + 1 :]) / (clock.times[-1] - clock.times[first])


if __name__ == "__main__":
    main()
