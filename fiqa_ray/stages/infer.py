"""embed and score: one FR model, FIQA method or regressor over the face shards.

Each worker loads its models once. Batches have one fixed shape, and the last batch is filled up, so the numbers of an
image do not depend on its shard or batch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from fiqa_ray.config import MethodSettings, RecognizerSettings, ScoresSettings, default_batch_size
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.columns import embedding_column, embedding_values, seed_score_column
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.cost import FACE_BYTES, FACE_MEMORY, Cost, Workload
from fiqa_ray.engine.step import Step, Worker, stateless_worker
from fiqa_ray.errors import UsageError
from fiqa_ray.images import decode_packed_faces
from fiqa_ray.job import Job
from fiqa_ray.models.devices import resolve_device
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.methods.forward import embedding_norm
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer, embed_faces
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.models.scorer import Scorer, score_together
from fiqa_ray.sources.scores import scores_by_id

SCORE_BYTES = 12.0
"""A stored score: the number, its row and its status."""

Kind = Literal["embedding", "score", "seed_scores"]
"""What a step writes per face; `seed_scores` are those of a regressor that the job trained."""
Model = Callable[[torch.Tensor, NDArray[np.int64]], NDArray[np.float32]]
"""Maps `(N, 3, 112, 112) uint8` faces and their `(N,)` image rows to `(N, D)` embeddings or `(N,)` scores."""
Models = Callable[[torch.Tensor, NDArray[np.int64]], list[NDArray[np.float32]]]
"""The same for the datasets of one step: one array each."""


def embed_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that embed every face set; the FR models that lack embeddings of a set share its decoded faces."""
    if job.settings.has_given_embeddings:
        return  # fiqa_ray.stages.given copies them
    steps = []
    for face_set in job.face_sets:
        models = job.recognizers_of(face_set)
        finished = [r for r in models if job.embeddings(face_set, r).manifest() is not None]
        missing = [r for r in models if r not in finished]
        for group in filter(None, [missing, *([r] for r in finished)]):
            datasets = [job.embeddings(face_set, r) for r in group]
            calls = [ModelCall(r, None, None, {}, job.settings.seed, job.settings.compute.device) for r in group]
            steps.append(_model_step("embed", datasets, job.faces(face_set), calls, job))
    yield steps


def score_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that score every face set by every method that can score it; first those that run a model.

    Methods that start from the trunk of the same FR model are one step per face set, which runs the trunk once.
    """
    steps = []
    for face_set in job.face_sets:
        on_trunk: list[list[MethodSettings]] = []
        for method in job.settings.methods:
            if method.fuse is not None or not job.has_scores(face_set, method):
                continue
            if not _needs_trunk(job, face_set, method):
                steps.append(_score_step(job, face_set, method))
            elif group := next((g for g in on_trunk if g[0].recognizer == method.recognizer), None):
                group.append(method)
            else:
                on_trunk.append([method])
        for methods in on_trunk:
            datasets = [job.prior_scores(face_set, m) for m in methods]
            calls = [method_call(job, m) for m in methods]
            steps.append(_model_step("score", datasets, job.faces(face_set), calls, job))
    for place in ("pool", "tasks"):
        steps_there = [s for s in steps if s.runs_in == place]
        if steps_there:
            yield steps_there


def regressor_score_steps(job: Job) -> Iterator[list[Step]]:
    """Yield the steps that score every benchmark by the networks of mode `finetune`, with one forward pass each."""
    steps = []
    for label_set in job.label_sets() if job.settings.train.mode == "finetune" else []:
        regressor = job.regressor(label_set)
        (part,) = regressor.require().parts
        # The job's settings name the code of a user's network, so importing it needs no permission; another's does.
        recognizer = job.settings.recognizer
        expected = {"recognizer": recognizer.name, "options": dict(recognizer.options), "files": part.files}
        options: dict[str, object] = {"expected": expected}
        call = ModelCall(None, regressor.uri, None, options, job.settings.seed, job.settings.compute.device)
        for benchmark in job.settings.benchmarks:
            dataset = job.regressor_scores(benchmark.name, label_set)
            steps.append(_model_step("evaluate", [dataset], job.faces(benchmark.name), [call], job))
    if steps:
        yield steps


def estimate_embed(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of embedding each face set."""
    for face_set in job.face_sets:
        for recognizer in job.recognizers_of(face_set):
            what = face_set if recognizer == job.settings.recognizer else f"{recognizer.label}, {face_set}"
            embed_s = workload.embed_s[recognizer.label]
            cost = _model_cost("embed", what, face_set, workload, embed_s, 4.0 * workload.scale.dim)
            yield replace(cost, datasets=(job.embeddings(face_set, recognizer),))


