"""Training of the whole network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from fiqa_ray.datasets.dataset import Part
from fiqa_ray.images import decode_faces
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.regressor import QualityHead, QualityRegressor, parameter_groups
from fiqa_ray.training.distributed import average_gradients, broadcast
from fiqa_ray.training.loop import Plan, State, Task, _share, load_targets, shuffled_batches

CLIP_NORM = 5.0


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
