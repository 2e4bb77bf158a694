"""fiqa_ray: face-image-quality labels and scores at any scale.

Label optimization (Babnik, Damer, Struc), a regressor that predicts quality in one forward pass, and EDC evaluation, as one
job that runs on a laptop or a Ray cluster.

    score             scores of images: paths, PIL images, arrays
    load_scorer       a FIQA method or a trained regressor
    load_recognizer   a face recogniser
    optimize_labels   better quality labels from embeddings, people and scores
    choose_theta      how much optimization a prior needs, found on held-out people
    edc_curve         the error-versus-discard curve of pairs and their quality
    open_run          labels, scores, embeddings and areas of a job's run
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fiqa_ray._version import __version__ as __version__

if TYPE_CHECKING:
    from fiqa_ray.core.edc import edc_curve as edc_curve
    from fiqa_ray.core.label_result import OptimizedLabels as OptimizedLabels
    from fiqa_ray.core.labels import optimize_labels as optimize_labels
    from fiqa_ray.core.theta import choose_theta as choose_theta
    from fiqa_ray.models.quality import load_scorer as load_scorer
    from fiqa_ray.models.recognition import load_recognizer as load_recognizer
    from fiqa_ray.tools.open_run import Run as Run
    from fiqa_ray.tools.open_run import open_run as open_run
    from fiqa_ray.tools.score_faces import score as score


_HOMES = {
    "choose_theta": "fiqa_ray.core.theta",
    "optimize_labels": "fiqa_ray.core.labels",
    "OptimizedLabels": "fiqa_ray.core.label_result",
    "edc_curve": "fiqa_ray.core.edc",
    "load_recognizer": "fiqa_ray.models.recognition",
    "load_scorer": "fiqa_ray.models.quality",
    "open_run": "fiqa_ray.tools.open_run",
    "Run": "fiqa_ray.tools.open_run",
    "score": "fiqa_ray.tools.score_faces",
}


__all__ = [
    "OptimizedLabels",
    "Run",
    "choose_theta",
    "edc_curve",
    "load_recognizer",
    "load_scorer",
    "open_run",
    "optimize_labels",
    "score",
]


def __getattr__(name: str) -> Any:  # heavy modules load when they are first used
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fiqa_ray' has no attribute {name!r}")


def __dir__() -> list[str]:  # so that help() and completion show what loads on first use
    return sorted({*globals(), *__all__})
