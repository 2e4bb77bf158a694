"""Optimize the quality labels of stored embeddings: arrays in, CSV out.

Usage: python examples/arrays_to_labels.py EMBEDDINGS.npy PEOPLE.npy SCORES.npy LABELS.csv [THETA]

EMBEDDINGS is (n_images, dim), PEOPLE (n_images,) names or numbers, SCORES (n_images,) with larger values for better images.
"""

from __future__ import annotations

import csv
import sys

import numpy as np

import fiqa_ray


def main(embeddings_file: str, people_file: str, scores_file: str, labels_file: str, theta: str = "0.1") -> None:
    """Read the arrays, optimize, and write one row per image: its number, person, old score, new score and label."""
    embeddings = np.load(embeddings_file).astype(np.float32)
    people, scores = np.load(people_file), np.load(scores_file)
    images_per_person = np.unique(people, return_counts=True)[1]
    n_clusters = int(min(20, max(2, np.median(images_per_person) // 2)))
    labels = fiqa_ray.optimize_labels(
        embeddings, people, scores, n_clusters=n_clusters, theta=float(theta), index_scale="normalized"
    )
    assert isinstance(labels, fiqa_ray.OptimizedLabels)  # a dict of scores would give a dict of labels

    with open(labels_file, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "person", "prior_score", "optimized_score", "label"])
        writer.writerows(zip(range(len(people)), people, scores, labels.score, labels.label, strict=True))
    without_pair = (labels.n_owned_pairs == 0).mean()
    print(
        f"{len(people)} images, {n_clusters} clusters per person: mean move {labels.mean_move:.2%} of the ranks, ",
        end="",
    )
    print(f"{without_pair:.1%} of the images own no pair")


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    main(*sys.argv[1:])
