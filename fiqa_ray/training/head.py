"""Mode `head`: heads on the stored embeddings; the FR model is left unchanged.

All label sets and training seeds are trained at once. A seed decides the order of the images and the first weights; the
heads of one seed see the same batches.
"""

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
    PARTS_AT_ONCE,
    PartOfRows,
    Plan,
    State,
    load_targets,
    worker_batch_size,
    worker_parts,
)

CACHE_BYTES = 1 << 30
"""Memory for parts that stay loaded between epochs."""

GROUP = 16
"""Heads per matrix product, and a divisor of its inner size. Groups and inputs are filled up with zeros, so that every
product has the same shape, and a head's bits do not depend on how many others there are."""

FIRST_WEIGHT = 0.01
"""Standard deviation of the first weights, on standardised inputs."""

Loaded = tuple[NDArray[np.float32], NDArray[np.int64]]
"""A part's inputs `(n, D)`, embeddings and perhaps their norm, and their rows `(n,)` in the face set."""


class HeadTraining:
    """S heads per task, one per seed, trained side by side on standardised inputs (a `Trainable`).

    A head's bits do not depend on the other heads: batches and standardisation come from all images with an embedding,
    whichever have labels. The saved weights work on raw embeddings: the standardisation is folded into them.

    Shapes: K tasks in G groups, S seeds, F inputs filled up to a multiple of `GROUP`.
    """

    saves_last = True

    def __init__(self, plan: Plan, device: str, rank: int, world: int) -> None:
        self.plan, self.tasks, self.device, self.world = plan, plan.tasks, device, world
        targets = [load_targets(t) for t in plan.tasks]
        n_columns = -(-len(targets) // GROUP) * GROUP
        self.label = np.full((len(targets[0][0]), n_columns), np.nan, np.float32)
        self.validation = np.zeros(self.label.shape, bool)
        for k, (label, validation) in enumerate(targets):
            self.label[:, k], self.validation[:, k] = label, validation
        self.parts = worker_parts(plan.embeddings, rank, world)
        self.cache: dict[int, Loaded] = {}
        self.mean, self.scale, self.n_train = self._moments()
        self.batch_size = worker_batch_size(plan.recipe.batch_size, self.n_train, world)
        self.n_inputs = -(-len(self.mean) // GROUP) * GROUP
        weight = torch.zeros(plan.recipe.n_seeds, n_columns // GROUP, self.n_inputs, GROUP)
        for s in range(plan.recipe.n_seeds):
            first = np.random.default_rng([plan.seed, s]).normal(0, FIRST_WEIGHT, len(self.mean))
            weight[s, :, : len(self.mean)] = torch.from_numpy(first.astype(np.float32))[:, None]
        bias = torch.full((plan.recipe.n_seeds, n_columns // GROUP, 1, GROUP), 0.5)
        self.weight, self.bias = nn.Parameter(weight.to(device)), nn.Parameter(bias.to(device))
        self.optimizer = torch.optim.Adam([self.weight, self.bias], lr=plan.recipe.learning_rate)

    def batches(self, epoch: int, n_batches: int, skip: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield inputs `(S, b, F)`, labels and masks, 1 for training images, both `(S, G, b, GROUP)`.

        `PARTS_AT_ONCE` parts are read and shuffled together, by each seed in its own order.
        """
        order = np.random.default_rng([self.plan.seed, epoch]).permutation(len(self.parts)).tolist()
        generators = [
            np.random.default_rng([self.plan.seed, epoch, s, self.plan.recipe.n_seeds])
            for s in range(self.plan.recipe.n_seeds)
        ]
        shared = np.random.default_rng([self.plan.seed, epoch, len(self.parts)])
        left_over = np.empty((0, len(self.mean)), np.float32), np.empty(0, np.int64)
        n_yielded = 0
        for at in range(0, len(order), PARTS_AT_ONCE):
            pool = [left_over, *(self._load(self.parts[p]) for p in order[at : at + PARTS_AT_ONCE])]
            values, rows = (np.concatenate(arrays) for arrays in zip(*pool, strict=True))
            shuffled = shared.permutation(len(rows))
            n_used = len(rows) // self.batch_size * self.batch_size  # the others go into the next batches
            used, left = shuffled[:n_used], shuffled[n_used:]
            left_over = values[left], rows[left]
            orders = np.stack([used[generator.permutation(n_used)] for generator in generators])
            x = self._standardised(values)
            for first in range(0, n_used, self.batch_size):
                if n_yielded == n_batches:
                    return
                if n_yielded >= skip:
                    chosen = orders[:, first : first + self.batch_size]
                    yield (x[torch.from_numpy(chosen)], *self._targets(rows[chosen], train=True))
                n_yielded += 1

    def train_step(self, batch: tuple[torch.Tensor, ...], rate: float) -> torch.Tensor:
        """Make one step of all heads at a share of the learning rate and return the tasks' losses `(K,)`."""
        x, label, use = batch
        loss = torch.zeros(self.bias.shape, device=self.device)
        self.weight.grad, self.bias.grad = torch.empty_like(self.weight), torch.empty_like(self.bias)
        with torch.no_grad():
            n_used = use.sum(2, keepdim=True).clamp(min=1)
            for s, g in np.ndindex(*self.weight.shape[:2]):
                error = torch.addmm(self.bias[s, g], x[s], self.weight[s, g]) - label[s, g]
                share = use[s, g] / n_used[s, g]
                loss[s, g] = (error.abs() * share).sum(0)
                slope = error.sign() * share  # of the L1 loss
                self.weight.grad[s, g] = x[s].T @ slope
                self.bias.grad[s, g] = slope.sum(0)
        average_gradients([self.weight, self.bias], self.world)
        self.optimizer.param_groups[0]["lr"] = self.plan.recipe.learning_rate * rate
        self.optimizer.step()  # element by element: each head trains as if alone
        return self._by_task(loss)

    def buffers(self) -> Iterable[torch.Tensor]:
        """Return nothing: heads have no buffers."""
        return []

    @torch.no_grad()
    def validate(self) -> torch.Tensor:
        """Return `(K, 2)`: sum of absolute errors, as a mean over the seeds, and number of validation images."""
        sums = torch.zeros(len(self.tasks), 2, dtype=torch.float64)
        for part in self.parts:
            values, rows = self._load(part)
            x = self._standardised(values)
            label, use = self._targets(rows[None], train=False)
            errors = torch.zeros(self.bias.shape, device=self.device)
            for s, g in np.ndindex(*self.weight.shape[:2]):
                error = torch.addmm(self.bias[s, g], x, self.weight[s, g]) - label[0, g]
                errors[s, g] = (error.abs() * use[0, g]).sum(0)
            n_used = use.sum(2, keepdim=True)
            sums += torch.stack([self._by_task(errors), self._by_task(n_used)], dim=1)
        return sums

    def validation_scores(self, best: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        """Return per task `(2, n_validation)`: score and 1 for this worker's validation images, else zeros."""
        validation_rows = [np.flatnonzero(self.validation[:, k]) for k in range(len(self.tasks))]
        scores = [torch.zeros(2, len(rows)) for rows in validation_rows]
        for part in self.parts:
            values, rows = self._load(part)
            for k, head in enumerate(best):
                chosen = self.validation[rows, k]
                position = np.searchsorted(validation_rows[k], rows[chosen])
                by_seed = torch.from_numpy(values[chosen]) @ head["weight"].T + head["bias"]
                scores[k][0, position] = by_seed.mean(dim=1)
                scores[k][1, position] = 1
        return scores

    def weights(self, k: int) -> dict[str, torch.Tensor]:
        """Return the heads of task `k` on raw inputs: `(S, D)` and `(S,)`."""
        group, column = divmod(k, GROUP)
        w = self.weight[:, group, : len(self.mean), column].detach().double().cpu() / torch.from_numpy(self.scale)
        b = self.bias[:, group, 0, column].detach().double().cpu() - w @ torch.from_numpy(self.mean)
        return {"weight": w.float(), "bias": b.float()}

    def regressor(self, best: dict[str, torch.Tensor]) -> QualityRegressor:
        """Return the heads on the unchanged FR model."""
        r = self.plan.recognizer
        recognizer = load_recognizer(r.name, weights=r.weights, device="cpu", **r.options)
        head = QualityHead(recognizer.dim, self.plan.recipe.head, self.plan.recipe.n_seeds)
        head.load_state_dict(best)
        return QualityRegressor(recognizer, head)

    def save(self, state: State) -> None:
        """Put the heads and their optimizer into a state."""
        state.model = {"weight": self.weight.detach(), "bias": self.bias.detach()}
        state.optimizer = self.optimizer.state_dict()

    def load(self, state: State) -> None:
        """Restore the heads and their optimizer from a state."""
        if state.model:
            with torch.no_grad():
                self.weight.copy_(state.model["weight"])
                self.bias.copy_(state.model["bias"])
            self.optimizer.load_state_dict(state.optimizer)

    def _load(self, part: PartOfRows) -> Loaded:
        """Read a part, or return it from memory; parts stay in memory while they fit into `CACHE_BYTES`."""
        if part[0].index not in self.cache:
            values, good = columns.embedding_values(self.plan.embeddings.read(part[0], ["embedding"]))
            if self.plan.recipe.head == "norm":
                values = np.concatenate([values, np.linalg.norm(values, axis=1, keepdims=True)], axis=1)
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

    def _standardised(self, values: NDArray[np.float32]) -> torch.Tensor:
        """Return inputs `(n, D)` standardised and filled up with zeros, `(n, F)`."""
        x = np.zeros((len(values), self.n_inputs), np.float32)
        x[:, : len(self.mean)] = (values - self.mean.astype(np.float32)) / self.scale.astype(np.float32)
        return torch.from_numpy(x).to(self.device)

    def _targets(self, rows: NDArray[np.int64], train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels and the mask of training or of validation images, of rows `(S, b)`: both `(S, G, b, GROUP)`."""
        label = self.label[rows]
        use = np.isfinite(label) & (train != self.validation[rows])

        def grouped(values: NDArray[np.float32]) -> torch.Tensor:
            shape = (*rows.shape, values.shape[-1] // GROUP, GROUP)  # -1 would fail where a part has no image
            return torch.from_numpy(values.reshape(shape)).transpose(1, 2).contiguous().to(self.device)

        return grouped(np.nan_to_num(label)), grouped(use.astype(np.float32))

    def _by_task(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the seeds `(K,) float64` of numbers `(S, G, 1, GROUP)`."""
        return values.detach().double().cpu().mean(0).flatten()[: len(self.tasks)]
