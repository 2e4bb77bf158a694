"""Training of PCNet's head on the job's recogniser, from mated pairs of the packed training faces (Ray Train).

No weights of PCNet were released, so a comparison with it needs this training. Loss and schedule are those of the
re-implementation in KaenChan/face-uncertainty-pytorch (see `fiqa_ray.models.methods.pcnet`): the trunk is left unchanged, in
evaluation mode; a batch holds 10 people with 8 images each; SGD with momentum divides its rate by 10 after a half and after
three quarters of the steps. Images are mirrored by chance, and some are damaged: the head learns uncertainty from what
damage does to similarity. Every 20th person is held out, and the loss on these people is reported.

The state is written beside the result; an interrupted training continues from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from fiqa_ray._version import __version__
from fiqa_ray.config import RecognizerSettings
from fiqa_ray.content_ids import model_id
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.documents import read_document, write_document
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.ray_train import ALONE, TrainHost, fit_with_ray
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import decode_packed_faces
from fiqa_ray.job import Job
from fiqa_ray.models.devices import resolve_device
from fiqa_ray.models.formats.checkpoints import sha256_of, state_bytes
from fiqa_ray.models.methods.pcnet import PCNetHead, pc_loss
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.storage import exists, fingerprint, write_atomic
from fiqa_ray.synthetic.damage import DEGRADATION_KINDS, Degradation, degrade
from fiqa_ray.training.distributed import average_gradients, broadcast, reduce_over
from fiqa_ray.training.leaving import LeavingWatch
from fiqa_ray.training.loop import VALIDATION_EVERY, load_training_state, save_training_state

SAVE_EVERY_S = 30.0
"""Seconds between two writes of the state, at least."""

MIRROR, BLUR, DAMAGE = 0.5, 0.3, 0.05
"""Chances per image: mirrored; blurred (Gaussian, radius 1 to 3 px); if not blurred, damaged in one way of the demo's."""

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 3e-2, 0.9, 5e-4
"""Of SGD, as in the re-implementation."""

PARTS_AT_ONCE = 4
"""Parts whose people are shuffled together."""

