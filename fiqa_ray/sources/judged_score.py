"""A quality score that is judged on a benchmark, from wherever it comes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.config import ScoresSettings
from fiqa_ray.datasets.columns import seed_scores
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.results import ScorerKey
from fiqa_ray.sources.degradations import recorded_truth
from fiqa_ray.sources.scores import scores_by_id


@dataclass(frozen=True)
class JudgedScore:
    """A quality score that is judged on a benchmark.

    Attributes:
        key: What it is.
        path: Its name in paths.
        dataset: Its scores, or None.
        file: The user's file of its scores, or None.
        truth: The table of degradations whose quality it is, or None. Random numbers have none of the three.
    """

    key: ScorerKey
    path: str
    dataset: Dataset | None = None
    file: ScoresSettings | None = None
    truth: str | None = None

    def scores(self, image_id: pa.Array) -> NDArray[np.float64]:
        """Return the scores of all images of the benchmark, `(I,)`; NaN where an image has none."""
        if self.dataset is not None:
            return self.dataset.read_all(["score"])["score"].to_numpy().astype(np.float64)
        if self.file is not None:
            return scores_by_id(image_id, **self.file.model_dump())
        assert self.truth is not None
        return recorded_truth(self.truth, image_id).quality

    def seed_scores(self) -> NDArray[np.float64]:
        """Return the scores of all images by each training seed, `(I, S)`; S is 0 where there was no training."""
        if self.dataset is None or self.key.seed is None:
            return np.empty((0, 0))
        return seed_scores(self.dataset.read_all(["seed_scores"]))
