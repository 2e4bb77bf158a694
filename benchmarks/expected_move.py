"""How far theta moves images: the mean move measured, against `expected_move`, over C, sizes and priors.

    python benchmarks/expected_move.py [EMBEDDINGS.npz] [--json FILE]    # of `fiqa-ray embeddings RUN -o EMBEDDINGS.npz`

Without a file: identities of 40 random images around a centre, each image with its own noise. Priors: random numbers, the
noise with as much error as signal, and the noise itself, than which nothing follows the similarities better; of a file
random numbers and the norm of the raw embedding. "expected" is what is known before ranking, and on the scale normalized
"with rho" what the rank correlation of scores and similarities adds, once pairs are ranked.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fiqa_ray.core.label_result import expected_move, sign_facts
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
        for scale, theta in (("raw", 1e-3 if n > 1000 else 1e-2), ("normalized", 0.03), ("normalized", 0.1)):
            results = optimize_labels(embeddings, people, priors, n_clusters=n_clusters, theta=theta, index_scale=scale)
            low, high = expected_move(theta, per_image, n, scale)
            for prior, r in results.items():
                row = {"images": n, "C": n_clusters, "scale": scale, "theta": theta, "prior": prior}
                row |= {
                    "measured, % of ranks": round(100 * r.mean_move, 3),
                    "expected": f"{100 * low:.3f} to {100 * high:.3f}",
                }
                row["middle / measured"] = round((low + high) / 2 / max(r.mean_move, 1e-12), 2)
                rho = sign_facts(r.quality_index, r.mean_similarity_rank)["score_rho"]
                row["rho"] = round(rho, 2)
                if scale == "normalized":
                    with_rho = expected_move(theta, per_image, n, scale, rho)[0]
                    row["with rho / measured"] = round(with_rho / max(r.mean_move, 1e-12), 2)
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
        half = -noise + rng.normal(0, noise.std(), len(noise))
        rows += measure(embeddings, people, {"random": rng.random(len(people)), "half": half, "noise": -noise})
    counts = {}
    for scale in ("raw", "normalized"):
        of = [row for row in rows if row["scale"] == scale]
        for what in ("middle", "with rho"):
            ratios = [row[f"{what} / measured"] for row in of if f"{what} / measured" in row]
            if ratios:
                near = sum(0.8 <= ratio <= 1.2 for ratio in ratios)
                counts[f"{scale}: {what} is within 20 %"] = f"{near} of {len(ratios)}, {min(ratios)} to {max(ratios)}"
        counts[f"{scale}: the measured move is inside"] = f"{sum(row['inside'] for row in of)} of {len(of)}"
    print(json.dumps(counts, indent=1))
    if a.json:
        faces = a.embeddings.stem if a.embeddings else "synthetic"
        a.json.write_text(json.dumps({"faces": faces, **counts, "moves": rows}))


if __name__ == "__main__":
    main()
