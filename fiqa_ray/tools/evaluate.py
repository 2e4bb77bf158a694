"""Judge scores on benchmarks, and the regressors that a run has, without making labels and without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from fiqa_ray.config import Settings
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.tools.run_job import run_stages

STAGES = ("pack", "embed", "score", "fuse", "evaluate", "report")
"""The stages that take part; those of training faces find theirs finished."""


def evaluate_job(settings: Settings, *, new_settings: bool = False) -> tuple[Job, list[str]]:
    """Judge the methods, score files and trained regressors of a job on its benchmarks. Nothing is trained.

    After a finished `run` of the same job nothing is left to do, and all results are those of that run.

    Args:
        settings: The job; it needs neither source nor methods.
        new_settings: Allow a run that was started with other settings.

    Returns:
        The job as it was judged, and the names of its regressors that the run lacks.

    Raises:
        UsageError: There is no benchmark, or nothing that could be judged.
        FiqaRayError: A stage failed; the message says how to continue.
    """
    if not settings.benchmarks:
        raise UsageError("benchmarks: is missing; name at least one set of faces with pairs")
    job, missing = _job_to_judge(settings)
    for method in settings.methods:
        if method.fuse is not None and not job.with_training:
            raise UsageError(
                f"methods: {method.label} is fused by ranks among training faces, which this run has not finished; `run` "
                "the job first, or leave the method out"
            )
    for benchmark in settings.benchmarks:
        if not [s for s in job.scorers(benchmark) if s.dataset is not None or s.file is not None]:
            raise UsageError(
                f"benchmarks: {benchmark.name} has no score to judge; give methods, or files in its scores"
            )
    stages = [stage for stage in STAGES if stage != "fuse" or job.with_training]
    return run_stages(job, stages, new_settings=new_settings), missing


def _job_to_judge(settings: Settings) -> tuple[Job, list[str]]:
    """Return the whole job where its training is finished, else one with the regressors that are; and what lacks."""
    if settings.source is None or not settings.methods:
        return Job(settings, with_training=False), []
    whole = Job(settings)
    wanted = whole.label_sets()
    trained = [t for t in wanted if _is_trained(whole, t)]
    missing = [whole.scorer_name(t) for t in wanted if t not in trained]
    with suppress(FiqaRayError):  # what cannot be named, such as for a missing score file, is not finished
        if not missing and all(dataset.manifest() is not None for dataset in _of_training(whole)):
            return whole, []
    return Job(settings, with_training=False, trained=tuple(trained)), missing


def _is_trained(job: Job, label_set: LabelSet) -> bool:
    with suppress(FiqaRayError):
        return job.regressor(label_set).manifest() is not None
    return False


def _of_training(job: Job) -> Iterator[Dataset]:
    """Yield the datasets of the training faces that judging and the report read."""
    optimize = job.settings.optimize
    yield from (job.faces("train"), job.embeddings("train"))
    if job.settings.needs_pairs:
        yield job.pairs()
    if optimize.thetas:  # none with eDifFIQA's rule alone
        yield from (job.similarity_ranks(), job.optimized_index())
    for method in job.settings.methods:
        yield job.prior_scores("train", method)
        yield from (job.labels(LabelSet(method, rule)) for rule in optimize.rules)
        if HELDOUT in optimize.thetas:
            yield job.theta_choice(method)
