"""The settings of a job: their types, defaults and checks, and how they are read from YAML and `key=value`.

Every setting is part of some dataset's fingerprint, except `run_uri`, `compute`, `max_bad_fraction`, `allow_mixed_crops` and
`allow_single_images`. So a larger cluster reuses what a smaller one computed. All mistakes are reported at once, with the
nearest valid name of a key.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fiqa_ray.core.landmark_order import LandmarkOrder
from fiqa_ray.errors import UsageError
from fiqa_ray.safe_yaml import parse_yaml
from fiqa_ray.storage import read_bytes

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A name that can be part of a path."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSettings(_Settings):
    """Where the faces of a set come from.

    Kinds: `folder`: one folder per identity; `vggface2`: the data set as distributed; `table`: CSV or Parquet that names
    image files; `recordio`: MXNet's `train.rec` with its `.idx`; `webdataset`: tar shards, by braces or glob;
    `parquet_images`: images inside Parquet, as Hugging Face stores them; `bin`: InsightFace's verification file.
    """

    kind: Literal["folder", "vggface2", "table", "recordio", "webdataset", "parquet_images", "bin"] = Field(
        description="format of the source"
    )
    uri: str = Field(description="path or URL of the folder or file")
    landmarks_uri: str | None = Field(None, description="folder: CSV with five landmarks per image, in VGGFace2's form")
    identity_level: int | None = Field(
        0, ge=0, description="folder: which path component below uri is the identity, counted from 0; null: none is"
    )
    splits: tuple[Literal["train", "test"], ...] = Field(("train", "test"), description="vggface2: parts to read")
    limit: int | None = Field(None, ge=1, description="read only this number of identities, for a trial")
    identity_key: str | None = Field(
        None, description="webdataset: JSON key of the identity; parquet_images: its column; default: see each kind"
    )
    detector: str | None = Field(None, description="YuNet's .onnx file, to align images that come without landmarks")
    landmark_order: str | None = Field(
        None,
        description="order of the ten landmark numbers, such as planar, nose_first or standard; default: standard, and a "
        "set that another order fits clearly better is refused",
    )
    allow_missing_end: bool = Field(
        False, description="read JPEGs without an end mark whose pixels are all there, as some phones write them"
    )
    allow_mixed_crops: bool = Field(False, description="accept a data set whose crops were aligned in different ways")
    allow_single_images: bool = Field(False, description="accept training faces of which most people have one image")

    @field_validator("landmark_order")
    @classmethod
    def _check_order(cls, value: str | None) -> str | None:
        return value if value is None else LandmarkOrder.parse(value).name


class RecognizerSettings(_Settings):
    """The FR model M."""

    name: str = Field(description="a name of `fiqa-ray models`, `module:function`, or an .onnx file")
    weights: str | None = Field(None, description="path or URL of the weights")
    options: dict[str, Any] = Field({}, description="keyword arguments of the model")


class FuseSettings(_Settings):
    """A method made of others: the weighted mean of the ranks that their scores have among the training faces."""

    of: tuple[Name, ...] = Field(min_length=2, description="labels of the methods to fuse")
    weights: Literal["equal", "fitted"] | dict[Name, Annotated[float, Field(ge=0)]] = Field(
        "equal", description="equal; fitted on the similarity of mated training pairs; or one weight per label"
    )

    @model_validator(mode="after")
    def _check_labels(self) -> FuseSettings:
        if _repeated(self.of):
            raise ValueError(f"{', '.join(_repeated(self.of))} is given twice in 'of'")
        if isinstance(self.weights, dict):
            if set(self.weights) != set(self.of):
                raise ValueError(f"weights must name each of {', '.join(self.of)} once, and no other")
            if not sum(self.weights.values()) > 0:
                raise ValueError("weights must not all be 0")
        return self


KeyRule = Literal["dot_slash", "slash", "unicode", "ending", "prefix"]
"""What does not count when names of images are compared; `fiqa_ray.sources.keys.KEY_RULES` says what each means."""


class ScoresSettings(_Settings):
    """A file of scores, of the user or of another tool. A bare path stands for its `uri`."""

    uri: str = Field(description="CSV or Parquet (image_id, score), OFIQ's CSV, or lines `path score`")
    id_column: str | None = Field(None, description="column of the image's name; default: image_id, or OFIQ's Filename")
    score_column: str | None = Field(None, description="column of the score; default: score, or UnifiedQualityScore")
    separator: str | None = Field(None, min_length=1, max_length=1, description="of a CSV; default: by its header")
    key_rule: tuple[KeyRule, ...] = Field((), description="what does not count when names of images are compared")


ScoresFile = Annotated[ScoresSettings, BeforeValidator(lambda v: {"uri": v} if isinstance(v, str) else v)]


class MethodSettings(_Settings):
    """A FIQA method Q: a model, the user's own scores, or a fusion of other methods of the job."""

    name: str = Field(
        description="a name of `fiqa-ray models`, an .onnx file, or `module:function`; free if scores or fuse is given"
    )
    label: Name = Field("", description="name of the method in results; default: the last part of name")
    weights: str | None = Field(None, description="path or URL of the weights")
    recognizer: RecognizerSettings | None = Field(
        None, description="FR model that the method works on, such as the one it was released with; default: the job's"
    )
    scores: ScoresFile | None = Field(None, description="a file with scores of the training faces")
    options: dict[str, Any] = Field({}, description="keyword arguments of the method")
    fuse: FuseSettings | None = Field(None, description="make this method by fusing others of the job")

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("label") and isinstance(value.get("name"), str):
            return {**value, "label": label_of(value["name"])}
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> MethodSettings:
        if self.fuse is not None and (self.weights or self.recognizer or self.scores or self.options):
            raise ValueError(f"{self.label} is fused of others: leave out its weights, recognizer, scores and options")
        if self.scores is not None and self.recognizer is not None:
            raise ValueError(f"{self.label} has scores of its own: leave out its recognizer")
        return self


