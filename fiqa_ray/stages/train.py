"""train: the regressor H on M, with L1 on labels scaled to [0, 1] (paper III-D; Ray Train).

``head``: M stays as it is; linear heads for all label sets are fitted together on the stored embeddings, one pass over them
per epoch. ``finetune``: the released recipe (LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques
src/transfer_learning): H and the last layers of M, one network per label set. Validation images are every 20th of the
images sorted by label, starting with the worst; the weights with the lowest validation loss are kept.

The state is written to the run's storage at validations; a trainer that is started again continues from there.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from fiqa_ray import __version__, schemas
from fiqa_ray.config import RecognizerSettings, TrainSettings
from fiqa_ray.core.labels import scale_to_unit
from fiqa_ray.core.threads import one_thread
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.images import decode_faces
from fiqa_ray.lineage import PRIOR, Job
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.regressor import QualityHead, QualityRegressor, parameter_groups, save_regressor, score_table
from fiqa_ray.progress import StepProgress
from fiqa_ray.stages import Step, fit_with_ray, ready
from fiqa_ray.storage import (
    Dataset,
    Part,
    exists,
    fingerprint,
    join,
    read_bytes,
    read_json,
    storage_quiet,
    write_atomic,
)
from fiqa_ray.training import average_gradients, broadcast, reduce_over

VALIDATION_EVERY = 20
CLIP_NORM = 5.0
SAVE_EVERY_S = 10.0
"""Least time between two writes of the state: a restart repeats at most this much, and a validation."""

_CACHE_BYTES = 1 << 30
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


def train_steps(job: Job) -> Iterator[list[Step]]:
    """One step per regressor; the first that is missing trains all that are."""
    settings = job.settings.train
    default = RECIPES[settings.mode]
    recipe = Recipe(
        settings.n_epochs or default.n_epochs,
        settings.batch_size or default.batch_size,
        settings.learning_rate or default.learning_rate,
    )
    tasks = [_task(job, *which) for which in job.label_sets()]
    mark = fingerprint([t.regressor.fingerprint for t in tasks])
    plan = Plan(
        tasks=tasks,
        settings=settings,
        recipe=recipe,
        seed=job.settings.seed,
        recognizer=job.settings.recognizer,
        faces=job.faces("train"),
        embeddings=job.embeddings("train"),
        device=job.settings.compute.device,
        state_uri=join(job.settings.run_uri, "_training", f"v={mark}"),
    )
    n_rows = plan.embeddings.require().n_rows
    n_workers = job.settings.compute.train_workers if job.settings.compute.engine == "ray" else 0
    for i, task in enumerate(tasks):
        task.labels.require()
        worker = ready(run_task, plan, n_workers)
        yield [Step("train", task.regressor, [i], worker, n_rows, engine="driver", unit="images")]


def _task(job: Job, method: Any, theta: float | str) -> Task:
    s = job.settings
    card = {
        "scorer": job.scorer_name(method, theta),
        "fiqa_method": method.label,
        "labels": PRIOR if isinstance(theta, str) else "optimized",
        "theta": None if isinstance(theta, str) else theta,
        "index_scale": s.optimize.index_scale,
        "n_clusters": s.pair.n_clusters,
        "n_repeats": s.pair.n_repeats,
        "seed": s.seed,
        "dataset": s.source.uri,
        "job": s.name,
        "training": s.train.model_dump(mode="json"),
        "code_version": __version__,
    }
    column = "prior_score" if isinstance(theta, str) else "optimized_score"
    return Task(job.regressor(method, theta), job.labels(method, theta), column, card)


def run_task(plan: Plan, n_workers: int, i: int) -> Part:
    """Trains all regressors that are still missing and returns the record of regressor ``i``."""
    pending = Plan(**{**plan.__dict__, "tasks": [t for t in plan.tasks if not t.regressor.finished_parts(verify=True)]})
    n_workers = min(n_workers, len(plan.embeddings.require().parts))
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            if n_workers:
                fit_with_ray(train_loop, pending, n_workers, plan.device)
            else:
                train_loop(pending)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    _show_progress(plan, thread)
    if failures:
        raise failures[0]
    return plan.tasks[i].regressor.finished_parts()[0]


def _show_progress(plan: Plan, thread: threading.Thread) -> None:
    """A bar of training steps, read from the state that the workers leave in storage."""
    bar: StepProgress | None = None
    while thread.is_alive():
        thread.join(1.0)
        state = None
        with storage_quiet():
            state = read_json(join(plan.state_uri, "progress.json"))
        if state is None:
            continue
        if bar is None:
            bar = StepProgress(
                f"train: {plan.settings.mode} {plan.recognizer.name}", state["n_steps"], "steps", state["step"]
            )
            bar.__enter__()
        bar.advance(max(0, state["step"] - bar.done))
    if bar is not None:
        bar.__exit__(None, None, None)


# --- the loop: the same in one process and in Ray Train's workers ---


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


def train_loop(
    plan: Plan, rank: int = 0, world: int = 1, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> None:
    """Trains the plan's tasks; rank 0 writes state and results."""
    device = plan.device if plan.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if plan.settings.mode == "head":
        with one_thread():  # products of a few rows: more threads only wait for one another
            _Run(plan, plan.tasks, _HeadTraining(plan, device, rank, world), rank, world, report, n_total=1).run(0)
    else:
        for i, task in enumerate(plan.tasks):
            if not task.regressor.finished_parts(verify=True):
                torch.manual_seed(plan.seed)  # every network starts from the same head, also after a restart
                training = _FinetuneTraining(plan, task, device, rank, world)
                _Run(plan, [task], training, rank, world, report, n_total=len(plan.tasks)).run(i)


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


