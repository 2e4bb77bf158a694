"""Label optimization in memory against the paper as loops, side by side in one run, on embeddings of VGGFace2's shape.

python benchmarks/label_optimization.py [--share 0.005] [--json FILE]

The loops are what the released script does: scikit-learn K-Means per identity, Python lists of pairs, one list sort per
repeat. Both sides use the same settings (C = 20, R = 10) and the same cores. Prints the ratio of the two times.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from fiqa_ray import OptimizedLabels, optimize_labels

N_IDENTITIES, MEAN_IMAGES, DIM, C, R, THETA = 9131, 363, 512, 20, 10, 1e-3


def make_embeddings(n_identities: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (n_images, 512) around identity centres, identities and prior scores; 80 to 843 images per identity."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.gamma(6.0, MEAN_IMAGES / 6.0, n_identities), 80, 843).astype(int)
    identity = np.repeat(np.arange(n_identities), sizes)
    centres = rng.normal(size=(n_identities, DIM))
    x = (centres[identity] + rng.normal(size=(len(identity), DIM))).astype(np.float32)
    return x, identity, rng.beta(5, 2, len(identity))


def loops(x: np.ndarray, identity: np.ndarray, prior: np.ndarray) -> dict[int, float]:
    """The method as the released script runs it: Python objects for pairs, ranks and images."""
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    clusters: dict[int, list[list[int]]] = {}
    for k in np.unique(identity):
        rows = np.flatnonzero(identity == k)
        labels = KMeans(C, random_state=0, n_init=1).fit_predict(units[rows])
        clusters[int(k)] = [rows[labels == c].tolist() for c in range(C)]
    order = sorted(range(len(prior)), key=lambda i: prior[i])
    place = {i: p for p, i in enumerate(order)}
    total = dict.fromkeys(range(len(prior)), 0.0)
    for _ in range(R):
        pairs = []
        for groups in clusters.values():
            for c, group in enumerate(groups):
                for a in group:
                    for d, other in enumerate(groups):
                        if d != c and other:
                            b = random.choice(other)
                            pairs.append((float(units[a] @ units[b]), a, b))
        pairs.sort(key=lambda p: p[0])
        collected: dict[int, list[int]] = {}
        for p, (_, a, b) in enumerate(pairs):
            collected.setdefault(a if place[a] < place[b] else b, []).append(p)
        for i, q in place.items():
            mine = collected.get(i)
            total[i] += q + THETA * (sum(mine) / len(mine) - q) if mine else q
    by_index = sorted(total, key=lambda i: total[i])
    return dict(zip(by_index, sorted(prior.tolist()), strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.002, help="share of VGGFace2's identities")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    x, identity, prior = make_embeddings(max(1, round(N_IDENTITIES * a.share)), a.seed)
    optimize_labels(x[identity == 0], identity[identity == 0], prior[identity == 0], n_repeats=1)  # loads what it needs
    started = time.perf_counter()
    ours = optimize_labels(x, identity, prior, n_clusters=C, n_repeats=R, theta=THETA)
    ours_s = time.perf_counter() - started
    assert isinstance(ours, OptimizedLabels)
    started = time.perf_counter()
    theirs = loops(x, identity, prior)
    loops_s = time.perf_counter() - started
    # different draws: the labels agree up to sampling noise
    agreement = float(np.corrcoef(ours.score, [theirs[i] for i in range(len(prior))])[0, 1])
    n_pairs = len(prior) * (C - 1) * R
    result = {
        "n_images": len(prior),
        "n_pairs": n_pairs,
        "ours_s": round(ours_s, 2),
        "loops_s": round(loops_s, 2),
        "ratio": round(loops_s / ours_s, 1),
        "ours_ns_per_pair": round(1e9 * ours_s / n_pairs, 1),
        "label_correlation": round(agreement, 5),
    }
    print(json.dumps(result))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
