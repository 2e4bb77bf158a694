"""Adience's size on made-up data: the curves of all pairs of 19,370 images, on one core.

python benchmarks/all_pairs.py [--images 19370] [--json FILE]

2,284 persons of uneven size, 512 dimensions, 187,588,765 pairs; conventions paper, nearest and dasec at three rates for one
score. `cpu_seconds` is the CPU time, `peak_gb` the most memory that the process held.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from fiqa_ray.core.all_pairs import all_pairs_curves, n_all_pairs
from fiqa_ray.core.conventions import cells_of, convention_of
from fiqa_ray.core.kernels.threads import one_thread

CELLS = cells_of([convention_of(name) for name in ("paper", "nearest", "dasec")], (1e-2, 1e-3, 1e-4))
N_PERSONS, DIM = 2284, 512


def main() -> None:
    """Time the curves and print them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=19_370)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    share = rng.pareto(1.5, N_PERSONS) + 0.2
    person = rng.choice(N_PERSONS, args.images, p=share / share.sum())
    quality = rng.beta(4, 2, args.images)
    embeddings = rng.standard_normal((args.images, DIM), np.float32) * (6 * (1.05 - quality[:, None])).astype(
        np.float32
    )
    embeddings += rng.standard_normal((N_PERSONS, DIM), np.float32)[person]
    with one_thread():
        all_pairs_curves(embeddings[:200], person[:200] % 20, quality[:200], CELLS)  # compiles
        started = time.process_time()
        curves = all_pairs_curves(embeddings, person, quality, CELLS)
        seconds = time.process_time() - started
    curve = curves["paper", 1e-3]
    result = {
        "pairs": n_all_pairs(args.images),
        "mated_pairs": int(curve.n_mated[0]),
        "cpu_seconds": round(seconds, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "fnmr_0": float(curve.fnmr[0]),
        "area": curve.auc(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
