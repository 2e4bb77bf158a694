"""The training loop: its plan, state, batches and validation."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fiqa_ray.config import RecognizerSettings, TrainSettings
from fiqa_ray.core.labels import scale_to_unit
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.models.regressor import save_regressor, score_table
from fiqa_ray.storage import exists, fingerprint, join, read_bytes, write_atomic
from fiqa_ray.training.distributed import broadcast, reduce_over

VALIDATION_EVERY = 20


SAVE_EVERY_S = 10.0
"""Least time between two writes of the state: a restart repeats at most this much, and a validation."""


_PARTS_AT_ONCE = 8
"""Parts that are shuffled together: identities are contiguous, and a batch should hold many of them."""


@dataclass(frozen=True)
class Recipe:
    """Defaults of a training mode. ``learning_rate``: Adam's, or the factor on the released groups' rates."""

    n_epochs: int
    batch_size: int
    learning_rate: float


RECIPES = {"head": Recipe(20, 512, 1e-2), "finetune": Recipe(1, 128, 1.0)}


@dataclass(frozen=True)
class Task:
    """One regressor to train: where it goes, where its labels are, and what its card says."""

    regressor: Dataset
    labels: Dataset
    column: str
    card: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything a training worker needs; picklable."""

    tasks: list[Task]
    settings: TrainSettings
    recipe: Recipe
    seed: int
    recognizer: RecognizerSettings
    faces: Dataset
    embeddings: Dataset
    device: str
    state_uri: str


@dataclass
class State:
    """Where training is; everything a restart needs."""

    task: int = 0
    step: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: list[dict[str, Any]] = field(default_factory=list)
    best_loss: list[float] = field(default_factory=list)
    history: list[list[dict[str, float]]] = field(default_factory=list)


