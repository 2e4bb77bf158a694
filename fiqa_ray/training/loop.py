"""The training loop: steps, validations, the state that a restart continues from, and what is saved at the end.

`TrainingLoop` trains one network. What the network is and how it learns is up to a `Trainable`: see `head.py` and
`finetune.py`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fiqa_ray.config import RecognizerSettings, TrainSettings
from fiqa_ray.core.labels import scale_to_unit
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.documents import read_sealed, sealed, write_document
from fiqa_ray.engine.ray_train import TrainHost
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import LabelSet
from fiqa_ray.models.formats.checkpoints import state_bytes
from fiqa_ray.models.regressor import QualityRegressor, save_regressor, score_table
from fiqa_ray.storage import exists, fingerprint, join, write_atomic
from fiqa_ray.training.distributed import broadcast, reduce_over
from fiqa_ray.training.leaving import LeavingWatch

VALIDATION_EVERY = 20
"""One of this number of images (or of people, for PCNet) is held out for validation."""

SAVE_EVERY_S = 10.0
"""Seconds between two writes of the state, at least. A restart repeats this much training and one validation."""

SHOW_EVERY_S = 5.0
"""Seconds between two records of the steps done, which move the progress bar between validations."""

PARTS_AT_ONCE = 8
"""Parts that are shuffled together: identities are contiguous, and a batch should hold many of them."""


@dataclass(frozen=True)
class Recipe:
    """The values of a training mode. `stages.train` fills in the job's settings; the loop and the modes read it.

    The learning rate falls to 0 in equal steps, unless the released code's recipe is asked for.

    Attributes:
        head: kind of `QualityHead`.
        n_seeds: trainings of each regressor.
        n_epochs: passes over the training images.
        batch_size: images per step of all workers together.
        learning_rate: head: Adam's rate; finetune: factor on the rates of the released parameter groups.
        validations_per_epoch: validations per epoch.
    """

    head: str
    n_seeds: int
    n_epochs: int
    batch_size: int
    learning_rate: float
    validations_per_epoch: int


RECIPES = {"head": Recipe("norm", 5, 100, 512, 1e-2, 1), "finetune": Recipe("linear", 1, 1, 128, 1.0, 20)}
"""Defaults by mode."""


@dataclass(frozen=True)
class Task:
    """One regressor to train. `stages.train` makes it; the modes read its labels and the loop writes its results.

    Attributes:
        regressor: the dataset to write.
        labels: the dataset with the labels.
        label_set: which labels of that dataset to use.
        card: entries of the regressor's card that are known before training.
    """

    regressor: Dataset
    labels: Dataset
    label_set: LabelSet
    card: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that a training worker needs; picklable. `stages.train` makes it; the loop and the modes read it."""

    tasks: list[Task]
    settings: TrainSettings
    recipe: Recipe
    seed: int
    recognizer: RecognizerSettings
    faces: Dataset
    embeddings: Dataset
    device: str
    state_uri: str

    @property
    def progress_uri(self) -> str:
        """The file that says how many steps are done."""
        return join(self.state_uri, "progress.json")


@dataclass
class State:
    """What a restart needs, as it lies in storage. The loop makes, writes and reads it; a mode adds its network.

    Attributes:
        step: steps done.
        model: state of the network.
        optimizer: state of the optimizer.
        best: per task the weights to save: the last ones, or those with the lowest validation loss.
        best_loss: per task the lowest validation loss.
        history: per task one record per validation.
        loss_sums: sums of the training losses since the last validation, `(world, K) float64`; None after a validation.
        n_summed: steps that these sums cover.
    """

    step: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: list[dict[str, Any]] = field(default_factory=list)
    best_loss: list[float] = field(default_factory=list)
    history: list[list[dict[str, float]]] = field(default_factory=list)
    loss_sums: torch.Tensor | None = None
    n_summed: int = 0


