"""What a head keeps of the score that it imitates: areas of scores and of heads on held-out people, by kind of head.

    python benchmarks/heads.py FACES.npz [--seeds 5] [--draws 400] [--json FILE]

FACES.npz holds `train_embedding`, `train_identity`, `test_embedding`, `test_identity`, and per score `train_score_NAME` and
`test_score_NAME`. Heads are trained by the job's own code (`fiqa_ray.training.head`). Pairs are drawn among the test faces;
areas are those of the convention paper at FMR 1e-3, intervals resample people. Without a file: the faces of
`benchmarks/theta_choice.py`, whose scores are the true quality, that with a nuisance, and the norm.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import spearmanr
from theta_choice import DIM, people

from fiqa_ray.config import MethodSettings, RecognizerSettings, TrainSettings
from fiqa_ray.core.bootstrap import bootstrap_areas
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.datasets.columns import embedding_column
from fiqa_ray.job import LabelSet
from fiqa_ray.models.regressor import QualityHead
from fiqa_ray.training.head import HeadTraining
from fiqa_ray.training.loop import RECIPES, Plan, Recipe, Task

CELL = ("paper", 1e-3)
ROWS_PER_PART = 1000


@dataclass
class Memory:
    """A dataset in memory, as far as a training reads one."""

    table: pa.Table
    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Cut the table into parts."""
        bounds = [*range(0, len(self.table), ROWS_PER_PART), len(self.table)]
        self.parts = [SimpleNamespace(index=i, n_rows=b - a) for i, (a, b) in enumerate(pairwise(bounds))]

    def require(self) -> Any:
        """Return the parts and their first rows."""
        return SimpleNamespace(
            parts=self.parts, first_rows=[*range(0, len(self.table), ROWS_PER_PART), len(self.table)]
        )

    def read(self, part: Any, columns: list[str]) -> pa.Table:
        """Return a part."""
        return self.table.slice(part.index * ROWS_PER_PART, part.n_rows).select(columns)

    def read_all(self, columns: list[str]) -> pa.Table:
        """Return all parts."""
        return self.table.select(columns)


def train(embeddings: np.ndarray, scores: dict[str, np.ndarray], kind: str, n_seeds: int) -> dict[str, QualityHead]:
    """Return a head per score, trained by the job's recipe."""
    r = RECIPES["head"]
    recipe = Recipe(kind, n_seeds, r.n_epochs, r.batch_size, r.learning_rate, 1)
    tasks = [
        Task(cast(Any, None), cast(Any, Memory(pa.table({"prior_score": s}))), LabelSet(MethodSettings(name=name)), {})
        for name, s in scores.items()
    ]
    column = embedding_column(embeddings, np.arange(len(embeddings)), len(embeddings))
    stored = cast(Any, Memory(pa.table({"embedding": column})))
    plan = Plan(tasks, TrainSettings(), recipe, 0, RecognizerSettings(name="none"), stored, stored, "cpu", "")
    training = HeadTraining(plan, "cpu", 0, 1)
    per_epoch = training.n_train // training.batch_size
    n_steps = per_epoch * recipe.n_epochs
    with one_thread():
        for epoch in range(recipe.n_epochs):
            for i, batch in enumerate(training.batches(epoch, per_epoch, 0), start=epoch * per_epoch):
                training.train_step(batch, rate=1 - i / n_steps)
    heads = {}
    for k, name in enumerate(scores):
        heads[name] = QualityHead(embeddings.shape[1], kind, n_seeds)
        heads[name].load_state_dict(training.weights(k))
    return heads


