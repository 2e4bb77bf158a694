"""A set of training labels of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiqa_ray.config.labels import EDIFF, LabelRule, theta_name
from fiqa_ray.config.methods import MethodSettings


@dataclass(frozen=True)
class LabelSet:
    """One set of training labels: a method's prior scores, its optimized scores at one theta, or those of eDifFIQA's rule.

    Attributes:
        method: the FIQA method whose scores are the labels, or what they are made from.
        theta: weight of the update, or `heldout` for the one chosen on held-out people (`Job.theta_choice`); `ediff` for
            labels by eDifFIQA's rule, which has no theta; None for prior labels.
    """

    method: MethodSettings
    theta: LabelRule | None = None

    @property
    def kind(self) -> Literal["prior", "optimized", "ediff"]:
        """What the labels are."""
        if self.theta is None:
            return "prior"
        return EDIFF if self.theta == EDIFF else "optimized"

    @property
    def is_prior(self) -> bool:
        """Whether the labels are the prior scores."""
        return self.theta is None

    @property
    def key(self) -> str:
        """The label set's name in paths: `prior`, `ediff`, or such as `theta-0.03` or `theta-heldout`."""
        return self.kind if self.theta is None or self.theta == EDIFF else f"theta-{theta_name(self.theta)}"

    @property
    def score_column(self) -> str:
        """The column of the labels' dataset that holds the scores; eDifFIQA's labels are made without new scores."""
        return {"prior": "prior_score", "optimized": "optimized_score", "ediff": "label"}[self.kind]
