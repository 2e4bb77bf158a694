"""Sizes of the published benchmarks, against which a user's copy of a pair list may be checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.protocols import VerificationPairs


@dataclass(frozen=True)
class KnownSet:
    """What the published list of a benchmark holds.

    Attributes:
        n_mated: Mated pairs.
        n_nonmated: Non-mated pairs.
        n_images: Distinct images in pairs; None where no source states it.
        n_folds: Folds.
    """

    n_mated: int
    n_nonmated: int
    n_images: int | None
    n_folds: int = 10


KNOWN_SETS: dict[str, KnownSet] = {
    "lfw": KnownSet(3000, 3000, 7701),
    "xqlfw": KnownSet(3000, 3000, 7263),
    "cfp_fp": KnownSet(3500, 3500, 5901),
    "cfp_ff": KnownSet(3500, 3500, None),
    "cplfw": KnownSet(3000, 3000, 5984),
    "calfw": KnownSet(3000, 3000, None),
    "agedb_30": KnownSet(3000, 3000, None),
}
"""Benchmarks by the name that `pairs.expect` takes. Images are those counted in the published lists."""


def check_expected(name: str, pairs: VerificationPairs, uri: str, *, are_images_merged: bool) -> None:
    """Refuse a list whose counts are not those of the published one.

    Args:
        name: Of `KNOWN_SETS`.
        pairs: The list.
        uri: Where it was read, for the error.
        are_images_merged: Whether equal images count once, so that their number says nothing (`.bin`).

    Raises:
        FiqaRayError: Names the count that differs.
    """
    known = KNOWN_SETS[name]
    counts = [
        ("mated pairs", int(pairs.mated.sum()), known.n_mated),
        ("non-mated pairs", int((~pairs.mated).sum()), known.n_nonmated),
        ("folds", len(np.unique(pairs.fold[pairs.fold >= 0])), known.n_folds),
    ]
    if known.n_images is not None and not are_images_merged:
        counts.append(("distinct images", len({*pairs.image_id_a, *pairs.image_id_b}), known.n_images))
    for what, n, expected in counts:
        if n != expected:
            raise FiqaRayError(
                f"{uri}: {n:,} {what}, but {name} has {expected:,} (pairs.expect: {name}); fetch the list again, or leave "
                "out expect"
            )
