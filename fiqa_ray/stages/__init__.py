"""Stages of the job. Each module yields `Step`s: it plans (manifests in, shards out) and says how a worker runs a shard.

Stages do not import each other; they meet through the datasets of `fiqa_ray.job`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fiqa_ray.engine.step import Step
from fiqa_ray.job import Job

STEPS_OF = {  # stage -> where its steps are planned: (module of fiqa_ray.stages, function)
    "pack": [("pack", "pack_steps")],
    "embed": [("infer", "embed_steps")],
    "score": [("infer", "score_steps")],
    "pair": [("pair", "pair_steps")],
    "fuse": [("fuse", "fuse_steps")],
    "rank": [("rank", "rank_steps")],
    "optimize": [("optimize", "optimize_steps")],
    "train": [("train", "train_steps")],
    "evaluate": [("infer", "regressor_score_steps"), ("evaluate", "evaluate_steps")],
    "report": [("report", "report_steps")],
}


STAGES = tuple(STEPS_OF)


def stage_steps(stage: str, job: Job) -> Iterator[list[Step]]:
    """The steps of a stage in groups that run side by side, each group planned when the one before it has finished."""
    # stages import torch and more; a job pays only for those it runs
    from importlib import import_module

    for module, function in STEPS_OF[stage]:
        yield from getattr(import_module(f"fiqa_ray.stages.{module}"), function)(job)
