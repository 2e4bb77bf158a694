"""Training of the head on stored embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from fiqa_ray.datasets import columns
from fiqa_ray.datasets.dataset import Part
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.regressor import QualityHead, QualityRegressor
from fiqa_ray.training.distributed import average_gradients, reduce_over
from fiqa_ray.training.loop import Plan, State, _share, load_targets, shuffled_batches

_CACHE_BYTES = 1 << 30


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
            values, good = columns.embedding_values(self.plan.embeddings.read(part[0], ["embedding"]))
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
