"""A whole job's settings, and the checks that span sections."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import Field, field_validator, model_validator

from fiqa_ray.config.compute import ComputeSettings
from fiqa_ray.config.evaluation import BenchmarkSettings, EvaluateSettings
from fiqa_ray.config.faces import STORED, RecognizerSettings, SourceSettings
from fiqa_ray.config.labels import OptimizeSettings, PairSettings, RankSettings
from fiqa_ray.config.methods import MethodSettings
from fiqa_ray.config.section import Section, repeated
from fiqa_ray.config.training import TrainSettings
from fiqa_ray.errors import UsageError
from fiqa_ray.setting_types import Fraction, Name, Uri


class Settings(Section):
    """A whole job."""

    name: Name = Field(description="name of the job, shown in the report")
    run_uri: Uri = Field(description="folder or URL for everything that the job writes")
    seed: int = Field(0, ge=0, lt=2**62, description="seed of all random draws")
    max_bad_fraction: Fraction = Field(0.01, description="stop if a larger share of images cannot be used")
    source: SourceSettings | None = Field(None, description="the training faces; `fiqa-ray evaluate` does without")
    recognizer: RecognizerSettings = Field(description="the FR model")
    methods: tuple[MethodSettings, ...] = Field((), description="the FIQA methods; `fiqa-ray evaluate` does without")
    pair: PairSettings = Field(PairSettings(), description="clusters and mated pairs")
    rank: RankSettings = Field(RankSettings(), description="ranks of similarities")
    optimize: OptimizeSettings = Field(OptimizeSettings(), description="label optimization")
    train: TrainSettings = Field(TrainSettings(), description="training of the regressors")
    benchmarks: tuple[BenchmarkSettings, ...] = Field((), description="the benchmarks")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="evaluation on the benchmarks")
    compute: ComputeSettings = Field(ComputeSettings(), description="where the job runs and with how many workers")

    @model_validator(mode="before")
    @classmethod
    def _name_embeddings(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "recognizer" in value:
            return value
        sets = [value, *(value.get("benchmarks") or [])]
        sources = [s.get("source") for s in sets if isinstance(s, dict)]
        if any(isinstance(source, dict) and source.get("kind") == "embeddings" for source in sources):
            return {**value, "recognizer": {"name": STORED}}
        return value

    @model_validator(mode="after")
    def _check_embeddings(self) -> Settings:
        if not self.has_given_embeddings:
            return self
        sources = {"source": self.source, **{f"benchmarks: {b.name}": b.source for b in self.benchmarks}}
        for section, source in sources.items():
            if source is not None and source.kind != "embeddings":
                raise ValueError(
                    f"{section} has images and others have embeddings alone; give embeddings of one recogniser for all"
                )
        if self.recognizer.name != STORED or self.evaluate.recognizers:
            raise ValueError(
                "the source holds embeddings, and no recogniser runs; leave out recognizer and evaluate.recognizers"
            )
        for m in self.methods:
            if m.scores is None and m.fuse is None and m.name != "embedding_norm":
                raise ValueError(
                    f"methods: {m.label} needs images, and the source holds embeddings alone; give its scores: FILE.csv"
                )
        return self

    @model_validator(mode="after")
    def _add_alignments(self) -> Settings:
        """Add to each benchmark its copy with moved crops, or replace it by that. Scores from files are of other crops."""
        if "jitter" not in self.evaluate.alignment:
            return self
        if self.has_given_embeddings:
            raise ValueError("evaluate.alignment: jitter needs images, and the source holds embeddings alone")
        given = {b.name for b in self.benchmarks}
        benchmarks = []
        for b in self.benchmarks:
            if b.source.jitter or "as_is" in self.evaluate.alignment:
                benchmarks.append(b)
            if not b.source.jitter and f"{b.name}-jitter" not in given:
                source = b.source.model_copy(update={"jitter": True})
                exclude = {name: why for name, why in b.exclude.items() if name not in b.scores}
                copy = {"name": f"{b.name}-jitter", "source": source, "scores": {}, "exclude": exclude}
                benchmarks.append(b.model_copy(update=copy))
        self.__dict__["benchmarks"] = tuple(benchmarks)  # settings are frozen, and the model validates itself only once
        return self

    @field_validator("methods", "benchmarks")
    @classmethod
    def _check_names(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(v, "label", "") or v.name for v in value]
        if repeated(names):
            raise ValueError(f"{', '.join(repeated(names))} is given twice; give each its own name or label")
        reserved = sorted({"train", "random", "oracle"}.intersection(names))
        if reserved:
            raise ValueError(f"the name {reserved[0]!r} is taken; choose another name or label")
        return value

    @model_validator(mode="after")
    def _check_flip(self) -> Settings:
        if self.recognizer.flip != "none" and self.train.mode == "head":
            raise ValueError(
                "a regressor's one pass makes no flipped embeddings; with recognizer.flip set train.mode: finetune"
            )
        if any(m.recognizer is not None and m.recognizer.flip != "none" for m in self.methods):
            raise ValueError("methods score faces as they are; leave out flip in their recognizers")
        return self

    @model_validator(mode="after")
    def _check_scores(self) -> Settings:
        fused = {m.label for m in self.methods if m.fuse is not None}
        for benchmark in self.benchmarks:
            for label in fused.intersection(benchmark.scores):
                raise ValueError(
                    f"benchmarks: {benchmark.name} has scores for {label}, which is fused of others; leave them out"
                )
        return self

    @model_validator(mode="after")
    def _check_excluded(self) -> Settings:
        for benchmark in self.benchmarks:
            known = [*(m.label for m in self.methods), *benchmark.scores]
            for name in benchmark.exclude:
                if name not in known:
                    raise ValueError(
                        f"benchmarks: {benchmark.name} excludes {name!r}, which is no method or score of it; choose from "
                        f"{', '.join(known) or 'none'}"
                    )
        return self

    @model_validator(mode="after")
    def _check_recognizers(self) -> Settings:
        for recognizer in self.evaluate.recognizers:
            if recognizer.label == self.recognizer.label and recognizer != self.recognizer:
                raise ValueError(
                    f"evaluate.recognizers: {recognizer.label!r} is also the label of the job's recogniser, which has other "
                    "settings; give it its own label"
                )
        return self

    @model_validator(mode="after")
    def _check_fused(self) -> Settings:
        labels = [m.label for m in self.methods if m.fuse is None]
        for method in self.methods:
            for label in method.fuse.of if method.fuse else ():
                if label not in labels:
                    near = difflib.get_close_matches(label, labels, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"methods here: {', '.join(labels) or 'none'}"
                    raise ValueError(
                        f"methods: {method.label} is fused of {label!r}, which is no method of the job ({hint})"
                    )
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide results: without `run_uri`, limits on bad input, and of `compute` what cannot."""
        values = self.model_dump(mode="json", exclude={"compute", "max_bad_fraction", "run_uri"})
        if self.optimize.mode == ("rank",):  # as the record of a run that knew no other mode
            del values["optimize"]["mode"], values["optimize"]["ediff"]
        if self.compute.precision != "float32":
            values["precision"] = self.compute.precision
        sources = [values["source"], *(b["source"] for b in values["benchmarks"])]
        for source in filter(None, sources):
            source.pop("allow_mixed_crops")
            source.pop("allow_single_images")
        return values

    @property
    def needs_pairs(self) -> bool:
        """Whether mated pairs are drawn: for ranks, or to fit the weights of a fused method."""
        fitted = any(m.fuse is not None and m.fuse.weights == "fitted" for m in self.methods)
        return "rank" in self.optimize.mode or fitted

    def judge_label(self, recognizer: RecognizerSettings) -> str:
        """Return the label under which a FR model judges: its own, or that of the same model in `evaluate.recognizers`."""
        own = recognizer.model_dump(exclude={"label"})
        judges = self.evaluate.recognizers or (self.recognizer,)
        same = [r.label for r in judges if r.model_dump(exclude={"label"}) == own]
        return recognizer.label if recognizer.label in same or not same else same[0]

    @property
    def has_given_embeddings(self) -> bool:
        """Whether embeddings are given and there are no images."""
        return any(
            s is not None and s.kind == "embeddings" for s in (self.source, *(b.source for b in self.benchmarks))
        )

    @property
    def train_source(self) -> SourceSettings:
        """Return the source of the training faces.

        Raises:
            UsageError: the job names none.
        """
        if self.source is None:
            raise UsageError("source: is missing; only `fiqa-ray evaluate` does without training faces")
        return self.source
