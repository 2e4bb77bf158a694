"""Mode `head`: linear heads on the stored embeddings; the FR model is left unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fiqa_ray.datasets import columns
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.regressor import QualityHead, QualityRegressor
from fiqa_ray.training.distributed import average_gradients, reduce_over
from fiqa_ray.training.loop import (
    PartOfRows,
    Plan,
    State,
    load_targets,
    shuffled_batches,
    worker_batch_size,
    worker_parts,
)

CACHE_BYTES = 1 << 30
"""Memory for parts that stay loaded between epochs."""

Loaded = tuple[NDArray[np.floating], NDArray[np.int64]]
"""A part's embeddings `(n, D)`, and their rows `(n,)` in the face set."""


class HeadTraining:
    """One linear head per task, trained side by side on standardised embeddings (a `Trainable`).

    A head's bits do not depend on the other heads: batches and standardisation come from all images with an embedding,
    whichever have labels, and each head has its own products. The saved weights work on raw embeddings: the
    standardisation is folded into them.
    """

    def __init__(self, plan: Plan, device: str, rank: int, world: int) -> None:
        self.plan, self.tasks, self.device, self.world = plan, plan.tasks, device, world
        targets = [load_targets(t) for t in plan.tasks]
        self.label = np.stack([label for label, _ in targets], axis=1)
        self.validation = np.stack([v for _, v in targets], axis=1)
        self.parts = worker_parts(plan.embeddings, rank, world)
        self.cache: dict[int, Loaded] = {}
        self.mean, self.scale, self.n_train = self._moments()
        self.batch_size = worker_batch_size(plan.recipe.batch_size, self.n_train, world)
        self.heads = nn.ModuleList([nn.Linear(len(self.mean), 1) for _ in plan.tasks])
        for parameter in self.heads.parameters():
            nn.init.constant_(parameter, 0.0 if parameter.ndim == 2 else 0.5)
        self.heads.to(device)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=plan.recipe.learning_rate)

    def batches(self, epoch: int, n_batches: int, skip: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield standardised embeddings `(b, D)`, labels `(K, b)` and a mask `(K, b)`: 1 for training images."""

        def load(part: PartOfRows) -> tuple[NDArray[np.int64], Loaded]:
            values, rows = self._load(part)
            return np.arange(len(rows)), (values, rows)

        batches = shuffled_batches(self.parts, load, self.batch_size, self.plan.seed, epoch, n_batches)
        for i, batch in enumerate(batches):
            if i >= skip:
                values = np.stack([part[0][p] for part, p in batch])
                rows = np.array([part[1][p] for part, p in batch])
                yield self._tensors(values, rows, train=True)

    def train_step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Make one step of all heads and return their losses `(K,)`."""
        losses = self._absolute_errors(*batch)
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # Adam works element by element: each head trains as if alone
        average_gradients(list(self.heads.parameters()), self.world)
        self.optimizer.step()
        return torch.stack(losses).detach().double().cpu()

    def _absolute_errors(self, x: torch.Tensor, label: torch.Tensor, use: torch.Tensor) -> list[torch.Tensor]:
        """Return each head's mean absolute error over the images that it uses."""
        return [
            ((head(x)[:, 0] - label[k]).abs() * use[k]).sum() / use[k].sum().clamp(min=1)
            for k, head in enumerate(self.heads)
        ]

    def buffers(self) -> Iterable[torch.Tensor]:
        """Return nothing: a linear head has no buffers."""
        return []

    @torch.no_grad()
    def validate(self) -> torch.Tensor:
        """Return `(K, 2)`: sum of absolute errors and number of validation images."""
        sums = torch.zeros(len(self.tasks), 2, dtype=torch.float64)
        for part in self.parts:
            x, label, use = self._tensors(*self._load(part), train=False)
            n_used = use.sum(1).double().cpu()
            mean = torch.stack(self._absolute_errors(x, label, use)).double().cpu()
            sums += torch.stack([mean * n_used, n_used], dim=1)
        return sums

    def validation_scores(self, best: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Return per task `(2, n_validation)`: score and 1 for this worker's validation images, else zeros."""
        validation_rows = [np.flatnonzero(column) for column in self.validation.T]
        scores = [torch.zeros(2, len(rows)) for rows in validation_rows]
        for part in self.parts:
            values, rows = self._load(part)
            for k, head in enumerate(best):
                chosen = self.validation[rows, k]
                x = torch.from_numpy(values[chosen].astype(np.float32))
                position = np.searchsorted(validation_rows[k], rows[chosen])
                scores[k][0, position] = x @ head["weight"][0] + head["bias"]
                scores[k][1, position] = 1
        return scores

    def weights(self, k: int) -> dict[str, torch.Tensor]:
        """Return head `k` on raw embeddings."""
        head = self.heads[k]
        assert isinstance(head, nn.Linear)
        w = head.weight[0].detach().double().cpu() / torch.from_numpy(self.scale)
        b = head.bias[0].detach().double().cpu() - w @ torch.from_numpy(self.mean)
        return {"weight": w.float()[None], "bias": b.float()[None]}

    def regressor(self, best: dict[str, torch.Tensor]) -> QualityRegressor:
        """Return a head on the unchanged FR model."""
        r = self.plan.recognizer
        recognizer = load_recognizer(r.name, weights=r.weights, device="cpu", **r.options)
        head = QualityHead(recognizer.dim)
        head.load_state_dict(best)
        return QualityRegressor(recognizer, head)

    def save(self, state: State) -> None:
        """Put the heads and their optimizer into a state."""
        state.model, state.optimizer = self.heads.state_dict(), self.optimizer.state_dict()

    def load(self, state: State) -> None:
        """Restore the heads and their optimizer from a state."""
        if state.model:
            self.heads.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)

    def _load(self, part: PartOfRows) -> Loaded:
        """Read a part, or return it from memory; parts stay in memory while they fit into `CACHE_BYTES`."""
        if part[0].index not in self.cache:
            values, good = columns.embedding_values(self.plan.embeddings.read(part[0], ["embedding"]))
            loaded = values, good + part[1]
            if sum(v.nbytes for v, _ in self.cache.values()) + loaded[0].nbytes > CACHE_BYTES:
                return loaded
            self.cache[part[0].index] = loaded
        return self.cache[part[0].index]

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Return mean and standard deviation `(D,)` over all workers' images, and the number of this worker's."""
        total, squares, n = 0.0, 0.0, 0
        for part in self.parts:
            values, _ = self._load(part)
            total, squares = total + values.sum(0, dtype=np.float64), squares + (values.astype(np.float64) ** 2).sum(0)
            n += len(values)
        sums = reduce_over(torch.tensor(np.stack([total, squares])), "sum", self.world).numpy()
        count = max(1, int(reduce_over(torch.tensor(n), "sum", self.world)))
        mean = sums[0] / count
        return mean, np.sqrt(np.maximum(sums[1] / count - mean**2, 1e-12)), n

    def _tensors(
        self, values: NDArray[np.floating], rows: NDArray[np.int64], train: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return standardised embeddings, labels and the mask of training or of validation images."""
        label = np.ascontiguousarray(self.label[rows].T)
        use = np.isfinite(label) & (train != self.validation[rows].T)
        x = ((values - self.mean) / self.scale).astype(np.float32)
        x_tensor, label_tensor, mask = (
            torch.from_numpy(a).to(self.device) for a in (x, np.nan_to_num(label), use.astype(np.float32))
        )
        return x_tensor, label_tensor, mask
