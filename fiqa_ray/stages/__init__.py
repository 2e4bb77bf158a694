"""The job on a page: its stages in order, what each reads and writes, and where its steps are planned.

A module of this folder plans `Step`s (manifests in, shards out) and says how a worker runs a shard. Stages do not import
each other; they meet through the datasets of `fiqa_ray.job`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from fiqa_ray.engine.step import Step
from fiqa_ray.job import Job


@dataclass(frozen=True)
class Stage:
    """One stage: datasets by their names on disk, and the functions `module:function` of this folder that plan its steps."""

    purpose: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    planned_by: tuple[str, ...]


STAGES: dict[str, Stage] = {
    "pack": Stage(
        "Decode and align the images of a source once, into shards of whole identities (Ray Data).",
        reads=(),
        writes=("faces",),
        planned_by=("pack:pack_steps",),
    ),
    "embed": Stage(
        "Run the FR model on every face (Ray Data, on GPUs where there are some).",
        reads=("faces",),
        writes=("embeddings",),
        planned_by=("infer:embed_steps",),
    ),
    "score": Stage(
        "Run each FIQA method on every face: the prior scores (Ray Data, on GPUs where there are some).",
        reads=("faces", "embeddings"),
        writes=("quality_scores",),
        planned_by=("infer:score_steps",),
    ),
    "pair": Stage(
        "Cluster each identity, draw mated pairs, and look up their similarities (Ray tasks; equation 1).",
        reads=("embeddings",),
        writes=("pairs",),
        planned_by=("pair:pair_steps",),
    ),
    "fuse": Stage(
        "Weigh several methods' scores into one (Ray tasks).",
        reads=("quality_scores", "pairs"),
        writes=("fusion_fit", "quality_scores"),
        planned_by=("fuse:fuse_steps",),
    ),
    "rank": Stage(
        "Rank the similarities of all pairs (equation 2), and the prior scores of each method (Ray tasks).",
        reads=("pairs", "quality_scores"),
        writes=("key_counts", "sorted_keys", "similarity_ranks", "quality_index"),
        planned_by=("rank:rank_steps",),
    ),
    "optimize": Stage(
        "Move quality indices towards similarity ranks, and reassign the prior scores (Ray tasks; equation 3).",
        reads=("pairs", "similarity_ranks", "quality_index"),
        writes=("optimized_index", "optimized_labels"),
        planned_by=("optimize:optimize_steps",),
    ),
    "train": Stage(
        "Fit a regressor to each label set (Ray Train; section III-D).",
        reads=("faces", "embeddings", "optimized_labels"),
        writes=("regressor",),
        planned_by=("train:train_steps",),
    ),
    "evaluate": Stage(
        "Score the benchmarks by the regressors, and compare all scorers on the same pairs (section IV).",
        reads=("faces", "embeddings", "quality_scores", "regressor"),
        writes=("quality_scores", "evaluation"),
        planned_by=("infer:regressor_score_steps", "evaluate:evaluate_steps"),
    ),
    "report": Stage(
        "Write the page that shows the results.",
        reads=("evaluation", "optimized_labels", "regressor"),
        writes=("report",),
        planned_by=("report:report_steps",),
    ),
}


def stage_steps(stage: str, job: Job) -> Iterator[list[Step]]:
    """Yield the steps of a stage in groups that run side by side, each planned when the group before it has finished."""
    for planner in STAGES[stage].planned_by:
        module, function = planner.split(":")
        # imported here: stages import torch and more, and a job pays only for those that it runs
        yield from getattr(import_module(f"fiqa_ray.stages.{module}"), function)(job)
