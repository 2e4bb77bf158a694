"""How a worker of embed and score runs models over a part of the faces, in three operations.

They are: read, which also begins the decoding; run the models; write a part of each dataset. While the models run, the
engine reads the next part and writes the one before. Batches have one fixed shape, and the last batch is filled up, so the
numbers of an image do not depend on its shard or batch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from fiqa_ray.config import RecognizerSettings, default_batch_size
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.columns import NO_DIRECTION, embedding_column, seed_score_column
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.step import PipelinedWorker
from fiqa_ray.models.batch_check import check_function
from fiqa_ray.models.devices import fed_to, resolve_device, set_cuda_precision
from fiqa_ray.models.formats.onnx_network import OnnxNetwork
from fiqa_ray.models.precision_gate import PrecisionGate
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer, embed_faces
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.models.scorer import Scorer, score_together
from fiqa_ray.stages.infer_parts_decoding import Decoders

Kind = Literal["embedding", "score", "seed_scores"]
"""What a step writes per face; `seed_scores` are those of a regressor that the job trained."""
Model = Callable[[torch.Tensor, NDArray[np.int64]], NDArray[np.float32]]
"""Maps `(N, 3, 112, 112) uint8` faces and their `(N,)` image rows to `(N, D)` embeddings, `(N,)` scores or `(N, S)` scores
of S seeds."""
Models = Callable[[torch.Tensor, NDArray[np.int64]], list[NDArray[np.float32]]]
"""The same for the datasets of one step: one array each."""


def make_model_worker(
    datasets: Sequence[Dataset], faces: Dataset, calls: Sequence[ModelCall], batch_size: int | None
) -> PipelinedWorker:
    """Load the models of a step, and return the worker that runs them over parts of the faces."""
    device = calls[0].resolve_device()
    size = batch_size or default_batch_size(device)
    set_cuda_precision(calls[0].precision)
    gate = None
    if calls[0].precision != "float32":
        exact = [replace(call, precision="float32") for call in calls]
        names = [call.name for call in calls]
        gate = PrecisionGate(lambda: load_calls(exact), names, calls[0].kind == "embedding", calls[0].precision)
    return model_worker(datasets, faces, load_calls(calls), calls[0].kind, size, device, gate)


def model_worker(
    datasets: Sequence[Dataset],
    faces: Dataset,
    models: Models,
    kind: Kind,
    batch_size: int,
    device: str = "cpu",
    gate: PrecisionGate | None = None,
) -> PipelinedWorker:
    """Return the worker of loaded models.

    Memory: the encoded faces of the part that runs and of the next one (on Ray, of the next two), and some decoded batches
    (`Decoders`).

    Args:
        datasets: what the models return, in their order.
        faces: the packed faces.
        models: returns one array per dataset.
        kind: what the models return per face.
        batch_size: faces per batch.
        device: where the models run.
        gate: holds the first outputs against float32.
    """
    decoders = Decoders(batch_size)
    last_end = 0.0

    def read(shard: Part) -> _ReadPart:
        started = time.monotonic()
        table = faces.read(shard, ["image_row", "identity_row", "face", "status", "error"])
        good = np.flatnonzero(pc.equal(table["status"], "ok").to_numpy())
        encoded = table["face"] if len(good) == len(table) else table["face"].take(pa.array(good))
        return _ReadPart(shard.index, table.drop_columns("face"), good, decoders.batches(encoded), started)

    def run(part: _ReadPart) -> _ComputedPart:
        nonlocal last_end
        rows = part.table["image_row"].to_numpy()[part.good]
        outputs: list[list[NDArray[np.float32]]] = []
        # A part without any good face gets one empty batch, whose output tells the length of an embedding.
        with closing(part.batches):  # where the models fail, its decoded batches make room
            for b, batch in enumerate(fed_to(device, part.batches)):
                some = rows[b * batch_size : (b + 1) * batch_size]
                filled = np.full(batch_size, -1, np.int64)
                filled[: len(some)] = some
                outputs.append([values[: len(some)] for values in models(batch, filled)])
                if gate is not None:
                    gate.see(batch, filled, outputs[-1])
        if gate is not None:
            gate.judge()
        begun, last_end = max(part.started, last_end), time.monotonic()
        duration_s = (last_end - begun) / len(datasets)  # each dataset's share
        return _ComputedPart(part, [np.concatenate(values) for values in zip(*outputs, strict=True)], duration_s)

    def write(done: _ComputedPart) -> Part:
        part = done.part
        parts = [
            write_part(dataset, part.table, part.good, values, kind, part.index, done.duration_s)
            for dataset, values in zip(datasets, done.values, strict=True)
        ]
        return parts[0]

    return PipelinedWorker(read, run, write)


@dataclass(frozen=True)
class _ReadPart:
    """A part of the faces: its rows without pictures, which of them are good, and the batches of these."""

    index: int
    table: pa.Table
    good: NDArray[np.int64]
    batches: Generator[torch.Tensor]
    started: float


@dataclass(frozen=True)
class _ComputedPart:
    """A part with what each model returned, and its seconds beside those of the part before."""

    part: _ReadPart
    values: list[NDArray[np.float32]]
    duration_s: float


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
        precision: of the products: float32, bfloat16 or float16.
    """

    recognizer: RecognizerSettings | None
    scorer: str | None
    weights: str | None
    options: dict[str, object]
    seed: int
    device: str
    precision: str = "float32"

    @property
    def name(self) -> str:
        """The model's name, for messages."""
        return self.scorer or (self.recognizer.label if self.recognizer else "")

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
            recognizer = self._load_recognizer() if ModelRef.parse(self.scorer).needs_recognizer else None
            scorer = self._load_scorer(recognizer)

            def score(faces: torch.Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
                with self.in_precision():
                    return scorer(faces, rows)

            return check_function(self.scorer, score)
        assert self.recognizer is not None
        device, model, flip = self.resolve_device(), self._load_recognizer(), self.recognizer.flip

        def embed(faces: torch.Tensor, _: NDArray[np.int64]) -> NDArray[np.float32]:
            with torch.inference_mode(), self.in_precision():
                return embed_faces(model, faces.to(device), flip).float().cpu().numpy()

        return check_function(self.recognizer.name, embed)

    def _load_recognizer(self) -> Recognizer:
        r, device = self.recognizer, self.resolve_device()
        assert r is not None
        recognizer = load_recognizer(r.name, weights=r.weights, device=device, **r.options)
        if self.precision != "float32" and isinstance(
            recognizer.backbone, OnnxNetwork
        ):  # which has the file's precision
            recognizer = recognizer.with_gradients(f"compute.precision={self.precision}")
        if device.startswith("cuda"):
            recognizer.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return recognizer

    def in_precision(self) -> AbstractContextManager[object]:
        """Return a context in which torch's products have the call's precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.resolve_device().partition(":")[0], dtype=getattr(torch, self.precision))

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

    def score(faces: torch.Tensor, rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        with calls[0].in_precision():
            return score_together(scorers, faces, rows)

    return score


def write_part(
    dataset: Dataset,
    table: pa.Table,
    good: NDArray[np.int64],
    values: NDArray[Any],
    kind: Kind,
    index: int,
    duration_s: float,
) -> Part:
    """Write one part of embeddings or scores.

    Rows of bad faces keep their status; rows where the model gave NaN or infinity get the status "non_finite", and
    embeddings of zeros alone "no_direction".

    Args:
        dataset: where the part goes.
        table: rows of the faces, with status and error.
        good: rows of `table` that `values` belong to.
        values: `(N, D)` embeddings, `(N,)` scores or `(N, S)` scores of S seeds, of these rows.
        kind: which of these they are.
        index: number of the part.
        duration_s: how long it took to compute.
    """
    n = len(table)
    values = values if values.ndim == 2 else values[:, None]
    finite = np.isfinite(values).all(axis=1)
    status = np.array(table["status"].to_pylist(), dtype=object)
    error = np.array(table["error"].to_pylist(), dtype=object)
    status[good[~finite]] = "non_finite"
    error[good[~finite]] = "the model returned NaN or infinity for this face"
    if kind == "embedding":
        zeros = ~values.any(axis=1)
        status[good[zeros]], error[good[zeros]] = "no_direction", NO_DIRECTION
        finite &= ~zeros
    usable = np.zeros(n, bool)
    usable[good[finite]] = True
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
