"""embed and score: one FR model, FIQA method or regressor over the face shards (Ray Data, one model load per actor).

Batches have one fixed shape, the last is padded, so an image's numbers do not depend on which shard or batch it is in.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from fiqa_ray import schemas
from fiqa_ray.config import MethodSettings, RecognizerSettings, default_batch_size
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.images import decode_faces
from fiqa_ray.lineage import Job
from fiqa_ray.models.quality import METHODS, embedding_norm, load_scorer, needs_recognizer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.sources.scores import scores_by_id
from fiqa_ray.stages import Step, Worker, ready
from fiqa_ray.storage import Dataset, Part

Model = Callable[[torch.Tensor, np.ndarray], np.ndarray]
"""(b, 3, 112, 112) uint8 faces and (b,) image rows -> (b, dim) embeddings or (b,) scores, float32."""


@dataclass(frozen=True)
class ModelCall:
    """What a worker loads: the FR model (None: embed), or the FIQA method or regressor and the FR model if it needs one."""

    recognizer: RecognizerSettings | None
    scorer: str | None
    weights: str | None
    options: dict[str, object]
    seed: int
    device: str

    def place(self) -> str:
        """The device of the worker that asks."""
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    def load(self) -> Model:
        """Loads the model, once per worker."""
        device = self.place()
        recognizer = None
        if self.recognizer is not None and (self.scorer is None or needs_recognizer(self.scorer)):
            r = self.recognizer
            recognizer = load_recognizer(r.name, weights=r.weights, device=device, **r.options)
        if self.scorer is not None:
            return load_scorer(
                self.scorer,
                recognizer=recognizer,
                weights=self.weights,
                device=device,
                seed=self.seed,
                **self.options,
            )
        assert recognizer is not None
        model = recognizer

        def embed(faces: torch.Tensor, _: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return model(faces.to(device)).float().cpu().numpy()

        return embed


def embed_steps(job: Job) -> Iterator[list[Step]]:
    """Embeddings of every face set."""
    call = ModelCall(job.settings.recognizer, None, None, {}, job.settings.seed, job.settings.compute.device)
    yield [_model_step("embed", job.embeddings(s), job.faces(s), call, job) for s in job.face_sets]


def score_steps(job: Job) -> Iterator[list[Step]]:
    """Prior scores of every method on every face set that it can be scored on; models first, then the rest."""
    steps = [
        _score_step(job, face_set, method)
        for method in job.settings.methods
        for face_set in job.face_sets
        if job.has_scores(face_set, method)
    ]
    for engine in ("data", "tasks"):
        group = [s for s in steps if s.engine == engine]
        if group:
            yield group


def regressor_score_steps(job: Job) -> Iterator[list[Step]]:
    """Scores of the trained regressors on every benchmark: one forward pass each."""
    steps = []
    for method, theta in job.label_sets():
        regressor = job.regressor(method, theta)
        regressor.require()
        # the job's own settings name the code of a user's network, so importing it again is no news
        options: dict[str, object] = {"allow_import": True}
        call = ModelCall(None, regressor.uri, None, options, job.settings.seed, job.settings.compute.device)
        for benchmark in job.settings.benchmarks:
            dataset = job.regressor_scores(benchmark.name, method, theta)
            steps.append(_model_step("evaluate", dataset, job.faces(benchmark.name), call, job))
    if steps:
        yield steps


def _score_step(job: Job, face_set: str, method: MethodSettings) -> Step:
    dataset = job.prior_scores(face_set, method)
    faces = job.faces(face_set)
    manifest = faces.require()
    scores_uri = job.scores_uri(face_set, method)
    if scores_uri is not None:
        return Step("score", dataset, [faces], ready(file_shard, dataset, scores_uri), manifest.n_rows, unit="images")
    row = METHODS.get(method.name)
    if row is not None and row.from_embedding:
        embeddings = job.embeddings(face_set)
        parts = embeddings.require().parts
        worker = ready(norm_shard, dataset, embeddings)
        return Step("score", dataset, parts, worker, manifest.n_rows, unit="images")
    call = ModelCall(
        job.settings.recognizer,
        method.name,
        method.weights,
        dict(method.options),
        job.settings.seed,
        job.settings.compute.device,
    )
    return _model_step("score", dataset, faces, call, job)


def _model_step(stage: str, dataset: Dataset, faces: Dataset, call: ModelCall, job: Job) -> Step:
    manifest = faces.require()
    return Step(
        stage=stage,
        dataset=dataset,
        shards=manifest.parts,
        make_worker=partial(_make_model_worker, dataset, faces, call, job.settings.compute.batch_size),
        n_rows=manifest.n_rows,
        engine="data",
        uses_model=True,
        unit="images",
    )


def _make_model_worker(dataset: Dataset, faces: Dataset, call: ModelCall, batch_size: int | None) -> Worker:
    size = batch_size or default_batch_size(call.place())
    return partial(run_shard, dataset, faces, call.load(), call.scorer is None, size)


def run_shard(dataset: Dataset, faces: Dataset, model: Model, embeds: bool, batch_size: int, shard: Part) -> Part:
    """Runs the model over one part of faces. Memory: the part's encoded faces and three decoded batches."""
    started = time.monotonic()
    table = faces.read(shard, ["image_row", "identity_row", "face", "status", "error"])
    image_row = table["image_row"].to_numpy()
    good = np.flatnonzero(pc.equal(table["status"], "ok").to_numpy())
    encoded = table["face"].take(pa.array(good))
    outputs: list[np.ndarray] = []
    # a part without any good face has one empty batch: its output still says how long an embedding is
    batches = [slice(at, min(at + batch_size, len(good))) for at in range(0, max(len(good), 1), batch_size)]
    with ThreadPoolExecutor(1) as pool:  # decodes the next batch while the model is at work on this one
        ahead = pool.submit(_decode, encoded, batches[0], batch_size)
        for b, where in enumerate(batches):
            batch = ahead.result()
            if b + 1 < len(batches):
                ahead = pool.submit(_decode, encoded, batches[b + 1], batch_size)
            n = where.stop - where.start
            rows = np.full(batch_size, -1, np.int64)
            rows[:n] = image_row[good[where]]
            outputs.append(_checked(model(torch.from_numpy(batch), rows), batch_size, embeds, dataset.uri)[:n])
    return _write(dataset, table, good, np.concatenate(outputs), embeds, shard.index, started)


