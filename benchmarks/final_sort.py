"""The sorts of all images, by prior score and by optimized index: one task against tasks over ranges, on Ray.

python benchmarks/final_sort.py WORK_DIR [--images 20000000] [--ranges 1 3 8] [--workers 1 2 4] [--json FILE]

Every number of ranges is tried with every number of workers; one range is the single task. Inputs are made up once and kept
in WORK_DIR (60 bytes per image): prior scores with ties, and optimized indices as they come from the first step of optimize.
Times leave out the start of Ray and of its workers. `largest_mb` is the peak of the largest process (pages of its own),
looked at twenty times a second; an idle worker has about 200 MB. `cpu_s` are processor seconds of all processes, which
depend less than `total_s` on what else the machine does. All columns of quality indices and labels must have one SHA-256
over all runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from shapes import label_settings, memory_watch

from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets import image_rows, schemas
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine.ray import RayMapper, ray_session
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.engine.step import Step
from fiqa_ray.job import Job
from fiqa_ray.stages import optimize_labels, rank_scores
from fiqa_ray.storage import join

PART_ROWS = 1 << 16
THETA = 0.001
MADE = ("score_runs", "sorted_scores", "quality_index", "index_runs", "sorted_indices", "optimized_labels")


def write_inputs(job: Job, n_images: int) -> None:
    """Write what pack, score and the first step of optimize would leave."""
    method = job.settings.methods[0]
    faces, priors, indices = job.faces("train"), job.prior_scores("train", method), job.optimized_index()
    rng = np.random.default_rng(0)
    index = rng.permutation(n_images)  # what optimized indices lie near; the scores need not be theirs
    bounds = range(0, n_images, PART_ROWS)
    for i, first in enumerate(bounds):
        row = np.arange(first, min(first + PART_ROWS, n_images))
        n = len(row)
        names = [f"n{r // 80:06d}/{r:09d}_01.jpg" for r in row.tolist()]
        faces.write_part(i, {".parquet": pa.table({"image_row": row, "image_id": names})}, n_rows=n)
        score = np.round(rng.beta(5, 2, n), 6)  # in 20 million images about twenty share each score
        columns = {"image_row": row, "score": score, "status": ["ok"] * n, "error": pa.nulls(n, pa.string())}
        priors.write_part(i, {".parquet": pa.table(columns, schema=schemas.QUALITY_SCORES)}, n_rows=n)
        optimized = index[row] + 0.1 * n_images * rng.standard_normal(n)
        values = [row, optimized, rng.random(n) * n_images, rng.integers(0, 200, n)]
        table = pa.table(values, schema=schemas.OPTIMIZED_INDEX)
        indices.write_part(i, {schemas.index_suffix(method.label, THETA): table}, n_rows=n)
    histogram = pa.table([[], []], schema=schemas.key_counts(1))
    job.similarity_ranks().write_part(0, {".parquet": histogram}, n_rows=19 * n_images)
    for dataset in (faces, priors, indices, job.similarity_ranks()):
        dataset.write_plan({"stage": "given"})
        dataset.commit(1 if dataset.name == "similarity_ranks" else len(bounds))


def sort_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that sort."""
    yield from rank_scores.index_steps(job)
    yield from optimize_labels.label_steps(job)


def start_workers(n_workers: int) -> None:
    """Let Ray's workers load what they need, compiled code too."""
    import ray

    def load() -> None:
        from fiqa_ray.core.labels import quality_index, reassign_scores
        from fiqa_ray.stages import optimize, rank  # noqa: F401

        prior = np.arange(1000.0)
        reassign_scores(prior, quality_index(prior), prior)
        time.sleep(2)  # so that every worker gets one

    ray.get([ray.remote(num_cpus=1)(load).remote() for _ in range(n_workers)])


def cpu_seconds() -> float:
    """Return the processor seconds that this process and its descendants have used so far."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def column_hashes(dataset: Dataset) -> dict[str, str]:
    """Return the SHA-256 of the values of each column."""
    hashes: dict[str, Any] = {}
    for part in dataset.require().parts:
        table = dataset.read(part)
        for name in table.column_names:
            digest = hashes.setdefault(name, hashlib.sha256())
            if pa.types.is_string(table.schema.field(name).type):
                digest.update("\n".join([*table[name].to_pylist(), ""]).encode())
            else:
                digest.update(np.ascontiguousarray(table[name].to_numpy()))
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def run(job: Job, n_images: int, n_ranges: int, n_workers: int) -> dict[str, Any]:
    """Sort the images once, with a Ray of its own; return seconds, memory and hashes."""
    for name in MADE:
        shutil.rmtree(join(job.settings.run_uri, name), ignore_errors=True)
    image_rows.IMAGES_PER_RANGE = n_images if n_ranges == 1 else -(-n_images // n_ranges)
    compute = ComputeSettings(n_workers=n_workers, object_store_bytes=200_000_000)
    seconds: dict[str, float] = {}
    megabytes: dict[str, int] = {}
    with ray_session(compute):
        start_workers(n_workers)
        cpu_before = cpu_seconds()
        for steps in sort_steps(job):
            name = steps[0].dataset.name
            with memory_watch(every_s=0.05) as memory:
                started = time.perf_counter()
                run_steps(steps, RayMapper(compute))
                seconds[name] = round(time.perf_counter() - started, 2)
            megabytes[name] = memory.megabytes()["largest"]
        cpu_s = round(cpu_seconds() - cpu_before, 1)
    method = job.settings.methods[0]
    labels, indices = job.optimized_labels(method, THETA), job.quality_index(method)
    return {
        "n_ranges": n_ranges,
        "n_workers": n_workers,
        "total_s": round(sum(seconds.values()), 2),
        "cpu_s": cpu_s,
        "seconds": seconds,
        "largest_mb": max(megabytes.values()),
        "megabytes": megabytes,
        "sha256": {**column_hashes(indices), **column_hashes(labels)},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--ranges", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    job = Job(label_settings(str(a.work_dir / f"final-sort-{a.images}"), 1, [THETA]))
    # a process per run: what one leaves in memory is not counted to the next
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        if job.similarity_ranks().manifest() is None:
            pool.submit(write_inputs, job, a.images).result()
        runs = [pool.submit(run, job, a.images, r, w).result() for w in a.workers for r in a.ranges]
    hashes = [r.pop("sha256") for r in runs]
    assert all(h == hashes[0] for h in hashes), "runs differ in a column"
    alone = [r for r in runs if r["n_ranges"] == 1]
    for r in runs if alone else ():
        r["ratio_to_single_task"] = round(r["total_s"] / min(a["total_s"] for a in alone), 2)
        r["cpu_ratio_to_single_task"] = round(r["cpu_s"] / min(a["cpu_s"] for a in alone), 2)
    result = {"n_images": a.images, "runs": runs, "sha256": hashes[0]}
    print(json.dumps(result, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
