"""Settings of the benchmarks and of the evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fiqa_ray.config.faces import SourceSettings
from fiqa_ray.config.methods import KeyRule, ScoresFile
from fiqa_ray.config.section import Section
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
    degradations: Uri | None = Field(None, description="CSV (image_id, kind, quality): what is known about the faces")


class EvaluateSettings(Section):
    """Error-versus-discard curves (EDC) and their confidence intervals."""

    fmr: float = Field(1e-3, gt=0, lt=1, description="false match rate that sets the threshold")
    conventions: tuple[Literal["paper", "dasec", "nearest"], ...] = Field(
        ("paper", "dasec"), description="conventions for the curves"
    )
    resample: Literal["auto", "identities", "pairs"] = Field(
        "auto", description="what bootstrap draws hold; auto: identities where the faces name them as the pairs do"
    )
    draws: int = Field(2000, ge=0, description="bootstrap draws; 0: no intervals")
    compare: tuple[Literal["baseline", "unoptimized", "random"], ...] = Field(
        ("baseline", "unoptimized", "random"),
        description="optimized minus the method's scores, minus the regressor on prior labels; every score minus random",
    )
    compare_scorers: tuple[tuple[str, str], ...] = Field((), description="further differences of two scorers by name")
