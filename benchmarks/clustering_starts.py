"""What the images that K-Means starts from do to clusters and labels: random ones, as the paper reads, or k-means++.

python benchmarks/clustering_starts.py [--embeddings FILE.npz] [--json FILE]

People of 14, 100 and 363 synthetic images, or the `embedding` and `identity` of an .npz file. For each number of clusters:
the within-cluster sum of squares of both, and of scikit-learn's k-means++, against random starts; and how far labels move:
Spearman's correlation of the optimized scores, and the share of images whose rank moves by more than 1 % of all. The same
two numbers for random starts of another seed say how far labels move by chance alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr
from sklearn.cluster import KMeans

from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.labels import OptimizedLabels, optimize_labels
from fiqa_ray.core.pairs import mated_pairs

SIZES, CLUSTERS, THETA = (14, 100, 363), (5, 10, 20), 0.3


def make_people(
    n_people: int, n: int, dim: int = 128, seed: int = 0, prior_noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings, identities and prior scores of people seen in a few scenes, blurred by degradation."""
    rng = np.random.default_rng(seed)
    person = rng.normal(size=(n_people, 1, dim))
    scene = person + 0.5 * rng.normal(size=(n_people, max(3, n // 8), dim))
    which = rng.integers(0, scene.shape[1], (n_people, n))
    noise = rng.uniform(0.2, 1.2, (n_people, n, 1))
    x = scene[np.arange(n_people)[:, None], which] + noise * rng.normal(size=(n_people, n, dim))
    prior = -noise[..., 0] + prior_noise * rng.normal(size=(n_people, n))
    return x.reshape(-1, dim).astype(np.float32), np.repeat(np.arange(n_people), n), prior.ravel()


def within(units: np.ndarray, bounds: np.ndarray, cluster: np.ndarray) -> float:
    """Return the within-cluster sum of squares of all people."""
    total = 0.0
    for low, high in itertools.pairwise(bounds):
        x, c = units[low:high].astype(float), cluster[low:high]
        total += sum(((x[c == k] - x[c == k].mean(0)) ** 2).sum() for k in np.unique(c))
    return total


def above(a: float, b: float) -> float:
    """Return by what share a is larger than b; 0 where both are, as with a cluster for each image."""
    return a / b - 1 if b > 1e-6 else 0.0


def compare_labels(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return how far two label sets differ."""
    rank_a, rank_b = rankdata(a, "ordinal"), rankdata(b, "ordinal")
    return {
        "spearman": float(spearmanr(a, b).statistic),
        "moved": float(np.mean(np.abs(rank_a - rank_b) > 0.01 * len(a))),
    }


def measure(x: np.ndarray, identity: np.ndarray, prior: np.ndarray, n_clusters: int) -> dict[str, Any]:
    """Compare starts on one set of people, whose images are neighbours."""
    units = unit_vectors(x)
    bounds = np.append(np.flatnonzero(np.diff(identity, prepend=-1)), len(identity))
    sums, seconds = {}, {}
    for init in ("random", "k-means++"):
        started = time.perf_counter()
        (pairs,) = mated_pairs(x, bounds, np.arange(len(bounds) - 1), n_clusters=n_clusters, n_repeats=1, init=init)
        seconds[init] = time.perf_counter() - started
        sums[init] = within(units, bounds, pairs.cluster)
    theirs = 0.0
    for k, (low, high) in enumerate(itertools.pairwise(bounds)):
        model = KMeans(min(n_clusters, high - low), n_init=1, max_iter=50, tol=0, random_state=k)
        theirs += model.fit(units[low:high]).inertia_

    def labels(init: str, seed: int = 0) -> np.ndarray:
        result = optimize_labels(
            x, identity, prior, n_clusters=n_clusters, theta=THETA, index_scale="normalized", init=init, seed=seed
        )
        assert isinstance(result, OptimizedLabels)
        return result.score

    random = labels("random")
    return {
        "n_clusters": n_clusters,
        "random_above_spread": above(sums["random"], sums["k-means++"]),
        "random_above_sklearn": above(sums["random"], theirs),
        "seconds_ratio": seconds["k-means++"] / seconds["random"],
        "labels": compare_labels(random, labels("k-means++")),
        "labels_by_chance": compare_labels(random, labels("random", seed=1)),
    }


def main() -> None:
    """Print one line per size and number of clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=7260, help="images of each set")
    parser.add_argument("--embeddings", type=Path, help=".npz with embedding (I, D) and identity (I,), for real people")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sets = {f"people of {n}": make_people(arguments.images // n, n) for n in SIZES}
    if arguments.embeddings:
        stored = np.load(arguments.embeddings)
        order = np.argsort(stored["identity"], kind="stable")
        x, identity = stored["embedding"][order], stored["identity"][order]
        sets = {arguments.embeddings.stem: (x, identity, np.linalg.norm(x, axis=1))}
    for init in ("random", "k-means++"):  # compiles the loops
        mated_pairs(np.eye(4, dtype=np.float32), [0, 4], [0], init=init, n_repeats=1)
    rows = []
    for name, (x, identity, prior) in sets.items():
        for n_clusters in CLUSTERS:
            row = {"set": name, "n_images": len(x), **measure(x, identity, prior, n_clusters)}
            rows.append(row)
            a, b = row["labels"], row["labels_by_chance"]
            print(
                f"{name:16} C={n_clusters:2}: sum of squares of random starts {row['random_above_spread']:+.1%} "
                f"(scikit-learn {row['random_above_sklearn']:+.1%}); labels: Spearman {a['spearman']:.4f} "
                f"(another seed {b['spearman']:.4f}), moved {a['moved']:.1%} ({b['moved']:.1%}); "
                f"time of pairing x {row['seconds_ratio']:.2f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
