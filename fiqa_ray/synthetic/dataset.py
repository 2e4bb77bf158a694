"""Writes a data set of synthetic people with known quality."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from fiqa_ray.errors import UsageError
from fiqa_ray.images import align_face
from fiqa_ray.synthetic.damage import DEGRADATION_KINDS, Degradation, degrade
from fiqa_ray.synthetic.render import FaceView, draw_identity, draw_view, render_face

_T = TypeVar("_T")


_R = TypeVar("_R")


TRAIN_PART, HELDOUT_PART, RECOGNIZER_PART, COUNTS_PART, PAIRS_PART = range(5)


MARKER_NAME = "synthetic_faces.json"


GENERATOR_VERSION = 1


_CLEAN_FRACTION = 0.35


_NAME_STARTS = tuple("Al Bre Cor Da El Fa Gri Ha Il Jo Ka Lo Mi No Or Pe Ri Sa Ti Vo".split(" "))  # noqa: SIM905


_NAME_ENDS = tuple("ba dan dric fen gar la lin mar na nor ra ric sa ster tha ton va wen win zo".split(" "))  # noqa: SIM905


def draw_degradation(rng: np.random.Generator) -> Degradation:
    """Draw the damage of one picture: none for 35 % of them, else one kind with strength uniform in [0, 1]."""
    if rng.uniform() < _CLEAN_FRACTION:
        return Degradation("none", 0.0)
    return Degradation(DEGRADATION_KINDS[rng.integers(len(DEGRADATION_KINDS))], float(rng.uniform()))


def true_quality(view: FaceView, degradation: Degradation) -> float:
    """Oracle quality, continuous, larger is better, at most 1.

    One minus the degradation's strength (the kinds are scaled to cost about the same similarity at equal strength), less a
    share for turning away from the camera.
    """
    turn = (view.yaw / 0.9) ** 2 + (view.pitch / 0.36) ** 2
    return float(1.0 - degradation.strength - 0.6 * turn)


def identity_rng(seed: int, part: int, identity: int, image: int | None = None) -> np.random.Generator:
    """Return the random numbers of a person (`image` None) or of one picture, independent of all others."""
    key = (seed, part, identity) if image is None else (seed, part, identity, 1 + image)
    return np.random.default_rng(key)


@dataclass(frozen=True)
class _PersonTask:
    folder: Path
    part: int
    identity: int
    seed: int
    file_names: tuple[str, ...]


def _write_person(task: _PersonTask) -> list[tuple[np.ndarray, Degradation, float]]:
    """Write one person's pictures; return landmarks, damage and true quality of each."""
    identity = draw_identity(identity_rng(task.seed, task.part, task.identity))
    task.folder.mkdir(parents=True)
    rows = []
    for image, file_name in enumerate(task.file_names):
        rng = identity_rng(task.seed, task.part, task.identity, image)
        view, degradation = draw_view(rng), draw_degradation(rng)
        picture, landmarks = render_face(identity, view, rng)
        picture = degrade(picture, landmarks, degradation, rng)
        _, coded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
        (task.folder / file_name).write_bytes(coded.tobytes())
        rows.append((landmarks, degradation, true_quality(view, degradation)))
    return rows


