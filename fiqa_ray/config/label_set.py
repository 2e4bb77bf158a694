"""A set of training labels of a job."""

from __future__ import annotations

from dataclasses import dataclass

from fiqa_ray.config.labels import Theta, theta_name
from fiqa_ray.config.methods import MethodSettings


@dataclass(frozen=True)
class LabelSet:
    """One set of training labels: a method's prior scores, or its optimized scores at one theta.

    Attributes:
        method: the FIQA method whose scores are the labels.
        theta: weight of the update, or `heldout` for the one chosen on held-out people (`Job.theta_choice`); None
            for prior labels, which are not optimized.
    """

    method: MethodSettings
    theta: Theta | None = None

    @property
    def is_prior(self) -> bool:
        """Whether the labels are the prior scores."""
        return self.theta is None

    @property
    def key(self) -> str:
        """The label set's name in paths: `prior`, or such as `theta-0.03` or `theta-heldout`."""
        return "prior" if self.theta is None else f"theta-{theta_name(self.theta)}"

    @property
    def score_column(self) -> str:
        """The column of `optimized_labels` that holds the scores."""
        return "prior_score" if self.theta is None else "optimized_score"
