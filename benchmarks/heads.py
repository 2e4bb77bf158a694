"""What a head keeps of the score that it imitates: areas of scores and of heads on held-out people, by kind of head.

    python benchmarks/heads.py [FACES.npz | RUN ...] [--seeds 5] [--draws 400] [--json FILE]

FACES.npz holds `train_embedding`, `train_identity`, `test_embedding`, `test_identity`, and per score `train_score_NAME` and
`test_score_NAME`. RUN is the folder of a run with one benchmark, such as that of `fiqa-ray demo`. Heads are trained by the
job's own code (`fiqa_ray.training.head`). Pairs are drawn among the test faces; areas are those of the convention paper at
FMR 1e-3, intervals resample people, also those of the ratio of a head's area to that of its score.

Always among the sets: the people of `benchmarks/theta_choice.py`, whose scores are the true quality, that with a nuisance,
and the norm. Their embeddings do not hold the whole quality, so no head can have the area of the score. "best of embedding"
is what they hold: the mean score of other people's images with a like norm and a like place along the nuisance's direction.

"ridge", "kernel ridge" and "boosted trees" are other maps of the same inputs, embedding and norm, to the score. The
parameters of the first two are chosen by cross-validation over the training people, by squared error. They show what bounds
the default head.
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
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from theta_choice import DIM, people

from fiqa_ray.config import MethodSettings, RecognizerSettings, TrainSettings
from fiqa_ray.core.bootstrap import AreaDraws, bootstrap_areas
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.datasets.columns import embedding_column
from fiqa_ray.job import LabelSet
from fiqa_ray.models.regressor import QualityHead
from fiqa_ray.tools.open_run import open_run
from fiqa_ray.training.head import HeadTraining
from fiqa_ray.training.loop import RECIPES, Plan, Recipe, Task

CELL = ("paper", 1e-3)
ROWS_PER_PART = 1000
RIDGES = tuple({"alpha": share} for share in (0.001, 0.01, 0.03, 0.1, 0.3))
"""Weights of the squared coefficients, as shares of the images."""
KERNELS = tuple({"alpha": alpha, "gamma": gamma} for gamma in (0.03, 0.1, 0.3) for alpha in (0.03, 0.1, 0.3, 1.0))
"""Weights of the squared function, and widths of the Gaussian kernel per input."""


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


def nuisance_direction() -> np.ndarray:
    """Return the direction along which the nuisance moves synthetic embeddings: `(DIM,)`."""
    direction = np.random.default_rng(1).normal(size=DIM)
    return direction / np.linalg.norm(direction)


def synthetic() -> dict[str, np.ndarray]:
    """Return the faces of `theta_choice.py`: 300 people to train on, 300 to test on."""
    rng, direction = np.random.default_rng(0), nuisance_direction()
    arrays: dict[str, np.ndarray] = {}
    for name in ("train", "test"):
        embeddings, person, quality, nuisance = people(300, rng, direction)
        arrays |= {f"{name}_embedding": embeddings, f"{name}_identity": person}
        scores = {"truth": quality, "half": quality / quality.std() + nuisance}
        scores["norm"] = np.linalg.norm(embeddings, axis=1)
        arrays |= {f"{name}_score_{key}": value for key, value in scores.items()}
    return arrays


def of_run(uri: str) -> dict[str, np.ndarray]:
    """Return embeddings, people and scores of the methods of a run, of its training set and of its benchmark."""
    run = open_run(uri)
    scores = run.scores().to_pandas()
    benchmark = next(name for name in scores["set"].unique() if name != "train")
    methods = [m for m in scores["method"].unique() if (scores["method"][scores["set"] == "train"] == m).any()]
    arrays: dict[str, np.ndarray] = {}
    for key, face_set in (("train", "train"), ("test", benchmark)):
        table = run.embeddings(face_set)
        names = table["image_id"].to_pylist()
        arrays[f"{key}_embedding"] = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
        arrays[f"{key}_identity"] = table["identity"].to_numpy(zero_copy_only=False)
        for method in methods:
            of = scores[(scores["set"] == face_set) & (scores["method"] == method)].set_index("image_id")["score"]
            arrays[f"{key}_score_{method}"] = of.loc[names].to_numpy()
    return arrays


def best_of_embedding(score: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the mean score of training images in the cell of each test image: 12 x 12 quantiles of norm and nuisance."""
    direction = nuisance_direction()
    parts = []
    for values in (lambda x: np.linalg.norm(x, axis=1), lambda x: x @ direction):
        cuts = np.quantile(values(train), np.linspace(0, 1, 13)[1:-1])
        parts.append([np.searchsorted(cuts, values(x)) for x in (train, test)])
    cell, of_test = (12 * parts[0][k] + parts[1][k] for k in (0, 1))
    sums, counts = np.bincount(cell, score, 144), np.bincount(cell, minlength=144)
    return (sums / np.maximum(counts, 1))[of_test]