class _Run:
    """Epochs, validations, state and results of one network (one head each for all tasks, or one finetuned task)."""

    def __init__(
        self, plan: Plan, tasks: list[Task], training: Any, rank: int, world: int, report: Any, n_total: int
    ) -> None:
        self.plan, self.tasks, self.training = plan, tasks, training
        self.rank, self.world, self.report, self.n_total = rank, world, report, n_total
        # a state fits only the same division of the rows: with another number of workers training starts afresh
        division = [world, training.batch_size, len(plan.embeddings.require().parts)]
        marks = fingerprint([*(t.regressor.fingerprint for t in tasks), *division])
        self.state_uri = join(plan.state_uri, f"state-{marks}.pt")

    def run(self, number: int) -> None:
        started = saved = time.monotonic()
        t, recipe = self.training, self.plan.recipe
        per_epoch = int(reduce_over(torch.tensor(t.n_train // t.batch_size), "min", self.world))
        n_steps = per_epoch * recipe.n_epochs
        every = max(1, per_epoch // self.plan.settings.validations_per_epoch)
        state = self._restore()
        t.load(state)
        loss_sum, n_summed = torch.zeros(len(self.tasks), dtype=torch.float64), 0
        for epoch in range(state.step // per_epoch, recipe.n_epochs):
            skip = state.step - epoch * per_epoch
            for batch in t.batches(epoch, per_epoch, skip):
                loss_sum += t.train_step(batch)
                n_summed += 1
                state.step += 1
                if state.step % every == 0 or state.step == n_steps:
                    broadcast(t.buffers(), self.world)  # what is judged is what rank 0 saves
                    validation = reduce_over(t.validate(), "sum", self.world)
                    mean = (reduce_over(loss_sum, "sum", self.world) / (n_summed * self.world)).tolist()
                    losses = (validation[:, 0] / validation[:, 1].clamp(min=1)).tolist()
                    self._keep_best(state, epoch, mean, losses)
                    loss_sum.zero_()
                    n_summed = 0
                    if self.rank == 0 and (time.monotonic() - saved >= SAVE_EVERY_S or state.step == n_steps):
                        self._save(state, number * n_steps, n_steps * self.n_total)
                        saved = time.monotonic()
                    if state.step == n_steps:  # once: Ray Train takes about 2 s for each report
                        self.report({"step": state.step, "validation_loss": float(np.mean(losses))})
        scores = [reduce_over(found, "sum", self.world) for found in t.validation_scores(state.best)]
        if self.rank == 0:
            for k, task in enumerate(self.tasks):
                score, known = scores[k].numpy()
                self._finish(task, state, k, score[known > 0], time.monotonic() - started)

    def _keep_best(self, state: State, epoch: int, mean: list[float], losses: list[float]) -> None:
        for k, loss in enumerate(losses):
            state.history[k].append(
                {"step": state.step, "epoch": epoch, "train_loss": mean[k], "validation_loss": loss}
            )
            if not np.isfinite(loss):
                raise FiqaRayError(
                    f"training of {self.tasks[k].card['scorer']!r} gave a validation loss of {loss} at step {state.step}; "
                    "lower train.learning_rate or check the recogniser on these faces"
                )
            if loss < state.best_loss[k]:
                state.best_loss[k] = loss
                state.best[k] = self.training.weights(k)

    def _restore(self) -> State:
        k = len(self.tasks)
        if not exists(self.state_uri):
            return State(best=[{}] * k, best_loss=[float("inf")] * k, history=[[] for _ in range(k)])
        return State(**torch.load(io.BytesIO(read_bytes(self.state_uri)), weights_only=True))

    def _save(self, state: State, done: int, n_steps: int) -> None:
        self.training.save(state)
        buffer = io.BytesIO()
        torch.save(state.__dict__, buffer)
        write_atomic(self.state_uri, buffer.getvalue())
        progress = {"step": done + state.step, "n_steps": n_steps}
        write_atomic(join(self.plan.state_uri, "progress.json"), json.dumps(progress).encode())

    def _finish(self, task: Task, state: State, k: int, scores: np.ndarray, duration_s: float) -> None:
        rows = state.history[k]
        best = min(rows, key=lambda r: r["validation_loss"])
        card = {
            **task.card,
            "metrics": {"validation_l1": best["validation_loss"], "best_step": best["step"], "n_steps": state.step},
            "recipe": asdict(self.plan.recipe),
            "clean_gradients": self.plan.settings.gradients == "clean",
            "validation_scores": score_table(scores),
        }
        files = save_regressor(self.training.regressor(state.best[k]), card)
        table = pa.Table.from_pylist(rows, schema=schemas.TRAINING)
        n_rows = self.plan.embeddings.require().n_rows
        task.regressor.write_part(0, {**files, ".parquet": table}, n_rows=n_rows, duration_s=duration_s)


def _share(batch_size: int, n_train: int, world: int) -> int:
    """Rows per step of one worker: the workers' shares add up to the recipe's batch."""
    return max(1, min(batch_size // world, int(reduce_over(torch.tensor(n_train), "min", world))))


def load_targets(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n_images,) float32 in [0, 1], NaN where there is none, and (n_images,) bool: validation images.

    Validation (released recipe): every 20th image of the ascending order of scores, starting with the first.
    """
    score = task.labels.read_all([task.column])[task.column].to_numpy().astype(np.float64)
    known = np.flatnonzero(np.isfinite(score))
    label = np.full(len(score), np.nan, np.float32)
    label[known] = scale_to_unit(score[known])
    validation = np.zeros(len(score), bool)
    validation[known[np.argsort(score[known], kind="stable")[::VALIDATION_EVERY]]] = True
    return label, validation


def shuffled_batches(
    parts: list[Any],
    load: Callable[[Any], tuple[np.ndarray, Any]],
    batch_size: int,
    seed: int,
    epoch: int,
    n_batches: int,
) -> Iterator[Any]:
    """Batches in an order that (seed, epoch) fixes: a few parts at a time are read and shuffled together.

    ``load`` gives a part's (rows to use) and a function positions -> items. Yields (positions per loaded part, loaders).
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(parts))
    made = 0
    carried: list[Any] = []
    for at in range(0, len(order), _PARTS_AT_ONCE):
        pool = carried
        for p in order[at : at + _PARTS_AT_ONCE]:
            rows, item = load(parts[p])
            pool.extend((item, int(r)) for r in rows)
        pool = [pool[i] for i in rng.permutation(len(pool))]
        whole = len(pool) // batch_size * batch_size
        for b in range(0, whole, batch_size):
            if made == n_batches:
                return
            made += 1
            yield pool[b : b + batch_size]
        carried = pool[whole:]
