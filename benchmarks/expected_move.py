"""How far theta moves images: the mean move measured, against `expected_move`, over C, sizes and priors.

    python benchmarks/expected_move.py [EMBEDDINGS.npz] [--json FILE]    # of `fiqa-ray embeddings RUN -o EMBEDDINGS.npz`

Without a file: identities of 40 random images around a centre, each image with its own noise. Priors: random numbers,
the norm of the raw embedding, and the noise itself with as much error as signal.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

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


def measure(embeddings: np.ndarray, people: np.ndarray, priors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return a row per C, index scale and prior. Small sets get a larger theta, so that a step passes other images."""
    sizes = np.unique(people, return_counts=True)[1]
    n, rows = len(people), []
    for n_clusters in (5, 10, 20):
        if n_clusters > sizes.max():
            continue
        per_image = float((sizes * (np.minimum(sizes, n_clusters) - 1)).sum() / sizes.sum())
        for scale, theta in (("raw", 1e-3 if n > 1000 else 1e-2), ("normalized", 0.03)):
            results = optimize_labels(embeddings, people, priors, n_clusters=n_clusters, theta=theta, index_scale=scale)
            low, high = expected_move(theta, per_image, n, scale)
            for prior, r in results.items():
                row = {"images": n, "C": n_clusters, "scale": scale, "theta": theta, "prior": prior}
                row |= {
                    "measured, % of ranks": round(100 * r.mean_move, 3),
                    "expected": f"{100 * low:.3f} to {100 * high:.3f}",
                }
                row["middle / measured"] = round((low + high) / 2 / max(r.mean_move, 1e-12), 2)
                rows.append(row | {"inside": bool(low <= r.mean_move <= high)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", nargs="?", type=Path)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    rows = []
    if a.embeddings:
        arrays = np.load(a.embeddings)
        embeddings, people = arrays["embedding"], arrays["identity"]
        for n_people in (24, 118, len(np.unique(people))):
            chosen = np.flatnonzero(np.isin(people, np.unique(people)[:n_people]))
            priors = {"random": rng.random(len(chosen)), "norm": np.linalg.norm(embeddings[chosen], axis=1)}
            rows += measure(embeddings[chosen], people[chosen], priors)
    for n_images in () if a.embeddings else (336, 3_360, 33_620):
        embeddings, people, noise = synthetic(round(n_images / PER_PERSON), rng)
        priors = {"random": rng.random(len(people)), "half": -noise + rng.normal(0, noise.std(), len(noise))}
        rows += measure(embeddings, people, priors)
    counts = {}
    for scale in ("raw", "normalized"):
        of = [row for row in rows if row["scale"] == scale]
        near = sum(0.8 <= row["middle / measured"] <= 1.2 for row in of)
        counts[f"{scale}: the middle is within 20 %"] = f"{near} of {len(of)}"
        counts[f"{scale}: the measured move is inside"] = f"{sum(row['inside'] for row in of)} of {len(of)}"
    print(json.dumps(counts, indent=1))
    if a.json:
        faces = a.embeddings.stem if a.embeddings else "synthetic"
        a.json.write_text(json.dumps({"faces": faces, **counts, "moves": rows}))


if __name__ == "__main__":
    main()
