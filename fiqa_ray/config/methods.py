"""Settings of the FIQA methods and of files of scores."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fiqa_ray.config.faces import RecognizerSettings, label_of
from fiqa_ray.config.section import Section, repeated
from fiqa_ray.public_uri import public_uri
from fiqa_ray.setting_types import Name, Options, Uri


class FuseSettings(Section):
    """A method made of others: the weighted mean of the ranks that their scores have among the training faces."""

    of: tuple[Name, ...] = Field(min_length=2, description="labels of the methods to fuse")
    weights: Literal["equal", "fitted"] | dict[Name, Annotated[float, Field(ge=0)]] = Field(
        "equal", description="equal; fitted on the similarity of mated training pairs; or one weight per label"
    )

    @model_validator(mode="after")
    def _check_labels(self) -> FuseSettings:
        if repeated(self.of):
            raise ValueError(f"{', '.join(repeated(self.of))} is given twice in 'of'")
        if isinstance(self.weights, dict):
            if set(self.weights) != set(self.of):
                raise ValueError(f"weights must name each of {', '.join(self.of)} once, and no other")
            if not sum(self.weights.values()) > 0:
                raise ValueError("weights must not all be 0")
        return self


KeyRule = Literal["dot_slash", "slash", "unicode", "ending", "prefix"]
"""What does not count when names of images are compared; `fiqa_ray.sources.keys.KEY_RULES` says what each means."""


class ScoresSettings(Section):
    """A file of scores, of the user or of another tool. A bare path stands for its `uri`."""

    uri: Uri = Field(
        description="CSV or Parquet (image_id, score), OFIQ's or XQLFW's file, lines `path score`, or a pickle {path: score}"
    )
    id_column: str | None = Field(None, description="column of the image's name; default: image_id, or OFIQ's Filename")
    score_column: str | None = Field(None, description="column of the score; default: score, or UnifiedQualityScore")
    separator: str | None = Field(None, min_length=1, max_length=1, description="of a CSV; default: by its header")
    key_rule: tuple[KeyRule, ...] = Field((), description="what does not count when names of images are compared")
    higher_is_better: bool = Field(True, description="false for an uncertainty or a distance, which is negated")


ScoresFile = Annotated[ScoresSettings, BeforeValidator(lambda v: {"uri": v} if isinstance(v, str) else v)]


class MethodSettings(Section):
    """A FIQA method Q: a model, the user's own scores, or a fusion of other methods of the job."""

    name: Uri = Field(
        description="a name of `fiqa-ray models`, an .onnx file, or `module:function`; free if scores or fuse is given"
    )
    label: Name = Field(
        "", description="name of the method in results; default: the last part of name, or what a regressor learned"
    )
    weights: Uri | None = Field(None, description="path or URL of the weights")
    recognizer: RecognizerSettings | None = Field(
        None, description="FR model that the method works on, such as the one it was released with; default: the job's"
    )
    scores: ScoresFile | None = Field(None, description="a file with scores of the training faces")
    options: Options = Field({}, description="keyword arguments of the method")
    fuse: FuseSettings | None = Field(None, description="make this method by fusing others of the job")

    @model_validator(mode="before")
    @classmethod
    def _set_label(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("label") and isinstance(value.get("name"), str):
            return {**value, "label": _default_label(value["name"])}
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> MethodSettings:
        if self.fuse is not None and (self.weights or self.recognizer or self.scores or self.options):
            raise ValueError(f"{self.label} is fused of others: leave out its weights, recognizer, scores and options")
        if self.scores is not None and self.recognizer is not None:
            raise ValueError(f"{self.label} has scores of its own: leave out its recognizer")
        taken = sorted({"name", "recognizer", "weights", "device", "seed"}.intersection(self.options))
        if taken:
            raise ValueError(
                f"{self.label}: an option cannot be called {taken[0]!r}, which the job gives; choose another"
            )
        return self


def _default_label(name: str) -> str:
    """Return a method's name in results: of a regressor that a job trained, the method and labels that it learned."""
    keys = dict(part.split("=", 1) for part in public_uri(name).split("/") if "=" in part)
    label = f"{keys['fiqa']}-regressor-{keys['labels']}" if {"fiqa", "labels"} <= set(keys) else label_of(name)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", label).lstrip("_.-")
