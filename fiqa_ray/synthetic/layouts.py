"""Five small benchmarks of drawn people, each laid out as a published one, and training faces: the matrix of the paper.

    python -m fiqa_ray.synthetic.layouts runs/paper_matrix

writes FOLDER/train and, below FOLDER, `lfw` and `xqlfw` (a folder per person, `pairs.txt`), `cplfw` and `calfw` (flat, lists
of two lines per pair) and `cfp` (frontal and profile, `Protocol`). Faces are aligned crops of 112x112.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from fiqa_ray.errors import UsageError
from fiqa_ray.synthetic.dataset import HELDOUT_PART, TRAIN_PART, aligned_faces, person_name

SETS = ("lfw", "cfp", "cplfw", "calfw", "xqlfw")
Image = tuple[int, int]
"""Person and image, each from 0."""


def write_layouts(
    root: Path,
    n_people: int = 55,
    n_views: int = 2,
    n_pairs: int = 200,
    seed: int = 0,
    train: tuple[int, int] = (12, 4),
) -> None:
    """Write training faces and the five benchmarks; each person has 2 * n_views images.

    The default is about the least that carries intervals by people: 50 of them with mated pairs are needed.

    Args:
        root: Folder, new or empty.
        n_people: People of each benchmark.
        n_views: Views of a person, each once undamaged and once damaged.
        n_pairs: Mated and non-mated pairs of each benchmark, a multiple of ten.
        seed: Of all draws.
        train: People and views of the training faces.

    Raises:
        UsageError: The folder holds something, or the people have fewer pairs.
    """
    if root.exists() and any(root.iterdir()):
        raise UsageError(f"{root} is not empty; name another folder, or remove this one yourself")
    for person in range(train[0]):
        for image, face in enumerate(aligned_faces((seed, TRAIN_PART, person, train[1]))):
            _write(root / "train" / f"n{person:06d}" / f"{image:04d}.png", face)
    for number, name in enumerate(SETS):
        rng = np.random.default_rng((seed, number))
        first = number * n_people
        faces = [aligned_faces((seed, HELDOUT_PART, first + person, n_views)) for person in range(n_people)]
        mated, others = _draw(rng, n_people, 2 * n_views, n_pairs)
        {"cfp": _write_cfp, "cplfw": _write_flat, "calfw": _write_flat}.get(name, _write_lfw)(
            root / name, first, faces, mated, others
        )


def _write(path: Path, face: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(face, cv2.COLOR_RGB2BGR))


Pairs = list[tuple[Image, Image]]


def _draw(rng: np.random.Generator, n_people: int, n_images: int, n_pairs: int) -> tuple[Pairs, Pairs]:
    """Return mated and non-mated pairs, each without a pair twice; the first image has an even number."""
    images = [(person, image) for person in range(n_people) for image in range(n_images)]
    pairs = [(a, b) if a[1] % 2 == 0 else (b, a) for a, b in combinations(images, 2) if a[1] % 2 != b[1] % 2]
    kinds = [[p for p in pairs if (p[0][0] == p[1][0]) == same] for same in (True, False)]
    if any(len(kind) < n_pairs for kind in kinds):
        raise UsageError(f"n_pairs={n_pairs}: {n_people} people of {n_images} images have fewer pairs; ask for fewer")
    mated, others = ([kind[i] for i in rng.choice(len(kind), n_pairs, replace=False)] for kind in kinds)
    return mated, others


def _write_lfw(root: Path, first: int, faces: list[np.ndarray], mated: Pairs, others: Pairs) -> None:
    """Write the layout of LFW and XQLFW."""
    for person, images in enumerate(faces):
        for image, face in enumerate(images):
            name = person_name(first + person)
            _write(root / name / f"{name}_{image + 1:04d}.png", face)
    lines = [f"10\t{len(mated) // 10}"]
    for same, different in zip(_tenths(mated), _tenths(others), strict=True):
        lines += [f"{person_name(first + a[0])}\t{a[1] + 1}\t{b[1] + 1}" for a, b in same]
        for a, b in different:
            lines.append(f"{person_name(first + a[0])}\t{a[1] + 1}\t{person_name(first + b[0])}\t{b[1] + 1}")
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")


def _write_flat(root: Path, first: int, faces: list[np.ndarray], mated: Pairs, others: Pairs) -> None:
    """Write the layout of CPLFW, or of CALFW, whose labels of mated pairs are folds and whose numbers are padded."""
    is_calfw = root.name == "calfw"

    def name(image: Image) -> str:
        number = f"{image[1] + 1:04d}" if is_calfw else str(image[1] + 1)
        return f"{person_name(first + image[0])}_{number}.png"

    for person, images in enumerate(faces):
        for image, face in enumerate(images):
            _write(root / "images" / name((person, image)), face)
    lines = []
    for fold, pairs in enumerate(_tenths(mated), start=1):
        lines += [f"{name(image)} {fold if is_calfw else 1}" for pair in pairs for image in pair]
    lines += [f"{name(image)} 0" for pair in others for image in pair]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")


def _write_cfp(root: Path, first: int, faces: list[np.ndarray], mated: Pairs, others: Pairs) -> None:
    """Write the layout of CFP: images with even numbers are frontal, the others profile."""
    del first
    protocol = root / "Protocol"
    n_each = len(faces[0]) // 2
    for kind, odd in (("F", 0), ("P", 1)):
        lines = []
        for person, images in enumerate(faces):
            for k, face in enumerate(images[odd::2]):
                path = f"{person + 1:03d}/{'profile' if odd else 'frontal'}/{k + 1:02d}.png"
                _write(root / "Data" / "Images" / path, face)
                lines.append(f"{person * n_each + k + 1} ../Data/Images/{path}")
        protocol.mkdir(exist_ok=True)
        (protocol / f"Pair_list_{kind}.txt").write_text("\n".join(lines) + "\n")
    for fold, pairs in enumerate(zip(_tenths(mated), _tenths(others), strict=True), start=1):
        folder = protocol / "Split" / "FP" / f"{fold:02d}"
        folder.mkdir(parents=True)
        for file, members in zip(("same.txt", "diff.txt"), pairs, strict=True):
            numbers = [[image[0] * n_each + image[1] // 2 + 1 for image in pair] for pair in members]
            (folder / file).write_text("".join(f"{a},{b}\n" for a, b in numbers))


def _tenths(pairs: Pairs) -> Iterator[Pairs]:
    """Yield ten equal runs of pairs."""
    n = len(pairs) // 10
    return (pairs[i * n : (i + 1) * n] for i in range(10))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m fiqa_ray.synthetic.layouts", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where train/ and the benchmarks go")
    parser.add_argument("--people", type=int, default=55, help="people of each benchmark")
    a = parser.parse_args()
    write_layouts(a.folder, a.people)
    print(f"training faces and {', '.join(SETS)} in {a.folder}")


if __name__ == "__main__":
    main()
