"""K-Means of identities alone: Gram-space Lloyd against faiss and scikit-learn from the same initial centres, one core.

python benchmarks/clustering.py [--images 8192] [--device cpu] [--json FILE]

For each size n, as many identities of n images as make up --images. Ours includes the Gram products, which the pairs need
anyway. Prints milliseconds per identity and the inertia against scikit-learn's.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import faiss
import numpy as np
from shapes import make_identities
from sklearn.cluster import KMeans

from fiqa_ray.core.clustering import lloyd_clusters, start_images, start_states
from fiqa_ray.core.kernels.accelerator import cluster_all, gram_matrices
from fiqa_ray.core.kernels.gram import cosine_keys, unit_vectors
from fiqa_ray.core.kernels.kmeans import MAX_ITERATIONS
from fiqa_ray.core.kernels.threads import one_thread

SIZES, K = (20, 100, 363, 843, 5000), 20


def ours(x: np.ndarray, n: int, device: str) -> list[np.ndarray]:
    """Blocks of identities, as `fiqa_ray.core.pairs` takes them."""
    clusters = []
    n_together = max(1, (1 << (17 if device == "cpu" else 21)) // n**2)
    keys = np.empty(n_together * n * n if device == "cpu" else 0, np.float32)
    for at in range(0, len(x) // n, n_together):
        rows = np.arange(at, min(at + n_together, len(x) // n))
        bounds, states = np.arange(len(rows) + 1) * n, start_states(rows, [0], seed=0)[0]
        block = x[rows[0] * n : (rows[-1] + 1) * n]
        if device == "cpu":
            cluster, counts = np.empty(len(block), np.int32), np.empty(len(rows), np.int32)
            cosine_keys(block, bounds, keys)
            lloyd_clusters(keys, bounds, states, K, cluster, counts)
        else:
            _, grams = gram_matrices(unit_vectors(block), bounds, device)
            cluster = cluster_all(grams, states, K)
        clusters += np.split(cluster, len(rows))
    return clusters


def by_faiss(units: list[np.ndarray], starts: list[np.ndarray]) -> list[np.ndarray]:
    """faiss.Kmeans, the same centres and number of iterations."""
    found = []
    for u, start in zip(units, starts, strict=True):
        k = len(start)
        kmeans = faiss.Kmeans(
            u.shape[1], k, niter=MAX_ITERATIONS, min_points_per_centroid=1, max_points_per_centroid=len(u)
        )
        kmeans.train(u, init_centroids=np.ascontiguousarray(u[start]))
        found.append(kmeans.index.search(u, 1)[1][:, 0])
    return found


def by_scikit_learn(units: list[np.ndarray], starts: list[np.ndarray]) -> list[np.ndarray]:
    """KMeans, the same centres and number of iterations."""
    return [
        KMeans(len(s), init=u[s], n_init=1, max_iter=MAX_ITERATIONS, tol=0).fit(u).labels_
        for u, s in zip(units, starts, strict=True)
    ]


def inertia(units: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """Sum of squared distances to the cluster means."""
    total = 0.0
    for u, own in zip(units, labels, strict=True):
        x = u.astype(np.float64)
        total += sum(float(((x[own == c] - x[own == c].mean(0)) ** 2).sum()) for c in np.unique(own))
    return total


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for ours")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rows = []
    for n in SIZES:
        m = max(1, a.images // n)
        x = make_identities(range(m), np.full(m, n))
        units = [unit_vectors(x[i * n : (i + 1) * n]) for i in range(m)]
        starts = list(start_images(np.full(m, n), start_states(np.arange(m), [0], seed=0)[0], K))
        seconds, labels = {}, {}
        with one_thread():
            ours(x[:n], n, a.device)  # the first call loads libraries and compiled code
            for name, call in (
                ("ours", lambda x=x, n=n: ours(x, n, a.device)),
                ("faiss", lambda units=units, starts=starts: by_faiss(units, starts)),
                ("scikit-learn", lambda units=units, starts=starts: by_scikit_learn(units, starts)),
            ):
                started = time.perf_counter()
                labels[name] = call()
                seconds[name] = (time.perf_counter() - started) / m
        best = inertia(units, labels["scikit-learn"])
        rows.append(
            {
                "n": n,
                "ms_per_identity": {k: round(1e3 * s, 3) for k, s in seconds.items()},
                "ratio_to_ours": {k: round(s / seconds["ours"], 1) for k, s in seconds.items() if k != "ours"},
                "inertia_to_scikit_learn": {
                    k: round(inertia(units, labels[k]) / best, 5) if best > 1e-6 else 1.0 for k in ("ours", "faiss")
                },
            }
        )
    result = {"device": a.device, "rows": rows}
    print(json.dumps(result, indent=1))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
