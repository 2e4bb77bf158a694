"""The FIQA method or regressor that a command's options name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fiqa_ray.errors import UsageError
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.tools.open_run import find_regressor


@dataclass(frozen=True)
class NamedModel:
    """A model as the command line names it.

    Attributes:
        name: a FIQA method, a regressor's folder or file, a run with one regressor, or `module:function`; for `doctor` also
            an FR model.
        recognizer: name of the FR model that a method works on.
        weights: checkpoint of the model.
        recognizer_weights: checkpoint of the FR model.
        options: options of the model.
        recognizer_options: options of the FR model.
        allow_import: let a regressor import the code of the FR model that it was trained on.
        device: as torch names it.
    """

    name: str
    recognizer: str | None = None
    weights: str | None = None
    recognizer_weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recognizer_options: Mapping[str, Any] = field(default_factory=dict)
    allow_import: bool = False
    device: str = "cpu"

    @property
    def runs_user_code(self) -> bool:
        """Whether a user's own code runs, which may not be thread-safe."""
        names = [self.name, *([self.recognizer] if self.recognizer else [])]
        return self.allow_import or any(ModelRef.parse(name).kind == "function" for name in names)

    def load(self) -> Scorer:
        """Load the method or regressor.

        Raises:
            UsageError: an option would have no effect.
            FiqaRayError: as `load_scorer`.
        """
        scorer, recognizer = self.load_both()
        if recognizer is not None and scorer.network is not recognizer:
            raise UsageError(f"--recognizer {self.recognizer}: {self.name!r} works on none; leave it out")
        return scorer

    def load_both(self) -> tuple[Scorer, Recognizer | None]:
        """Load the method or regressor, and the FR model that is named, also where the method does without one.

        Raises:
            UsageError: an option would have no effect.
            FiqaRayError: as `load_scorer`.
        """
        name = find_regressor(self.name)
        reference = ModelRef.parse(name)
        if self.recognizer_options and not self.recognizer:
            key, value = next(iter(self.recognizer_options.items()))
            raise UsageError(f"--recognizer-option '{key}={value}' belongs to a --recognizer; name it")
        if self.recognizer_weights and not self.recognizer:
            raise UsageError(f"--recognizer-weights {self.recognizer_weights} belongs to no FR model: add --recognizer")
        if self.weights and reference.needs_recognizer and reference.method and reference.method.head is None:
            raise UsageError(
                f"{self.name} has no weights of its own; those of the FR model are --recognizer-weights {self.weights}"
            )
        recognizer = None
        if self.recognizer:
            recognizer = load_recognizer(
                self.recognizer, self.recognizer_weights, self.device, **dict(self.recognizer_options)
            )
        options = dict(self.options) | ({"allow_import": True} if self.allow_import and reference.card_uri else {})
        return load_scorer(name, recognizer, self.weights, self.device, **options), recognizer
