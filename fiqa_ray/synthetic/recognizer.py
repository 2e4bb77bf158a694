"""The demo: everything from nothing, without downloads. Synthetic faces, a recogniser that knows such faces, then the job.

The recogniser learns other people than those of the data set and of the benchmark, as a released one would have. Loss
(CosFace, Wang et al. 2018, eq. 4), over the cosines c_j between an embedding and the class centres, y its own class:

    -log  exp(s (c_y - m)) / ( exp(s (c_y - m)) + sum_{j != y} exp(s c_j) )
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fiqa_ray.synthetic.compact import EMBEDDING_DIM, CompactFaceNet
from fiqa_ray.synthetic.dataset import RECOGNIZER_PART, aligned_faces, map_in_processes, write_synthetic_faces

SCALE, MARGIN = 20.0, 0.3
LEARNING_RATE, WEIGHT_DECAY, BATCH_SIZE = 6e-3, 5e-2, 64


def train_recognizer(
    out_path: Path,
    *,
    n_identities: int = 900,
    views_per_identity: int = 4,
    n_epochs: int = 8,
    seed: int = 0,
    n_threads: int = 2,
) -> list[float]:
    """Train a `CompactFaceNet` on faces rendered for it, and save its state dict.

    Args:
        out_path: where the state dict goes; it appears only when training has ended.
        n_identities: people to learn, all different from those that `write_synthetic_faces` writes.
        views_per_identity: pictures of each, used once undamaged and once damaged.
        n_epochs: passes over all of them.
        seed: of the faces, the network and the order. The same on one machine gives the same network.
        n_threads: for torch, and processes for rendering.

    Returns:
        Mean loss of each epoch, nats.
    """
    people = [(seed, RECOGNIZER_PART, identity, views_per_identity) for identity in range(n_identities)]
    faces = (
        torch.from_numpy(np.concatenate(map_in_processes(aligned_faces, people, n_threads)))
        .permute(0, 3, 1, 2)
        .contiguous()
    )
    labels = torch.arange(n_identities).repeat_interleave(2 * views_per_identity)
    n_threads_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, losses = _fit(faces, labels, n_identities, n_epochs)
    finally:
        torch.set_num_threads(n_threads_before)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    draft = out_path.with_name(f"{out_path.name}.incomplete-{os.getpid()}")
    torch.save(model.state_dict(), draft)
    draft.replace(out_path)
    return losses


def _fit(
    faces: torch.Tensor, labels: torch.Tensor, n_classes: int, n_epochs: int
) -> tuple[CompactFaceNet, list[float]]:
    model = CompactFaceNet()
    centres = nn.Parameter(0.01 * torch.randn(n_classes, EMBEDDING_DIM))
    optimizer = torch.optim.AdamW([*model.parameters(), centres], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batch_size = min(BATCH_SIZE, len(faces))
    n_batches = len(faces) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=n_epochs * n_batches, pct_start=0.2
    )
    losses = []
    for epoch in range(n_epochs):
        order, total = torch.randperm(len(faces)), 0.0
        margin = MARGIN * min(1.0, 3 * (epoch + 1) / n_epochs)  # a full margin from the start would stall
        for at in range(0, n_batches * batch_size, batch_size):
            rows = order[at : at + batch_size]
            x = faces[rows]
            if torch.rand(()) < 0.5:
                x = x.flip(-1)
            cosine = functional.linear(
                functional.normalize(model(x.float().mul_(1 / 255))), functional.normalize(centres)
            )
            target = functional.one_hot(labels[rows], n_classes)
            loss = functional.cross_entropy(SCALE * (cosine - margin * target), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / n_batches)
    return model, losses


def make_demo(root: Path) -> tuple[Path, Path]:
    """Make the demo's faces and recogniser below `root`, or keep those that are there.

    Returns:
        The folder of faces (see `write_synthetic_faces`) and the recogniser's state dict.
    """
    faces, recognizer = root / "faces", root / "recognizer.pt"
    n_workers = min(2, os.cpu_count() or 1)
    write_synthetic_faces(faces, n_workers=n_workers)
    if not recognizer.exists():
        train_recognizer(recognizer, n_threads=n_workers)
    return faces, recognizer
