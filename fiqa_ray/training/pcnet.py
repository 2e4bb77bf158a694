"""train-pcnet: PCNet's head on the job's recogniser, from mated pairs of the packed training faces (Ray Train).

No weights of PCNet were released, so whoever compares with it trains it. Loss and schedule are those of the
re-implementation in KaenChan/face-uncertainty-pytorch (see `fiqa_ray.models.methods.pcnet`): the trunk stays as it is, in
evaluation mode; a batch is 10 people with 8 images each; SGD with momentum, its rate divided by 10 after a half and three
quarters of the steps. Images are mirrored by chance, and some are damaged: uncertainty is learned from what damage does to
similarity. Every 20th person is held out, and the loss on these people is reported.

The state is written beside the result; a training that is started again continues from there.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import torch

from fiqa_ray._version import __version__
from fiqa_ray.config import RecognizerSettings
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.ray_train import fit_with_ray
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import decode_faces
from fiqa_ray.job import Job, model_id
from fiqa_ray.models.methods.pcnet import PCNetHead, pc_loss
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.storage import exists, fingerprint, read_bytes, write_atomic
from fiqa_ray.synthetic.damage import DEGRADATION_KINDS, Degradation, degrade
from fiqa_ray.training.distributed import average_gradients, broadcast, reduce_over

VALIDATION_EVERY = 20
SAVE_EVERY_S = 30.0
MIRROR, BLUR, DAMAGE = 0.5, 0.3, 0.05
"""Chances per image: mirrored, blurred (Gaussian, radius 1 to 3 px), and else damaged by one of the kinds of the demo."""
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 3e-2, 0.9, 5e-4

_PARTS_AT_ONCE = 4
_REPORT_EVERY = 50


@dataclass(frozen=True)
class PCNetPlan:
    """Everything a training worker needs; picklable. A batch of all workers: about ``n_people`` with ``n_images`` each."""

    faces: Dataset
    recognizer: RecognizerSettings
    seed: int
    device: str
    output: str
    n_steps: int
    n_people: int = 10
    n_images: int = 8


def train_pcnet(job: Job, output: str, n_steps: int = 2000) -> dict[str, Any]:
    """Trains the head on the job's packed training faces, writes its state dict to ``output``, and returns its card.

    ``output``: any fsspec URL; give it as the weights of the method ``pcnet``. The card (loss on held-out people,
    recogniser, data) is written beside it, with ``.json`` after its name. Errors: `FiqaRayError` where faces are not packed,
    the recogniser has no trunk to start from, or no person has two images.
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
        pcnet_loop(plan, 0, 1, lambda _: None)
    card = json.loads(read_bytes(card_uri(output)))
    assert isinstance(card, dict)
    return card | {"recognizer": model_id(s.recognizer)}


def card_uri(output: str) -> str:
    """Where the card of a trained head lies."""
    return f"{output}.json"