def estimate_score(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of scoring each face set by each method."""
    for face_set in job.face_sets:
        for method in job.settings.methods:
            if method.fuse is not None or not job.has_scores(face_set, method):
                continue
            what = f"{method.label}, {face_set}"
            cost = _model_cost("score", what, face_set, workload, workload.score_s.get(method.label, 0.0), SCORE_BYTES)
            if job.scores_file(face_set, method) is not None:
                cost = replace(cost, n_shards=1, read_bytes=SCORE_BYTES * cost.n_rows)
            elif is_from_embeddings(job, method):
                cost = replace(cost, read_bytes=4.0 * workload.scale.dim * cost.n_rows)
            yield replace(cost, datasets=(job.prior_scores(face_set, method),))


def estimate_regressor_scores(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of scoring each benchmark by all regressors: a read of its embeddings, or a pass for each network."""
    label_sets = job.label_sets()
    for benchmark in job.settings.benchmarks:
        cost = _model_cost("evaluate", benchmark.name, benchmark.name, workload, workload.embed_s[job.fr], SCORE_BYTES)
        datasets = tuple(job.regressor_scores(benchmark.name, label_set) for label_set in label_sets)
        if job.settings.train.mode == "head":
            yield replace(
                cost,
                work_s=cost.n_rows * len(label_sets) * workload.units.head_image,
                read_bytes=workload.scale.dim * 4.0 * cost.n_rows,
                written_bytes=cost.written_bytes * len(label_sets),
                datasets=datasets,
            )
            continue
        yield replace(
            cost,
            n_shards=cost.n_shards * len(label_sets),
            work_s=cost.work_s * len(label_sets),
            read_bytes=cost.read_bytes * len(label_sets),
            written_bytes=cost.written_bytes * len(label_sets),
            datasets=datasets,
        )


def _model_cost(stage: str, what: str, face_set: str, workload: Workload, image_s: float, written: float) -> Cost:
    """Return the cost of a model over a face set, from its seconds and the bytes it writes per image."""
    n = workload.n_images[face_set]
    return Cost(
        stage,
        what,
        n,
        workload.n_parts(face_set),
        work_s=n * image_s,
        memory_bytes=workload.part_rows * FACE_MEMORY,
        read_bytes=n * FACE_BYTES,
        written_bytes=n * written,
    )


def is_from_embeddings(job: Job, method: MethodSettings) -> bool:
    """Return whether a method needs no model, but the job's stored embeddings alone, which are of the faces as they are."""
    row = METHODS.get(method.name)
    is_plain = method.recognizer is None and job.settings.recognizer.flip == "none"
    return row is not None and row.from_embedding and is_plain


def _score_step(job: Job, face_set: str, method: MethodSettings) -> Step:
    dataset = job.prior_scores(face_set, method)
    faces = job.faces(face_set)
    manifest = faces.require()
    scores = job.scores_file(face_set, method)
    if scores is not None:
        allow_others = job.face_sets[face_set].limit is not None
        return Step(
            "score",
            dataset,
            [faces],
            stateless_worker(file_shard, dataset, scores, allow_others),
            manifest.n_rows,
            unit="images",
        )
    if is_from_embeddings(job, method):
        embeddings = job.embeddings(face_set)
        parts = embeddings.require().parts
        worker = stateless_worker(norm_shard, dataset, embeddings)
        return Step("score", dataset, parts, worker, manifest.n_rows, unit="images")
    return _model_step("score", [dataset], faces, [method_call(job, method)], job)


def _needs_trunk(job: Job, face_set: str, method: MethodSettings) -> bool:
    """Return whether a method shares the trunk's pass and has no scores yet."""
    row = METHODS.get(method.name)
    if row is None or not row.from_trunk or job.scores_file(face_set, method) is not None:
        return False
    return job.prior_scores(face_set, method).manifest() is None


def method_call(job: Job, method: MethodSettings) -> ModelCall:
    """Return what a worker loads for a method, on the FR model that the method names or else on the job's.

    Raises:
        UsageError: the method names an FR model but does not use one.
    """
    s = job.settings
    if method.recognizer is not None and not ModelRef.parse(method.name).needs_recognizer:
        raise UsageError(
            f"methods: {method.label} works on no FR model; leave out its recognizer {method.recognizer.name}"
        )
    recognizer = method.recognizer or s.recognizer
    return ModelCall(recognizer, method.name, method.weights, dict(method.options), s.seed, s.compute.device)


def _model_step(stage: str, datasets: Sequence[Dataset], faces: Dataset, calls: Sequence[ModelCall], job: Job) -> Step:
    manifest = faces.require()
    return Step(
        stage=stage,
        dataset=datasets[0],
        extra_datasets=tuple(datasets[1:]),
        shards=manifest.parts,
        make_worker=partial(_make_model_worker, datasets, faces, calls, job.settings.compute.batch_size),
        n_rows=manifest.n_rows,
        runs_in="pool",
        uses_model=True,
        unit="images",
    )


def _make_model_worker(
    datasets: Sequence[Dataset], faces: Dataset, calls: Sequence[ModelCall], batch_size: int | None
) -> Worker:
    size = batch_size or default_batch_size(calls[0].resolve_device())
    return partial(run_shard, datasets, faces, load_calls(calls), calls[0].kind, size)


@dataclass(frozen=True)
class ModelCall:
    """What a worker loads: an FR model, or a FIQA method or regressor with the FR model that it needs.

    Attributes:
        recognizer: the FR model; None for a regressor.
        scorer: the FIQA method, or the location of a regressor; None: embed.
        weights: the scorer's weights.
        options: the scorer's options.
        seed: seed of methods that draw random numbers.
        device: cpu, cuda or auto.
    """

    recognizer: RecognizerSettings | None
    scorer: str | None
    weights: str | None
    options: dict[str, object]
    seed: int
    device: str

    @property
    def kind(self) -> Kind:
        """What is written per face."""
        if self.scorer is None:
            return "embedding"
        return "seed_scores" if self.recognizer is None else "score"

    def resolve_device(self) -> str:
        """Return the device in this process."""
        return resolve_device(self.device)

    def load(self) -> Model:
        """Return the model, loaded."""
        if self.scorer is not None:
            return self._load_scorer(self._load_recognizer() if ModelRef.parse(self.scorer).needs_recognizer else None)
        assert self.recognizer is not None
        device, model, flip = self.resolve_device(), self._load_recognizer(), self.recognizer.flip

        def embed(faces: torch.Tensor, _: NDArray[np.int64]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return embed_faces(model, faces.to(device), flip).float().cpu().numpy()

        return embed

    def _load_recognizer(self) -> Recognizer:
        r = self.recognizer
        assert r is not None
        return load_recognizer(r.name, weights=r.weights, device=self.resolve_device(), **r.options)

    def _load_scorer(self, recognizer: Recognizer | None) -> Scorer:
        assert self.scorer is not None
        return load_scorer(
            self.scorer,
            recognizer=recognizer,
            weights=self.weights,
            device=self.resolve_device(),
            seed=self.seed,
            **self.options,
        )


def load_calls(calls: Sequence[ModelCall]) -> Models:
    """Load the models of one step: FR models, one method, or several FIQA methods on one FR model, which is loaded once."""
    if len(calls) == 1 or calls[0].kind == "embedding":
        models = [call.load() for call in calls]
        return lambda faces, rows: [model(faces, rows) for model in models]
    recognizer = calls[0]._load_recognizer()
    scorers = [call._load_scorer(recognizer) for call in calls]
    return lambda faces, rows: score_together(scorers, faces, rows)


def run_shard(
    datasets: Sequence[Dataset], faces: Dataset, models: Models, kind: Kind, batch_size: int, shard: Part
) -> Part:
    """Run the models over one part of the faces and write a part of each dataset.

    Memory: the part's encoded faces and three decoded batches.

    Args:
        datasets: what the models return, in their order.
        faces: the packed faces.
        models: returns one array per dataset.
        kind: what the models return per face.
        batch_size: faces per batch.
        shard: part of the faces.

    Returns:
        The part of the first dataset.
    """
    started = time.monotonic()
    table = faces.read(shard, ["image_row", "identity_row", "face", "status", "error"])
    image_row = table["image_row"].to_numpy()
    good = np.flatnonzero(pc.equal(table["status"], "ok").to_numpy())
    encoded = table["face"].take(pa.array(good))
    outputs: list[list[NDArray[np.float32]]] = []
    # A part without any good face gets one empty batch, whose output tells the length of an embedding.
    batches = [slice(at, min(at + batch_size, len(good))) for at in range(0, max(len(good), 1), batch_size)]
    with ThreadPoolExecutor(1) as pool:  # decodes the next batch while the model computes this one
        ahead = pool.submit(_decode, encoded, batches[0], batch_size)
        for b, where in enumerate(batches):
            batch = ahead.result()
            if b + 1 < len(batches):
                ahead = pool.submit(_decode, encoded, batches[b + 1], batch_size)
            n = where.stop - where.start
            rows = np.full(batch_size, -1, np.int64)
            rows[:n] = image_row[good[where]]
            outputs.append([values[:n] for values in models(torch.from_numpy(batch), rows)])
    duration_s = (time.monotonic() - started) / len(datasets)  # each dataset's share
    parts = [
        _write(dataset, table, good, np.concatenate(values), kind, shard.index, duration_s)
        for dataset, values in zip(datasets, zip(*outputs, strict=True), strict=True)
    ]
    return parts[0]


def _decode(encoded: pa.ChunkedArray, where: slice, batch_size: int) -> NDArray[np.uint8]:
    faces = decode_packed_faces(encoded.slice(where.start, where.stop - where.start).to_pylist(), n_threads=2)
    if len(faces) < batch_size:
        faces = np.concatenate([faces, np.zeros((batch_size - len(faces), *faces.shape[1:]), np.uint8)])
    return faces


def _write(
    dataset: Dataset,
    table: pa.Table,
    good: NDArray[np.int64],
    values: NDArray[Any],
    kind: Kind,
    index: int,
    duration_s: float,
) -> Part:
    """Write one part of embeddings or scores.

    Rows of bad faces keep their status; rows where the model gave NaN or infinity get the status "non_finite".

    Args:
        dataset: where the part goes.
        table: rows of the faces, with status and error.
        good: rows of `table` that `values` belong to.
        values: `(N, D)` embeddings, `(N,)` scores or `(N, S)` scores of S seeds, of these rows.
        kind: which of the two they are.
        index: number of the part.
        duration_s: how long it took to compute.
    """
    n = len(table)
    values = values if values.ndim == 2 else values[:, None]
    finite = np.isfinite(values).all(axis=1)
    usable = np.zeros(n, bool)
    usable[good[finite]] = True
    status = np.array(table["status"].to_pylist(), dtype=object)
    error = np.array(table["error"].to_pylist(), dtype=object)
    status[good[~finite]] = "non_finite"
    error[good[~finite]] = "the model returned NaN or infinity for this face"
    columns = {"image_row": table["image_row"], "status": status.tolist(), "error": error.tolist()}
    if kind == "embedding":
        schema = schemas.embeddings(values.shape[1])
        embedding = embedding_column(values[finite], good[finite], n)
        columns |= {"identity_row": table["identity_row"], "embedding": embedding}
    else:
        score = np.full(n, np.nan)
        score[good[finite]] = values[finite].mean(axis=1)
        schema = schemas.REGRESSOR_SCORES if kind == "seed_scores" else schemas.QUALITY_SCORES
        columns |= {
            "score": pa.array(score, mask=~usable),
            "seed_scores": seed_score_column(values[finite], good[finite], n),
        }
    return dataset.write_part(
        index,
        {".parquet": pa.table({name: columns[name] for name in schema.names}, schema=schema)},
        n_rows=n,
        stats={"status": dict(Counter(status.tolist()))},
        duration_s=duration_s,
    )


# --- scores without a model ---


def norm_shard(dataset: Dataset, embeddings: Dataset, shard: Part) -> Part:
    """Write the length of each stored embedding, a score that needs no forward pass."""
    started = time.monotonic()
    table = embeddings.read(shard, ["image_row", "embedding", "status", "error"])
    values, good = embedding_values(table)
    return _write(dataset, table, good, embedding_norm(values), "score", shard.index, time.monotonic() - started)


def file_shard(dataset: Dataset, file: ScoresSettings, allow_others: bool, faces: Dataset) -> Part:
    """Write the user's own scores, as one part for the whole face set.

    Memory: ids and scores of all images.
    """
    started = time.monotonic()
    table = faces.read_all(["image_row", "image_id", "status", "error"])
    scores = scores_by_id(table["image_id"].combine_chunks(), **file.model_dump(), allow_others=allow_others)
    good = np.flatnonzero(pc.equal(table["status"], "ok").to_numpy())
    return _write(dataset, table, good, scores[good], "score", 0, time.monotonic() - started)
