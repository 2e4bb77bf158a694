"""What became of a source's files: how many were seen, taken and left out, and which people can have pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fiqa_ray.sources.landmarks import LandmarkFit
from fiqa_ray.sources.leftovers import count_text


@dataclass(frozen=True)
class Account:
    """What became of one face set's files.

    Attributes:
        n_images: images that were taken.
        left_out: how many files, members or rows were left out, by reason.
        n_people: identities of the images.
        n_single: identities with one image; no mated pair holds it.
        landmarks: how the landmarks fit the template; None if there are none.
        is_flat: whether the source names no people; all images then have one identity, "".
    """

    n_images: int
    left_out: dict[str, int] = field(default_factory=dict)
    n_people: int = 0
    n_single: int = 0
    landmarks: LandmarkFit | None = None
    is_flat: bool = False

    @classmethod
    def of(cls, faces: pa.Table, left_out: Counter[str], landmarks: LandmarkFit | None = None) -> Account:
        """Return the account of a finished list, which is sorted by identity."""
        identity = faces["identity"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        sizes = np.bincount(identity) if len(identity) else np.zeros(0, np.int64)
        is_flat = len(identity) > 0 and faces["identity"][0].as_py() == ""
        return cls(len(faces), dict(left_out), len(sizes), int((sizes == 1).sum()), landmarks, is_flat)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Account:
        """Return the account that `to_json` stored."""
        fit = values.get("landmarks")
        return cls(**{**values, "landmarks": LandmarkFit(**fit) if fit else None})

    def to_json(self) -> dict[str, Any]:
        """Return the account as plain values."""
        return asdict(self)

    @property
    def n_seen(self) -> int:
        """Files, members or rows that were looked at."""
        return self.n_images + sum(self.left_out.values())

    def __str__(self) -> str:
        n_left_out = sum(self.left_out.values())
        why = f" ({count_text(Counter(self.left_out))})" if n_left_out else ""
        single = f", {self.n_single:,} of them with one image, which can have no pair" if self.n_single else ""
        fit = f"; {self.landmarks}" if self.landmarks else ""
        people = "1 person" if self.n_people == 1 else f"{self.n_people:,} people"
        if self.is_flat:
            people = "people not named"
        return (
            f"{self.n_seen:,} seen, {self.n_images:,} images taken, {n_left_out:,} left out{why}; {people}{single}{fit}"
        )
