"""Judge scores on benchmarks, without labels and without training."""

from __future__ import annotations

from fiqa_ray.config import Settings
from fiqa_ray.errors import UsageError
from fiqa_ray.job import Job
from fiqa_ray.tools.run_job import run_stages

STAGES = ("pack", "embed", "score", "evaluate", "report")
"""The stages that take part; each looks at benchmarks alone."""


def evaluate_job(settings: Settings, *, new_settings: bool = False) -> Job:
    """Judge the methods and score files of a job on its benchmarks. Finished parts are not computed again.

    Args:
        settings: The job; it needs neither source nor methods.
        new_settings: Allow a run that was started with other settings.

    Raises:
        UsageError: There is no benchmark, or nothing that could be judged.
        FiqaRayError: A stage failed; the message says how to continue.
    """
    if not settings.benchmarks:
        raise UsageError("benchmarks: is missing; name at least one set of faces with pairs")
    for method in settings.methods:
        if method.fuse is not None:
            raise UsageError(
                f"methods: {method.label} is fused by ranks among training faces, which evaluate does without; leave it out"
            )
    job = Job(settings, with_training=False)
    for benchmark in settings.benchmarks:
        if not [s for s in job.scorers(benchmark) if s.dataset is not None or s.file is not None]:
            raise UsageError(
                f"benchmarks: {benchmark.name} has no score to judge; give methods, or files in its scores"
            )
    return run_stages(job, STAGES, new_settings=new_settings)
