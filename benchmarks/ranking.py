"""Ranking alone: the mean place of every similarity among all, by this project's two engines and by well-known tools.

python benchmarks/ranking.py [--keys 20000000] [--ray-keys 5000000] [--scores 0] [--json FILE]

All get the same keys and must give the same ranks. Ray Data only sorts (it has no ranks with ties), on fewer keys. DuckDB
and Polars use all cores, the others one. numpy's vectorised sort is slow on some processors (AMD's Zen 4): compare with
NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL" in the environment.

--scores: as many prior scores with ties are sorted from Parquet to Parquet by (score, image_row): by the tasks of stage rank
over 8 ranges, which also write the place of each image, by Ray Data and by DuckDB. Each has a process of its own and two
cores; the start of Ray is left out; memory is that of all processes together, their own pages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
from final_sort import THETA, start_workers, write_inputs
from scipy.stats import rankdata
from shapes import label_settings, memory_watch

from fiqa_ray.config import ComputeSettings
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.pairs import round_similarity
from fiqa_ray.core.ranking import KeyCounter, RankTable, add_histograms, merge_range, similarity_key
from fiqa_ray.core.sample_sort import choose_cuts
from fiqa_ray.datasets import image_rows
from fiqa_ray.engine.memory import reuse_memory
from fiqa_ray.engine.ray import RayMapper, ray_session
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.job import Job
from fiqa_ray.stages import rank_scores
from fiqa_ray.storage import read_bytes


def counting(similarity: np.ndarray) -> np.ndarray:
    """Rank by this project's counting, and the look-up in its table."""
    counter = KeyCounter()
    counter.add(similarity)
    return RankTable.of(counter.histogram()).doubled_ranks(similarity) / 2