def label_of(name: str) -> str:
    """Return a model's name as a path component: `package:net` becomes `package.net`, and folders are left out."""
    return name.replace(":", ".").rsplit("/", 1)[-1]


class PairSettings(_Settings):
    """Clusters and mated pairs (paper, section III-C)."""

    n_clusters: int = Field(20, ge=1, description="clusters per identity, C")
    n_repeats: int = Field(10, ge=1, le=100, description="repeats of the drawing of pairs, R")
    recluster: bool = Field(False, description="fit new clusters in each repeat, as the paper's text describes it")
    clustering: Literal["lloyd", "faiss"] = Field("lloyd", description="implementation of K-Means")
    keep: bool = Field(True, description="store the pairs; false: compute them from the clusters whenever needed")
    device: Literal["cpu", "cuda", "cpu:0"] = Field(
        "cpu",
        description="cpu: compiled loops; cuda: each task takes a GPU, and GPUs of one model give equal bits; "
        "cpu:0: the GPU's operations on the processor, for tests",
    )


class RankSettings(_Settings):
    """How the ranks of similarities are computed; both engines give identical ranks."""

    engine: Literal["counting", "sort"] = Field("counting", description="count in a histogram, or sort all keys")
    n_ranges: int = Field(8, ge=1, description="sort: key ranges per repeat, which are merged in parallel")


