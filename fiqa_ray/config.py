"""Typed settings of a job: YAML plus key=value; all errors at once, with near-name hints.

Every setting below is part of a dataset's fingerprint, except ``compute``, ``max_bad_fraction`` and ``allow_mixed_crops``: a
larger cluster reuses what a smaller one made.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from fiqa_ray.errors import UsageError
from fiqa_ray.storage import read_bytes

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _used(values: dict[str, Any], *later: str) -> dict[str, Any]:
    """Settings without those of ``later`` that are not used: runs from before they existed keep their fingerprints."""
    return {k: v for k, v in values.items() if k not in later or v not in (None, False)}


class SourceSettings(_Settings):
    """Where faces come from.

    ``folder``: a folder per identity; ``vggface2``: as distributed; ``table``: CSV or Parquet that names files;
    ``recordio``: MXNet's ``train.rec`` with its ``.idx``; ``webdataset``: tar shards by braces or glob;
    ``parquet_images``: images inside Parquet, as Hugging Face stores them; ``bin``: InsightFace's verification file.
    """

    kind: Literal["folder", "vggface2", "table", "recordio", "webdataset", "parquet_images", "bin"]
    uri: str
    landmarks_uri: str | None = None
    identity_level: int | None = Field(
        0, ge=0, description="folder: path component below uri that is the identity; null: none"
    )
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    limit: int | None = Field(None, ge=1, description="for trials: only the first so many identities")
    identity_key: str | None = Field(
        None, description="webdataset: JSON key, parquet_images: column; default: see each"
    )
    detector: str | None = Field(None, description="YuNet's .onnx: aligns images that come without landmarks")
    allow_mixed_crops: bool = Field(False, description="let one data set hold crops that were aligned in several ways")

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _used(serialize(self), "identity_key", "detector", "allow_mixed_crops")


class RecognizerSettings(_Settings):
    """The FR model M: a name of `fiqa-ray models`, ``module:function`` or an ``.onnx`` file."""

    name: str
    weights: str | None = None
    options: dict[str, Any] = {}


class FuseSettings(_Settings):
    """Several methods of the job become one: the weighted mean of their scores' places among the training faces.

    ``weights``: "equal" (the average of ranks), "fitted" on the similarity of mated training pairs, or one per label.
    """

    of: tuple[Name, ...] = Field(min_length=2, description="labels of the methods to be fused")
    weights: Literal["equal", "fitted"] | dict[Name, Annotated[float, Field(ge=0)]] = "equal"

    @model_validator(mode="after")
    def _fit_together(self) -> FuseSettings:
        if len(set(self.of)) < len(self.of):
            raise ValueError("a label stands twice in 'of'")
        if isinstance(self.weights, dict):
            if set(self.weights) != set(self.of):
                raise ValueError(f"weights must name each of {', '.join(self.of)} once, and no other")
            if not sum(self.weights.values()) > 0:
                raise ValueError("weights must not all be 0")
        return self


class MethodSettings(_Settings):
    """A FIQA method Q: a name of `fiqa-ray models`, ``.onnx``, ``module:function``, or the user's own ``scores``.

    ``options`` go to the method. ``recognizer``: the FR model that the method works on, such as the one it was released with
    (default: the job's). ``fuse`` makes a method of others of the job, under a name of the user's choice. ``label`` names
    it in results (default: ``name``).
    """

    name: str
    label: Name = ""
    weights: str | None = None
    recognizer: RecognizerSettings | None = None
    scores: str | None = Field(None, description="CSV or Parquet with image_id, score: for the training faces")
    options: dict[str, Any] = {}
    fuse: FuseSettings | None = None

    @model_validator(mode="after")
    def _fused_or_own(self) -> MethodSettings:
        if self.fuse is not None and (self.weights or self.recognizer or self.scores or self.options):
            raise ValueError(f"{self.label} is fused of others: leave out its weights, recognizer, scores and options")
        if self.scores is not None and self.recognizer is not None:
            raise ValueError(f"{self.label} has scores of its own: leave out its recognizer")
        return self

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _used(serialize(self), "recognizer", "fuse")

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("label") and isinstance(value.get("name"), str):
            return {**value, "label": value["name"].replace(":", ".").rsplit("/", 1)[-1]}
        return value


class PairSettings(_Settings):
    """Clusters and mated pairs (paper III-C)."""

    n_clusters: int = Field(20, ge=1)
    n_repeats: int = Field(10, ge=1, le=100)
    recluster: bool = Field(False, description="fit the clusters anew for each repeat, as the paper's text reads")
    clustering: Literal["lloyd", "faiss"] = "lloyd"
    keep: bool = Field(True, description="store the pairs; false: make them again from the clusters where needed")


class RankSettings(_Settings):
    """How similarity ranks are found; both engines give identical ranks."""

    engine: Literal["counting", "sort"] = "counting"
    n_ranges: int = Field(8, ge=1, description="sort: key ranges per repeat, merged in parallel")


class OptimizeSettings(_Settings):
    """Equation 3. Several thetas give one label set each."""

    theta: Annotated[
        tuple[Fraction, ...], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,)), Field(min_length=1)
    ] = (1e-3,)
    index_scale: Literal["raw", "normalized"] = "raw"

    @field_validator("theta")
    @classmethod
    def _unlike(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        shown = [f"{t:g}" for t in value]  # as in paths and tables
        twice = sorted({t for t in shown if shown.count(t) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice; give each theta once")
        return value


class TrainSettings(_Settings):
    """The regressor H on M. ``head``: a linear head on stored embeddings; ``finetune``: the released recipe.

    Defaults of None are those of the mode: see `fiqa_ray.stages.train.RECIPES`.
    """

    mode: Literal["head", "finetune"] = "head"
    n_epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="head: Adam's rate; finetune: factor on the recipe's")
    gradients: Literal["clean", "published"] = "clean"
    validations_per_epoch: int = Field(20, ge=1)


class PairListSettings(_Settings):
    """A verification protocol. ``cfp`` takes the data set's root, the others a file; ``bin`` the one that is the source."""

    kind: Literal["lfw", "cplfw", "calfw", "cfp", "table", "bin"]
    uri: str
    part: Literal["FP", "FF"] = "FP"
    extension: str = ".jpg"


class BenchmarkSettings(_Settings):
    """A verification benchmark: faces, pair list, and what is known about the faces.

    ``scores``: label -> CSV/Parquet (image_id, score) of further quality scores to compare; a
    label of ``methods`` gives that method's own scores on this benchmark. ``degradations``: CSV (image_id, kind, quality).
    """

    name: Name
    source: SourceSettings
    pairs: PairListSettings
    scores: dict[str, str] = {}
    degradations: str | None = None


class EvaluateSettings(_Settings):
    """EDC: operating point, conventions, bootstrap."""

    fmr: float = Field(1e-3, gt=0, lt=1)
    conventions: tuple[Literal["paper", "dasec", "nearest"], ...] = ("paper", "dasec")
    n_bootstrap: int = Field(200, ge=0)


class ComputeSettings(_Settings):
    """Where and how wide; never part of a result.

    ``engine``: ``ray`` or ``local`` (this process, no Ray). ``n_workers``: parallel tasks and actors (default: all CPUs,
    or all GPUs for models). ``batch_size``: fixed shape of model batches.
    """

    engine: Literal["ray", "local"] = "ray"
    address: str | None = Field(None, description="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    n_workers: int | None = Field(None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int | None = Field(
        None, ge=1, description="default: 16 on a CPU, where small batches stay in cache; 256 on CUDA"
    )
    rows_per_part: int = Field(4096, ge=1, description="faces per shard; an identity never crosses shards")
    train_workers: int = Field(1, ge=0, description="Ray Train workers; 0 trains in this process")
    object_store_bytes: int | None = Field(None, ge=80_000_000)


def default_batch_size(device: str) -> int:
    """Faces per forward pass where none is asked for: results depend on it in their last bits."""
    return 256 if device.startswith("cuda") else 16


class Settings(_Settings):
    """A whole job."""

    name: Name
    run_uri: str
    seed: int = Field(0, ge=0, lt=2**62)
    max_bad_fraction: Fraction = 0.01
    source: SourceSettings
    recognizer: RecognizerSettings
    methods: tuple[MethodSettings, ...] = Field(min_length=1)
    pair: PairSettings = PairSettings()
    rank: RankSettings = RankSettings()
    optimize: OptimizeSettings = OptimizeSettings()
    train: TrainSettings = TrainSettings()
    benchmarks: tuple[BenchmarkSettings, ...] = ()
    evaluate: EvaluateSettings = EvaluateSettings()
    compute: ComputeSettings = ComputeSettings()

    @field_validator("methods", "benchmarks")
    @classmethod
    def _unique(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(v, "label", "") or v.name for v in value]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands twice; give each its own name or label")
        taken = sorted({"train", "random", "oracle"}.intersection(names))
        if taken:
            raise ValueError(f"the name {taken[0]!r} is taken; choose another name or label")
        return value

    @model_validator(mode="after")
    def _scores_of_own_methods(self) -> Settings:
        fused = {m.label for m in self.methods if m.fuse is not None}
        for benchmark in self.benchmarks:
            for label in fused.intersection(benchmark.scores):
                raise ValueError(
                    f"benchmarks: {benchmark.name} has scores for {label}, which is fused of others; leave them out"
                )
        return self

    @model_validator(mode="after")
    def _fused_of_known(self) -> Settings:
        known = [m.label for m in self.methods if m.fuse is None]
        for method in self.methods:
            for label in method.fuse.of if method.fuse else ():
                if label not in known:
                    near = difflib.get_close_matches(label, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"methods here: {', '.join(known) or 'none'}"
                    raise ValueError(
                        f"methods: {method.label} is fused of {label!r}, which is no method of the job ({hint})"
                    )
        return self

    def identity(self) -> dict[str, Any]:
        """What decides results: everything but where and how wide the job runs and what it lets pass."""
        values = self.model_dump(mode="json", exclude={"compute", "max_bad_fraction", "run_uri"})
        for source in (values["source"], *(b["source"] for b in values["benchmarks"])):
            source.pop("allow_mixed_crops", None)
        return values


def load_settings(job_uri: str, overrides: list[str] | tuple[str, ...] = ()) -> Settings:
    """Reads a job's YAML (any fsspec URL) and lays ``key=value`` overrides (dotted keys, YAML values) over it.

    Raises `UsageError` that lists every mistake with the value found and, for unknown keys, the nearest known one.
    """
    text = read_bytes(job_uri).decode("utf-8", errors="replace")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise UsageError(f"{job_uri} is not valid YAML: {exc}") from exc
    if not isinstance(values, dict):
        raise UsageError(f"{job_uri} must hold settings as 'key: value' lines, found {type(values).__name__}")
    for override in overrides:
        _override(values, override)
    return make_settings(values, Path(job_uri).name)


def make_settings(values: dict[str, Any], place: str = "settings") -> Settings:
    """Settings from a nested dict; errors as in `load_settings`."""
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        lines = [_explain(error, values) for error in exc.errors()]
        raise UsageError(
            f"{place}: {len(lines)} wrong setting(s)\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def parse_options(options: list[str]) -> dict[str, Any]:
    """Options of a model or method from ``key=value`` texts with YAML values; `UsageError` for another form."""
    values: dict[str, Any] = {}
    for option in options:
        _override(values, option)
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"{override!r} is not of the form key=value, such as optimize.theta=0.01")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise UsageError(f"{override!r}: the value is not valid YAML: {exc}") from exc
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            value = float(value)
        except ValueError:
            value = str(value)
    *path, last = key.split(".")
    at: Any = values
    for step in path:
        if isinstance(at, list) and step.isdigit() and int(step) < len(at):
            at = at[int(step)]
        elif isinstance(at, dict):
            at = at.setdefault(step, {})
        else:
            raise UsageError(f"{override!r}: {step!r} does not name a place in the settings")
    if isinstance(at, list) and last.isdigit() and int(last) < len(at):
        at[int(last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise UsageError(f"{override!r}: {last!r} does not name a place in the settings")


def _explain(error: Any, values: Any) -> str:
    where = [p for p in error["loc"] if not str(p).startswith("function-")]
    place = ".".join(str(p) for p in where)
    if error["type"] == "extra_forbidden":
        known = _fields_at(where[:-1])
        near = difflib.get_close_matches(str(where[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{place}: unknown key ({hint})"
    if error["type"] == "missing":
        return f"{place}: is missing"
    found = error.get("input")
    shown = f" (found {found!r})" if not isinstance(found, dict | list) else ""
    return f"{place}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _fields_at(where: list[Any]) -> list[str]:
    model: Any = Settings
    for step in where:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