class _HeadTraining:
    """Linear heads for all tasks on standardised embeddings; the standardisation is folded into the saved weights."""

    def __init__(self, plan: Plan, device: str, rank: int, world: int) -> None:
        self.plan, self.device, self.world = plan, device, world
        targets = [load_targets(t) for t in plan.tasks]
        self.label = np.stack([label for label, _ in targets], axis=1)
        self.validation = np.stack([v for _, v in targets], axis=1)
        manifest = plan.embeddings.require()
        self.parts = list(zip(manifest.parts, manifest.first_rows[:-1], strict=True))[rank::world]
        self.cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.mean, self.scale, self.n_train = self._moments()
        self.batch_size = _share(plan.recipe.batch_size, self.n_train, world)
        self.head = nn.Linear(len(self.mean), len(plan.tasks))
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, 0.5)
        self.head.to(device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=plan.recipe.learning_rate)

    def _load(self, part: tuple[Part, int]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and rows of a part's labelled images; parts stay in memory while they fit into `_CACHE_BYTES`."""
        if part[0].index not in self.cache:
            values, good = schemas.embedding_values(self.plan.embeddings.read(part[0], ["embedding"]))
            rows = good + part[1]
            usable = np.isfinite(self.label[rows]).any(axis=1)
            found = values[usable], rows[usable]
            if sum(v.nbytes for v, _ in self.cache.values()) + found[0].nbytes > _CACHE_BYTES:
                return found
            self.cache[part[0].index] = found
        return self.cache[part[0].index]

    def _moments(self) -> tuple[np.ndarray, np.ndarray, int]:
        total, squares, n = 0.0, 0.0, 0
        for part in self.parts:
            values, _ = self._load(part)
            total, squares = total + values.sum(0, dtype=np.float64), squares + (values.astype(np.float64) ** 2).sum(0)
            n += len(values)
        sums = reduce_over(torch.tensor(np.stack([total, squares])), "sum", self.world).numpy()
        count = max(1, int(reduce_over(torch.tensor(n), "sum", self.world)))
        mean = sums[0] / count
        return mean, np.sqrt(np.maximum(sums[1] / count - mean**2, 1e-12)), n

    def batches(self, epoch: int, n_batches: int, skip: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Standardised embeddings, labels and train masks, (b, dim), (b, k), (b, k)."""

        def load(part: tuple[Part, int]) -> tuple[np.ndarray, Any]:
            values, rows = self._load(part)
            return np.arange(len(rows)), (values, rows)

        found = shuffled_batches(self.parts, load, self.batch_size, self.plan.seed, epoch, n_batches)
        for i, batch in enumerate(found):
            if i >= skip:
                x = np.stack([item[0][p] for item, p in batch])
                rows = np.array([item[1][p] for item, p in batch])
                yield self._tensors(x, rows, train=True)

    def _tensors(self, x: np.ndarray, rows: np.ndarray, train: bool) -> tuple[torch.Tensor, ...]:
        label = self.label[rows]
        use = np.isfinite(label) & (self.validation[rows] != train)
        x = ((x - self.mean) / self.scale).astype(np.float32)
        arrays = (x, np.nan_to_num(label), use.astype(np.float32))
        return tuple(torch.from_numpy(a).to(self.device) for a in arrays)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x, label, use = batch
        error = ((self.head(x) - label).abs() * use).sum(0) / use.sum(0).clamp(min=1)
        self.optimizer.zero_grad()
        error.sum().backward()  # Adam works element by element: each head trains as if alone
        average_gradients(list(self.head.parameters()), self.world)
        self.optimizer.step()
        return error.detach().double().cpu()

    def buffers(self) -> Iterable[torch.Tensor]:
        """A linear head has none."""
        return []

    @torch.no_grad()
    def validate(self) -> torch.Tensor:
        """(k, 2): sum of absolute errors and number of validation images."""
        sums = torch.zeros(len(self.plan.tasks), 2, dtype=torch.float64)
        for part in self.parts:
            x, label, use = self._tensors(*self._load(part), train=False)
            sums[:, 0] += ((self.head(x) - label).abs() * use).sum(0).double().cpu()
            sums[:, 1] += use.sum(0).double().cpu()
        return sums

    def validation_scores(self, best: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Per task (2, n_validation): the regressor's score, and 1, for the images that this worker has; else zeros."""
        chosen = [np.flatnonzero(column) for column in self.validation.T]
        found = [torch.zeros(2, len(rows)) for rows in chosen]
        for part in self.parts:
            values, rows = self._load(part)
            for k, head in enumerate(best):
                here = self.validation[rows, k]
                x = torch.from_numpy(values[here].astype(np.float32))
                at = np.searchsorted(chosen[k], rows[here])
                found[k][0, at] = x @ head["weight"][0] + head["bias"]
                found[k][1, at] = 1
        return found

    def weights(self, k: int) -> dict[str, torch.Tensor]:
        """Head k on raw embeddings."""
        w = self.head.weight[k].detach().double().cpu() / torch.from_numpy(self.scale)
        b = self.head.bias[k].detach().double().cpu() - w @ torch.from_numpy(self.mean)
        return {"weight": w.float()[None], "bias": b.float()[None]}

    def regressor(self, best: dict[str, torch.Tensor]) -> QualityRegressor:
        """The head on the unchanged FR model."""
        r = self.plan.recognizer
        recognizer = load_recognizer(r.name, weights=r.weights, device="cpu", **r.options)
        head = QualityHead(recognizer.dim)
        head.load_state_dict(best)
        return QualityRegressor(recognizer, head)

    def save(self, state: State) -> None:
        """Copies the network into the state."""
        state.model, state.optimizer = self.head.state_dict(), self.optimizer.state_dict()

    def load(self, state: State) -> None:
        """Restores the network from a state."""
        if state.model:
            self.head.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)


class _FinetuneTraining:
    """The released recipe for one task: groups by position, Adam, L1, clipping; BN statistics of the whole net move."""

    def __init__(self, plan: Plan, task: Task, device: str, rank: int, world: int) -> None:
        self.plan, self.device, self.world = plan, device, world
        self.label, self.validation = load_targets(task)
        manifest = plan.faces.require()
        self.parts = list(zip(manifest.parts, manifest.first_rows[:-1], strict=True))[rank::world]
        known = np.isfinite(self.label)
        spans = [np.arange(first, first + p.n_rows) for p, first in self.parts]
        self.n_train = int(sum((known[s] & ~self.validation[s]).sum() for s in spans))
        self.batch_size = _share(plan.recipe.batch_size, self.n_train, world)
        r = plan.recognizer
        recognizer = load_recognizer(r.name, weights=r.weights, device=device, **r.options)
        self.model = QualityRegressor(recognizer, QualityHead(recognizer.dim)).to(device)
        published = plan.settings.gradients == "published"
        groups = parameter_groups(self.model, freeze_rest=not published)
        for group in groups:
            group["lr"] *= plan.recipe.learning_rate
        self.trained = [p for g in groups for p in g["params"]]
        self.clipped = list(self.model.parameters()) if published else self.trained
        self.optimizer = torch.optim.Adam(groups)
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.startswith("cuda"))
        broadcast(self.model.state_dict().values(), world)
        self.validation_faces: list[bytes] | None = None
        self.validation_rows = np.empty(0, np.int64)

    def _load(self, part: tuple[Part, int]) -> tuple[pa.ChunkedArray, np.ndarray]:
        table = self.plan.faces.read(part[0], ["face", "status"])
        ok = pc.equal(table["status"], "ok").to_numpy()
        rows = np.arange(part[1], part[1] + part[0].n_rows)
        return table["face"], np.where(ok & np.isfinite(self.label[rows]), rows, -1)

    def batches(self, epoch: int, n_batches: int, skip: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Faces (b, 3, 112, 112) uint8 and labels (b,); the next batch is decoded while this one is trained on."""

        def load(part: tuple[Part, int]) -> tuple[np.ndarray, Any]:
            faces, rows = self._load(part)
            return np.flatnonzero((rows >= 0) & ~self.validation[np.maximum(rows, 0)]), (faces, rows)

        found = shuffled_batches(self.parts, load, self.batch_size, self.plan.seed, epoch, n_batches)
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for i, batch in enumerate(found):
                if i < skip:
                    continue
                following = pool.submit(self._decode, batch)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def _decode(self, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        faces, _ = decode_faces([item[0][p].as_py() for item, p in batch], n_threads=2)
        label = self.label[[item[1][p] for item, p in batch]]
        return torch.from_numpy(faces), torch.from_numpy(label)  # a thread has no current GPU: the caller moves them

    def buffers(self) -> Iterable[torch.Tensor]:
        """Batch-norm statistics, which each worker moves by its own batches."""
        return self.model.buffers()

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        faces, label = (t.to(self.device) for t in batch)
        self.model.train()
        with torch.autocast("cuda", torch.float16, enabled=self.device.startswith("cuda")):
            loss = (self.model(faces) - label).abs().mean()
        self.optimizer.zero_grad()  # published: clears only the optimizer's parameters, as the released code does
        self.scaler.scale(loss).backward()
        average_gradients(self.clipped, self.world)  # before unscaling: an overflow anywhere is seen by all
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.clipped, CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach().double().cpu()[None]

    @torch.no_grad()
    def validate(self) -> torch.Tensor:
        """(1, 2): sum of absolute errors and number of validation images; full precision, eval mode."""
        error = self._score_validation() - torch.from_numpy(self.label[self.validation_rows])
        return torch.tensor([[error.abs().double().sum(), len(error)]], dtype=torch.float64)

    @torch.no_grad()
    def validation_scores(self, best: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """[(2, n_validation)]: the network's score, and 1, for the images that this worker has; else zeros."""
        self.model.load_state_dict(best[0])
        scores, chosen = self._score_validation(), np.flatnonzero(self.validation)
        found = torch.zeros(2, len(chosen))
        found[:, np.searchsorted(chosen, self.validation_rows)] = torch.stack([scores, torch.ones_like(scores)])
        return [found]

    def _score_validation(self) -> torch.Tensor:
        """(n,) float32 on the CPU: scores of this worker's validation images, those of ``validation_rows``."""
        if self.validation_faces is None:
            self._collect_validation()
        assert self.validation_faces is not None
        self.model.eval()
        scores = [torch.empty(0)]
        for at in range(0, len(self.validation_faces), self.batch_size):
            faces, _ = decode_faces(self.validation_faces[at : at + self.batch_size], n_threads=2)
            scores.append(self.model(torch.from_numpy(faces).to(self.device)).float().cpu())
        return torch.cat(scores)

    def _collect_validation(self) -> None:
        """Reads this worker's validation images once. Memory: their encoded bytes, a twentieth of its faces."""
        self.validation_faces, found = [], [np.empty(0, np.int64)]
        for part in self.parts:
            faces, rows = self._load(part)
            chosen = np.flatnonzero((rows >= 0) & self.validation[np.maximum(rows, 0)])
            self.validation_faces += faces.take(pa.array(chosen)).to_pylist()
            found.append(rows[chosen])
        self.validation_rows = np.concatenate(found)

    def weights(self, _: int) -> dict[str, torch.Tensor]:
        """A copy of the network."""
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def regressor(self, best: dict[str, torch.Tensor]) -> QualityRegressor:
        """The network with its best weights."""
        self.model.load_state_dict(best)
        return self.model.eval().cpu()

    def save(self, state: State) -> None:
        """Copies the network into the state."""
        state.model, state.optimizer = self.model.state_dict(), self.optimizer.state_dict()
        state.optimizer["scaler"] = self.scaler.state_dict()

    def load(self, state: State) -> None:
        """Restores the network from a state."""
        if state.model:
            optimizer = dict(state.optimizer)
            self.scaler.load_state_dict(optimizer.pop("scaler"))
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(optimizer)
