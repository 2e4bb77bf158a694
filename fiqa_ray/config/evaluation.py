"""Settings of the benchmarks and of the evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fiqa_ray.config.faces import RecognizerSettings, SourceSettings
from fiqa_ray.config.methods import KeyRule, ScoresFile
from fiqa_ray.config.section import Section, repeated
from fiqa_ray.core.conventions import CONVENTIONS, Convention, changed
from fiqa_ray.errors import UsageError
from fiqa_ray.setting_types import Name, Uri


class PairListSettings(Section):
    """The list of comparisons of a benchmark."""

    kind: Literal["lfw", "cplfw", "calfw", "cfp", "table", "bin", "agedb", "lines", "ijb", "all_pairs"] = Field(
        description="format of the list"
    )
    uri: Uri = Field(
        description="cfp, ijb: root of the data set; all_pairs, bin: what is also the source; else the list file"
    )
    part: Literal["FP", "FF"] = Field("FP", description="cfp: frontal-profile or frontal-frontal")
    extension: str = Field(".jpg", description="lfw, agedb: file name extension of the images")
    key_rule: tuple[KeyRule, ...] = Field((), description="what does not count when names of images are compared")
    template_quality: Literal["min", "mean", "max"] = Field(
        "min", description="ijb: quality of a template from those of its images; CR-FIQA takes the lowest"
    )
    template_norm: Literal["keep", "unit"] = Field(
        "keep", description="ijb: unit scales each image's embedding to length 1 before images are pooled"
    )
    detector_weight: bool = Field(True, description="ijb: an image weighs as much as the detector's score of it")
    expect: Literal["lfw", "xqlfw", "cfp_fp", "cfp_ff", "cplfw", "calfw", "agedb_30"] | None = Field(
        None, description="refuse a list whose counts of pairs, folds and images are not those of this published set"
    )
    allow_partial: bool = Field(
        False, description="leave out, and count, the pairs of images that the source lacks, as in a partial copy"
    )


class BenchmarkSettings(Section):
    """A verification benchmark."""

    name: Name = Field(description="name of the benchmark in results")
    source: SourceSettings = Field(description="its faces")
    pairs: PairListSettings = Field(description="its comparisons")
    scores: dict[str, ScoresFile] = Field(
        {}, description="label -> file of scores: further scores to compare, or a method's own on this set"
    )
    exclude: dict[str, str] = Field(
        {}, description="label of a method or score -> reason: left out here with all of its regressors; tables print /"
    )
    groups: Uri | None = Field(
        None,
        description="CSV (image_id, group): every figure is given for each group too, from the pairs within it; a list of "
        "pairs of kind table may have a column group instead",
    )
    degradations: Uri | None = Field(None, description="CSV (image_id, kind, quality): what is known about the faces")


Preset = Literal["paper", "nearest", "dasec", "pmf", "nist"]


class ConventionSettings(Section):
    """A convention of the curves that is like a preset but for what is given. A preset's name stands for itself."""

    name: Name = Field(description="its name in tables")
    like: Preset = Field("paper", description="the preset to start from")
    pool: Literal["all", "mated", "nonmated", "images"] | None = Field(
        None, description="what is discarded: all or mated pairs, images, or for a curve of the FMR non-mated pairs"
    )
    threshold: Literal["fixed", "recomputed"] | None = Field(
        None, description="set once by all pairs, or at each level by those left"
    )
    count: Literal["below", "at_most", "nearest"] | None = Field(
        None, description="false matches that a rate allows: below it, at most it, or nearest to it"
    )
    step: float | Literal["every"] | None = Field(
        None, description="discarded share from level to level, such as 0.05; every: each distinct quality is a level"
    )
    ties: Literal["cut", "together"] | None = Field(None, description="whether a level cuts through equal qualities")
    curve: Literal["line", "step"] | None = Field(None, description="straight between levels, or the left value held")
    accept: Literal["above", "at"] | None = Field(
        None, description="whether a pair at the threshold is rejected or not"
    )
    starting_fnmr: float | None = Field(
        None, gt=0, lt=1, description="FNMR before any discard that sets the threshold in place of an FMR"
    )

    @model_validator(mode="after")
    def _check(self) -> ConventionSettings:
        if self.name in CONVENTIONS:
            raise ValueError(f"{self.name!r} is a preset's name; choose another")
        try:
            self.convention()
        except UsageError as exc:
            raise ValueError(str(exc)) from exc
        return self

    def convention(self) -> Convention:
        """Return the convention."""
        choices = {k: v for k, v in self.model_dump(exclude={"name", "like"}).items() if v is not None}
        if choices.get("step") == "every":
            choices["step"] = None
        return changed(self.name, self.like, **choices)


def _several(value: Any) -> Any:
    """Return one number as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class EvaluateSettings(Section):
    """Error-versus-discard curves (EDC) and their confidence intervals."""

    recognizers: tuple[RecognizerSettings, ...] = Field(
        (), description="FR models whose errors are counted; default: the job's. Scores do not depend on them"
    )
    fmr: Annotated[tuple[Rate, ...], BeforeValidator(_several), Field(min_length=1)] = Field(
        (1e-3,), description="false match rate that sets the threshold, or several"
    )
    allow_rare_fmr: bool = Field(
        False,
        description="accept a rate below 3 / number of non-mated pairs, which no result can confirm (rule of three)",
    )
    conventions: tuple[Preset | ConventionSettings, ...] = Field(
        ("paper", "dasec"), min_length=1, description="conventions for the curves: presets, or changed ones"
    )
    limits: tuple[Share, ...] = Field((0.2, 0.3), description="discarded shares up to which partial areas are given")
    resample: Literal["auto", "identities", "pairs"] = Field(
        "auto", description="what bootstrap draws hold; auto: identities where the faces name them as the pairs do"
    )
    alignment: tuple[Literal["as_is", "jitter"], ...] = Field(
        ("as_is",),
        min_length=1,
        description="jitter: each benchmark is judged a second time, as NAME-jitter, with its crops moved at random",
    )
    draws: int = Field(2000, ge=0, description="bootstrap draws; 0: no intervals")
    compare: tuple[Literal["imitated", "baseline", "unoptimized", "random"], ...] = Field(
        ("imitated", "baseline", "unoptimized", "random"),
        description="the regressor on prior labels minus the scores that it imitates; optimized minus the method's scores, "
        "minus the regressor on prior labels; every score minus random",
    )
    compare_scorers: tuple[tuple[str, str], ...] = Field((), description="further differences of two scorers by name")

    @field_validator("recognizers")
    @classmethod
    def _check_recognizers(cls, value: tuple[RecognizerSettings, ...]) -> tuple[RecognizerSettings, ...]:
        twice = repeated(r.label for r in value)
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice; give each recogniser its own label")
        return value

    @model_validator(mode="after")
    def _check_names(self) -> EvaluateSettings:
        twice = repeated(c.name for c in self.curve_conventions())
        twice += repeated(f"{rate:g}" for rate in self.fmr)
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice")
        return self

    def curve_conventions(self) -> list[Convention]:
        """Return the conventions of the curves."""
        return [CONVENTIONS[c] if isinstance(c, str) else c.convention() for c in self.conventions]
