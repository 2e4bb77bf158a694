"""A trial on real faces: CFP, with degraded copies whose kind and strength are recorded, held-out people, a job.

python jobs/real_faces.py CFP_ROOT OUT
fiqa-ray run OUT/job.yaml recognizer.name=FR.onnx 'recognizer.options={mean: 127.5, scale: 127.5}'

CFP_ROOT holds Data/Images/<person>/{frontal,profile}/<nn>.jpg, already aligned to 112x112 (an own copy; the data set is for
research and is not shipped). The first people are the training faces; the last folds of the official split, which are
disjoint in people, are the benchmark: all mated pairs within them are drawn from, and random non-mated ones.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.synthetic.damage import Degradation, degrade

KINDS = ("blur", "low_resolution", "noise", "occlusion", "compression", "darkness")
PEOPLE_PER_FOLD = 50
MAX_STRENGTH = 0.35
"""Stronger damage stays out of the pair list: faces that are hardly there resemble one another, and the few non-mated pairs
of such faces would set the threshold for all."""

PROFILE_COST = 0.25
"""What a profile takes from the recorded quality: a guess, so correlations within a kind mean more than over all."""


def prepare(root: Path, out: Path, n_train: int, n_test_folds: int, n_mated: int, n_nonmated: int, seed: int) -> None:
    """Write the faces, the recorded qualities, the pair list and the job below `out`."""
    rng = np.random.default_rng(seed)
    people = sorted(p.name for p in (root / "Data" / "Images").iterdir() if p.is_dir())
    test = people[len(people) - n_test_folds * PEOPLE_PER_FOLD :]
    train = people[:n_train]
    if set(train) & set(test) or len(people) < n_train + len(test):
        raise SystemExit(f"{len(people)} people are too few for {n_train} to train on and {len(test)} to test on")
    recorded = []
    for face_set, names in (("train", train), ("bench", test)):
        for person in names:
            for path in sorted((root / "Data" / "Images" / person).rglob("*.jpg")):
                image_id = f"{person}/{path.parent.name}_{path.stem}.png"
                image = cv2.imread(str(path))
                if image is None:
                    raise SystemExit(f"cannot read {path}")
                damage = Degradation("none", 0.0)
                if rng.random() < 0.5:
                    damage = Degradation(str(rng.choice(KINDS)), float(rng.uniform(0.1, 0.9)))
                image = degrade(image, TEMPLATE, damage, rng)
                target = out / face_set / image_id
                target.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(target), image):
                    raise SystemExit(f"cannot write {target}")
                quality = 1 - damage.strength - PROFILE_COST * (path.parent.name == "profile")
                recorded.append((face_set, image_id, damage.kind, damage.strength, quality))
    bench = [r[1:] for r in recorded if r[0] == "bench"]
    _write_csv(out / "degradations.csv", ["image_id", "kind", "strength", "quality"], bench)
    ids = {p: [r[0] for r in bench if r[0].startswith(f"{p}/") and r[2] <= MAX_STRENGTH] for p in test}
    fold = {p: i // PEOPLE_PER_FOLD for i, p in enumerate(test)}
    mated = [(a, b, 1, fold[p]) for p in test for a, b in itertools.combinations(ids[p], 2)]
    pairs = [mated[i] for i in np.sort(rng.permutation(len(mated))[:n_mated])]
    for _ in range(n_nonmated):
        first = test[rng.integers(len(test))]
        other = [p for p in test if p != first and fold[p] == fold[first]]
        second = other[rng.integers(len(other))]
        pairs.append((str(rng.choice(ids[first])), str(rng.choice(ids[second])), 0, fold[first]))
    _write_csv(out / "pairs.csv", ["image_id_a", "image_id_b", "mated", "fold"], pairs)
    job = {
        "name": "cfp-degraded",
        "run_uri": str(out / "run"),
        "source": {"kind": "folder", "uri": str(out / "train")},
        "recognizer": {"name": "FR.onnx"},
        "methods": [
            {"name": "fiqa_ray.jobs.contrast:contrast", "label": "contrast"},  # the demo's weak method
            {"name": "faceqan", "options": {"n_samples": 5, "n_iterations": 3, "epsilon": 0.002}},
            {"name": "embedding_norm"},
        ],
        "pair": {"n_clusters": 7, "n_repeats": 10},
        "optimize": {"theta": "heldout"},
        "train": {"mode": "head"},
        "benchmarks": [
            {
                "name": "cfp",
                "source": {"kind": "folder", "uri": str(out / "bench")},
                "pairs": {"kind": "table", "uri": str(out / "pairs.csv")},
                "degradations": str(out / "degradations.csv"),
            }
        ],
        "compute": {"rows_per_part": 256},
    }
    (out / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    print(f"{len(recorded)} faces, {len(pairs)} pairs; now: fiqa-ray run {out}/job.yaml recognizer.name=FR.onnx ...")


def _write_csv(path: Path, header: list[str], rows: Sequence[tuple[object, ...]]) -> None:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-people", type=int, default=120)
    parser.add_argument("--test-folds", type=int, default=2)
    parser.add_argument("--mated", type=int, default=4000)
    parser.add_argument("--nonmated", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    prepare(a.root, a.out, a.train_people, a.test_folds, a.mated, a.nonmated, a.seed)


if __name__ == "__main__":
    main()
