"""The models whose run time is measured: those that a command names, or a job's methods and their regressors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from fiqa_ray.datasets.results import BASELINE, OPTIMIZED
from fiqa_ray.errors import UsageError
from fiqa_ray.job import Job
from fiqa_ray.models.devices import resolve_device
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.stages.infer import ModelCall, method_call
from fiqa_ray.tools.named_model import NamedModel


@dataclass(frozen=True)
class TimedModel:
    """A model to time.

    Attributes:
        method: FIQA method; of a job its label.
        variant: "baseline" or "optimized" for a job's methods and regressors; empty for models that a command names.
        device: As torch names it.
        load: Loads it.
    """

    method: str
    variant: str
    device: str
    load: Callable[[], Scorer]


def named_models(models: Sequence[NamedModel]) -> list[TimedModel]:
    """Return the models that a command names."""
    return [TimedModel(m.name, "", m.device, m.load) for m in models]


def models_of_job(job: Job, device: str) -> list[TimedModel]:
    """Return each method of a job, followed by its regressor on optimized labels, where that is trained.

    Score files and fused scores are left out: there is nothing to time.

    Raises:
        UsageError: The job has no method that could be timed.
    """
    models = []
    for method in job.settings.methods:
        if method.fuse is None and method.scores is None:
            models.append(TimedModel(method.label, BASELINE, device, _loader(method_call(job, method), device)))
            trained = [t for t in job.label_sets() if t.method == method and t.kind == "optimized"]
            trained = [t for t in trained if job.regressor(t).manifest() is not None]
            if trained:
                regressor, r = job.regressor(trained[0]), job.settings.recognizer
                (part,) = regressor.require().parts
                expected = {"recognizer": r.name, "options": dict(r.options), "files": part.files}
                call = ModelCall(None, regressor.uri, None, {"expected": expected}, job.settings.seed, device)
                models.append(TimedModel(method.label, OPTIMIZED, device, _loader(call, device)))
    if not models:
        raise UsageError("the job has no method to time: all of its scores come from files")
    return models


def _loader(call: ModelCall, device: str) -> Callable[[], Scorer]:
    call = ModelCall(call.recognizer, call.scorer, call.weights, call.options, call.seed, resolve_device(device))
    return cast("Callable[[], Scorer]", call.load)  # a call that names a scorer loads one