class OptimizeSettings(_Settings):
    """Label optimization (paper, equation 3)."""

    theta: Annotated[
        tuple[Fraction, ...], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,)), Field(min_length=1)
    ] = Field((1e-3,), description="step size, or several; each gives one label set")
    index_scale: Literal["raw", "normalized"] = Field(
        "raw", description="ranks of pairs as they are, or scaled to the range of the quality indices"
    )

    @field_validator("theta")
    @classmethod
    def _check_unique(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        repeated = _repeated(f"{t:g}" for t in value)  # as in paths and tables
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is given twice; give each theta once")
        return value


class TrainSettings(_Settings):
    """The training of the regressor H on M. Defaults that depend on the mode are in `fiqa_ray.training.loop.RECIPES`."""

    mode: Literal["head", "finetune"] = Field(
        "head", description="head: a linear head on stored embeddings; finetune: the released recipe"
    )
    n_epochs: int | None = Field(None, ge=1, description="epochs; default: head 20, finetune 1")
    batch_size: int | None = Field(None, ge=1, description="images per step of all workers; default: 512 or 128")
    learning_rate: float | None = Field(
        None, gt=0, description="head: Adam's rate, default 0.01; finetune: factor on the recipe's rates, default 1"
    )
    gradients: Literal["clean", "published"] = Field(
        "clean", description="finetune: clip over trained weights only, or over all as the released code does"
    )
    validations_per_epoch: int = Field(20, ge=1, description="validations per epoch; the best weights are saved")


class PairListSettings(_Settings):
    """The list of comparisons of a benchmark."""

    kind: Literal["lfw", "cplfw", "calfw", "cfp", "table", "bin"] = Field(description="format of the list")
    uri: str = Field(description="cfp: root of the data set; bin: the file that is also the source; else the list file")
    part: Literal["FP", "FF"] = Field("FP", description="cfp: frontal-profile or frontal-frontal")
    extension: str = Field(".jpg", description="lfw: file name extension of the images")
    key_rule: tuple[KeyRule, ...] = Field((), description="what does not count when names of images are compared")


class BenchmarkSettings(_Settings):
    """A verification benchmark."""

    name: Name = Field(description="name of the benchmark in results")
    source: SourceSettings = Field(description="its faces")
    pairs: PairListSettings = Field(description="its comparisons")
    scores: dict[str, ScoresFile] = Field(
        {}, description="label -> file of scores: further scores to compare, or a method's own on this set"
    )
    degradations: str | None = Field(None, description="CSV (image_id, kind, quality): what is known about the faces")


class EvaluateSettings(_Settings):
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


class ComputeSettings(_Settings):
    """Where the job runs and with how many workers; never part of a result."""

    engine: Literal["ray", "local"] = Field("ray", description="local: in this process, without Ray")
    address: str | None = Field(None, description="Ray cluster to join; default: RAY_ADDRESS, else a local one")
    n_workers: int | None = Field(
        None, ge=1, description="parallel tasks and actors; default: all CPUs, or all GPUs for models"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device of the models; auto: cuda if available")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images per forward pass; default: 16 on a CPU (small batches stay in cache), 256 on CUDA",
    )
    rows_per_part: int = Field(4096, ge=1, description="faces per shard; an identity never crosses shards")
    train_workers: int = Field(1, ge=0, description="Ray Train workers; 0: train in this process")
    object_store_bytes: int | None = Field(None, ge=80_000_000, description="object store of a local Ray, in bytes")


def default_batch_size(device: str) -> int:
    """Return the images per forward pass if the job does not say; the last bits of results depend on it."""
    return 256 if device.startswith("cuda") else 16


class Settings(_Settings):
    """A whole job."""

    name: Name = Field(description="name of the job, shown in the report")
    run_uri: str = Field(description="folder or URL for everything that the job writes")
    seed: int = Field(0, ge=0, lt=2**62, description="seed of all random draws")
    max_bad_fraction: Fraction = Field(0.01, description="stop if a larger share of images cannot be used")
    source: SourceSettings = Field(description="the training faces")
    recognizer: RecognizerSettings = Field(description="the FR model")
    methods: tuple[MethodSettings, ...] = Field(min_length=1, description="the FIQA methods")
    pair: PairSettings = Field(PairSettings(), description="clusters and mated pairs")
    rank: RankSettings = Field(RankSettings(), description="ranks of similarities")
    optimize: OptimizeSettings = Field(OptimizeSettings(), description="label optimization")
    train: TrainSettings = Field(TrainSettings(), description="training of the regressors")
    benchmarks: tuple[BenchmarkSettings, ...] = Field((), description="the benchmarks")
    evaluate: EvaluateSettings = Field(EvaluateSettings(), description="evaluation on the benchmarks")
    compute: ComputeSettings = Field(ComputeSettings(), description="where the job runs and with how many workers")

    @field_validator("methods", "benchmarks")
    @classmethod
    def _check_names(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(v, "label", "") or v.name for v in value]
        if _repeated(names):
            raise ValueError(f"{', '.join(_repeated(names))} is given twice; give each its own name or label")
        reserved = sorted({"train", "random", "oracle"}.intersection(names))
        if reserved:
            raise ValueError(f"the name {reserved[0]!r} is taken; choose another name or label")
        return value

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
        """Return the settings that decide results: without `compute`, `run_uri` and the limits on bad input."""
        values = self.model_dump(mode="json", exclude={"compute", "max_bad_fraction", "run_uri"})
        for source in (values["source"], *(b["source"] for b in values["benchmarks"])):
            source.pop("allow_mixed_crops")
            source.pop("allow_single_images")
        return values


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, n in Counter(names).items() if n > 1)


