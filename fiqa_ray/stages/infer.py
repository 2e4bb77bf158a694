"""embed and score: one FR model, FIQA method or regressor over the face shards.

How a worker runs models over a part is in `infer_parts.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.compute as pc

from fiqa_ray.config import MethodSettings, ScoresSettings
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.cost import FACE_BYTES, FACE_MEMORY, Cost, Workload
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import UsageError
from fiqa_ray.job import Job
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.methods.forward import embedding_norm
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.sources.scores import scores_by_id
from fiqa_ray.stages.infer_parts import ModelCall, make_model_worker, write_part

SCORE_BYTES = 12.0
"""A stored score: the number, its row and its status."""


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
            s = job.settings
            calls = [ModelCall(r, None, None, {}, s.seed, s.compute.device, s.compute.precision) for r in group]
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
        compute = job.settings.compute
        call = ModelCall(None, regressor.uri, None, options, job.settings.seed, compute.device, compute.precision)
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
    options, compute = dict(method.options), s.compute
    return ModelCall(recognizer, method.name, method.weights, options, s.seed, compute.device, compute.precision)


def _model_step(stage: str, datasets: Sequence[Dataset], faces: Dataset, calls: Sequence[ModelCall], job: Job) -> Step:
    manifest = faces.require()
    return Step(
        stage=stage,
        dataset=datasets[0],
        extra_datasets=tuple(datasets[1:]),
        shards=manifest.parts,
        make_worker=partial(make_model_worker, datasets, faces, calls, job.settings.compute.batch_size),
        n_rows=manifest.n_rows,
        runs_in="pool",
        uses_model=True,
        unit="images",
    )


# --- scores without a model ---


def norm_shard(dataset: Dataset, embeddings: Dataset, shard: Part) -> Part:
    """Write the length of each stored embedding, a score that needs no forward pass."""
    started = time.monotonic()
    table = embeddings.read(shard, ["image_row", "embedding", "status", "error"])
    values, good = embedding_values(table)
    return write_part(dataset, table, good, embedding_norm(values), "score", shard.index, time.monotonic() - started)


def file_shard(dataset: Dataset, file: ScoresSettings, allow_others: bool, faces: Dataset) -> Part:
    """Write the user's own scores, as one part for the whole face set.

    Memory: ids and scores of all images.
    """
    started = time.monotonic()
    table = faces.read_all(["image_row", "image_id", "status", "error"])
    scores = scores_by_id(table["image_id"].combine_chunks(), **file.model_dump(), allow_others=allow_others)
    good = np.flatnonzero(pc.equal(table["status"], "ok").to_numpy())
    return write_part(dataset, table, good, scores[good], "score", 0, time.monotonic() - started)