def draw_pairs(identity: np.ndarray, n_mated: int, n_nonmated: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of both images of random pairs: mated ones, then non-mated ones."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, len(identity), (2, 2 * n_nonmated))
    differ = identity[a] != identity[b]
    order = np.argsort(identity, kind="stable")
    _, first, size = np.unique(identity[order], return_index=True, return_counts=True)
    k = rng.integers(0, len(first), 2 * n_mated)
    mates = order[first[k] + (rng.random((2, len(k))) * size[k]).astype(int)]
    mates = mates[:, mates[0] != mates[1]][:, :n_mated]
    return np.concatenate([mates[0], a[differ][:n_nonmated]]), np.concatenate([mates[1], b[differ][:n_nonmated]])


def synthetic() -> dict[str, np.ndarray]:
    """Return the faces of `theta_choice.py`: 300 people to train on, 300 to test on."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=DIM)
    direction /= np.linalg.norm(direction)
    arrays: dict[str, np.ndarray] = {}
    for name in ("train", "test"):
        embeddings, person, quality, nuisance = people(300, rng, direction)
        arrays |= {f"{name}_embedding": embeddings, f"{name}_identity": person}
        scores = {"truth": quality, "half": quality / quality.std() + nuisance}
        scores["norm"] = np.linalg.norm(embeddings, axis=1)
        arrays |= {f"{name}_score_{key}": value for key, value in scores.items()}
    return arrays


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    data = dict(np.load(a.faces)) if a.faces else synthetic()
    names = [key.removeprefix("train_score_") for key in data if key.startswith("train_score_")]
    scores = {name: data[f"train_score_{name}"].astype(float) for name in names}
    rated = {(name, "the score itself", "mean"): data[f"test_score_{name}"].astype(float) for name in names}
    rows, seconds = [], {}
    agreement = {}
    for kind in ("linear", "norm"):
        started = time.process_time()
        heads = train(data["train_embedding"], scores, kind, a.seeds)
        seconds[kind] = round(time.process_time() - started, 1)
        for name, head in heads.items():
            with torch.inference_mode():
                by_seed = head(torch.from_numpy(data["test_embedding"])).double().numpy()
            rated |= {(name, kind, str(s)): by_seed[:, s] for s in range(a.seeds)}
            rated[name, kind, "mean"] = by_seed.mean(axis=1)
            rho = [spearmanr(by_seed[:, 0], by_seed[:, s]).statistic for s in range(1, a.seeds)]
            agreement[name, kind] = float(np.mean(rho))
    row_a, row_b = draw_pairs(data["test_identity"], 6_000, 24_000)
    units = unit_vectors(data["test_embedding"])
    similarity = np.einsum("ij,ij->i", units[row_a], units[row_b], dtype=np.float64)
    identity = np.unique(data["test_identity"], return_inverse=True)[1]
    areas = bootstrap_areas(
        similarity,
        identity[row_a] == identity[row_b],
        {"|".join(key): (s[row_a], s[row_b]) for key, s in rated.items() if key[2] == "mean"},
        fmrs=(CELL[1],),
        conventions=(CELL[0],),
        identities=(identity[row_a], identity[row_b]),
        n_draws=a.draws,
    )
    seeds = bootstrap_areas(
        similarity,
        identity[row_a] == identity[row_b],
        {"|".join(key): (s[row_a], s[row_b]) for key, s in rated.items() if key[2] != "mean"},
        fmrs=(CELL[1],),
        conventions=(CELL[0],),
        n_draws=0,
    )
    for name, kind, _ in (key for key in rated if key[2] == "mean"):
        interval = areas.interval(f"{name}|{kind}|mean", CELL)
        row = {"score": name, "head": kind, "area x 1000": round(1e3 * interval.value, 1)}
        row["95 % interval"] = f"{1e3 * interval.low:.1f} to {1e3 * interval.high:.1f}"
        row["ratio to the score"] = round(
            interval.value / areas.interval(f"{name}|the score itself|mean", CELL).value, 3
        )
        if kind != "the score itself":
            of_seeds = [1e3 * seeds.curves[f"{name}|{kind}|{s}", CELL].auc() for s in range(a.seeds)]
            row |= {
                "SD over seeds": round(float(np.std(of_seeds, ddof=1)), 2),
                "rho of seeds": round(agreement[name, kind], 4),
            }
        rows.append(row)
    result = {
        "faces": a.faces.stem if a.faces else "synthetic",
        "images to train on": len(data["train_embedding"]),
        "FNMR(0)": round(float(areas.curves[f"{names[0]}|the score itself|mean", CELL].fnmr[0]), 3),
        "CPU seconds of training, all scores and seeds": seconds,
        "heads": rows,
    }
    print(json.dumps(result, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
