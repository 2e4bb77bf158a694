"""evaluate, first part: the pairs of each benchmark and their similarities under each recogniser."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings
from fiqa_ray.core.all_pairs import n_all_pairs
from fiqa_ray.core.templates import pair_similarities
from fiqa_ray.core.verification import IntArray
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job
from fiqa_ray.sources.comparisons import MAX_LISTED_PAIRS, Comparisons, list_all_pairs, match_pairs, n_listed_pairs
from fiqa_ray.sources.groups import groups_of_images, groups_of_pairs


@dataclass(frozen=True)
class CompareShard:
    """One benchmark under one recogniser."""

    benchmark: BenchmarkSettings
    evaluate: EvaluateSettings
    faces: Dataset
    embeddings: Dataset


def compare_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per benchmark and recogniser."""
    steps = []
    for benchmark in job.settings.benchmarks:
        n_pairs = n_listed_pairs(benchmark, job.faces(benchmark.name).require().n_rows)
        for recognizer in job.judges:
            dataset = job.comparisons(benchmark, recognizer)
            embeddings = job.embeddings(benchmark.name, recognizer)
            shard = CompareShard(benchmark, job.settings.evaluate, job.faces(benchmark.name), embeddings)
            steps.append(
                Step("evaluate", dataset, [shard], stateless_worker(run_shard, dataset), n_pairs, unit="pairs")
            )
    if steps:
        yield steps


def check_rates(settings: EvaluateSettings, name: str, n_nonmated: int) -> None:
    """Refuse a false match rate that so few non-mated pairs cannot carry.

    If none of n pairs is a false match, the rate is below 3 / n at 95 % confidence (rule of three). A rate below that cannot
    be told from none.

    Raises:
        UsageError: There is such a rate, and the settings do not allow it.
    """
    if n_nonmated == 0:  # `run_shard` has refused this already: both kinds of pairs are needed
        return
    rare = [fmr for fmr in settings.fmr if fmr * n_nonmated < 3 * (1 - 1e-9)]
    if rare and not settings.allow_rare_fmr:
        remedy = f"give {_rounded_up(3 / n_nonmated):g} or more" if n_nonmated > 3 else "add non-mated pairs"
        raise UsageError(
            f"evaluate.fmr={min(rare):g} is below 3 / {n_nonmated:,}, the number of non-mated pairs of benchmark {name}: no "
            f"result can confirm it (rule of three); {remedy}, or set allow_rare_fmr: true"
        )


def _rounded_up(rate: float) -> float:
    """Return a rate rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.ceil(rate / unit - 1e-9) * unit:.2g}")


def run_shard(dataset: Dataset, shard: CompareShard) -> Part:
    """Compare the pairs of a benchmark. Memory: its embeddings and its list of pairs."""
    started = time.monotonic()
    benchmark = shard.benchmark
    image_id = shard.faces.read_all(["image_id"])["image_id"].combine_chunks()
    if benchmark.pairs.kind == "all_pairs":
        pairs = list_all_pairs(benchmark, shard.faces.read_all(["identity"])["identity"].combine_chunks())
    else:
        pairs = match_pairs(benchmark, image_id)
    values, rows = columns.embedding_values(shard.embeddings.read_all(["image_row", "embedding"]))
    values, rows = pairs.embeddings(values, rows, len(image_id))
    position = np.full(len(pairs.names(image_id)), -1, np.int64)  # of a unit's embedding in `values`
    position[rows] = np.arange(len(rows))

    row_a, row_b = pairs.row_a, pairs.row_b
    chosen = (row_a >= 0) & (row_b >= 0) & (position[row_a] >= 0) & (position[row_b] >= 0)
    a, b, mated = row_a[chosen], row_b[chosen], pairs.mated[chosen]
    n_skipped = int((~chosen).sum())
    if not mated.any() or mated.all():
        raise FiqaRayError(
            f"benchmark {benchmark.name}: {int(mated.sum())} mated and {int((~mated).sum())} non-mated pairs are "
            f"usable ({n_skipped} skipped for bad or absent images); both kinds are needed, see {benchmark.pairs.uri}"
        )
    check_rates(shard.evaluate, benchmark.name, int((~mated).sum()))
    groups = _groups(benchmark, pairs, image_id, a, b, chosen)
    for name in _names(groups):
        _check_group(shard.evaluate, f"{benchmark.name}, group {name}", mated[groups == name])
    comparisons = {
        "image_row_a": a,
        "image_row_b": b,
        "mated": mated,
        "fold": pairs.fold[chosen].astype(np.int32),
        "similarity": pair_similarities(values, position[a], position[b]),
    }
    return dataset.write_part(
        0,
        {".parquet": _table(comparisons, groups)},
        n_rows=len(chosen),
        stats={
            "n_pairs_used": len(mated),
            "n_pairs_skipped": n_skipped,
            "groups": {n: int(np.sum(groups == n)) for n in _names(groups)},
        },
        duration_s=time.monotonic() - started,
    )


def _groups(
    benchmark: BenchmarkSettings, pairs: Comparisons, image_id: pa.Array, a: IntArray, b: IntArray, chosen: np.ndarray
) -> NDArray[np.object_] | None:
    """Return the group of each pair that is compared, "" for none; None where the benchmark has no groups.

    Raises:
        UsageError: Groups of templates, or of pairs that are not listed.
    """
    if benchmark.groups is None:
        return None if pairs.group is None else pairs.group[chosen]
    if pairs.templates is not None:
        raise UsageError(f"benchmark {benchmark.name}: groups are those of images, and kind ijb compares templates")
    if benchmark.pairs.kind == "all_pairs" and n_all_pairs(len(image_id)) > MAX_LISTED_PAIRS:
        raise UsageError(
            f"benchmark {benchmark.name}: {len(image_id):,} images have too many pairs to list, and groups need a list; "
            "give a list of pairs, or fewer images"
        )
    return groups_of_pairs(groups_of_images(benchmark.groups, image_id), a, b)


def _names(groups: NDArray[np.object_] | None) -> list[str]:
    return [] if groups is None else sorted(set(groups.tolist()) - {""})


def _check_group(evaluate: EvaluateSettings, name: str, mated: np.ndarray) -> None:
    """Refuse a group without both kinds of pairs, or with too few for the rates."""
    if not mated.any() or mated.all():
        raise UsageError(
            f"benchmark {name}: {int(mated.sum())} mated and {int((~mated).sum())} non-mated pairs; both kinds are needed: "
            "add pairs, or leave its group empty"
        )
    check_rates(evaluate, name, int((~mated).sum()))


def _table(comparisons: dict[str, Any], groups: NDArray[np.object_] | None) -> pa.Table:
    if groups is None:
        return pa.table(comparisons, schema=schemas.COMPARISONS)
    return pa.table(comparisons | {"group": groups}, schema=schemas.GROUPED_COMPARISONS)
