"""The job on a page: its stages in order, what each reads and writes, and where its steps are planned.

A module of this folder plans `Step`s: it reads the manifests of its inputs and lists the shards to run. It also holds the
function that a worker calls for each shard. A stage may have several modules; those of different stages do not import each
other: they meet through the datasets of `fiqa_ray.job`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from fiqa_ray.engine.cost import Cost, Workload
from fiqa_ray.engine.step import Step
from fiqa_ray.job import Job


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        purpose: What it does.
        reads: Names, on disk, of the datasets that it reads. Who reads `pairs` also looks at `faces` and
            `embeddings`: for their rows, and to make pairs again that are not kept.
        writes: Names of those that it writes.
        planned_by: Functions `module:function` of this folder that plan its steps.
        estimated_by: The function that estimates their costs.
    """

    purpose: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    planned_by: tuple[str, ...]
    estimated_by: str


STAGES: dict[str, Stage] = {
    "pack": Stage(
        "Decode and align the images of a source once, into shards of whole identities (Ray Data).",
        reads=(),
        writes=("faces",),
        planned_by=("pack:pack_steps",),
        estimated_by="pack:estimate",
    ),
    "embed": Stage(
        "Run the FR model on every face (Ray Data, on GPUs where there are some).",
        reads=("faces",),
        writes=("embeddings",),
        planned_by=("infer:embed_steps", "given:given_steps"),
        estimated_by="infer:estimate_embed",
    ),
    "score": Stage(
        "Run each FIQA method on every face: the prior scores (Ray Data, on GPUs where there are some).",
        reads=("faces", "embeddings"),
        writes=("quality_scores",),
        planned_by=("infer:score_steps",),
        estimated_by="infer:estimate_score",
    ),
    "pair": Stage(
        "Cluster each identity, draw mated pairs, and look up their similarities (Ray tasks; equation 1).",
        reads=("embeddings",),
        writes=("pairs",),
        planned_by=("pair:pair_steps",),
        estimated_by="pair:estimate",
    ),
    "fuse": Stage(
        "Weigh several methods' scores into one (Ray tasks).",
        reads=("quality_scores", "pairs"),
        writes=("fusion_fit", "quality_scores"),
        planned_by=("fuse:fuse_steps",),
        estimated_by="fuse:estimate",
    ),
    "rank": Stage(
        "Rank the similarities of all pairs (for equation 2), and the prior scores of each method (Ray tasks).",
        reads=("pairs", "quality_scores"),
        writes=("key_counts", "sorted_keys", "similarity_ranks", "score_runs", "sorted_scores", "quality_index"),
        planned_by=("rank:rank_steps",),
        estimated_by="rank:estimate",
    ),
    "optimize": Stage(
        "Move quality indices towards similarity ranks, choose theta, and reassign the prior scores (equations 2 and 3); "
        "or lower scores by eDifFIQA's rule.",
        reads=("faces", "embeddings", "pairs", "similarity_ranks", "sorted_scores", "quality_index"),
        writes=(
            "optimized_index",
            "theta_choice",
            "index_runs",
            "sorted_indices",
            "optimized_labels",
            "ediff_threshold",
            "ediff_distances",
            "ediff_labels",
        ),
        planned_by=(
            "optimize:index_steps",
            "optimize_theta:theta_steps",
            "optimize_labels:label_steps",
            "optimize_ediff:ediff_steps",
        ),
        estimated_by="optimize:estimate",
    ),
    "train": Stage(
        "Fit a regressor to each label set (Ray Train; section III-D).",
        reads=("faces", "embeddings", "optimized_labels", "ediff_labels"),
        writes=("regressor",),
        planned_by=("train:train_steps",),
        estimated_by="train:estimate",
    ),
    "evaluate": Stage(
        "Score the benchmarks by the regressors, and compare all scorers on the same pairs (section IV).",
        reads=("faces", "embeddings", "quality_scores", "regressor"),
        writes=("quality_scores", "comparisons", "cells", "evaluation", "results"),
        planned_by=(
            "score_heads:head_score_steps",
            "infer:regressor_score_steps",
            "compare:compare_steps",
            "cells:cell_steps",
            "evaluate:evaluate_steps",
        ),
        estimated_by="infer:estimate_regressor_scores",
    ),
    "report": Stage(
        "Write the page that shows the results.",
        reads=(
            "faces",
            "embeddings",
            "quality_scores",
            "pairs",
            "similarity_ranks",
            "optimized_index",
            "theta_choice",
            "optimized_labels",
            "ediff_labels",
            "regressor",
            "comparisons",
            "evaluation",
            "results",
        ),
        writes=("report",),
        planned_by=("report:report_steps",),
        estimated_by="",
    ),
}


def stage_steps(stage: str, job: Job) -> Iterator[list[Step]]:
    """Yield groups of steps. The steps of a group run side by side; a group is planned when the one before has finished."""
    for planner in STAGES[stage].planned_by:
        yield from _function(planner)(job)


def stage_costs(stage: str, job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the estimated cost of each step of a stage.

    Of evaluate only the scoring by regressors is estimated; comparisons, curves and the report are not.
    """
    estimator = STAGES[stage].estimated_by
    if estimator:
        yield from _function(estimator)(job, workload)


def _function(name: str) -> Callable[..., Any]:
    """Return `module:function` of this folder, imported late: a job pays only for the stages that it runs."""
    module, function = name.split(":")
    return cast(Callable[..., Any], getattr(import_module(f"fiqa_ray.stages.{module}"), function))
