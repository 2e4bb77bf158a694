"""Settings of label optimization: pairs, ranks, theta."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from fiqa_ray.config.section import Section, repeated
from fiqa_ray.core.candidates import default_scale
from fiqa_ray.setting_types import Fraction


class PairSettings(Section):
    """Clusters and mated pairs (paper, section III-C)."""

    n_clusters: int = Field(20, ge=1, description="clusters per identity, C")
    n_repeats: int = Field(10, ge=1, le=100, description="repeats of the drawing of pairs, R")
    recluster: bool = Field(False, description="fit new clusters in each repeat, as the paper's text describes it")
    clustering: Literal["lloyd", "faiss"] = Field("lloyd", description="implementation of K-Means")
    init: Literal["random", "k-means++"] = Field(
        "random", description="images that K-Means starts from: random ones, as the paper reads, or spread by k-means++"
    )
    keep: bool = Field(True, description="store the pairs; false: compute them from the clusters whenever needed")
    device: Literal["cpu", "cuda", "cpu:0"] = Field(
        "cpu",
        description="cpu: compiled loops; cuda: each task takes a GPU, and GPUs of one model give equal bits; "
        "cpu:0: the GPU's operations on the processor, for tests",
    )

    @model_validator(mode="after")
    def _check_init(self) -> PairSettings:
        if self.init != "random" and self.clustering == "faiss":
            raise ValueError("clustering: faiss starts from random images only; use init: random, or clustering: lloyd")
        return self


class RankSettings(Section):
    """How the ranks of similarities are computed; both engines give identical ranks."""

    engine: Literal["counting", "sort"] = Field("counting", description="count in a histogram, or sort all keys")
    n_ranges: int = Field(8, ge=1, description="sort: key ranges per repeat, which are merged in parallel")


Theta = float | Literal["heldout"]
"""The weight of the update, or `heldout`: the one that is best on held-out training people."""

_CheckedTheta = Annotated[
    Annotated[Fraction, Tag("number")] | Annotated[Literal["heldout"], Tag("heldout")],
    Discriminator(lambda v: "heldout" if v == "heldout" else "number"),
]


def theta_name(theta: Theta) -> str:
    """Return a theta as it is written in paths and tables."""
    return theta if isinstance(theta, str) else f"{theta:g}"


LabelRule = Theta | Literal["ediff"]
"""What labels are made by: ranks, at a theta, or eDifFIQA's rule."""

EDIFF: Final = "ediff"


class EdiffSettings(Section):
    """eDifFIQA's label rule: a score, lowered by the distance to the mean of the person's good images."""

    epsilon: float = Field(0.5, ge=0, description="weight of the distance, 1 minus the cosine")
    best: float = Field(0.2, ge=0, lt=1, description="share of the images, by score, that count as good")
    least: int = Field(10, ge=1, description="good images that a person must have; other people get no labels")


def _listed(value: Any) -> Any:
    """Return a single value as a list of it."""
    return value if isinstance(value, list | tuple) else (value,)


class OptimizeSettings(Section):
    """Label optimization (paper, equation 3), and the other rule for labels."""

    mode: Annotated[tuple[Literal["rank", "ediff"], ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        ("rank",),
        description="what makes labels: rank, the paper's optimization by ranks of similarities; ediff, eDifFIQA's rule; or "
        "both, each of which gives label sets of its own",
    )
    theta: Annotated[
        tuple[_CheckedTheta, ...],
        BeforeValidator(_listed),
        Field(min_length=1),
    ] = Field(
        ("heldout",),
        description="rank: weight of the update, or heldout: chosen for each method on held-out training people; or "
        "several, each of which gives one label set",
    )
    index_scale: Literal["raw", "normalized"] = Field(
        "normalized",
        description="rank: ranks of pairs scaled to the range of the quality indices, or raw as published; default: raw "
        "where theta is the paper's 0.001 alone",
    )
    ediff: EdiffSettings = Field(EdiffSettings(), description="ediff: the rule's choices")

    @property
    def thetas(self) -> tuple[Theta, ...]:
        """The thetas of mode rank; none without it."""
        return self.theta if "rank" in self.mode else ()

    @property
    def rules(self) -> tuple[LabelRule, ...]:
        """What label sets are made by, beside the prior scores."""
        return (*self.thetas, *((EDIFF,) if EDIFF in self.mode else ()))

    @model_validator(mode="before")
    @classmethod
    def _default_scale(cls, values: Any) -> Any:
        if isinstance(values, dict) and "index_scale" not in values:
            theta = values.get("theta")
            thetas: list[Any] = list(theta) if isinstance(theta, list | tuple) else [theta]
            return {**values, "index_scale": default_scale(thetas)}
        return values

    @model_validator(mode="after")
    def _check_scale(self) -> OptimizeSettings:
        if "heldout" in self.theta and self.index_scale == "raw":
            raise ValueError("theta: heldout chooses on the scale normalized; leave out index_scale, or give numbers")
        return self

    @field_validator("mode")
    @classmethod
    def _check_modes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = repeated(value)
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice; give each mode once")
        return value

    @field_validator("theta")
    @classmethod
    def _check_unique(cls, value: tuple[Theta, ...]) -> tuple[Theta, ...]:
        twice = repeated(theta_name(t) for t in value)
        if twice:
            raise ValueError(f"{', '.join(twice)} is given twice; give each theta once")
        return value
