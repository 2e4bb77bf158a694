"""The results of a run as tables with file names: labels, scores, embeddings, areas. Reads storage alone, without weights.

A run keeps in `_results.json` where the datasets of its last settings lie, relative to the run's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from fiqa_ray.config import PairSettings, theta_name
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.core.label_result import sign_doubt
from fiqa_ray.datasets.columns import embedding_lists
from fiqa_ray.datasets.dataset import MADE_BY, Dataset
from fiqa_ray.datasets.pictures import read_pictures
from fiqa_ray.datasets.results import EDIFF, OPTIMIZED, AucRow, DifferenceRow, Row, ThetaRow, rows_of
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.report.answer import answer_lines, other_results, sign_lines
from fiqa_ray.storage import SLASH, exists, join, list_files
from fiqa_ray.tools.results_record import RESULTS, read_results_record
from fiqa_ray.tools.settings_record import read_settings_records

LABELS = pa.schema(
    [
        ("image_id", pa.string()),
        ("identity", pa.string()),
        ("method", pa.string()),
        ("variant", pa.string()),  # "optimized" by ranks, or "ediff" by eDifFIQA's rule
        ("theta", pa.float64()),  # null for "ediff"
        ("chosen", pa.bool_()),  # whether theta was chosen on held-out people
        ("prior", pa.float64()),  # the method's score; null for an image without one
        ("label", pa.float32()),  # in [0, 1]; null like the prior
    ]
)

SCORES = pa.schema(
    [
        ("set", pa.string()),  # train, or the benchmark
        ("image_id", pa.string()),
        ("identity", pa.string()),
        ("method", pa.string()),  # a FIQA method, or a regressor as tables name it
        ("score", pa.float64()),  # larger is better; null unless status is "ok"
        ("status", pa.string()),
    ]
)

VARIANT_OF = {"optimized_labels": OPTIMIZED, "ediff_labels": EDIFF}
"""Variant of the labels of a dataset."""


def open_run(run_uri: str) -> Run:
    """Open the results of a job, finished or under way, from any machine.

    Args:
        run_uri: the job's `run_uri`; a path or any fsspec URL.

    Raises:
        FiqaRayError: there is no run, or another version of fiqa_ray made it.
    """
    return Run(run_uri)


def find_regressor(name: str) -> str:
    """Return a model's name; of a run that has one regressor, the location of that one.

    Raises:
        UsageError: the run has several regressors, which the message lists, or none.
    """
    is_folder = ModelRef.parse(name).kind == "folder"
    if not is_folder or not exists(join(name, RESULTS)):
        return name
    regressors = open_run(name).regressors()
    if len(regressors) == 1:
        return next(iter(regressors.values()))
    if not regressors:
        raise UsageError(f"{name} is a run without a finished regressor; run its job with stage train")
    lines = "\n".join(f"  {uri}   {what}" for what, uri in regressors.items())
    raise UsageError(f"{name} is a run with {len(regressors)} regressors; give the location of one of them:\n{lines}")


class Run:
    """The results of a run. Tables are pyarrow's; `to_pandas()` of each makes a DataFrame.

    Attributes:
        uri: the run's folder.
        name: the job's name.
    """

    def __init__(self, uri: str) -> None:
        """Open a run; see `open_run`."""
        self.uri = uri
        record = read_results_record(uri)
        if record is None:
            if read_settings_records(uri):  # refuses those of another version
                raise FiqaRayError(f"the run in {uri} ended before its first stage; run the job again")
            raise FiqaRayError(f"{uri} holds no run; give the run_uri of a job that was started")
        if record.get("schema_version") != SCHEMA_VERSION:
            raise FiqaRayError(
                f"{uri} was made by another version of fiqa_ray (schema {record.get('schema_version')}, this one has "
                f"{SCHEMA_VERSION}) and cannot be read; choose another run_uri"
            )
        self.name: str = record["name"]
        self._entries: list[dict[str, Any]] = record["datasets"]
        self._draws: dict[str, Any] = {key: record.get(key) for key in ("pair", "seed")}

    def __repr__(self) -> str:
        labels = [e for name in VARIANT_OF for e in self._of(name)]
        methods = ", ".join(dict.fromkeys(e["method"] for e in labels))
        thetas = ", ".join(dict.fromkeys(theta_name(e["theta"]) for e in labels if "theta" in e))
        rules = [f"theta {thetas}"] if thetas else []
        rules += ["eDifFIQA labels"] if self._of("ediff_labels") else []
        return f"<Run {self.uri}: methods {methods}; {'; '.join([*rules, 'sets ' + ', '.join(self.sets)])}>"

    @property
    def sets(self) -> list[str]:
        """The face sets: `train` and the benchmarks."""
        return [e["set"] for e in self._of("faces")]

    def labels(self, theta: Sequence[float | str] = ()) -> pa.Table:
        """Return the labels of all methods and thetas, and those by eDifFIQA's rule.

        Args:
            theta: only these of the job's thetas: numbers, or "heldout" for the chosen one of each method.

        Returns:
            One row per image, method and theta: `image_id`, `identity`, `method`, `variant` ("optimized", or "ediff" by
            eDifFIQA's rule), `theta` (null for "ediff"), `chosen` (whether theta was chosen on held-out people), `prior`
            (the method's score), `label` (float32 in [0, 1]). Prior and label are null where an image has no score;
            eDifFIQA's label too where a person has too few good images.

        Raises:
            UsageError: the job has no such theta.
            FiqaRayError: the run has no labels yet.
        """
        return pa.concat_tables(self.label_tables(theta))

    def label_tables(self, theta: Sequence[float | str] = ()) -> Iterator[pa.Table]:
        """Yield the labels one method and theta at a time, as tables like that of `labels`; arguments as there."""
        asked = [name for name in VARIANT_OF if self._of(name)] or list(VARIANT_OF)
        known = [t for e in self._of("optimized_labels") if (t := e["theta"]) is not None]
        if unknown := [t for t in theta if t not in known]:
            names = ", ".join(dict.fromkeys(map(theta_name, known))) or "none"
            raise UsageError(f"{self.uri} has no labels of theta {unknown[0]}; choose from {names}")
        entries = [(e, self._dataset(e)) for name in asked for e in self._of(name)]
        finished = [(e, d) for e, d in entries if d.manifest() is not None] or self._finished(asked[0])  # the error
        chosen = self.chosen_thetas()
        yielded = set()
        for e, dataset in finished:
            key = e["method"], _theta_of(dataset)
            if (theta and e.get("theta") not in theta) or (dataset.name, key) in yielded:
                continue  # a theta that is given and chosen too has one set of labels
            yielded.add((dataset.name, key))
            table = dataset.read_all(["image_id", "prior_score", "label"])
            n = len(table)
            columns = [
                table["image_id"],
                self._names("train")["identity"],
                pa.repeat(e["method"], n),
                pa.repeat(VARIANT_OF[dataset.name], n),
                pa.repeat(pa.scalar(_theta_of(dataset), pa.float64()), n),
                pa.repeat(pa.scalar(key in chosen), n),
                table["prior_score"],
                table["label"],
            ]
            yield pa.table(columns, schema=LABELS)

    def chosen_thetas(self) -> set[tuple[str, float | None]]:
        """Return the methods whose theta was chosen on held-out people, each with it; those with finished labels."""
        entries = [(e, self._dataset(e)) for e in self._of("optimized_labels") if e["theta"] == HELDOUT]
        return {(e["method"], _theta_of(d)) for e, d in entries if d.manifest() is not None}

    def thetas(self) -> pa.Table:
        """Return what each candidate theta is worth on held-out people, where the job chose theta so.

        Returns:
            The rows of `fiqa_ray.datasets.results.ThetaRow`: one per method and candidate.

        Raises:
            FiqaRayError: the choice has not been made, or the job gave thetas.
        """
        return pa.concat_tables(d.read_all() for _, d in self._finished("theta_choice"))

    def scores(self, face_set: str | None = None) -> pa.Table:
        """Return the scores of all methods and regressors.

        Args:
            face_set: `train` or the name of a benchmark; None: all.

        Returns:
            One row per image and method: `set`, `image_id`, `identity`, `method`, `score` (larger is better), `status`.

        Raises:
            UsageError: an unknown set.
            FiqaRayError: the run has no scores yet.
        """
        return pa.concat_tables(self.score_tables(face_set))

    def score_tables(self, face_set: str | None = None) -> Iterator[pa.Table]:
        """Yield the scores one set and method at a time, as tables like that of `scores`."""
        for e, dataset in self._finished("quality_scores", face_set):
            names = self._names(e["set"])
            table = dataset.read_all(["score", "status"])
            n = len(table)
            columns = [pa.repeat(e["set"], n), names["image_id"], names["identity"], pa.repeat(e["method"], n)]
            yield pa.table([*columns, table["score"], table["status"]], schema=SCORES)

    def embeddings(self, face_set: str = "train") -> pa.Table:
        """Return the raw embeddings of a face set.

        Args:
            face_set: `train` or the name of a benchmark.

        Returns:
            One row per image: `image_id`, `identity`, `embedding` (a list of D float32, not normalized; null for an image
            without one), `status`. `np.stack(table["embedding"].to_pandas())` is the matrix where none is null.

        Raises:
            UsageError: an unknown set.
            FiqaRayError: the run has no embeddings yet.
        """
        return pa.concat_tables(self.embedding_tables(face_set))

    def embedding_tables(self, face_set: str = "train") -> Iterator[pa.Table]:
        """Yield the embeddings part by part, as tables like that of `embeddings`."""
        for e, dataset in self._finished("embeddings", face_set):
            names, first = self._names(e["set"]), 0
            for part in dataset.require().parts:
                table = dataset.read(part, ["embedding", "status"])
                rows = names.slice(first, len(table))
                first += len(table)
                columns = [rows["image_id"], rows["identity"], embedding_lists(table["embedding"]), table["status"]]
                yield pa.table(columns, names=["image_id", "identity", "embedding", "status"])

    def pairs(self, repeat: int = 0) -> pa.Table:
        """Return the mated pairs of one repeat, from which the labels were made.

        Args:
            repeat: from 0 to R - 1.

        Returns:
            One row per pair: `image_id`, `mate_id`, and `similarity`, the cosine of their embeddings (float32).

        Raises:
            UsageError: the job has no such repeat.
            FiqaRayError: the run has no pairs yet.
        """
        return pa.concat_tables(self.pair_tables(repeat))

    def pair_tables(self, repeat: int = 0) -> Iterator[pa.Table]:
        """Yield the pairs of one repeat part by part, as tables like that of `pairs`."""
        from fiqa_ray.datasets.pairs import PairReader  # compiled loops, which the others do without

        ((_, pairs),) = self._finished("pairs")
        ((_, embeddings),) = self._finished("embeddings", "train")
        settings = PairSettings.model_validate(self._draws["pair"])
        if not 0 <= repeat < settings.n_repeats:
            raise UsageError(f"repeat={repeat}: {self.uri} has repeats 0 to {settings.n_repeats - 1}")
        names = self._names("train")["image_id"]
        reader = PairReader(pairs, embeddings, settings, int(self._draws["seed"]))
        for stored in reader.stored():
            first = stored.shard.first
            for part in reader.read(stored, [repeat]):
                columns = [names.take(pa.array(rows + first)) for rows in (part.image, part.mate)]
                yield pa.table([*columns, pa.array(part.similarity)], names=["image_id", "mate_id", "similarity"])

    def regressors(self) -> dict[str, str]:
        """Return where each finished regressor lies, by its name in tables; `load_scorer` and `score` take it."""
        entries = [(e["method"], self._dataset(e)) for e in self._of("regressor")]
        return {name: dataset.uri for name, dataset in entries if dataset.manifest() is not None}

    @property
    def report(self) -> str:
        """Where the report page lies.

        Raises:
            FiqaRayError: the run has no report yet.
        """
        ((_, dataset),) = self._finished("report")
        return dataset.at("report.html")

    def areas(self) -> pa.Table:
        """Return the areas under the error-versus-discard curves of all benchmarks, with 95 % intervals; lower is better.

        Returns:
            The rows of `fiqa_ray.datasets.results.AucRow`: one per benchmark, recogniser, scorer, convention, rate and
            discard limit.

        Raises:
            FiqaRayError: the run has no results yet, or the job has no benchmarks.
        """
        return self.result_table("auc")

    def result_table(self, name: str) -> pa.Table:
        """Return one kind of results of all benchmarks, by the `TABLE` of its row class in `fiqa_ray.datasets.results`.

        Raises:
            UsageError: an unknown name.
            FiqaRayError: the run has no results yet, or the job has no benchmarks.
        """
        datasets = [dataset for _, dataset in self._finished("results")]
        files = {file for dataset in datasets for part in dataset.require().parts for file in part.files}
        names = sorted({file.split(".")[-2] for file in files if file.endswith(".parquet") and file.count(".") > 1})
        if name not in names:
            raise UsageError(
                f"result_table({name!r}): the results have no such table; choose one of {', '.join(names)}"
            )
        return pa.concat_tables(dataset.read_all(suffix=f".{name}.parquet") for dataset in datasets)

    def comparisons(self, benchmark: str, recognizer: str) -> pa.Table:
        """Return the pairs of a benchmark and their similarities under one recogniser.

        Returns:
            One row per pair, see `fiqa_ray.datasets.schemas.COMPARISONS`.

        Raises:
            UsageError: an unknown benchmark.
            FiqaRayError: the run has no such comparisons yet.
        """
        return self._one("comparisons", benchmark, recognizer).read_all()

    def judged_scores(self, benchmark: str) -> pa.Table:
        """Return all scores of the images of a benchmark: `image_row`, then a column per scorer."""
        return self._one("evaluation", benchmark).read_all(suffix=".scores.parquet")

    def pictures(self, face_set: str, rows: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded faces of some rows of a set, by row."""
        pictures = read_pictures(self._one("faces", face_set), rows)
        return {row: face for row, (face, _) in pictures.items() if face is not None}

    @property
    def has_labels(self) -> bool:
        """Whether the job makes labels."""
        return any(self._of(name) for name in VARIANT_OF)

    def _one(self, name: str, face_set: str, recognizer: str | None = None) -> Dataset:
        """Return the one finished dataset of a kind and set, and of a recogniser where one is given."""
        for entry, dataset in self._finished(name, face_set):
            if entry["set"] == face_set and recognizer in (None, entry.get("recognizer")):
                return dataset
        raise FiqaRayError(f"{self.uri} has no {name} of {face_set} under {recognizer}: run the job again")

    def answer(self) -> list[str]:
        """Return what the benchmarks say of optimized labels: whether they help, by how much, and for which method.

        Raises:
            FiqaRayError: the run has no results yet.
        """
        self._finished("results")  # the error
        areas = self._rows(AucRow)
        return [*answer_lines(areas, self._rows(DifferenceRow)), *filter(None, [other_results(areas)])]

    def signs(self) -> list[str]:
        """Return a sentence per method whose scores may have the wrong sign, by the similarities of pairs; else nothing."""
        return list(sign_lines(self._sign_doubts(), self._rows(AucRow)))

    def unchanged(self) -> list[str]:
        """Return a sentence per method for which theta 0 was chosen; nothing where the job gives theta."""
        choices = [self._dataset(e) for e in self._of("theta_choice")]
        rows = [row for d in choices if d.manifest() is not None for row in rows_of(ThetaRow, d.read_all())]
        return [
            f"The labels of {row.method} are its scores unchanged: no candidate theta "
            f"{'could be compared' if math.isnan(row.gain) else 'did clearly better'} on held-out people."
            for row in rows
            if row.is_chosen and row.theta == 0
        ]

    def _rows(self, row_class: type[Row]) -> list[Row]:
        """Return the rows of all benchmarks; none where there are no results, or not yet."""
        finished = [d for e in self._of("results") if (d := self._dataset(e)).manifest() is not None]
        suffix = f".{row_class.TABLE}.parquet"
        return [row for d in finished for row in rows_of(row_class, d.read_all(suffix=suffix))]

    def _sign_doubts(self) -> dict[str, str]:
        """Return what the similarities say against the sign of each method, by the facts of its first finished labels."""
        doubts: dict[str, str] = {}
        for entry in self._of("optimized_labels"):
            manifest = self._dataset(entry).manifest()
            if manifest is not None and "score_rho" in manifest.stats:
                doubts.setdefault(entry["method"], sign_doubt(entry["method"], manifest.stats))
        return doubts

    def _of(self, name: str) -> list[dict[str, Any]]:
        return [e for e in self._entries if e["dataset"] == name]

    def _dataset(self, entry: dict[str, Any]) -> Dataset:
        return Dataset(join(self.uri, entry["place"]), entry["dataset"])

    def _finished(self, name: str, face_set: str | None = None) -> list[tuple[dict[str, Any], Dataset]]:
        """Return the finished datasets of a kind with their entries; raise an error if there is none."""
        if face_set is not None and face_set not in self.sets:
            raise UsageError(f"{self.uri} has no set {face_set!r}; choose from {', '.join(self.sets)}")
        entries = [(e, self._dataset(e)) for e in self._of(name) if face_set is None or e["set"] == face_set]
        finished = [(e, d) for e, d in entries if d.manifest() is not None]
        if not finished:
            what, stage = name.replace("_", " "), MADE_BY[name]
            why = f"stage {stage} has not finished: run the job to its end" if entries else "the job asks for none"
            others = [uri for _, d in entries for uri in _finished_beside(d)]
            if others:
                why += f". Those of earlier settings lie in {others[0]}: run the job with these settings to open them"
            raise FiqaRayError(f"{self.uri} has no {what}; {why}")
        return finished

    def _names(self, face_set: str) -> pa.Table:
        """Return image_id and identity of a set in the order of `image_row`; of each part only these columns are read."""
        if face_set not in self._name_tables:
            (faces,) = (self._dataset(e) for e in self._of("faces") if e["set"] == face_set)
            parts = faces.require().parts
            tables = [faces.read_rows(p, 0, p.n_rows, ["image_id", "identity"]) for p in parts]
            self._name_tables[face_set] = pa.concat_tables(tables)
        return self._name_tables[face_set]

    @cached_property
    def _name_tables(self) -> dict[str, pa.Table]:
        return {}


def _finished_beside(dataset: Dataset) -> list[str]:
    """Return the folders of finished datasets of the same kind, which other settings made."""
    folder = dataset.uri.rsplit(SLASH, 1)[0]
    return [join(folder, name.split(SLASH)[0]) for name in list_files(folder) if name.endswith("/_manifest.json")]


def _theta_of(labels: Dataset) -> float | None:
    """Return the theta of finished labels, also where it was chosen; None for eDifFIQA's rule."""
    return float(labels.require().stats["theta"]) if labels.name == "optimized_labels" else None
