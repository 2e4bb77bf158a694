"""Mode `finetune`: the whole network is trained on the packed faces, by the released recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import nn

from fiqa_ray.images import decode_faces
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.regressor import QualityHead, QualityRegressor, parameter_groups
from fiqa_ray.training.distributed import average_gradients, broadcast
from fiqa_ray.training.loop import (
    PartOfRows,
    Plan,
    State,
    Task,
    load_targets,
    shuffled_batches,
    worker_batch_size,
    worker_parts,
)

CLIP_NORM = 5.0
"""Largest norm of the gradients (released recipe)."""

Loaded = tuple[pa.ChunkedArray, NDArray[np.int64]]
"""A part's encoded faces, and their rows in the face set: -1 for a face that is not good or has no label."""


class FinetuneTraining:
    """The network of one task (a `Trainable`).

    The released recipe: groups of parameters with their own rates, Adam, an L1 loss, and clipped gradients. Batch-norm
    statistics of the whole network are updated, also where weights are not trained. Rates fall to 0, which the released
    code does not do; with `gradients: published` they stay.
    """

    saves_last = False

    def __init__(self, plan: Plan, task: Task, device: str, rank: int, world: int) -> None:
        self.plan, self.tasks, self.device, self.world = plan, [task], device, world
        self.label, self.validation = load_targets(task)
        self.parts = worker_parts(plan.faces, rank, world)
        train = np.isfinite(self.label) & ~self.validation
        self.n_train = int(sum(train[first : first + part.n_rows].sum() for part, first in self.parts))
        self.batch_size = worker_batch_size(plan.recipe.batch_size, self.n_train, world)
        r = plan.recognizer
        recognizer = load_recognizer(r.name, weights=r.weights, device=device, **r.options).with_gradients("finetune")
        self.model = QualityRegressor(recognizer, QualityHead(recognizer.dim)).to(device)
        published = plan.settings.gradients == "published"
        groups = parameter_groups(self.model, freeze_rest=not published)
        self.rates = [group["lr"] * plan.recipe.learning_rate for group in groups]
        self.is_rate_constant = published
        trained = [p for g in groups for p in g["params"]]
        self.clipped = list(self.model.parameters()) if published else trained
        self.optimizer = torch.optim.Adam(groups)
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.startswith("cuda"))
        broadcast(self.model.state_dict().values(), world)
        self.validation_faces: list[bytes] | None = None
        self.validation_rows = np.empty(0, np.int64)

    def batches(self, epoch: int, n_batches: int, skip: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield faces `(b, 3, 112, 112) uint8` and labels `(b,)`; a thread decodes the next batch meanwhile."""

        def load(part: PartOfRows) -> tuple[NDArray[np.int64], Loaded]:
            faces, rows = self._load(part)
            return np.flatnonzero((rows >= 0) & ~self.validation[np.maximum(rows, 0)]), (faces, rows)

        batches = shuffled_batches(self.parts, load, self.batch_size, self.plan.seed, epoch, n_batches)
        with ThreadPoolExecutor(1) as pool:
            decoded = None
            for i, batch in enumerate(batches):
                if i < skip:
                    continue
                following = pool.submit(self._decode, batch)
                if decoded is not None:
                    yield decoded.result()
                decoded = following
            if decoded is not None:
                yield decoded.result()

    def buffers(self) -> Iterable[torch.Tensor]:
        """Return the batch-norm statistics, which every worker updates with its own batches."""
        return self.model.buffers()

    def train_step(self, batch: tuple[torch.Tensor, ...], rate: float) -> torch.Tensor:
        """Make one step at a share of the recipe's learning rates and return the loss `(1,)`."""
        for group, full in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = full if self.is_rate_constant else full * rate
        faces, label = (t.to(self.device) for t in batch)
        self.model.train()
        with torch.autocast("cuda", torch.float16, enabled=self.device.startswith("cuda")):
            loss = (self.model(faces) - label).abs().mean()
        self.optimizer.zero_grad()  # published: clears only the optimizer's parameters, as the released code does
        self.scaler.scale(loss).backward()
        average_gradients(self.clipped, self.world)  # before unscaling, so that all workers see an overflow of any
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.clipped, CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach().double().cpu()[None]

    @torch.no_grad()
    def validate(self) -> torch.Tensor:
        """Return `(1, 2)`: sum of absolute errors and number of validation images; in full precision and eval mode."""
        error = self._score_validation() - torch.from_numpy(self.label[self.validation_rows])
        return torch.tensor([[error.abs().double().sum(), len(error)]], dtype=torch.float64)

    @torch.no_grad()
    def validation_scores(self, best: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Return `[(2, n_validation)]`: score and 1 for this worker's validation images, else zeros."""
        self.model.load_state_dict(best[0])
        score, all_rows = self._score_validation(), np.flatnonzero(self.validation)
        scores = torch.zeros(2, len(all_rows))
        scores[:, np.searchsorted(all_rows, self.validation_rows)] = torch.stack([score, torch.ones_like(score)])
        return [scores]

    def weights(self, _: int) -> dict[str, torch.Tensor]:
        """Return a copy of the network's weights."""
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def regressor(self, best: dict[str, torch.Tensor]) -> QualityRegressor:
        """Return the network with its best weights."""
        self.model.load_state_dict(best)
        return self.model.eval().cpu()

    def save(self, state: State) -> None:
        """Put the network and its optimizer into a state."""
        state.model, state.optimizer = self.model.state_dict(), self.optimizer.state_dict()
        state.optimizer["scaler"] = self.scaler.state_dict()

    def load(self, state: State) -> None:
        """Restore the network and its optimizer from a state."""
        if state.model:
            optimizer = dict(state.optimizer)
            self.scaler.load_state_dict(optimizer.pop("scaler"))
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(optimizer)

    def _load(self, part: PartOfRows) -> Loaded:
        table = self.plan.faces.read(part[0], ["face", "status"])
        ok = pc.equal(table["status"], "ok").to_numpy()
        rows = np.arange(part[1], part[1] + part[0].n_rows)
        return table["face"], np.where(ok & np.isfinite(self.label[rows]), rows, -1)

    def _decode(self, batch: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        faces, _ = decode_faces([part[0][p].as_py() for part, p in batch], n_threads=2)
        label = self.label[[part[1][p] for part, p in batch]]
        return torch.from_numpy(faces), torch.from_numpy(label)  # a thread has no current GPU: the caller moves them

    def _score_validation(self) -> torch.Tensor:
        """Return the scores `(n,) float32` of this worker's validation images, those of `validation_rows`."""
        if self.validation_faces is None:
            self._read_validation()
        assert self.validation_faces is not None
        self.model.eval()
        scores = [torch.empty(0)]
        for first in range(0, len(self.validation_faces), self.batch_size):
            faces, _ = decode_faces(self.validation_faces[first : first + self.batch_size], n_threads=2)
            scores.append(self.model(torch.from_numpy(faces).to(self.device)).float().cpu())
        return torch.cat(scores)

    def _read_validation(self) -> None:
        """Read this worker's validation images, once.

        Memory: their encoded bytes, a twentieth of the worker's faces.
        """
        self.validation_faces, rows_of_parts = [], [np.empty(0, np.int64)]
        for part in self.parts:
            faces, rows = self._load(part)
            chosen = np.flatnonzero((rows >= 0) & self.validation[np.maximum(rows, 0)])
            self.validation_faces += faces.take(pa.array(chosen)).to_pylist()
            rows_of_parts.append(rows[chosen])
        self.validation_rows = np.concatenate(rows_of_parts)
