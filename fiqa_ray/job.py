"""Which datasets a job makes, where each lies, and the fingerprint of each: stages meet here and nowhere else.

A fingerprint covers the stage's settings, the schema version and the fingerprints of its inputs; content hashes stand
for weights, score files, pair lists, detectors and listed sources. Folders, containers and a user's own code are named,
not hashed. Worker counts, batch sizes and shard sizes stay out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fiqa_ray.config import (
    BenchmarkSettings,
    FuseSettings,
    MethodSettings,
    RecognizerSettings,
    Settings,
    SourceSettings,
)
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.sources.recordio import recordio_uris
from fiqa_ray.storage import content_hash, exists, fingerprint, join

if TYPE_CHECKING:
    from fiqa_ray.datasets.pairs import PairReader

DRAWS_VERSION = 4
"""Raise it when the same seed gives other clusters or partners than before, or when pairs are laid out otherwise."""

PRIOR = "prior"
"""Stands for a theta where labels are the prior scores themselves."""


@dataclass(frozen=True)
class Job:
    """A job's settings and the places of its datasets. Picklable; reads nothing but the files it hashes."""

    settings: Settings

    # faces

    @property
    def face_sets(self) -> dict[str, SourceSettings]:
        """``train`` and the benchmarks, by name."""
        return {"train": self.settings.source, **{b.name: b.source for b in self.settings.benchmarks}}

    def faces(self, face_set: str) -> Dataset:
        """Packed faces of a set."""
        source = self.face_sets[face_set]
        config = source.model_dump(mode="json", exclude={"allow_mixed_crops"})
        if source.kind in ("table", "bin"):
            config["list"] = content_hash(source.uri)
        elif source.kind == "recordio":
            rec, index = recordio_uris(source.uri)
            config["list"] = content_hash(index)
            config |= _hash_if_there("labels", rec.removesuffix(".rec") + ".lst")
        if source.detector is not None:
            config["detector"] = content_hash(source.detector)
        if source.landmarks_uri is not None:
            config["landmarks"] = content_hash(source.landmarks_uri)
        return self._dataset("faces", {"set": face_set}, config, {})

    # models

    def recognizer_id(self) -> dict[str, Any]:
        """What stands for the FR model: name, options and the hash of its weights."""
        return model_id(self.settings.recognizer)

    def embeddings(self, face_set: str) -> Dataset:
        """Raw embeddings of a set."""
        keys = {"set": face_set, "fr": self.fr}
        return self._dataset("embeddings", keys, self.recognizer_id(), {"faces": self.faces(face_set)})

    @property
    def fr(self) -> str:
        """The FR model's name in paths and tables."""
        return label_of(self.settings.recognizer.name)

    def prior_scores(self, face_set: str, method: MethodSettings) -> Dataset:
        """Scores of one FIQA method on a set; they depend on the FR model only where the method works on it."""
        if method.fuse is not None:
            return self._fused_scores(face_set, method, method.fuse)
        from fiqa_ray.models.quality import (
            CARD_FILE,
            is_folder,
            needs_recognizer,  # imports torch, which `status` and `--help` do without
        )

        config: dict[str, Any] = {"method": model_id(method), "seed": self.settings.seed}
        inputs = {"faces": self.faces(face_set)}
        scores = self.scores_uri(face_set, method)
        if scores is not None:
            config = {"scores": content_hash(scores)}
        elif is_folder(method.name):  # a trained regressor: its card holds its weights' hash
            config |= _hash_if_there("card", join(method.name, CARD_FILE))
        elif needs_recognizer(method.name):
            config["recognizer"] = model_id(method.recognizer or self.settings.recognizer)
        return self._dataset("quality_scores", {"set": face_set, "scorer": method.label}, config, inputs)

    def _fused_scores(self, face_set: str, method: MethodSettings, fuse: FuseSettings) -> Dataset:
        inputs = {
            f"{label} {s}": self.prior_scores(s, self.method(label)) for label in fuse.of for s in ("train", face_set)
        }
        if fuse.weights == "fitted":
            inputs["fit"] = self.fusion_fit(method)
        return self._dataset(
            "quality_scores", {"set": face_set, "scorer": method.label}, fuse.model_dump(mode="json"), inputs
        )

    def fusion_fit(self, method: MethodSettings) -> Dataset:
        """Sums over the mated pairs, from which a fused method's weights are fitted."""
        labels = method.fuse.of if method.fuse else ()
        inputs = {label: self.prior_scores("train", self.method(label)) for label in labels}
        return self._dataset("fusion_fit", {"fr": self.fr, "fiqa": method.label}, {}, {"pairs": self.pairs(), **inputs})

    def method(self, label: str) -> MethodSettings:
        """A method's settings."""
        return next(m for m in self.settings.methods if m.label == label)

    def scores_uri(self, face_set: str, method: MethodSettings) -> str | None:
        """The user's own file of this method's scores on a set, if there is one."""
        if face_set == "train":
            return method.scores
        return self.benchmark(face_set).scores.get(method.label)

    def benchmark(self, name: str) -> BenchmarkSettings:
        """A benchmark's settings."""
        return next(b for b in self.settings.benchmarks if b.name == name)

    # label optimization

    def pairs(self) -> Dataset:
        """Mated pairs of all repeats."""
        config = {**self.settings.pair.model_dump(mode="json"), "seed": self.settings.seed, "draws": DRAWS_VERSION}
        return self._dataset("pairs", {"fr": self.fr}, config, {"embeddings": self.embeddings("train")})

    def pair_reader(self) -> PairReader:
        """Reader of the mated pairs."""
        from fiqa_ray.datasets.pairs import PairReader  # compiled loops, which `status` and `--help` do without

        return PairReader(self.pairs(), self.embeddings("train"), self.settings.pair, self.settings.seed)

    def key_counts(self) -> Dataset:
        """counting: the shards' histograms; sort: the histograms of merged key ranges."""
        rank = self.settings.rank
        config: dict[str, Any] = {"engine": rank.engine, "layout": "blocks"}
        config |= {"n_ranges": rank.n_ranges} if rank.engine == "sort" else {}
        return self._dataset("key_counts", {"fr": self.fr}, config, {"pairs": self.pairs()})

    def sorted_keys(self) -> Dataset:
        """sort: the shards' sorted runs."""
        return self._dataset("sorted_keys", {"fr": self.fr}, {}, {"pairs": self.pairs()})

    def similarity_ranks(self) -> Dataset:
        """Rank of every similarity, per repeat; the engines agree, so the engine stays out of the fingerprint."""
        return self._dataset("similarity_ranks", {"fr": self.fr}, {"layout": "blocks"}, {"pairs": self.pairs()})

    def _any_ranks(self) -> Dataset:
        """Ranks in whatever layout: what was made from those of an earlier version stays as it is."""
        return self._dataset("similarity_ranks", {"fr": self.fr}, {}, {"pairs": self.pairs()})

    def quality_index(self, method: MethodSettings) -> Dataset:
        """Place of every prior score."""
        inputs = {"prior_scores": self.prior_scores("train", method)}
        return self._dataset("quality_index", {"fiqa": method.label}, {}, inputs)

    def optimized_index(self) -> Dataset:
        """Optimized indices of all methods and thetas, one pass over the pairs."""
        inputs = {"ranks": self._any_ranks()}
        inputs |= {m.label: self.prior_scores("train", m) for m in self.settings.methods}
        config = self.settings.optimize.model_dump(mode="json")
        return self._dataset("optimized_index", {"fr": self.fr}, config, inputs)

    def optimized_labels(self, method: MethodSettings, theta: float) -> Dataset:
        """Optimized labels of one method and theta."""
        keys = {"fr": self.fr, "fiqa": method.label, "theta": f"{theta:g}"}
        config = {"theta": theta, "index_scale": self.settings.optimize.index_scale}
        inputs = {"ranks": self._any_ranks(), "prior_scores": self.prior_scores("train", method)}
        return self._dataset("optimized_labels", keys, config, inputs)

    # regressors

    def label_sets(self) -> list[tuple[MethodSettings, float | str]]:
        """The label sets that regressors are trained on: prior and, per theta, optimized ones, of every method."""
        labels: list[float | str] = [PRIOR, *self.settings.optimize.theta]
        return [(m, t) for m in self.settings.methods for t in labels]

    def labels(self, method: MethodSettings, theta: float | str) -> Dataset:
        """The dataset that holds a label set: prior labels stand beside the first theta's optimized ones."""
        first = self.settings.optimize.theta[0]
        return self.optimized_labels(method, first if isinstance(theta, str) else theta)

    def regressor(self, method: MethodSettings, theta: float | str) -> Dataset:
        """The regressor trained on one label set."""
        keys = {"fr": self.fr, "fiqa": method.label, "labels": theta if isinstance(theta, str) else f"theta-{theta:g}"}
        config = {**self.settings.train.model_dump(mode="json"), "seed": self.settings.seed, "labels": keys["labels"]}
        if theta == PRIOR:
            inputs = {"prior_scores": self.prior_scores("train", method)}
        else:
            inputs = {"labels": self.labels(method, theta)}
        return self._dataset("regressor", keys, config, {**inputs, "embeddings": self.embeddings("train")})

    def scorer_name(self, method: MethodSettings, theta: float | str | None) -> str:
        """How a scorer is called in tables: the method, or its regressor on prior or optimized labels."""
        if theta is None:
            return method.label
        if theta == PRIOR:
            return f"{method.label}, regressor on prior labels"
        suffix = f" (theta {theta:g})" if len(self.settings.optimize.theta) > 1 else ""
        return f"{method.label}, regressor on optimized labels{suffix}"

    def regressor_scores(self, face_set: str, method: MethodSettings, theta: float | str) -> Dataset:
        """A regressor's scores on a benchmark."""
        regressor = self.regressor(method, theta)
        name = f"{method.label}-regressor-{theta if isinstance(theta, str) else f'theta-{theta:g}'}"
        inputs = {"faces": self.faces(face_set), "regressor": regressor}
        return self._dataset("quality_scores", {"set": face_set, "scorer": name}, {}, inputs)

    # results

    def evaluation(self, benchmark: BenchmarkSettings) -> Dataset:
        """Comparisons, EDC, AUC and more of one benchmark."""
        inputs = {"embeddings": self.embeddings(benchmark.name)}
        for m in self.settings.methods:
            if self.has_scores(benchmark.name, m):
                inputs[m.label] = self.prior_scores(benchmark.name, m)
        for m, theta in self.label_sets():
            inputs[f"{m.label}-{theta}"] = self.regressor_scores(benchmark.name, m, theta)
        config = {
            **self.settings.evaluate.model_dump(mode="json"),
            "seed": self.settings.seed,
            "pairs": _pair_list_id(benchmark),
            "scores": {k: content_hash(v) for k, v in benchmark.scores.items()},
            "degradations": benchmark.degradations and content_hash(benchmark.degradations),
        }
        return self._dataset("evaluation", {"set": benchmark.name, "fr": self.fr}, config, inputs)

    def has_scores(self, face_set: str, method: MethodSettings) -> bool:
        """Whether a method can be scored on a set: a method that is only a file needs a file for each set."""
        if method.fuse is not None:
            return all(self.has_scores(face_set, self.method(label)) for label in method.fuse.of)
        return method.scores is None or self.scores_uri(face_set, method) is not None

    def report(self) -> Dataset:
        """The HTML page."""
        inputs = {b.name: self.evaluation(b) for b in self.settings.benchmarks}
        inputs |= {f"{m.label}-{t}": self.regressor(m, t) for m, t in self.label_sets()}
        return self._dataset("report", {}, {"name": self.settings.name}, inputs)

    def _dataset(self, name: str, keys: dict[str, str], config: dict[str, Any], inputs: dict[str, Dataset]) -> Dataset:
        mark = fingerprint(
            {
                "dataset": name,
                "keys": keys,
                "config": config,
                "schema_version": SCHEMA_VERSION,
                "inputs": {k: d.fingerprint for k, d in inputs.items()},
            }
        )
        parts = [f"{k}={v}" for k, v in keys.items()]
        return Dataset(join(self.settings.run_uri, name, *parts, f"v={mark}"), name)


def label_of(name: str) -> str:
    """A model's name as a path component."""
    return name.replace(":", ".").rsplit("/", 1)[-1]


def model_id(model: RecognizerSettings | MethodSettings) -> dict[str, Any]:
    """Name, options and content hash of a model: of its weights, or of the file that is its name."""
    found: dict[str, Any] = {"name": label_of(model.name), "options": model.options}
    if model.name.lower().endswith(".onnx"):
        found["sha256"] = content_hash(model.name)
    elif model.weights is not None and not model.weights.startswith("random:"):
        found["sha256"] = content_hash(model.weights)
    elif model.weights is not None:
        found["weights"] = model.weights
    return found


@lru_cache
def _hash_if_there(name: str, uri: str) -> dict[str, str]:
    """{name: content hash}, or nothing where there is no such file; asked once per process."""
    return {name: content_hash(uri)} if exists(uri) else {}


def _pair_list_id(benchmark: BenchmarkSettings) -> dict[str, Any]:
    values = benchmark.pairs.model_dump(mode="json")
    if benchmark.pairs.kind != "cfp":  # a folder of many small lists is named, not hashed
        values["uri"] = content_hash(benchmark.pairs.uri)
    return values