REPORT_EVERY = 50
"""Steps between two records of the training loss."""

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Faces `(b, 3, 112, 112)` and the person `(b,)` that each shows."""


@dataclass(frozen=True)
class PCNetPlan:
    """Everything a training worker needs; picklable. `train_pcnet` makes it.

    Attributes:
        faces: the packed training faces.
        recognizer: the FR model whose head is trained.
        seed: of the job.
        device: cpu, cuda or auto.
        output: where the head is written: a path or any fsspec URL.
        n_steps: training steps.
        n_people: people in a batch of all workers together, about.
        n_images: images per person of a batch, at most.
    """

    faces: Dataset
    recognizer: RecognizerSettings
    seed: int
    device: str
    output: str
    n_steps: int
    n_people: int = 10
    n_images: int = 8


def train_pcnet(job: Job, output: str, n_steps: int = 2000) -> dict[str, Any]:
    """Train the head on the job's packed training faces and write its state dict.

    Args:
        job: its `recognizer` is the FR model; its training faces must be packed.
        output: where to write: a path or any fsspec URL. Give it as the weights of the method `pcnet`. The card (loss on
            held-out people, recogniser, data) is written beside it, with `.json` added to its name.
        n_steps: training steps.

    Returns:
        The card.

    Raises:
        UsageError: `n_steps` is below 1, or the recogniser has no layers for the head to start from.
        FiqaRayError: faces are not packed, or no person has two good images.
    """
    if n_steps < 1:
        raise UsageError(f"n_steps={n_steps} must be at least 1")
    s = job.settings
    plan = PCNetPlan(job.faces("train"), s.recognizer, s.seed, s.compute.device, output, n_steps)
    n_parts = len(plan.faces.require().parts)
    load_recognizer(s.recognizer.name, weights=s.recognizer.weights, **s.recognizer.options).split("pcnet")
    n_workers = min(s.compute.train_workers if s.compute.engine == "ray" else 0, n_parts, plan.n_people)
    if n_workers:
        fit_with_ray(pcnet_loop, plan, n_workers, plan.device)
    else:
        pcnet_loop(plan, 0, 1, ALONE)
    card = read_document(card_uri(output), "train the head again")
    assert card is not None
    return card | {"recognizer": model_id(s.recognizer)}


def card_uri(output: str) -> str:
    """Return where the card of a trained head lies."""
    return f"{output}.json"


def pcnet_loop(plan: PCNetPlan, rank: int, world: int, host: TrainHost) -> None:
    """Train the head in one of `world` workers; rank 0 writes the state and the result.

    Memory: `PARTS_AT_ONCE` parts of encoded faces.
    """
    training = _Training(plan, world)
    people = _People(plan, rank, world)
    if int(reduce_over(torch.tensor(people.n_trainable()), "min", world)) == 0:  # in all workers, so that none waits
        raise FiqaRayError(
            f"{plan.faces.uri}: the share of one of {world} worker(s) has no person to train on with two good images; PCNet "
            "learns from pairs of images of one person: give more faces, or fewer compute.train_workers"
        )
    watch = LeavingWatch(host.is_machine_leaving, world)
    started = saved = time.monotonic()
    with StepProgress("train-pcnet", plan.n_steps, "steps", training.step) as progress:
        for batch in people.batches(training.step) if training.step < plan.n_steps else ():
            training.train_step(batch)
            must_save = watch.must_save()
            if rank == 0:
                progress.advance(1)
                is_due = must_save or time.monotonic() - saved > SAVE_EVERY_S
                if is_due and training.step < plan.n_steps:
                    saved = time.monotonic()
                    training.save()
            if training.step == plan.n_steps:
                break
    validation_loss = training.validate(people)
    host.report({"step": training.step})
    if rank == 0:
        card = {
            "method": "pcnet, a re-implementation: no weights were released",
            "recognizer_sha256": training.recognizer.weights_sha256,
            "validation_loss": validation_loss,
            "history": training.history,
            "n_steps": plan.n_steps,
            "faces": plan.faces.uri,
            "seed": plan.seed,
            "duration_s": round(time.monotonic() - started, 1),
            "code_version": __version__,
        }
        weights = state_bytes(training.head.state_dict())
        write_atomic(plan.output, weights)
        write_document(card_uri(plan.output), {**card, "weights_sha256": sha256_of(weights)})


class _Training:
    """The head, its optimizer, and how far they are; a new one continues from the stored state if there is one."""

    def __init__(self, plan: PCNetPlan, world: int) -> None:
        self.plan, self.world, self.device = plan, world, resolve_device(plan.device)
        r = plan.recognizer
        self.recognizer: Recognizer = load_recognizer(r.name, weights=r.weights, device=self.device, **r.options)
        self.network = self.recognizer.split("pcnet")
        torch.manual_seed(plan.seed)  # every worker starts from the same head
        self.head = PCNetHead().to(self.device)
        self.optimizer = torch.optim.SGD(
            self.head.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        milestones = [plan.n_steps // 2, 3 * plan.n_steps // 4]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones)
        self.step = 0
        self.history: list[list[float]] = []
        content = [plan.faces.fingerprint, model_id(r), plan.seed, plan.n_steps, plan.n_people, plan.n_images, world]
        self.state_uri = f"{plan.output}.state-{fingerprint(content)}.pt"
        if exists(self.state_uri):
            state = load_training_state(self.state_uri, self.device)
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.history = state["step"], state["history"]

    def save(self) -> None:
        """Write the state."""
        state = {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "history": self.history,
        }
        save_training_state(self.state_uri, state)

    def train_step(self, batch: Batch) -> None:
        """Make one step and record the loss where it is due."""
        self.head.train()
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.head.parameters(), self.world)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        if self.step % REPORT_EVERY == 0 or self.step == self.plan.n_steps:
            mean = float(reduce_over(loss.detach().cpu(), "sum", self.world)) / self.world
            if not np.isfinite(mean):
                raise FiqaRayError(
                    f"train-pcnet: the loss is {mean} at step {self.step}; check the recogniser on these faces"
                )
            self.history.append([self.step, mean])

    @torch.no_grad()
    def validate(self, people: _People) -> float | None:
        """Return the mean loss on the held-out people of all workers; None if there are none."""
        broadcast(self.head.buffers(), self.world)
        self.head.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in people.held_out():
            sums += torch.tensor([float(self._loss(batch)), 1.0], dtype=torch.float64)
        sums = reduce_over(sums, "sum", self.world)
        return float(sums[0] / sums[1]) if sums[1] else None

    def _loss(self, batch: Batch) -> torch.Tensor:
        faces, person = (torch.from_numpy(array).to(self.device) for array in batch)
        with torch.no_grad():
            features = self.network.trunk(self.recognizer.preprocessing(faces.float() / 255))
            embeddings = self.network.tail(features)
        return pc_loss(embeddings, self.head(features), person)


class _People:
    """Batches of several images each of some people, from this worker's share of the packed faces.

    Which people, images and damage a step sees depends on (seed, rank, world, step) alone.
    """

    def __init__(self, plan: PCNetPlan, rank: int, world: int) -> None:
        self.plan, self.rank, self.world = plan, rank, world
        self.parts = plan.faces.require().parts[rank::world]
        self.n_people = max(1, plan.n_people // world)

    def n_trainable(self) -> int:
        """Return how many people of this share have two good images and are not held out."""
        n = 0
        for part in self.parts:
            table = self.plan.faces.read(part, ["identity_row", "status"])
            identity = table.filter(pc.equal(table["status"], "ok"))["identity_row"].to_numpy()
            rows, count = np.unique(identity, return_counts=True)
            n += int(((count >= 2) & (rows % VALIDATION_EVERY != 0)).sum())
        return n

    def batches(self, first: int) -> Iterator[Batch]:
        """Yield batches without end, from step `first` on."""
        step = epoch = 0
        while True:
            rng = np.random.default_rng([self.plan.seed, self.rank, self.world, epoch])
            order = rng.permutation(len(self.parts)).tolist()
            for i in range(0, len(order), PARTS_AT_ONCE):
                people = [p for p in self._load(order[i : i + PARTS_AT_ONCE]) if p[0] % VALIDATION_EVERY != 0]
                shuffled = rng.permutation(len(people))
                for group in np.array_split(shuffled, max(1, len(shuffled) // self.n_people)):
                    if len(group) == 0:
                        continue
                    if step >= first:
                        draws = np.random.default_rng([self.plan.seed, self.rank, self.world, step])
                        yield self._batch([people[g] for g in group], draws)
                    step += 1
            epoch += 1

    def held_out(self) -> Iterator[Batch]:
        """Yield the held-out people undamaged, `n_people` at a time."""
        for i in range(0, len(self.parts), PARTS_AT_ONCE):
            people = self._load(list(range(i, min(i + PARTS_AT_ONCE, len(self.parts)))))
            people = [p for p in people if p[0] % VALIDATION_EVERY == 0]
            for k in range(0, len(people), self.plan.n_people):
                chosen = [(row, faces[: 2 * self.plan.n_images]) for row, faces in people[k : k + self.plan.n_people]]
                yield _decode(chosen)

    def _load(self, parts: list[int]) -> list[tuple[int, list[bytes]]]:
        """Return (identity row, encoded faces) of the people who have two good images or more."""
        people = []
        for p in parts:
            table = self.plan.faces.read(self.parts[p], ["identity_row", "face", "status"])
            table = table.filter(pc.equal(table["status"], "ok"))
            identity, faces = table["identity_row"].to_numpy(), table["face"]
            starts = np.flatnonzero(np.diff(identity, prepend=-1))
            for start, end in zip(starts, [*starts[1:], len(identity)], strict=True):
                if end - start >= 2:
                    people.append((int(identity[start]), faces.slice(start, end - start).to_pylist()))
        return people

    def _batch(self, people: list[tuple[int, list[bytes]]], rng: np.random.Generator) -> Batch:
        chosen = [(row, [faces[i] for i in rng.permutation(len(faces))[: self.plan.n_images]]) for row, faces in people]
        faces, person = _decode(chosen)
        return np.stack([_augment(face, rng) for face in faces]), person


def _decode(people: list[tuple[int, list[bytes]]]) -> Batch:
    faces = decode_packed_faces([face for _, faces in people for face in faces], n_threads=2)
    return faces, np.repeat([row for row, _ in people], [len(faces) for _, faces in people]).astype(np.int64)


def _augment(face: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a face `(3, 112, 112)`, mirrored, blurred or damaged by chance."""
    image = np.ascontiguousarray(face.transpose(1, 2, 0))
    mirror, blur, damage = rng.random(3)
    if mirror < MIRROR:
        image = np.ascontiguousarray(image[:, ::-1])
    if blur < BLUR:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1, 3))).astype(np.uint8, copy=False)
    elif damage < DAMAGE / (1 - BLUR):
        kind = DEGRADATION_KINDS[rng.integers(len(DEGRADATION_KINDS))]
        image = degrade(image, TEMPLATE, Degradation(kind, float(rng.uniform(0, 1))), rng)
    return np.ascontiguousarray(image.transpose(2, 0, 1))