def _decode(encoded: pa.ChunkedArray, where: slice, batch_size: int) -> np.ndarray:
    faces, ok = decode_faces(encoded.slice(where.start, where.stop - where.start).to_pylist(), n_threads=2)
    if not ok.all():
        raise FiqaRayError(
            "a packed face no longer decodes: its part is damaged; remove the part's files and run again"
        )
    if len(faces) < batch_size:
        faces = np.concatenate([faces, np.zeros((batch_size - len(faces), *faces.shape[1:]), np.uint8)])
    return faces


def _checked(output: np.ndarray, batch_size: int, embeds: bool, place: str) -> np.ndarray:
    wanted = "(batch, dim) float embeddings" if embeds else "(batch,) float scores"
    if not isinstance(output, np.ndarray) or output.ndim != (2 if embeds else 1) or len(output) != batch_size:
        got = getattr(output, "shape", type(output).__name__)
        raise FiqaRayError(
            f"{place}: the model returned {got} for a batch of {batch_size} faces; it must return {wanted}"
        )
    return output


def _write(
    dataset: Dataset, table: pa.Table, good: np.ndarray, values: np.ndarray, embeds: bool, index: int, started: float
) -> Part:
    """Rows of bad faces keep their status; rows where the model gave NaN or infinity get status "non_finite"."""
    n = len(table)
    finite = np.isfinite(values).all(axis=1) if embeds else np.isfinite(values)
    usable = np.zeros(n, bool)
    usable[good[finite]] = True
    status = np.array(table["status"].to_pylist(), dtype=object)
    error = np.array(table["error"].to_pylist(), dtype=object)
    status[good[~finite]] = "non_finite"
    error[good[~finite]] = "the model returned NaN or infinity for this face"
    columns = {"image_row": table["image_row"], "status": status.tolist(), "error": error.tolist()}
    if embeds:
        dim = values.shape[1]
        stored = [None] * n
        flat = values.astype("<f4")
        for i in np.flatnonzero(finite):
            stored[good[i]] = flat[i].tobytes()
        schema = schemas.embeddings(dim)
        columns |= {"identity_row": table["identity_row"], "embedding": pa.array(stored, pa.binary(4 * dim))}
    else:
        score = np.full(n, np.nan)
        score[good[finite]] = values[finite]
        schema = schemas.QUALITY_SCORES
        columns |= {"score": pa.array(score, mask=~usable)}
    return dataset.write_part(
        index,
        {".parquet": pa.table({name: columns[name] for name in schema.names}, schema=schema)},
        n_rows=n,
        stats={"status": dict(Counter(status.tolist()))},
        duration_s=time.monotonic() - started,
    )


# --- scores without a model ---


def norm_shard(dataset: Dataset, embeddings: Dataset, shard: Part) -> Part:
    """The length of each stored embedding: a score that costs no forward pass."""
    started = time.monotonic()
    table = embeddings.read(shard, ["image_row", "embedding", "status", "error"])
    values, good = schemas.embedding_values(table)
    return _write(dataset, table, good, embedding_norm(values), False, shard.index, started)


def file_shard(dataset: Dataset, scores_uri: str, faces: Dataset) -> Part:
    """The user's own scores, one part for the whole set. Memory: ids and scores of all images."""
    started = time.monotonic()
    table = faces.read_all(["image_row", "image_id", "status", "error"])
    scores = scores_by_id(scores_uri, table["image_id"].combine_chunks())
    good = np.flatnonzero(pc.equal(table["status"], "ok").to_numpy())
    return _write(dataset, table, good, scores[good], False, 0, started)
