"""Ranking alone: the mean place of every similarity among all, by this project's two engines and by well-known tools.

python benchmarks/ranking.py [--keys 20000000] [--ray-keys 5000000] [--json FILE]

All get the same keys and must give the same ranks. Ray Data only sorts (it has no ranks with ties), on fewer keys. DuckDB
and Polars use all cores, the others one. numpy's vectorised sort is slow on some processors (AMD's Zen 4): compare with
NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL" in the environment.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from scipy.stats import rankdata

from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.pairs import round_similarity
from fiqa_ray.core.ranking import KeyCounter, RankTable, add_histograms, merge_range, similarity_key
from fiqa_ray.core.sample_sort import choose_cuts
from fiqa_ray.engine.memory import reuse_memory


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
    from fiqa_ray.config import ComputeSettings
    from fiqa_ray.engine.ray import ray_session

    with ray_session(ComputeSettings()):
        import ray

        data = ray.data.from_arrow([pa.table({"s": p}) for p in np.array_split(similarity, 8)])
        started = time.perf_counter()
        found = data.sort("s").materialize()
        seconds = time.perf_counter() - started
        assert found.count() == len(similarity)
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=20_000_000)
    parser.add_argument("--ray-keys", type=int, default=5_000_000)
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
    print(json.dumps(result, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