def load_settings(job_uri: str, overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Read a job's settings from YAML and apply overrides.

    Args:
        job_uri: the YAML file: a path or any fsspec URL.
        overrides: `key=value` texts with dotted keys and YAML values, such as `optimize.theta=0.01`.

    Raises:
        UsageError: lists every mistake with its key and value and, for an unknown key, the nearest valid one.
    """
    text = read_bytes(job_uri).decode("utf-8", errors="replace")
    values = parse_yaml(text, job_uri)
    if not isinstance(values, dict):
        raise UsageError(f"{job_uri} must hold settings as 'key: value' lines, found {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return make_settings(values, Path(job_uri).name)


def make_settings(values: dict[str, Any], origin: str = "settings") -> Settings:
    """Return the settings that a nested dict holds.

    Args:
        values: as YAML gives them.
        origin: name of the file, for error messages.

    Raises:
        UsageError: as `load_settings`.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        lines = [_explain(error) for error in exc.errors()]
        raise UsageError(
            f"{origin}: {len(lines)} wrong setting(s)\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def parse_options(options: list[str]) -> dict[str, Any]:
    """Return the options of a model or method that are given as `key=value` texts with YAML values.

    Raises:
        UsageError: a text has another form.
    """
    values: dict[str, Any] = {}
    for option in options:
        _override(values, option)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"{override!r} is not of the form key=value, such as optimize.theta=0.01")
    value = parse_yaml(text, f"{override!r}: the value")
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            value = str(value)
    *path, last = key.split(".")
    section: Any = values
    for i, step in enumerate(path):
        if isinstance(section, list) and step.isdigit() and int(step) < len(section):
            section = section[int(step)]
        elif isinstance(section, dict):
            section = section.setdefault(step, {})
        else:
            raise UsageError(f"{override!r}: {'.'.join(path[:i])} has no key {step!r}")
    if isinstance(section, list) and last.isdigit() and int(last) < len(section):
        section[int(last)] = value
    elif isinstance(section, dict):
        section[last] = value
    else:
        raise UsageError(f"{override!r}: {'.'.join(path)} has no key {last!r}")


def _explain(error: Any) -> str:
    """Return one line on one of pydantic's errors: the key, what is wrong, and the value or a hint."""
    path = [p for p in error["loc"] if not str(p).startswith("function-")]
    key = ".".join(str(p) for p in path)
    if error["type"] == "extra_forbidden":
        valid = _keys_at(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(valid)}"
        return f"{key}: unknown key ({hint})"
    if error["type"] == "missing":
        return f"{key}: is missing"
    value = error.get("input")
    shown = f" (found {value!r})" if not isinstance(value, dict | list) else ""
    return f"{key}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _keys_at(path: list[Any]) -> list[str]:
    """Return the valid keys of the section at a path of keys and list indices."""
    model: Any = Settings
    for step in path:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
