"""The datasets of a job: `Job` says which there are, where each lies, and what its fingerprint covers.

Stages find their inputs and outputs here and nowhere else. A dataset's fingerprint covers the settings of its stage, the
schema version and the fingerprints of its inputs. Weights, score files, pair lists, detectors and listed sources count by
their content hash, and so do landmarks, model cards, lists of degradations and a user's own file of code; folders,
containers, CFP's many small pair lists and a user's modules that lie elsewhere count by name. Of `compute` only `precision`
is part of a fingerprint: results do not depend on workers and shards. The batch size can change the last bits of embeddings
and scores; labels are equal where those are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, Literal

from fiqa_ray.config import (
    EDIFF,
    BenchmarkSettings,
    FuseSettings,
    MethodSettings,
    RecognizerSettings,
    ScoresSettings,
    Settings,
    SourceSettings,
    Theta,
    theta_name,
)
from fiqa_ray.config.label_set import LabelSet as LabelSet
from fiqa_ray.content_ids import model_id, optional_hash, pair_list_id, scores_id
from fiqa_ray.core.candidates import CANDIDATES, HELDOUT, MIN_SEPARATION, N_FOLDS
from fiqa_ray.core.conventions import Cell, Convention, cells_of, further_limits
from fiqa_ray.core.jitter import JITTER_VERSION
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.results import BASELINE, GIVEN, ORACLE, RANDOM, VARIANT_OF_LABELS, ScorerKey
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.sources.judged_score import JudgedScore
from fiqa_ray.storage import content_hash, exists, fingerprint, join, list_hash

if TYPE_CHECKING:
    from fiqa_ray.datasets.pairs import PairReader

DRAWS_VERSION = 7
"""Raise it when the same seed gives other clusters, mates, similarities or random scores, or when parts of pairs are cut or
ordered otherwise."""

RESULTS_VERSION = 3
"""Raise it when a table of results or its meaning changes, but cells do not: they are judged again."""

EdiffDataset = Literal["ediff_threshold", "ediff_distances", "ediff_labels"]


@dataclass(frozen=True)
class Job:
    """A job's settings and its datasets.

    It can be pickled. Its methods may read storage: files to hash, and the theta that was chosen.

    Attributes:
        settings: The settings.
        with_training: Whether labels are made and regressors trained; else scores alone are judged.
        trained: Without training, the label sets whose regressors the run has: these are judged as well.
    """

    settings: Settings
    with_training: bool = True
    trained: tuple[LabelSet, ...] = ()

    # faces

    @property
    def face_sets(self) -> dict[str, SourceSettings]:
        """The sources of the face sets by name: `train`, where there is training, and each benchmark."""
        train = {"train": self.settings.train_source} if self.with_training else {}
        return train | {b.name: b.source for b in self.settings.benchmarks}

    def faces(self, face_set: str) -> Dataset:
        """Return the packed faces of a face set."""
        source = self.settings.train_source if face_set == "train" else self.face_sets[face_set]
        config = source.model_dump(mode="json", exclude={"allow_mixed_crops", "allow_single_images", "jitter"})
        config |= {"jitter": JITTER_VERSION} if source.jitter else {}
        from fiqa_ray.sources.kinds import SOURCES  # decoders and more, which `--help` does without

        for name, uri in SOURCES[source.kind].lists(source.uri).items():
            config |= {name: list_hash(uri)} if exists(uri) else {}
        if source.detector is not None:
            config["detector"] = content_hash(source.detector)
        if source.landmarks_uri is not None:
            config["landmarks"] = content_hash(source.landmarks_uri)
        return self._dataset("faces", {"set": face_set}, config, {})

    # models

    def embeddings(self, face_set: str, recognizer: RecognizerSettings | None = None) -> Dataset:
        """Return the raw embeddings of a face set by the job's FR model, or by another."""
        model = recognizer or self.settings.recognizer
        config = model_id(model) | self._precision
        if model.flip != "none":
            config["flip"] = model.flip
        keys = {"set": face_set, "fr": model.label}
        return self._dataset("embeddings", keys, config, {"faces": self.faces(face_set)})

    @property
    def _precision(self) -> dict[str, Any]:
        """What a precision other than float32 adds to the fingerprint of what models compute."""
        precision = self.settings.compute.precision
        return {} if precision == "float32" else {"precision": precision}

    @property
    def fr(self) -> str:
        """The FR model's name in paths and tables."""
        return self.settings.recognizer.label

    @property
    def judges(self) -> tuple[RecognizerSettings, ...]:
        """The FR models whose errors are counted on the benchmarks."""
        return self.settings.evaluate.recognizers or (self.settings.recognizer,)

    def recognizers_of(self, face_set: str) -> list[RecognizerSettings]:
        """Return the FR models that embed a face set: the job's, and on benchmarks those whose errors are counted."""
        others = () if face_set == "train" else self.judges
        return list({r.label: r for r in (self.settings.recognizer, *others)}.values())

    def prior_scores(self, face_set: str, method: MethodSettings) -> Dataset:
        """Return a FIQA method's scores of a face set; they depend on the FR model only if the method uses it."""
        if method.fuse is not None:
            return self._fused_scores(face_set, method, method.fuse)
        reference = ModelRef.parse(method.name)
        config: dict[str, Any] = {"method": model_id(method), "seed": self.settings.seed}
        inputs = {"faces": self.faces(face_set)}
        scores = self.scores_file(face_set, method)
        if scores is not None:
            config = {"scores": scores_id(scores)}
        elif reference.card_uri is not None:
            config |= optional_hash("card", reference.card_uri) | self._precision
        else:
            config |= self._precision
            if reference.needs_recognizer:
                config["recognizer"] = model_id(method.recognizer or self.settings.recognizer)
            if reference.method is not None and not reference.method.deterministic:
                config["draws"] = DRAWS_VERSION
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
        """Return the sums over the mated pairs from which the weights of a fused method are fitted."""
        labels = method.fuse.of if method.fuse else ()
        inputs = {label: self.prior_scores("train", self.method(label)) for label in labels}
        return self._dataset("fusion_fit", {"fr": self.fr, "fiqa": method.label}, {}, {"pairs": self.pairs(), **inputs})

    def method(self, label: str) -> MethodSettings:
        """Return the settings of the method with this label."""
        return next(m for m in self.settings.methods if m.label == label)

    def scores_file(self, face_set: str, method: MethodSettings) -> ScoresSettings | None:
        """Return the user's file of this method's scores of a face set, or None if the job computes them."""
        if face_set == "train":
            return method.scores
        return self.benchmark(face_set).scores.get(method.label)

    def benchmark(self, name: str) -> BenchmarkSettings:
        """Return the settings of the benchmark with this name."""
        return next(b for b in self.settings.benchmarks if b.name == name)

    # label optimization

    def pairs(self) -> Dataset:
        """Return the mated pairs of all repeats."""
        config = {**self.settings.pair.model_dump(mode="json"), "seed": self.settings.seed, "draws": DRAWS_VERSION}
        return self._dataset("pairs", {"fr": self.fr}, config, {"embeddings": self.embeddings("train")})

    def pair_reader(self) -> PairReader:
        """Return the reader of the mated pairs."""
        from fiqa_ray.datasets.pairs import PairReader  # compiled loops, which `status` and `--help` do without

        return PairReader(self.pairs(), self.embeddings("train"), self.settings.pair, self.settings.seed)

    def key_counts(self) -> Dataset:
        """Return the histograms of similarity keys: of each group of parts (counting) or merged key range (sort)."""
        rank = self.settings.rank
        config: dict[str, Any] = {"engine": rank.engine}
        config |= {"n_ranges": rank.n_ranges} if rank.engine == "sort" else {}
        return self._dataset("key_counts", {"fr": self.fr}, config, {"pairs": self.pairs()})

    def sorted_keys(self) -> Dataset:
        """Return the sorted keys of each group of parts (engine sort only)."""
        return self._dataset("sorted_keys", {"fr": self.fr}, {}, {"pairs": self.pairs()})

    def similarity_ranks(self) -> Dataset:
        """Return the histogram of the similarities of each repeat, for `RankTable`; both engines give the same."""
        return self._dataset("similarity_ranks", {"fr": self.fr}, {}, {"pairs": self.pairs()})

    def score_runs(self, method: MethodSettings) -> Dataset:
        """Return the sorted prior scores of each span of images (where one task does not sort all of them)."""
        return self._of_scores("score_runs", method)

    def sorted_scores(self, method: MethodSettings) -> Dataset:
        """Return all prior scores in ascending order, a part per range (where one task does not sort all of them)."""
        return self._of_scores("sorted_scores", method)

    def quality_index(self, method: MethodSettings) -> Dataset:
        """Return the quality index of every image: the rank of its prior score."""
        return self._of_scores("quality_index", method)

    def _of_scores(self, name: str, method: MethodSettings) -> Dataset:
        return self._dataset(name, {"fiqa": method.label}, {}, {"prior_scores": self.prior_scores("train", method)})

    def optimized_index(self) -> Dataset:
        """Return the optimized indices of all methods and thetas, which one pass over the pairs gives."""
        inputs = {"ranks": self.similarity_ranks()}
        inputs |= {m.label: self.prior_scores("train", m) for m in self.settings.methods}
        config = {"theta": list(self.index_thetas()), "index_scale": self.settings.optimize.index_scale}
        return self._dataset("optimized_index", {"fr": self.fr}, config, inputs)

    def index_thetas(self) -> tuple[float, ...]:
        """Return the thetas at which indices are optimized: those of the settings, and the candidates of `heldout`."""
        thetas = self.settings.optimize.thetas
        return tuple(sorted({*(set(thetas) - {HELDOUT}), *(CANDIDATES if HELDOUT in thetas else ())}))

    def theta_choice(self, method: MethodSettings) -> Dataset:
        """Return what each candidate theta is worth on held-out training people, and which one is chosen.

        Its table has the rows of `datasets.results.ThetaRow`, one per candidate.
        """
        config = {
            "candidates": list(CANDIDATES),
            "n_folds": N_FOLDS,
            "min_separation": MIN_SEPARATION,
            "index_scale": self.settings.optimize.index_scale,
            "seed": self.settings.seed,
        }
        inputs = {
            "ranks": self.similarity_ranks(),
            "prior_scores": self.prior_scores("train", method),
            "embeddings": self.embeddings("train"),
        }
        return self._dataset("theta_choice", {"fr": self.fr, "fiqa": method.label}, config, inputs)

    def index_runs(self, method: MethodSettings, theta: Theta) -> Dataset:
        """Return the sorted optimized indices of each span of images (where one task does not sort all of them)."""
        return self._of_labels("index_runs", method, theta)

    def sorted_indices(self, method: MethodSettings, theta: Theta) -> Dataset:
        """Return the new scores, by range of optimized indices (where one task does not sort all of them)."""
        return self._of_labels("sorted_indices", method, theta)

    def optimized_labels(self, method: MethodSettings, theta: Theta) -> Dataset:
        """Return the optimized labels of one method at one theta."""
        return self._of_labels("optimized_labels", method, theta)

    def _of_labels(self, name: str, method: MethodSettings, theta: Theta) -> Dataset:
        keys = {"fr": self.fr, "fiqa": method.label, "theta": theta_name(theta)}
        config = {"theta": theta, "index_scale": self.settings.optimize.index_scale}
        inputs = {"ranks": self.similarity_ranks(), "prior_scores": self.prior_scores("train", method)}
        if theta == HELDOUT:
            inputs["choice"] = self.theta_choice(method)
        return self._dataset(name, keys, config, inputs)

    def ediff(self, name: EdiffDataset, method: MethodSettings) -> Dataset:
        """Return the labels of a method by eDifFIQA's rule, or what they are made from."""
        inputs = {"prior_scores": self.prior_scores("train", method), "embeddings": self.embeddings("train")}
        config = self.settings.optimize.ediff.model_dump(mode="json")
        return self._dataset(name, {"fr": self.fr, "fiqa": method.label}, config, inputs)

    # regressors

    def label_sets(self) -> list[LabelSet]:
        """Return the label sets of the regressors: of each method one of its prior scores, one per rule."""
        if not self.with_training or self.settings.has_given_embeddings:
            return list(self.trained)
        return [LabelSet(m, t) for m in self.settings.methods for t in (None, *self.settings.optimize.rules)]

    def labels(self, label_set: LabelSet) -> Dataset:
        """Return the dataset that holds a label set; prior labels are a column of the first rule's dataset."""
        rule = self.settings.optimize.rules[0] if label_set.theta is None else label_set.theta
        if rule == EDIFF:
            return self.ediff("ediff_labels", label_set.method)
        return self.optimized_labels(label_set.method, rule)

    def theta_of(self, label_set: LabelSet) -> float:
        """Return the theta of a label set as a number: NaN where it has none, and while `heldout` is not chosen."""
        if label_set.theta is None or label_set.theta == EDIFF:
            return nan
        if label_set.theta != HELDOUT:
            return float(label_set.theta)
        choice = self.theta_choice(label_set.method).manifest()
        return nan if choice is None else float(choice.stats["theta"])

    def regressor(self, label_set: LabelSet) -> Dataset:
        """Return the regressor trained on a label set."""
        keys = {"fr": self.fr, "fiqa": label_set.method.label, "labels": label_set.key}
        config = {**self.settings.train.model_dump(mode="json"), "seed": self.settings.seed}
        if label_set.is_prior:
            inputs = {"prior_scores": self.prior_scores("train", label_set.method)}
        else:
            inputs = {"labels": self.labels(label_set)}
        return self._dataset("regressor", keys, config, {**inputs, "embeddings": self.embeddings("train")})

    def scorer_name(self, label_set: LabelSet) -> str:
        """Return the name of a label set's regressor in tables; it names theta only if the job has several."""
        theta, several = label_set.theta, len(self.settings.optimize.thetas) > 1
        if theta == EDIFF:
            return f"{label_set.method.label}, regressor on eDifFIQA labels"
        suffix = f" (theta {theta_name(theta)})" if theta is not None and several else ""
        return f"{label_set.method.label}, regressor on {label_set.kind} labels{suffix}"

    def regressor_scores(self, face_set: str, label_set: LabelSet) -> Dataset:
        """Return the scores that a label set's regressor gives to a face set.

        Its tables are `schemas.REGRESSOR_SCORES`: `score` is the mean over the training seeds, and
        `datasets.columns.seed_scores(table)` gives the scores of each seed.
        """
        keys = {"set": face_set, "scorer": f"{label_set.method.label}-regressor-{label_set.key}"}
        inputs = {"faces": self.faces(face_set), "regressor": self.regressor(label_set)}
        return self._dataset("quality_scores", keys, self._precision, inputs)

    # results

    def scorers(self, benchmark: BenchmarkSettings) -> list[JudgedScore]:
        """Return all that is judged on a benchmark: methods, regressors, further scores, the truth, random numbers."""
        name, excluded = benchmark.name, benchmark.exclude
        scorers = []
        for m in self.settings.methods:
            if m.label not in excluded and self.has_scores(name, m):
                key = ScorerKey(m.label, self._quality_model(m), m.label, BASELINE, nan, None)
                scorers.append(JudgedScore(key, m.label, self.prior_scores(name, m)))
        for label_set in self.label_sets():
            if label_set.method.label not in excluded:
                theta, variant = self.theta_of(label_set), VARIANT_OF_LABELS[label_set.kind]
                method, seed = label_set.method.label, self.settings.seed
                judge = self.settings.judge_label(self.settings.recognizer)
                key = ScorerKey(self.scorer_name(label_set), judge, method, variant, theta, seed)
                path = f"{method}-regressor-{label_set.key}"
                scorers.append(JudgedScore(key, path, self.regressor_scores(name, label_set)))
        labels = {m.label for m in self.settings.methods}
        for label, file in benchmark.scores.items():
            if label not in labels and label not in excluded:
                scorers.append(JudgedScore(ScorerKey(label, "", label, GIVEN, nan, None), label, None, file))
        if benchmark.degradations is not None:
            key = ScorerKey(ORACLE, "", ORACLE, ORACLE, nan, None)
            scorers.append(JudgedScore(key, ORACLE, truth=benchmark.degradations))
        return [*scorers, JudgedScore(ScorerKey(RANDOM, "", RANDOM, RANDOM, nan, None), RANDOM)]

    def _quality_model(self, method: MethodSettings) -> str:
        """Return the label of the FR model that a method's scores come from, or ""."""
        if method.fuse is not None or method.scores is not None or not ModelRef.parse(method.name).needs_recognizer:
            return ""
        return self.settings.judge_label(method.recognizer or self.settings.recognizer)

    def comparisons(self, benchmark: BenchmarkSettings, recognizer: RecognizerSettings) -> Dataset:
        """Return the similarities of a benchmark's pairs under one FR model."""
        inputs = {"embeddings": self.embeddings(benchmark.name, recognizer)}
        keys = {"set": benchmark.name, "fr": recognizer.label}
        groups = {} if benchmark.groups is None else {"groups": content_hash(benchmark.groups)}
        return self._dataset("comparisons", keys, {"pairs": pair_list_id(benchmark), **groups}, inputs)

    def groups(self, benchmark: BenchmarkSettings, recognizer: RecognizerSettings) -> list[str]:
        """Return the groups of people of a benchmark; none before its pairs are compared."""
        manifest = self.comparisons(benchmark, recognizer).manifest()
        return [] if manifest is None else sorted(manifest.stats.get("groups", {}))

    def cells(
        self, benchmark: BenchmarkSettings, recognizer: RecognizerSettings, scorer: JudgedScore, group: str = ""
    ) -> dict[Cell, tuple[Convention, Dataset]]:
        """Return the datasets of a score's curves by convention and false match rate; of a group's pairs, or of all ("")."""
        evaluate = self.settings.evaluate
        inputs = {"comparisons": self.comparisons(benchmark, recognizer)}
        config: dict[str, Any] = {"resample": evaluate.resample, "draws": evaluate.draws, "seed": self.settings.seed}
        if scorer.dataset is not None:
            inputs["scores"] = scorer.dataset
        elif scorer.file is not None:
            config["scores"] = scores_id(scorer.file)
        elif scorer.truth is not None:
            config["truth"] = content_hash(scorer.truth)
        else:  # random qualities
            config["draws_version"] = DRAWS_VERSION
        if group:
            config["group"] = group
        cells = {}
        for cell, convention in cells_of(evaluate.curve_conventions(), evaluate.fmr).items():
            name, fmr = cell
            keys = {"set": benchmark.name, "fr": recognizer.label, "scorer": scorer.path, "convention": name}
            keys |= {"fmr": "none" if fmr is None else f"{fmr:g}"}
            keys |= {"group": re.sub(r"[^A-Za-z0-9_.-]+", "_", group)} if group else {}
            choices = {**convention.identity(), "fmr": fmr, "limits": further_limits(convention, evaluate.limits)}
            cells[cell] = convention, self._dataset("cells", keys, config | choices, inputs)
        return cells

    def evaluation(self, benchmark: BenchmarkSettings, recognizer: RecognizerSettings | None = None) -> Dataset:
        """Return the results of one benchmark under one FR model, by default the first one."""
        judge = recognizer or self.judges[0]
        evaluate = self.settings.evaluate
        inputs = {"comparisons": self.comparisons(benchmark, judge)}
        for scorer in self.scorers(benchmark):
            for (name, fmr), (_, dataset) in self.cells(benchmark, judge, scorer).items():
                inputs[f"{scorer.key.scorer} {name} {fmr}"] = dataset
        config = {
            "version": RESULTS_VERSION,
            "limits": evaluate.limits,
            "compare": evaluate.compare,
            "compare_scorers": evaluate.compare_scorers,
            "exclude": benchmark.exclude,
            "degradations": benchmark.degradations and content_hash(benchmark.degradations),
        }
        return self._dataset("evaluation", {"set": benchmark.name, "fr": judge.label}, config, inputs)

    def results(self) -> Dataset:
        """Return the results of all benchmarks under all FR models, with corrections that span them."""
        inputs = {f"{b.name} {r.label}": self.evaluation(b, r) for b in self.settings.benchmarks for r in self.judges}
        return self._dataset("results", {}, {}, inputs)

    def has_scores(self, face_set: str, method: MethodSettings) -> bool:
        """Return whether a method has scores of a face set; a method given as a score file needs a file for each set."""
        if method.fuse is not None:
            return all(self.has_scores(face_set, self.method(label)) for label in method.fuse.of)
        return method.scores is None or self.scores_file(face_set, method) is not None

    def report(self) -> Dataset:
        """Return the HTML report."""
        inputs = {"results": self.results()} if self.settings.benchmarks else {}
        inputs |= {f"{s.method.label}-{s.key}": self.regressor(s) for s in self.label_sets()}
        sets = [
            LabelSet(m, t) for m in self.settings.methods for t in self.settings.optimize.rules if self.with_training
        ]
        inputs |= {f"labels of {s.method.label}, {s.key}": self.labels(s) for s in sets}
        return self._dataset("report", {}, {"name": self.settings.name}, inputs)

    def _dataset(self, name: str, keys: dict[str, str], config: dict[str, Any], inputs: dict[str, Dataset]) -> Dataset:
        content = {
            "dataset": name,
            "keys": keys,
            "config": config,
            "schema_version": SCHEMA_VERSION,
            "inputs": {k: d.fingerprint for k, d in inputs.items()},
        }
        parts = [f"{k}={v}" for k, v in keys.items()]
        run_uri = self.settings.run_uri
        folders = tuple(d.uri[len(run_uri.rstrip("/")) + 1 :] for d in inputs.values())
        return Dataset(join(run_uri, name, *parts, f"v={fingerprint(content)}"), name, folders)
