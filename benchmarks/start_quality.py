"""Which start of K-Means gives the better labels, random images or k-means++: by EDC on people who were not labelled.

python benchmarks/start_quality.py [--embeddings FILE.npz] [--json FILE]

People of 14, 100 and 363 synthetic images, or an .npz file with `embedding` (I, D), `identity` (I,) and `prior` (I,). Half
of the people are labelled from their prior scores, once per seed and start. A linear map of embedding and norm is fitted to
the labels by least squares, so that nothing but the labels depends on chance, and scores the other half. Printed is the area
under their error-versus-discard curve with k-means++ minus that with random starts, mean over the seeds: below 0, k-means++
is better. The interval is the 95 % percentile bootstrap over the people of the test, the same draws for all seeds;
the standard error beside it is that of the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from clustering_starts import CLUSTERS, SIZES, make_people

from fiqa_ray.core.bootstrap import bootstrap_areas
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.labels import OptimizedLabels, optimize_labels

STARTS = ("random", "k-means++")
THETA, LIMIT, FMR = 0.3, 0.5, 1e-3
N_PAIRS = 10_000
"""Mated and, as many, non-mated pairs of the test."""


def draw_pairs(identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two image rows of mated and then of non-mated pairs, each (2 N_PAIRS,), without repetition of a pair."""
    rng = np.random.default_rng(0)
    n, pairs = len(identity), []
    first = np.flatnonzero(np.diff(identity, prepend=-1))
    size = np.diff(np.append(first, n))
    start, count = np.repeat(first, size), np.repeat(size, size)
    for is_mated in (True, False):
        a = rng.integers(0, n, 4 * N_PAIRS)
        b = start[a] + rng.integers(0, count[a]) if is_mated else rng.integers(0, n, len(a))
        usable = (a < b) & ((identity[a] == identity[b]) == is_mated)
        pairs.append(np.unique(np.column_stack([a, b])[usable], axis=0))
        pairs[-1] = pairs[-1][rng.permutation(len(pairs[-1]))[:N_PAIRS]]
    rows = np.concatenate(pairs)
    return rows[:, 0], rows[:, 1]


def inputs(x: np.ndarray) -> np.ndarray:
    """Return the inputs of the linear map: embedding, norm, 1."""
    return np.column_stack([x, np.linalg.norm(x, axis=1), np.ones(len(x))]).astype(float)


def compare(
    x: np.ndarray, identity: np.ndarray, prior: np.ndarray, n_clusters: int, seeds: range, n_draws: int
) -> dict[str, Any]:
    """Compare both starts on one set, whose people are halved."""
    is_test = identity % 2 == 1
    train_x, test_x, person = x[~is_test], x[is_test], identity[is_test]
    solve = np.linalg.pinv(inputs(train_x))
    a, b = draw_pairs(person)
    units = unit_vectors(test_x)
    similarity = np.einsum("ij,ij->i", units[a], units[b])
    qualities: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(name: str, labels: np.ndarray) -> None:
        score = inputs(test_x) @ (solve @ labels)
        qualities[name] = (score[a], score[b])

    add("prior", np.argsort(np.argsort(prior[~is_test])) / len(train_x))
    for seed in seeds:
        for init in STARTS:
            labels = optimize_labels(
                train_x, identity[~is_test], prior[~is_test], n_clusters=n_clusters, theta=THETA,
                index_scale="normalized", init=init, seed=seed,
            )  # fmt: skip
            assert isinstance(labels, OptimizedLabels)
            add(f"{init} {seed}", np.argsort(np.argsort(labels.score)) / len(train_x))
    result = bootstrap_areas(
        similarity, person[a] == person[b], qualities, identities=(person[a], person[b]), fmrs=(FMR,), limits=(LIMIT,),
        n_draws=n_draws,
    )  # fmt: skip
    cell = next(iter(result.errors))
    area = {name: result.interval(name, cell, LIMIT).value for name in qualities}
    by_seed = np.array([area[f"k-means++ {s}"] - area[f"random {s}"] for s in seeds])
    draws = np.mean(
        [result.draws[f"k-means++ {s}", cell, LIMIT] - result.draws[f"random {s}", cell, LIMIT] for s in seeds], axis=0
    )
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {
        "n_clusters": n_clusters,
        "area_prior": area["prior"],
        **{f"area_{init}": float(np.mean([area[f"{init} {s}"] for s in seeds])) for init in STARTS},
        "difference": float(by_seed.mean()),
        "interval": [float(low), float(high)],
        "standard_error_of_seeds": float(by_seed.std(ddof=1) / np.sqrt(len(by_seed))),
        "share_of_seeds_better": float(np.mean(by_seed < 0)),
    }


def main() -> None:
    """Print one line per set and number of clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=7260, help="images of each synthetic set, half of them labelled")
    parser.add_argument("--embeddings", type=Path, help=".npz with embedding, identity and prior, for real people")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sets = {f"people of {n}": make_people(2 * (arguments.images // n // 2), n, prior_noise=1.0) for n in SIZES}
    if arguments.embeddings:
        stored = np.load(arguments.embeddings)
        order = np.argsort(stored["identity"], kind="stable")
        sets = {arguments.embeddings.stem: tuple(stored[k][order] for k in ("embedding", "identity", "prior"))}
    rows = []
    for name, (x, identity, prior) in sets.items():
        for n_clusters in CLUSTERS:
            if n_clusters >= len(x) / (identity.max() + 1):
                continue  # each image is a cluster, whatever the start
            row = compare(x, identity, prior, n_clusters, range(arguments.seeds), arguments.draws)
            rows.append({"set": name, "n_images": len(x), **row})
            low, high = row["interval"]
            print(
                f"{name:22} C={n_clusters:2}: areas x 1e3: prior labels {1e3 * row['area_prior']:.2f}, random "
                f"{1e3 * row['area_random']:.2f}, k-means++ {1e3 * row['area_k-means++']:.2f}; difference "
                f"{1e3 * row['difference']:+.3f} [{1e3 * low:+.3f}, {1e3 * high:+.3f}], over seeds +- "
                f"{1e3 * row['standard_error_of_seeds']:.3f}, better in {row['share_of_seeds_better']:.0%} of seeds",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