def sorting(similarity: np.ndarray) -> np.ndarray:
    """Rank by this project's sample sort: 8 sorted runs, 8 ranges, and the look-up in their table."""
    runs = [np.sort(part) for part in np.array_split(similarity_key(similarity), 8)]
    samples = np.concatenate([r[:: max(1, len(r) // 1024)] for r in runs])
    cuts = [c.key for c in choose_cuts(samples, np.zeros_like(samples), 8)]
    pieces = [np.split(r, np.searchsorted(r, cuts)) for r in runs]
    histogram = add_histograms(merge_range(np.concatenate([p[j] for p in pieces])) for j in range(len(cuts) + 1))
    return RankTable.of(histogram).doubled_ranks(similarity) / 2


def by_numpy(similarity: np.ndarray) -> np.ndarray:
    """argsort, then the mean over ties."""
    order = np.argsort(similarity)
    ordered = similarity[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    count = np.diff(first, append=len(ordered))
    rank = np.empty(len(order))
    rank[order] = np.repeat(first + (count - 1) / 2, count)
    return rank


def by_duckdb(similarity: np.ndarray) -> np.ndarray:
    """Rank by a histogram in SQL, its running sum, and a join."""
    con = duckdb.connect()
    con.register("pairs", pa.table({"row": np.arange(len(similarity)), "s": similarity}))
    con.execute("create table k as select s, count(*) as n from pairs group by s")
    con.execute("create table r as select s, sum(n) over (order by s) - n + (n - 1) / 2 as rank from k")
    found: pa.Table = con.execute("select p.row, r.rank from pairs p join r on p.s = r.s").to_arrow_table()
    rank = np.empty(len(similarity))
    rank[found["row"].to_numpy()] = found["rank"].to_numpy()
    return rank


def by_polars(similarity: np.ndarray) -> np.ndarray:
    """`rank(method="average")`."""
    return pl.Series(similarity).rank(method="average").to_numpy() - 1


def seconds_of(call: Callable[[np.ndarray], np.ndarray], similarity: np.ndarray, expected: np.ndarray | None) -> float:
    """Best of two runs; the ranks must be the expected ones."""
    best = np.inf
    for _ in range(2):
        started = time.perf_counter()
        rank = call(similarity)
        best = min(best, time.perf_counter() - started)
    if expected is not None:
        np.testing.assert_array_equal(rank, expected)
    return best


def ray_data_sort(similarity: np.ndarray) -> float:
    """Seconds of Ray Data's distributed sort, once Ray is up."""
    with ray_session(ComputeSettings()):
        import ray

        data = ray.data.from_arrow([pa.table({"s": p}) for p in np.array_split(similarity, 8)])
        started = time.perf_counter()
        found = data.sort("s").materialize()
        seconds = time.perf_counter() - started
        assert found.count() == len(similarity)
    return seconds


def sort_by_ranges(job: Job, folder: Path, n_scores: int) -> dict[str, Any]:
    """Sort by the tasks of stage rank."""
    image_rows.IMAGES_PER_RANGE = -(-n_scores // 8)
    compute = ComputeSettings(n_workers=2, object_store_bytes=200_000_000)
    with ray_session(compute):
        start_workers(2)
        with memory_watch(every_s=0.05) as memory:
            started = time.perf_counter()
            for steps in rank_scores.index_steps(job):
                run_steps(steps, RayMapper(compute))
            seconds = time.perf_counter() - started
    sorted_scores = job.sorted_scores(job.settings.methods[0])
    for part in sorted_scores.require().parts:
        (folder / f"{part.index:05d}.parquet").write_bytes(
            read_bytes(sorted_scores.at(f"part-{part.index:05d}.parquet"))
        )
    return {"seconds": round(seconds, 2), "own_mb": memory.megabytes()["own"]}


def sort_by_ray_data(job: Job, folder: Path, n_scores: int) -> dict[str, Any]:
    """Sort by Ray Data's `sort`."""
    with ray_session(ComputeSettings(n_workers=2)):
        import ray

        start_workers(2)
        with memory_watch(every_s=0.05) as memory:
            started = time.perf_counter()
            data = ray.data.read_parquet(_score_files(job), columns=["image_row", "score"])
            data.sort(["score", "image_row"]).write_parquet(str(folder))
            seconds = time.perf_counter() - started
        version = ray.__version__
    return {"seconds": round(seconds, 2), "own_mb": memory.megabytes()["own"], "version": version}


def sort_by_duckdb(job: Job, folder: Path, n_scores: int) -> dict[str, Any]:
    """Sort by SQL."""
    with memory_watch(every_s=0.05) as memory:
        started = time.perf_counter()
        con = duckdb.connect(config={"threads": 2})
        select = f"select image_row, score from read_parquet({_score_files(job)}) order by score, image_row"
        con.execute(f"copy ({select}) to '{folder / 'sorted.parquet'}' (format parquet)")
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "own_mb": memory.megabytes()["own"], "version": duckdb.__version__}


def _score_files(job: Job) -> list[str]:
    priors = job.prior_scores("train", job.settings.methods[0])
    return [priors.at(f"part-{p.index:05d}.parquet") for p in priors.require().parts]


def compare_score_sorts(n_scores: int) -> dict[str, Any]:
    """Return seconds and memory of each sort; all must give the same scores in the same order."""
    results = {}
    expected: np.ndarray | None = None
    work = Path(tempfile.mkdtemp())
    job = Job(label_settings(str(work / "run"), 1, [THETA]))
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        pool.submit(write_inputs, job, n_scores).result()
        for name, call in (("ranges", sort_by_ranges), ("ray data", sort_by_ray_data), ("duckdb", sort_by_duckdb)):
            folder = work / name.replace(" ", "_")
            folder.mkdir()
            results[name] = pool.submit(call, job, folder, n_scores).result()
            score = (
                pads.dataset(sorted(map(str, folder.glob("*.parquet")))).to_table(columns=["score"])["score"].to_numpy()
            )
            expected = score if expected is None else expected
            np.testing.assert_array_equal(score, expected)
    shutil.rmtree(work)
    for r in results.values():
        r["ratio_to_ranges"] = round(r["seconds"] / results["ranges"]["seconds"], 1)
    return {"n_scores": n_scores, **results}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=20_000_000)
    parser.add_argument("--ray-keys", type=int, default=5_000_000)
    parser.add_argument("--scores", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    reuse_memory()
    rng = np.random.default_rng(0)
    similarity = round_similarity(0.45 + 0.15 * rng.standard_normal(a.keys))
    few = similarity[: a.ray_keys]
    with one_thread():
        started = time.perf_counter()
        expected = rankdata(similarity, method="average") - 1
        seconds = {"scipy rankdata": time.perf_counter() - started}
        for name, call in (
            ("counting", counting),
            ("sort", sorting),
            ("numpy argsort", by_numpy),
            ("duckdb", by_duckdb),
            ("polars", by_polars),
        ):
            seconds[name] = seconds_of(call, similarity, expected)
        counting_few = seconds_of(counting, few, None)
    ray_s = ray_data_sort(few)
    result = {
        "n_keys": a.keys,
        "seconds": {k: round(v, 2) for k, v in seconds.items()},
        "ratio_to_counting": {k: round(v / seconds["counting"], 1) for k, v in seconds.items()},
        "ray_data_sort": {
            "n_keys": len(few),
            "seconds": round(ray_s, 2),
            "ratio_to_counting": round(ray_s / counting_few, 1),
        },
    }
    if a.scores:
        result["score_sorts"] = compare_score_sorts(a.scores)
    print(json.dumps(result, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