def pcnet_loop(plan: PCNetPlan, rank: int, world: int, report: Callable[[dict[str, Any]], None]) -> None:
    """Trains the head in one of ``world`` workers; rank 0 writes state and result. Memory: four parts of faces, encoded."""
    device = plan.device if plan.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    r = plan.recognizer
    recognizer = load_recognizer(r.name, weights=r.weights, device=device, **r.options)
    network = recognizer.split("pcnet")
    torch.manual_seed(plan.seed)  # every worker starts from the same head
    head = PCNetHead().to(device)
    optimizer = torch.optim.SGD(head.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    milestones = [plan.n_steps // 2, 3 * plan.n_steps // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    made_of = [plan.faces.fingerprint, model_id(r), plan.seed, plan.n_steps, plan.n_people, plan.n_images]
    state_uri = f"{plan.output}.state-{fingerprint([made_of, world])}.pt"
    step, history = 0, []
    if exists(state_uri):
        state = torch.load(io.BytesIO(read_bytes(state_uri)), weights_only=True, map_location=device)
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, history = state["step"], state["history"]

    def loss_of(faces: np.ndarray, person: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(faces).to(device).float() / 255
        with torch.no_grad():
            features = network.trunk(recognizer.preprocessing(x))
            embeddings = network.tail(features)
        return pc_loss(embeddings, head(features), torch.from_numpy(person).to(device))

    people = _People(plan, rank, world)
    if int(reduce_over(torch.tensor(people.n_trainable()), "min", world)) == 0:  # all workers stop, or some would wait
        raise FiqaRayError(
            f"{plan.faces.uri}: the share of one of {world} worker(s) has no person to train on with two good images; PCNet "
            "learns from pairs of images of one person: give more faces, or fewer compute.train_workers"
        )
    started = saved = time.monotonic()
    with StepProgress("train-pcnet", plan.n_steps, "steps", step) as progress:
        for faces, person in people.batches(step):
            head.train()
            loss = loss_of(faces, person)
            optimizer.zero_grad()
            loss.backward()
            average_gradients(head.parameters(), world)
            optimizer.step()
            schedule.step()
            step += 1
            if rank == 0:
                progress.advance(1)
            if step % _REPORT_EVERY == 0 or step == plan.n_steps:
                mean = float(reduce_over(loss.detach().cpu(), "sum", world)) / world
                if not np.isfinite(mean):
                    raise FiqaRayError(
                        f"train-pcnet: the loss is {mean} at step {step}; check the recogniser on these faces"
                    )
                history.append([step, mean])
            if rank == 0 and (time.monotonic() - saved > SAVE_EVERY_S and step < plan.n_steps):
                saved = time.monotonic()
                now = {
                    "head": head.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                _write(state_uri, {**now, "step": step, "history": history})
            if step == plan.n_steps:
                break
    broadcast(head.buffers(), world)
    head.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for faces, person in people.held_out():
            sums += torch.tensor([float(loss_of(faces, person)), 1.0], dtype=torch.float64)
    sums = reduce_over(sums, "sum", world)
    report({"step": step})
    if rank == 0:
        card = {
            "method": "pcnet, a re-implementation: no weights were released",
            "recognizer_sha256": recognizer.weights_sha256,
            "validation_loss": float(sums[0] / sums[1]) if sums[1] else None,
            "history": history,
            "n_steps": plan.n_steps,
            "faces": plan.faces.uri,
            "seed": plan.seed,
            "duration_s": round(time.monotonic() - started, 1),
            "code_version": __version__,
        }
        _write(plan.output, head.state_dict())
        write_atomic(card_uri(plan.output), (json.dumps(card, indent=1) + "\n").encode())


def _write(uri: str, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(uri, buffer.getvalue())


class _People:
    """Batches of several images each of some people, from this worker's share of the packed faces.

    Which people, images and damage a step sees is a pure function of (seed, rank, world, step).
    """

    def __init__(self, plan: PCNetPlan, rank: int, world: int) -> None:
        self.plan, self.rank, self.world = plan, rank, world
        self.parts = plan.faces.require().parts[rank::world]
        self.n_people = max(1, plan.n_people // world)

    def _load(self, parts: list[int]) -> list[tuple[int, list[bytes]]]:
        """(identity_row, encoded faces) of everybody with two good images or more."""
        found = []
        for p in parts:
            table = self.plan.faces.read(self.parts[p], ["identity_row", "face", "status"])
            table = table.filter(pc.equal(table["status"], "ok"))
            identity, faces = table["identity_row"].to_numpy(), table["face"]
            starts = np.flatnonzero(np.diff(identity, prepend=-1))
            for a, b in zip(starts, [*starts[1:], len(identity)], strict=True):
                if b - a >= 2:
                    found.append((int(identity[a]), faces.slice(a, b - a).to_pylist()))
        return found

    def n_trainable(self) -> int:
        """People of this share that are not held out and have two good images."""
        n = 0
        for part in self.parts:
            table = self.plan.faces.read(part, ["identity_row", "status"])
            identity = table.filter(pc.equal(table["status"], "ok"))["identity_row"].to_numpy()
            rows, count = np.unique(identity, return_counts=True)
            n += int(((count >= 2) & (rows % VALIDATION_EVERY != 0)).sum())
        return n

    def batches(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Endless batches from step ``first`` on: (b, 3, 112, 112) uint8 and (b,) int64 people."""
        step = epoch = 0
        while True:
            rng = np.random.default_rng([self.plan.seed, self.rank, self.world, epoch])
            order = rng.permutation(len(self.parts)).tolist()
            for at in range(0, len(order), _PARTS_AT_ONCE):
                people = [p for p in self._load(order[at : at + _PARTS_AT_ONCE]) if p[0] % VALIDATION_EVERY != 0]
                shuffled = rng.permutation(len(people))
                for group in np.array_split(shuffled, max(1, len(shuffled) // self.n_people)):
                    if len(group) == 0:
                        continue
                    if step >= first:
                        draws = np.random.default_rng([self.plan.seed, self.rank, self.world, step])
                        yield self._batch([people[g] for g in group], draws)
                    step += 1
            epoch += 1

    def held_out(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The held-out people, undamaged, ten at a time."""
        for at in range(0, len(self.parts), _PARTS_AT_ONCE):
            people = self._load(list(range(at, min(at + _PARTS_AT_ONCE, len(self.parts)))))
            people = [p for p in people if p[0] % VALIDATION_EVERY == 0]
            for k in range(0, len(people), self.plan.n_people):
                chosen = [(row, faces[: 2 * self.plan.n_images]) for row, faces in people[k : k + self.plan.n_people]]
                yield _decoded([f for _, own in chosen for f in own]), _rows(chosen)

    def _batch(self, people: list[tuple[int, list[bytes]]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = [(row, [faces[i] for i in rng.permutation(len(faces))[: self.plan.n_images]]) for row, faces in people]
        faces = _decoded([f for _, own in chosen for f in own])
        return np.stack([_augmented(face, rng) for face in faces]), _rows(chosen)


def _decoded(encoded: list[bytes]) -> np.ndarray:
    faces, ok = decode_faces(encoded, n_threads=2)
    if not ok.all():
        raise FiqaRayError("a packed face no longer decodes: its part is damaged; remove its files and pack again")
    return faces


def _rows(people: list[tuple[int, list[bytes]]]) -> np.ndarray:
    return np.repeat([row for row, _ in people], [len(faces) for _, faces in people]).astype(np.int64)


def _augmented(face: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3, 112, 112) uint8, mirrored, blurred or damaged by chance."""
    image = np.ascontiguousarray(face.transpose(1, 2, 0))
    mirror, blur, damage = rng.random(3)
    if mirror < MIRROR:
        image = np.ascontiguousarray(image[:, ::-1])
    if blur < BLUR:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1, 3)))
    elif damage < DAMAGE / (1 - BLUR):
        kind = DEGRADATION_KINDS[rng.integers(len(DEGRADATION_KINDS))]
        image = degrade(image, TEMPLATE, Degradation(kind, float(rng.uniform(0, 1))), rng)
    return np.ascontiguousarray(image.transpose(2, 0, 1))
