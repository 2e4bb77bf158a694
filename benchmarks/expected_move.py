"""How far theta moves images: the mean move measured, against `expected_move`, over C, sizes and priors.

    python benchmarks/expected_move.py [EMBEDDINGS.npz]     # of `fiqa-ray embeddings RUN -o EMBEDDINGS.npz`

Without a file: identities of 40 random images around a centre, each image with its own noise. Priors: random numbers,
the norm of the raw embedding, and the noise itself with as much error as signal.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np

from fiqa_ray.core.label_result import expected_move
from fiqa_ray.core.labels import optimize_labels

DIM, PER_PERSON = 128, 40


def synthetic(n_people: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings `(I, D)`, people `(I,)` and the noise `(I,)` of each image."""
    people = np.repeat(np.arange(n_people), PER_PERSON)
    noise = rng.uniform(0.3, 1.5, len(people))
    centre = rng.normal(size=(n_people, DIM))[people]
    return (centre + noise[:, None] * rng.normal(size=centre.shape)).astype(np.float32), people, noise


def measure(embeddings: np.ndarray, people: np.ndarray, priors: dict[str, np.ndarray], name: str) -> None:
    """Print one line per C and index scale."""
    sizes = np.unique(people, return_counts=True)[1]
    for n_clusters in (5, 10, 20):
        if n_clusters > sizes.max():
            continue
        per_image = float((sizes * (np.minimum(sizes, n_clusters) - 1)).sum() / sizes.sum())
        for scale, theta in (("raw", 1e-3), ("normalized", 0.03)):
            results = optimize_labels(embeddings, people, priors, n_clusters=n_clusters, theta=theta, index_scale=scale)
            expected = expected_move(theta, per_image, len(people), scale)
            ratios = " ".join(f"{prior} {r.mean_move / expected:.2f}" for prior, r in results.items())
            print(
                f"{name}: {len(people):,} images, C={n_clusters}, {scale} {theta}: measured / expected {ratios}",
                flush=True,
            )


def main() -> None:
    """Command line."""
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    if len(sys.argv) > 1:
        arrays = np.load(sys.argv[1])
        embeddings, people = arrays["embedding"], arrays["identity"]
        for n_people in (24, 118, len(np.unique(people))):
            rows = np.flatnonzero(np.isin(people, np.unique(people)[:n_people]))
            priors = {"random": rng.random(len(rows)), "norm": np.linalg.norm(embeddings[rows], axis=1)}
            measure(embeddings[rows], people[rows], priors, "given")
        return
    for n_images in (336, 3_360, 33_620):
        embeddings, people, noise = synthetic(round(n_images / PER_PERSON), rng)
        priors = {"random": rng.random(len(people)), "half": -noise + rng.normal(0, noise.std(), len(noise))}
        measure(embeddings, people, priors, "synthetic")


if __name__ == "__main__":
    main()