def person_name(identity: int) -> str:
    """Return a made-up name for a held-out person; distinct for the first 160,000."""
    n_names = len(_NAME_STARTS) * len(_NAME_ENDS)
    # Steps coprime to the number of names visit each of them before any comes back.
    first, last = identity * 37 % n_names, (identity * 59 + identity // n_names) % n_names
    return "_".join(_NAME_STARTS[i // len(_NAME_ENDS)] + _NAME_ENDS[i % len(_NAME_ENDS)] for i in (first, last))


def map_in_processes(function: Callable[[_T], _R], tasks: Sequence[_T], n_workers: int) -> list[_R]:
    """Return `[function(task) for task in tasks]`, computed in `n_workers` fresh processes."""
    if n_workers == 1:
        return [function(task) for task in tasks]
    # Not forked: the caller may already run threads (torch, Ray), which a fork would leave in an unusable state.
    with ProcessPoolExecutor(
        n_workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        return list(pool.map(function, tasks, chunksize=max(1, len(tasks) // (8 * n_workers))))


def write_synthetic_faces(
    root: Path,
    *,
    n_identities: int = 60,
    images_per_identity: int = 22,
    n_heldout_identities: int = 60,
    heldout_images_per_identity: int = 9,
    n_folds: int = 4,
    pairs_per_fold: int = 500,
    seed: int = 0,
    n_workers: int = 2,
) -> None:
    """Write a training set and a verification benchmark of people who are not in it.

    Below `root`::

        train/n000001/0001_01.jpg             loose crops, as VGGFace2
        bb_landmark/loose_landmark_train.csv  their landmarks, as VGGFace2
        heldout/<Name>/<Name>_0001.jpg        loose crops, as LFW
        heldout_faces.csv                     uri,image_id,identity,x1,y1,...,x5,y5 (eyes, nose, mouth)
        heldout_pairs.txt                     LFW's pairs.txt, identity-disjoint folds
        degradations.csv                      image_id,kind,strength,quality: the truth, see `true_quality`

    The set appears under `root` only when it is complete. An existing one with the same settings is not changed.

    Args:
        root: folder to be made; its parent may be missing too.
        n_identities: people of the training set.
        images_per_identity: mean number of pictures; it varies by a fifth either way from person to person.
        n_heldout_identities: people of the benchmark.
        heldout_images_per_identity: pictures of each of them.
        n_folds: folds of the pair list.
        pairs_per_fold: mated pairs in each fold, and as many non-mated ones.
        seed: of all draws.
        n_workers: processes; the files do not depend on it.

    Raises:
        UsageError: settings that cannot be met, or `root` holds something else.
    """
    settings = {
        "n_identities": n_identities,
        "images_per_identity": images_per_identity,
        "n_heldout_identities": n_heldout_identities,
        "heldout_images_per_identity": heldout_images_per_identity,
        "n_folds": n_folds,
        "pairs_per_fold": pairs_per_fold,
        "seed": seed,
    }
    for name, value in (settings | {"n_workers": n_workers}).items():
        if value < (0 if name == "seed" else 1):
            raise UsageError(f"{name}={value} is too small; give at least {0 if name == 'seed' else 1}")
    marker = json.dumps({"generator_version": GENERATOR_VERSION, **settings}, indent=1) + "\n"
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        present = root / MARKER_NAME
        if present.is_file() and present.read_text() == marker:
            return
        what = "synthetic faces of other settings" if present.is_file() else "something else"
        raise UsageError(f"{root} already holds {what}; name another folder, or remove this one yourself")
    pairs = _draw_pairs(n_heldout_identities, heldout_images_per_identity, n_folds, pairs_per_fold, seed)

    # Written under another name and renamed at the end, so that an interrupted run leaves nothing that looks complete.
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = root.with_name(f"{root.name}.incomplete-{os.getpid()}")
    tasks = []
    for identity in range(n_identities):
        spread = images_per_identity // 5
        n_images = images_per_identity + identity_rng(seed, COUNTS_PART, identity).integers(-spread, spread + 1)
        names = tuple(f"{image + 1:04d}_01.jpg" for image in range(n_images))
        tasks.append(_PersonTask(draft / "train" / f"n{identity + 1:06d}", TRAIN_PART, identity, seed, names))
    for identity in range(n_heldout_identities):
        person = person_name(identity)
        names = tuple(f"{person}_{image + 1:04d}.jpg" for image in range(heldout_images_per_identity))
        tasks.append(_PersonTask(draft / "heldout" / person, HELDOUT_PART, identity, seed, names))
    results = map_in_processes(_write_person, tasks, n_workers)

    train_rows, heldout_rows, truth_rows = [], [], []
    for task, rows in zip(tasks, results, strict=True):
        for file_name, (landmarks, degradation, quality) in zip(task.file_names, rows, strict=True):
            image_id = f"{task.folder.name}/{file_name}"
            coordinates = [f"{value:.4f}" for value in landmarks.ravel()]
            truth_rows.append([image_id, degradation.kind, f"{degradation.strength:.6f}", f"{quality:.6f}"])
            if task.part == TRAIN_PART:
                train_rows.append([f'"{image_id.removesuffix(".jpg")}"', *coordinates])
            else:
                heldout_rows.append([f"heldout/{image_id}", image_id, task.folder.name, *coordinates])
    (draft / "bb_landmark").mkdir()
    corners = [f"P{point}{axis}" for point in range(1, 6) for axis in "XY"]
    _write_csv(draft / "bb_landmark" / "loose_landmark_train.csv", ["NAME_ID", *corners], train_rows)
    columns = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]
    _write_csv(draft / "heldout_faces.csv", ["uri", "image_id", "identity", *columns], heldout_rows)
    _write_csv(draft / "degradations.csv", ["image_id", "kind", "strength", "quality"], truth_rows)
    (draft / "heldout_pairs.txt").write_text(pairs)
    (draft / MARKER_NAME).write_text(marker)
    draft.rename(root)  # takes the place of an empty folder


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    path.write_text("".join(",".join(row) + "\n" for row in [header, *rows]))


def _draw_pairs(n_people: int, n_images: int, n_folds: int, n_pairs: int, seed: int) -> str:
    """Return a pair list in LFW's format: people are shared out to the folds, and a fold has no pair twice."""
    rng = np.random.default_rng((seed, PAIRS_PART))
    lines = [f"{n_folds}\t{n_pairs}"]
    for people in np.array_split(rng.permutation(n_people), n_folds):
        first, second = np.triu_indices(len(people) * n_images, k=1)
        mated = first // n_images == second // n_images
        for same in (True, False):
            candidates = np.flatnonzero(mated == same)
            if len(candidates) < n_pairs:
                raise UsageError(
                    f"pairs_per_fold={n_pairs}: a fold of {len(people)} people with {n_images} pictures each has only "
                    f"{len(candidates)} {'mated' if same else 'non-mated'} pairs; ask for fewer, or for more pictures"
                )
            for pair in np.sort(rng.choice(candidates, n_pairs, replace=False)):
                (person_a, image_a), (person_b, image_b) = divmod(first[pair], n_images), divmod(second[pair], n_images)
                fields = [person_name(int(people[person_a])), str(image_a + 1)]
                fields += [] if same else [person_name(int(people[person_b]))]
                lines.append("\t".join([*fields, str(image_b + 1)]))
    return "\n".join(lines) + "\n"


def aligned_faces(task: tuple[int, int, int, int]) -> np.ndarray:
    """Pictures of one person, aligned and in memory: each once undamaged and once damaged.

    Args:
        task: (seed, part, identity, n_views).

    Returns:
        (2 * n_views, 112, 112, 3) uint8 RGB.
    """
    seed, part, identity_number, n_views = task
    identity = draw_identity(identity_rng(seed, part, identity_number))
    faces = []
    for image in range(n_views):
        rng = identity_rng(seed, part, identity_number, image)
        view = draw_view(rng)
        picture, landmarks = render_face(identity, view, rng)
        degradation = Degradation(DEGRADATION_KINDS[rng.integers(len(DEGRADATION_KINDS))], float(rng.uniform()))
        faces += [align_face(p, landmarks) for p in (picture, degrade(picture, landmarks, degradation, rng))]
    return np.stack(faces)
