"""The settings of a job: their types, defaults and checks, and how they are read from YAML and `key=value`.

Every setting is part of some dataset's fingerprint, except `run_uri`, all of `compute` but `precision`, `max_bad_fraction`,
`allow_mixed_crops` and `allow_single_images`. So a larger cluster reuses what a smaller one computed. URIs lose user info
and query strings wherever settings are stored or hashed. All mistakes are reported at once, with the nearest valid name of a
key.
"""

from fiqa_ray.config.compute import ComputeSettings, default_batch_size
from fiqa_ray.config.evaluation import BenchmarkSettings, EvaluateSettings, PairListSettings
from fiqa_ray.config.faces import RecognizerSettings, SourceSettings, label_of
from fiqa_ray.config.job import Settings
from fiqa_ray.config.labels import (
    EDIFF,
    EdiffSettings,
    OptimizeSettings,
    PairSettings,
    RankSettings,
    Theta,
    theta_name,
)
from fiqa_ray.config.load import load_settings, make_settings, settings_values
from fiqa_ray.config.methods import FuseSettings, KeyRule, MethodSettings, ScoresFile, ScoresSettings
from fiqa_ray.config.training import TrainSettings

__all__ = [
    "EDIFF",
    "BenchmarkSettings",
    "ComputeSettings",
    "EdiffSettings",
    "EvaluateSettings",
    "FuseSettings",
    "KeyRule",
    "MethodSettings",
    "OptimizeSettings",
    "PairListSettings",
    "PairSettings",
    "RankSettings",
    "RecognizerSettings",
    "ScoresFile",
    "ScoresSettings",
    "Settings",
    "SourceSettings",
    "Theta",
    "TrainSettings",
    "default_batch_size",
    "label_of",
    "load_settings",
    "make_settings",
    "settings_values",
    "theta_name",
]