def other_maps(data: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> dict[tuple[str, str, str], np.ndarray]:
    """Return the scores of the test images by other maps of embedding and norm, by score and kind."""
    inputs = [
        np.hstack([e, np.linalg.norm(e, axis=1, keepdims=True)])
        for e in (data["train_embedding"], data["test_embedding"])
    ]
    centre, deviation = inputs[0].mean(axis=0), np.maximum(inputs[0].std(axis=0), 1e-12)
    x, z = ((values.astype(np.float64) - centre) / deviation for values in inputs)
    y = np.stack([(s - s.mean()) / s.std() for s in scores.values()], axis=1)
    folds = list(GroupKFold(3).split(x, groups=data["train_identity"]))

    def ridge(n_images: int, alpha: float) -> Ridge:
        return Ridge(alpha=alpha * n_images)

    def kernel(_: int, alpha: float, gamma: float) -> KernelRidge:
        return KernelRidge(kernel="rbf", alpha=alpha, gamma=gamma / x.shape[1])

    rated = {}
    for kind, make, grid in (("ridge", ridge, RIDGES), ("kernel ridge", kernel, KERNELS)):
        errors = np.zeros((len(grid), y.shape[1]))  # by squared error on people left out
        for i, parameters in enumerate(grid):
            for train_rows, other in folds:
                model = make(len(train_rows), **parameters).fit(x[train_rows], y[train_rows])
                errors[i] += ((model.predict(x[other]).reshape(y[other].shape) - y[other]) ** 2).sum(axis=0)
        for k, name in enumerate(scores):
            model = make(len(x), **grid[errors[:, k].argmin()]).fit(x, y[:, k])
            rated[name, kind, "mean"] = model.predict(z)
    for k, name in enumerate(scores):
        trees = HistGradientBoostingRegressor(learning_rate=0.05, max_iter=300, max_leaf_nodes=8, random_state=0)
        rated[name, "boosted trees", "mean"] = trees.fit(x, y[:, k]).predict(z)
    return rated


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    sets = {Path(f).stem: dict(np.load(f)) if f.endswith(".npz") else of_run(f) for f in a.faces}
    results = [compare(name, data, a.seeds, a.draws) for name, data in {**sets, "synthetic": synthetic()}.items()]
    heads = [{"faces": r["faces"], **row} for r in results for row in r.pop("heads")]
    print(json.dumps(result := {"sets": results, "heads": heads}, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result))


def compare(faces: str, data: dict[str, np.ndarray], n_seeds: int, n_draws: int) -> dict[str, Any]:
    """Train heads of each kind on a set's scores, and return their areas on its test faces."""
    names = [key.removeprefix("train_score_") for key in data if key.startswith("train_score_")]
    scores = {name: data[f"train_score_{name}"].astype(float) for name in names}
    rated = {(name, "the score itself", "mean"): data[f"test_score_{name}"].astype(float) for name in names}
    if faces == "synthetic":
        for name in names:
            best = best_of_embedding(scores[name], data["train_embedding"], data["test_embedding"])
            rated[name, "best of embedding", "mean"] = best
    rated |= other_maps(data, scores)
    seconds, agreement = {}, {}
    for kind in ("linear", "norm"):
        started = time.process_time()
        heads = train(data["train_embedding"], scores, kind, n_seeds)
        seconds[kind] = round(time.process_time() - started, 1)
        for name, head in heads.items():
            with torch.inference_mode():
                by_seed = head(torch.from_numpy(data["test_embedding"])).double().numpy()
            rated |= {(name, kind, str(s)): by_seed[:, s] for s in range(n_seeds)}
            rated[name, kind, "mean"] = by_seed.mean(axis=1)
            rho = [spearmanr(by_seed[:, 0], by_seed[:, s]).statistic for s in range(1, n_seeds)]
            agreement[name, kind] = float(np.mean(rho))
    areas, seeds = (areas_of(data, rated, is_mean, n_draws) for is_mean in (True, False))
    rows = []
    for name, kind, _ in (key for key in rated if key[2] == "mean"):
        scorer, imitated = f"{name}|{kind}|mean", f"{name}|the score itself|mean"
        interval, limit = areas.interval(scorer, CELL), areas.common_limit(scorer, imitated, CELL)
        row = {"score": name, "head": kind, "area x 1000": round(1e3 * interval.value, 1)}
        row["95 % interval"] = f"{1e3 * interval.low:.1f} to {1e3 * interval.high:.1f}"
        row["ratio to the score"] = round(
            areas.curves[scorer, CELL].auc(limit) / areas.curves[imitated, CELL].auc(limit), 3
        )
        if kind != "the score itself":
            ratios = areas.draws[scorer, CELL, limit] / areas.draws[imitated, CELL, limit]
            row["of the ratio"] = "{:.2f} to {:.2f}".format(*np.nanquantile(ratios, [0.025, 0.975]))
            row["rho with the score"] = round(
                float(spearmanr(rated[name, kind, "mean"], data[f"test_score_{name}"])[0]), 3
            )
        if (name, kind) in agreement:
            of_seeds = [1e3 * seeds.curves[f"{name}|{kind}|{s}", CELL].auc() for s in range(n_seeds)]
            row["SD over seeds"] = round(float(np.std(of_seeds, ddof=1)), 2)
            row["rho of seeds"] = round(agreement[name, kind], 4)
        rows.append(row)
    return {
        "faces": faces,
        "images to train on": len(data["train_embedding"]),
        "FNMR(0)": round(float(areas.curves[f"{names[0]}|the score itself|mean", CELL].fnmr[0]), 3),
        "CPU seconds, linear": seconds["linear"],
        "CPU seconds, norm": seconds["norm"],
        "heads": rows,
    }


def areas_of(data: dict[str, np.ndarray], rated: Any, is_mean: bool, n_draws: int) -> AreaDraws:
    """Return the areas of mean scores with draws of people, or those of single seeds without."""
    row_a, row_b = draw_pairs(data["test_identity"], 6_000, 24_000)
    units = unit_vectors(data["test_embedding"])
    similarity = np.einsum("ij,ij->i", units[row_a], units[row_b], dtype=np.float64).clip(-1, 1)
    identity = np.unique(data["test_identity"], return_inverse=True)[1]
    wanted = {"|".join(key): (s[row_a], s[row_b]) for key, s in rated.items() if (key[2] == "mean") == is_mean}
    mated = identity[row_a] == identity[row_b]
    options: Any = {"identities": (identity[row_a], identity[row_b])} if is_mean else {}
    return bootstrap_areas(
        similarity, mated, wanted, fmrs=(CELL[1],), conventions=(CELL[0],), n_draws=n_draws if is_mean else 0, **options
    )


if __name__ == "__main__":
    main()