class Trainable(Protocol):
    """A network in training, for K tasks at once: heads for all tasks, or the whole network for one.

    Attributes:
        saves_last: whether the weights of the last validation are saved, and not those with the lowest loss.
        tasks: the regressors that come out of it.
        n_train: this worker's training images.
        batch_size: this worker's images per step.
    """

    saves_last: bool
    tasks: list[Task]
    n_train: int
    batch_size: int

    def batches(self, epoch: int, n_batches: int, skip: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the batches of an epoch, without the first `skip`; (seed, epoch) alone decide which they are."""

    def train_step(self, batch: tuple[torch.Tensor, ...], rate: float) -> torch.Tensor:
        """Make one step at a share of the recipe's learning rate; return the training losses, `(K,) float64` on the CPU."""

    def buffers(self) -> Iterable[torch.Tensor]:
        """Return the tensors that no gradient changes, such as batch-norm statistics."""

    def validate(self) -> torch.Tensor:
        """Return `(K, 2) float64`: sum of absolute errors and number of this worker's validation images."""

    def validation_scores(self, best: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Return per task `(2, n_validation) float32`: score and 1 for this worker's validation images, else zeros."""

    def weights(self, k: int) -> dict[str, torch.Tensor]:
        """Return a copy of the weights of task `k`."""

    def regressor(self, best: dict[str, torch.Tensor]) -> QualityRegressor:
        """Return the regressor with these weights, on the CPU."""

    def save(self, state: State) -> None:
        """Put the network and its optimizer into a state."""

    def load(self, state: State) -> None:
        """Restore the network and its optimizer from a state; a new state changes nothing."""


class TrainingLoop:
    """Trains one network in one of `world` workers; rank 0 writes the state and the results.

    The state lies in the run's own storage and not in Ray Train's checkpoints, because training without Ray resumes from
    it too, and a run then needs no second storage.
    """

    def __init__(self, plan: Plan, trainable: Trainable, rank: int, world: int, host: TrainHost) -> None:
        self.plan, self.trainable, self.tasks = plan, trainable, trainable.tasks
        self.rank, self.world, self.host = rank, world, host
        # a state fits only the same division of the images: with another number of workers training starts again
        division = [world, trainable.batch_size, len(plan.embeddings.require().parts)]
        version = fingerprint([*(t.regressor.fingerprint for t in self.tasks), *division])
        self.state_uri = join(plan.state_uri, f"state-{version}.pt")

    def run(self, number: int = 0, n_networks: int = 1) -> None:
        """Train from the stored state, or from the start, and write the regressors.

        Args:
            number: index of this network among those of the plan, for the progress bar.
            n_networks: how many networks the plan trains.
        """
        started = saved = shown = time.monotonic()
        trainable, recipe = self.trainable, self.plan.recipe
        per_epoch = int(reduce_over(torch.tensor(trainable.n_train // trainable.batch_size), "min", self.world))
        n_steps = per_epoch * recipe.n_epochs
        n_before, n_all = number * n_steps, n_networks * n_steps
        every = max(1, per_epoch // recipe.validations_per_epoch)
        state = self._restore()
        trainable.load(state)
        loss_sum, n_summed = self._loss_so_far(state)
        watch = LeavingWatch(self.host.is_machine_leaving, self.world)
        for epoch in range(state.step // per_epoch, recipe.n_epochs):
            for batch in trainable.batches(epoch, per_epoch, skip=state.step - epoch * per_epoch):
                loss_sum += trainable.train_step(batch, rate=1 - state.step / n_steps)
                n_summed += 1
                state.step += 1
                if self.rank == 0 and time.monotonic() - shown >= SHOW_EVERY_S:
                    self._show(n_before + state.step, n_all)
                    shown = time.monotonic()
                is_saved_early = watch.must_save()
                if state.step % every != 0 and state.step != n_steps:
                    if is_saved_early:
                        self._save_early(state, loss_sum, n_summed)
                    continue
                loss = reduce_over(loss_sum, "sum", self.world) / (n_summed * self.world)
                loss_sum, n_summed = torch.zeros_like(loss_sum), 0
                validation_loss = self._validate(state, epoch, loss.tolist())
                is_due = is_saved_early or time.monotonic() - saved >= SAVE_EVERY_S
                if self.rank == 0 and (is_due or state.step == n_steps):
                    self._save(state)
                    self._show(n_before + state.step, n_all)
                    saved = time.monotonic()
                if state.step == n_steps:  # once, because Ray Train takes about 2 s for each report
                    self.host.report({"step": state.step, "validation_loss": validation_loss})
        scores = [reduce_over(s, "sum", self.world) for s in trainable.validation_scores(state.best)]
        if self.rank == 0:
            for k, task in enumerate(self.tasks):
                score, count = scores[k].numpy()
                self._finish(task, state, k, score[count > 0], time.monotonic() - started)

    def _validate(self, state: State, epoch: int, train_loss: list[float]) -> float:
        """Add a record per task to the history, keep the weights to save in the state, and return the mean loss."""
        broadcast(self.trainable.buffers(), self.world)  # all workers judge the network that rank 0 saves
        sums = reduce_over(self.trainable.validate(), "sum", self.world)
        losses = (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()
        for k, loss in enumerate(losses):
            state.history[k].append(
                {"step": state.step, "epoch": epoch, "train_loss": train_loss[k], "validation_loss": loss}
            )
            if not np.isfinite(loss):
                raise FiqaRayError(
                    f"training of {self.tasks[k].card['scorer']!r} gave a validation loss of {loss} at step {state.step}; "
                    "lower train.learning_rate or check the recogniser on these faces"
                )
            if loss < state.best_loss[k] or self.trainable.saves_last:
                state.best[k] = self.trainable.weights(k)
            state.best_loss[k] = min(loss, state.best_loss[k])
        return float(np.mean(losses))

    def _restore(self) -> State:
        k = len(self.tasks)
        if not exists(self.state_uri):
            return State(best=[{}] * k, best_loss=[float("inf")] * k, history=[[] for _ in range(k)])
        return State(**load_training_state(self.state_uri))

    def _loss_so_far(self, state: State) -> tuple[torch.Tensor, int]:
        """Return the sum of this worker's training losses since the last validation `(K,) float64`, and its steps."""
        if state.loss_sums is None:
            return torch.zeros(len(self.tasks), dtype=torch.float64), 0
        sums, n_summed = state.loss_sums, state.n_summed
        state.loss_sums, state.n_summed = None, 0
        return sums[self.rank].clone(), n_summed

    def _save_early(self, state: State, loss_sum: torch.Tensor, n_summed: int) -> None:
        """Save between two validations, because a machine is about to be taken away."""
        sums = torch.zeros(self.world, len(self.tasks), dtype=torch.float64)
        sums[self.rank] = loss_sum
        sums = reduce_over(sums, "sum", self.world)
        if self.rank == 0:
            self._save(replace(state, loss_sums=sums, n_summed=n_summed))

    def _save(self, state: State) -> None:
        self.trainable.save(state)
        save_training_state(self.state_uri, state.__dict__)

    def _show(self, n_done: int, n_steps: int) -> None:
        """Write how many steps are done, for the progress bar."""
        write_document(self.plan.progress_uri, {"step": n_done, "n_steps": n_steps})

    def _finish(self, task: Task, state: State, k: int, scores: NDArray[np.float32], duration_s: float) -> None:
        rows = state.history[k]
        best = rows[-1] if self.trainable.saves_last else min(rows, key=lambda r: r["validation_loss"])
        card = {
            **task.card,
            "metrics": {"validation_l1": best["validation_loss"], "best_step": best["step"], "n_steps": state.step},
            "recipe": asdict(self.plan.recipe),
            "clean_gradients": self.plan.settings.gradients == "clean",
            "validation_scores": score_table(scores),
        }
        files = save_regressor(self.trainable.regressor(state.best[k]), card)
        table = pa.Table.from_pylist(rows, schema=schemas.TRAINING)
        n_rows = self.plan.embeddings.require().n_rows
        task.regressor.write_part(0, {**files, ".parquet": table}, n_rows=n_rows, duration_s=duration_s)


def save_training_state(uri: str, state: Mapping[str, Any]) -> None:
    """Write what a restart continues from, with its SHA-256."""
    write_atomic(uri, sealed(state_bytes(state), _name(uri)))


def load_training_state(uri: str, device: str = "cpu") -> dict[str, Any]:
    """Return what `save_training_state` wrote. Raise `FiqaRayError` if the file does not fit its SHA-256."""
    data = read_sealed(uri, "remove this file and run again: training then starts from the beginning", _name(uri))
    state = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
    assert isinstance(state, dict)
    return state


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


PartOfRows = tuple[Part, int]
"""A part and the row of its first image."""


def worker_parts(dataset: Dataset, rank: int, world: int) -> list[PartOfRows]:
    """Return the parts that one of `world` workers trains on, each with the row of its first image."""
    manifest = dataset.require()
    return list(zip(manifest.parts, manifest.first_rows[:-1], strict=True))[rank::world]


def worker_batch_size(batch_size: int, n_train: int, world: int) -> int:
    """Return a worker's images per step: the workers' batches add up to the recipe's; no worker has fewer images."""
    return max(1, min(batch_size // world, int(reduce_over(torch.tensor(n_train), "min", world))))


def load_targets(task: Task) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read a task's labels and choose its validation images.

    Returns:
        Labels `(I,) float32` in [0, 1], NaN for images without one, and `(I,) bool`: the validation images. These are every
        20th image in ascending order of scores, starting with the first (released transfer-learning code).
    """
    labels = task.label_set
    columns = [labels.score_column] if labels.is_prior else [*dict.fromkeys([labels.score_column, "label"])]
    table = task.labels.read_all(columns)
    score = table[labels.score_column].to_numpy().astype(np.float64)
    scored = np.flatnonzero(np.isfinite(score))
    label = np.full(len(score), np.nan, np.float32)
    label[scored] = scale_to_unit(score[scored]) if labels.is_prior else table["label"].to_numpy()[scored]
    validation = np.zeros(len(score), bool)  # by score: two scores may share a label, which has fewer digits
    validation[scored[np.argsort(score[scored], kind="stable")[::VALIDATION_EVERY]]] = True
    return label, validation


def shuffled_batches(
    parts: list[PartOfRows],
    load: Callable[[PartOfRows], tuple[NDArray[np.int64], Any]],
    batch_size: int,
    seed: int,
    epoch: int,
    n_batches: int,
) -> Iterator[list[tuple[Any, int]]]:
    """Yield at most `n_batches` batches of images in an order that (seed, epoch) decide.

    Args:
        parts: the worker's parts. `PARTS_AT_ONCE` of them are read and shuffled together.
        load: reads a part; returns the positions of the images to use, and the part's data.
        batch_size: images per batch. Images left over from some parts go into the next batches.
        seed: of the job.
        epoch: counted from 0.
        n_batches: where to stop.

    Yields:
        Per image of a batch: the data of its part, and its position in them.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(parts))
    n_yielded = 0
    left_over: list[tuple[Any, int]] = []
    for first in range(0, len(order), PARTS_AT_ONCE):
        pool = left_over
        for p in order[first : first + PARTS_AT_ONCE]:
            positions, data = load(parts[p])
            pool.extend((data, int(position)) for position in positions)
        pool = [pool[i] for i in rng.permutation(len(pool))]
        end = len(pool) // batch_size * batch_size
        for b in range(0, end, batch_size):
            if n_yielded == n_batches:
                return
            n_yielded += 1
            yield pool[b : b + batch_size]
        left_over = pool[end:]
