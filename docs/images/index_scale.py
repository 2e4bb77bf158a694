"""Draw the picture of `explanation/index-scale.md`: where images without a pair end up, by theta and index scale.

Usage: python docs/images/index_scale.py [FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fiqa_ray
from fiqa_ray.core.labels import INDEX_SCALES

N_PEOPLE, N_IMAGES, DIM = 200, 14, 64
THETAS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3)


def median_ranks(scale: str) -> list[float]:
    """Return, per theta, the median rank in [0, 1] of the images that own no pair."""
    rng = np.random.default_rng(0)
    quality = rng.random(N_PEOPLE * N_IMAGES)
    people = np.repeat(np.arange(N_PEOPLE), N_IMAGES)
    noise = rng.normal(size=(len(people), DIM)) * (1.2 - quality)[:, None]
    embeddings = (rng.normal(size=(N_PEOPLE, DIM))[people] + noise).astype(np.float32)
    ranks = []
    for theta in THETAS:
        labels = fiqa_ray.optimize_labels(embeddings, people, quality, n_clusters=10, theta=theta, index_scale=scale)
        assert isinstance(labels, fiqa_ray.OptimizedLabels)  # a dict of scores would give a dict of labels
        order = labels.optimized_index.argsort(kind="stable").argsort() / len(people)
        ranks.append(float(np.median(order[labels.n_owned_pairs == 0])))
    return ranks


def draw(file: Path) -> None:
    """Write the figure."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for scale, style in zip(INDEX_SCALES, ("o-", "s--"), strict=True):
        axes.plot(THETAS, median_ranks(scale), style, label=scale)
    axes.set(xlabel="theta", ylabel="median rank (1 is the best)", ylim=(0, 1.05))
    axes.legend(title="index_scale", loc="center right")
    figure.savefig(file, dpi=140)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
