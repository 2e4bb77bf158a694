"""Label optimization through Ray, from Parquet embeddings to Parquet labels, at a database's size, against its floor.

python benchmarks/full_size.py WORK_DIR [--shape vggface2|webface42m] [--share 1] [--engine counting|sort] [--json FILE]

WORK_DIR takes 2 kB per image for the embeddings, made up once and kept, and 1.5 kB per image for the pairs. The floor,
measured in the same run on the same cores before and after the job, is the bare Gram products of all identities and one
vectorised sort of all keys: of the bare keys, and, as the packed floor, of keys that carry their pair's number, without
which a rank finds no pair. The start of Ray, of its workers and of this process (start_s) is not part of the total; at
its end the inputs are read once, so that they come from memory and not from the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from shapes import DIM, SHAPES, label_settings, memory_watch, write_inputs

from fiqa_ray.config import Settings
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.ray import RayMapper, ray_session
from fiqa_ray.engine.run_steps import group_name, run_steps
from fiqa_ray.job import Job
from fiqa_ray.stages import stage_steps
from fiqa_ray.storage import join, list_files, read_bytes
from fiqa_ray.tools.status import run_status

STAGES = ("pair", "rank", "optimize")
RANKS = ("key_counts", "sorted_keys", "similarity_ranks")


def floor_gram(sizes: list[int]) -> float:
    """Seconds of one core for the Gram products alone, on data that stay in cache."""
    x = np.random.default_rng(0).standard_normal((max(sizes), DIM), np.float32)
    out = np.empty(max(sizes) ** 2, np.float32)
    with one_thread():
        started = time.perf_counter()
        for n in sizes:
            np.matmul(x[:n], x[:n].T, out=out[: n * n].reshape(n, n))
        return time.perf_counter() - started


def floor_sort(n_keys: int, n_repeats: int, with_pair: bool = False) -> float:
    """Seconds of one core to sort the keys of some repeats, bare int32, or packed with the pair's number into 64 bits."""
    key = (np.random.default_rng(0).standard_normal(n_keys, np.float32) * (0.15 * 2**23)).astype(np.int32)
    if with_pair:
        key = (key.astype(np.int64) << 32) | np.arange(n_keys)
    total = 0.0
    for _ in range(n_repeats):
        copy = key.copy()
        started = time.perf_counter()
        copy.sort()
        total += time.perf_counter() - started
    return total


