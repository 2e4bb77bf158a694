"""IJB-C's size on made-up data: from embeddings and scores of images to curves, on one core.

python benchmarks/templates.py [--share 1.0] [--scorers 2] [--draws 0] [--json FILE]

469,375 images of 23,124 templates, 19,557 mated and 15,638,932 non-mated pairs, 512 dimensions. A step's figure is its CPU
seconds; `peak_gb` is the most memory that the process held. `--share 0.01` makes all numbers smaller.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from fiqa_ray.core.bootstrap import bootstrap_areas
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.templates import Templates, pair_similarities, subjects_of, template_embeddings, template_qualities

N_IMAGES, N_TEMPLATES, N_SUBJECTS, N_MATED, N_NONMATED, DIM = 469_375, 23_124, 3_531, 19_557, 15_638_932, 512
FMRS = (1e-2, 1e-3, 1e-4)
CONVENTIONS = ("paper", "nearest", "dasec", "pmf", "nist")


def made_up_set(share: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return embeddings, utility, templates and pairs, all smaller by `share`."""
    n_images, n_templates, n_subjects = (max(2, round(n * share)) for n in (N_IMAGES, N_TEMPLATES, N_SUBJECTS))
    subject = rng.integers(n_subjects, size=n_templates)
    template = np.sort(np.concatenate([np.arange(n_templates), rng.integers(n_templates, size=n_images - n_templates)]))
    medium = rng.integers(4, size=n_images)
    utility = rng.beta(4, 2, size=n_images)
    centres = rng.standard_normal((n_subjects, DIM), np.float32)
    embeddings = rng.standard_normal((n_images, DIM), np.float32)
    embeddings *= 6 * (1.05 - utility[:, None].astype(np.float32))
    embeddings += centres[subject[template]]
    n_mated, n_nonmated = max(200, round(N_MATED * share)), round(N_NONMATED * share)
    order = np.argsort(subject, kind="stable")
    bounds = np.searchsorted(subject[order], np.arange(n_subjects + 1))
    a = rng.integers(n_templates, size=n_mated)
    within = bounds[subject[a]] + rng.integers(1 << 40, size=n_mated) % np.diff(bounds)[subject[a]]
    b = order[within]
    others = rng.integers(n_templates, size=(2, n_nonmated + n_nonmated // 500))
    others = others[:, subject[others[0]] != subject[others[1]]][:, :n_nonmated]
    return {
        "embeddings": embeddings,
        "utility": utility,
        "templates": Templates.of(template, medium),
        "pairs": (np.append(a, others[0]), np.append(b, others[1])),
        "mated": np.arange(n_mated + others.shape[1]) < n_mated,
    }


def main() -> None:
    """Time the steps and print them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--scorers", type=int, default=2)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    seconds: dict[str, float] = {}

    def timed(name: str, call: Any) -> Any:
        started = time.process_time()
        value = call()
        seconds[name] = round(time.process_time() - started, 2)
        return value

    with one_thread():
        run_all(made_up_set(min(args.share, 0.002), rng), 1, 1, lambda _, call: call())  # compiles
        data = made_up_set(args.share, rng)
        n_pairs = len(data["mated"])
        run_all(data, args.scorers, args.draws, timed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    result = {"pairs": n_pairs, "cpu_seconds": seconds, "peak_gb": round(peak, 2)}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result), encoding="utf-8")


def run_all(data: dict[str, Any], n_scorers: int, n_draws: int, timed: Any) -> None:
    """Pool, compare, and draw the curves of each scorer in all conventions and at three rates."""
    templates, (row_a, row_b), mated = data["templates"], data["pairs"], data["mated"]
    pooled = timed("pool templates", lambda: template_embeddings(data.pop("embeddings"), templates))
    similarity = timed("similarities", lambda: pair_similarities(pooled, row_a, row_b))
    rng = np.random.default_rng(1)

    def curves(scorers: int, draws: int) -> None:
        qualities = {}
        for i in range(scorers):
            score = template_qualities(data["utility"] + 0.2 * rng.standard_normal(len(data["utility"])), templates)
            qualities[str(i)] = (score[row_a], score[row_b])
        person = subjects_of(len(templates), row_a[mated], row_b[mated])
        identities = (person[row_a], person[row_b]) if draws else None
        bootstrap_areas(
            similarity,
            mated,
            qualities,
            fmrs=FMRS,
            conventions=CONVENTIONS,
            identities=identities,
            images=(row_a, row_b),
            n_draws=draws,
        )

    for k in range(1, n_scorers + 1):
        timed(f"curves of {k} scorer(s)", lambda k=k: curves(k, 0))
    if n_draws:
        timed(f"curves of 1 scorer and {n_draws} draws of persons", lambda: curves(1, n_draws))


if __name__ == "__main__":
    main()
