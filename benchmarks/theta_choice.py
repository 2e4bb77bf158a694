"""Is theta chosen rightly on held-out people? Trials on synthetic people where the answer is known.

    python benchmarks/theta_choice.py [--trials 100] [--json FILE]

The similarity of two images falls with the noise of both; an image is good if its noise is small. Embeddings also
hold a nuisance, which moves them along one direction and which a head can learn. Two priors: the true quality, which has
nothing to gain, and one that is half nuisance. Each trial chooses theta on 120 people with 14 images, and compares the
predicted gain with that on 1,000 other people, of heads that learned the labels of all 120.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from fiqa_ray.core.edc import edc_curve
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.core.theta import AT_FMR, ThetaCurve, choose_theta, heldout_scores

DIM, PER_PERSON, N_TRAIN, N_TEST, N_CLUSTERS = 64, 14, 120, 1000, 7


def people(
    n_people: int, rng: np.random.Generator, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings `(I, D)`, people, true qualities and the nuisance, each `(I,)`."""
    person = np.repeat(np.arange(n_people), PER_PERSON)
    quality, nuisance = rng.uniform(0, 1, len(person)), rng.normal(size=len(person))
    noise = 0.4 + 1.4 * (1 - quality)
    raw = rng.normal(size=(n_people, DIM))[person] + noise[:, None] * rng.normal(size=(len(person), DIM))
    length = 0.5 + quality + 0.15 * rng.normal(size=len(person))
    embeddings = raw / np.linalg.norm(raw, axis=1, keepdims=True) * length[:, None]
    return (embeddings + 0.15 * nuisance[:, None] * direction).astype(np.float32), person, quality, nuisance


def gain_on_others(
    train: tuple[np.ndarray, np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], curve: ThetaCurve, seed: int
) -> float:
    """Return the area on the test people at the chosen theta minus that at 0, of heads fitted to all training people."""
    embeddings, person, prior = train
    labels = optimize_labels(
        embeddings,
        person,
        prior,
        n_clusters=N_CLUSTERS,
        theta=[0.0, curve.chosen],
        seed=seed,
        index_scale="normalized",
    )
    targets = np.stack([labels[0.0].label, labels[curve.chosen].label], axis=1)
    both = np.concatenate([embeddings, test[0]])
    fold = np.repeat([0, 1], [len(embeddings), len(test[0])])
    scores = heldout_scores(both, fold, np.concatenate([targets, np.zeros((len(test[0]), 2))]))[len(embeddings) :]
    rng = np.random.default_rng([seed, 3])
    first = np.repeat(np.arange(len(test[0])), 2)
    mate = test[1][first] * PER_PERSON + rng.integers(0, PER_PERSON, len(first))
    other = rng.integers(0, len(test[0]), (2, 100_000))
    a = np.concatenate([first[first != mate], other[0][test[1][other[0]] != test[1][other[1]]]])
    b = np.concatenate([mate[first != mate], other[1][test[1][other[0]] != test[1][other[1]]]])
    units = unit_vectors(test[0])
    similarity = np.einsum("ij,ij->i", units[a], units[b], dtype=np.float64)
    areas = [
        edc_curve(similarity, test[1][a] == test[1][b], s[a], s[b], fmr=curve.fmr, convention=AT_FMR).auc()
        for s in scores.T
    ]
    return areas[1] - areas[0]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen: dict[str, Counter[str]] = {"truth": Counter(), "half": Counter()}
    n_covered, seconds, predicted, measured = 0, 0.0, [], []
    for trial in range(arguments.trials):
        rng = np.random.default_rng([trial, 1])
        direction = rng.normal(size=DIM)
        direction /= np.linalg.norm(direction)
        embeddings, person, quality, nuisance = people(N_TRAIN, rng, direction)
        test = people(N_TEST, rng, direction)[:2]
        for name, prior in (("truth", quality), ("half", quality / quality.std() + nuisance)):
            started = time.process_time()
            curve = choose_theta(embeddings, person, prior, n_clusters=N_CLUSTERS, seed=trial)
            seconds += time.process_time() - started
            chosen[name][f"{curve.chosen:g}"] += 1
            if name == "half" and curve.chosen > 0:
                at = curve.theta.index(curve.chosen)
                gain = gain_on_others((embeddings, person, prior), test, curve, trial)
                n_covered += curve.low[at] <= gain <= curve.high[at]
                predicted.append(curve.gain[at])
                measured.append(gain)
    n_gains = len(predicted)
    result = {
        "trials": arguments.trials,
        "prior is the truth: theta 0": chosen["truth"]["0"],
        "prior is half nuisance: a theta that gains": n_gains,
        "its interval covers the gain on others": n_covered,
        "mean predicted gain x 1000": round(1e3 * float(np.mean(predicted)), 2) if predicted else None,
        "mean gain on others x 1000": round(1e3 * float(np.mean(measured)), 2) if measured else None,
        "CPU seconds per choice": round(seconds / (2 * arguments.trials), 2),
        "chosen": [
            {"prior": name, "theta": t, "trials": n} for name, c in chosen.items() for t, n in sorted(c.items())
        ],
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