def measure_floor(sizes: np.ndarray, n_pairs: int, n_repeats: int, n_workers: int) -> dict[str, float]:
    """Wall seconds of the Gram products and of the sorts with all cores at work."""
    with ProcessPoolExecutor(n_workers, get_context("spawn")) as pool:
        list(pool.map(floor_gram, [[10]] * n_workers))  # starts the processes
        gram = max(pool.map(floor_gram, [sizes[w::n_workers].tolist() for w in range(n_workers)]))
        turns = -(-n_repeats // n_workers)
        n, share = [n_pairs] * n_workers, n_repeats / (turns * n_workers)
        sort = max(pool.map(floor_sort, n, [turns] * n_workers)) * share
        packed = max(pool.map(floor_sort, n, [1] * n_workers, [True] * n_workers)) * turns * share
    return {
        "gram_s": round(gram, 2),
        "sort_s": round(sort, 2),
        "packed_sort_s": round(packed, 2),
        "total_s": round(gram + sort, 2),
        "packed_total_s": round(gram + packed, 2),
    }


def load_stages() -> None:
    """Import the stages, which the package does at their first use: numba alone takes 0.3 s."""
    import fiqa_ray.stages.optimize
    import fiqa_ray.stages.pair
    import fiqa_ray.stages.rank  # noqa: F401


def start_workers(n_workers: int) -> None:
    """Let Ray's workers load what they need, compiled code too, so that a step's time is that of its work."""
    import ray

    def load() -> None:
        from fiqa_ray.engine.cost import Scale
        from fiqa_ray.tools.unit_costs import measure_units

        load_stages()
        measure_units(Scale(n_images=1000, n_identities=10))
        time.sleep(1)  # so that every worker gets one

    ray.get([ray.remote(num_cpus=1)(load).remote() for _ in range(n_workers)])


def start_mapper(settings: Settings) -> RayMapper:
    """Return a mapper whose board has started: in a job, the first stage's shards start it."""
    import ray

    mapper = RayMapper(settings.compute)
    ray.get(mapper.board.look.remote(0))
    return mapper


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="vggface2")
    parser.add_argument("--share", type=float, default=1.0, help="share of the database's identities")
    parser.add_argument("--engine", choices=["counting", "sort"], default="counting")
    parser.add_argument("--no-keep", action="store_true", help="pairs are made again instead of stored")
    parser.add_argument("--methods", type=int, default=1, help="FIQA methods optimized in the same pass")
    parser.add_argument("--theta", type=float, nargs="+", default=[0.001])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--in-process", action="store_true", help="without Ray, in this process: for profiling")
    parser.add_argument("--keep-results", action="store_true", help="leave pairs and labels in WORK_DIR")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def summary(
    a: argparse.Namespace,
    job: Job,
    n_images: int,
    n_pairs: int,
    floors: list[dict[str, float]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the figures of a finished run: sizes, rates, ratios to the floors before and after it, and the labels' hash."""
    settings = job.settings
    floor = {name: round((floors[0][name] + floors[1][name]) / 2, 2) for name in floors[0]}
    total_s = sum(seconds.values())
    files = [job.optimized_labels(m, t).at("part-00000.parquet") for m in settings.methods for t in a.theta]
    records = [r for r in run_status(settings.run_uri) if r["stage"] in STAGES]
    return {
        "shape": a.shape,
        "share": a.share,
        "engine": a.engine,
        "pairs_kept": not a.no_keep,
        "n_workers": a.workers,
        "n_methods": a.methods,
        "n_label_sets": len(files),
        "n_images": n_images,
        "n_pairs": n_pairs,
        "total_s": round(total_s, 2),
        "floor": floor,
        "floors": [f["total_s"] for f in floors],
        "ratio_to_floor": round(total_s / floor["total_s"], 2),
        "ratio_to_packed_floor": round(total_s / floor["packed_total_s"], 2),
        "ns_per_pair": round(1e9 * total_s / n_pairs, 1),
        "images_per_s": round(n_images / total_s),
        "core_seconds": {r["dataset"].split("/")[0]: r["work_s"] for r in records},
        "megabytes": {r["dataset"].split("/")[0]: round(r["n_bytes"] / 1e6, 1) for r in records},
        "labels_sha256": hashlib.sha256(b"".join(read_bytes(f) for f in files)).hexdigest(),
    }


def main() -> None:
    """Command line."""
    a = arguments()
    sizes = SHAPES[a.shape].sizes(a.share)
    run_uri = str(a.work_dir / f"{a.shape}-{a.share:g}")
    settings = label_settings(
        run_uri,
        a.methods,
        a.theta,
        pair={"keep": not a.no_keep},
        rank={"engine": a.engine},
        compute={
            "n_workers": a.workers,
            "engine": "local" if a.in_process else "ray",
            "object_store_bytes": 200_000_000,
        },
    )
    job = Job(settings)
    started = time.perf_counter()
    if any(job.prior_scores("train", m).manifest() is None for m in settings.methods):
        write_inputs(job, sizes, a.workers)
        os.sync()
    inputs_s = time.perf_counter() - started
    n_repeats = settings.pair.n_repeats
    n_pairs = int((sizes * (np.minimum(sizes, settings.pair.n_clusters) - 1)).sum())
    floors = [measure_floor(sizes, n_pairs, n_repeats, a.workers)]

    for made in (*RANKS, "pairs", "quality_index", "optimized_index", "optimized_labels"):
        shutil.rmtree(join(run_uri, made), ignore_errors=True)
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    with memory_watch() as memory, ray_session(settings.compute):
        load_stages()
        if not a.in_process:
            start_workers(a.workers)
        priors = (job.prior_scores("train", m) for m in settings.methods)
        for inputs in (job.faces("train"), job.embeddings("train"), *priors):
            for name in list_files(inputs.uri):
                read_bytes(inputs.at(name))
        mapper = local_map if a.in_process else start_mapper(settings)
        start_s = time.perf_counter() - started
        at = time.perf_counter()
        for stage in STAGES:
            for steps in stage_steps(stage, job):  # planning counts: it reads manifests
                run_steps(steps, mapper)
                before, at = at, time.perf_counter()
                seconds[group_name(steps)] = round(at - before, 2)
    floors.append(measure_floor(sizes, n_pairs, n_repeats, a.workers))
    times = {"start_s": round(start_s, 2), "inputs_s": round(inputs_s, 1), "seconds": seconds}
    result = {**summary(a, job, int(sizes.sum()), n_pairs * n_repeats, floors, seconds), **times}
    result["peak_memory_mb"] = memory.megabytes()
    print(json.dumps(result, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    if not a.keep_results:
        shutil.rmtree(join(run_uri, "pairs"))


if __name__ == "__main__":
    main()
