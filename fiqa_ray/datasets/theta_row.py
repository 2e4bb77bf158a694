"""The row of the dataset `theta_choice`; `datasets.results` makes it a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ThetaRow:
    """What one candidate theta is worth for one FIQA method on held-out training people, see `fiqa_ray.core.theta`.

    Attributes:
        method: FIQA method of the prior scores.
        theta: The candidate; 0 stands for the prior labels.
        area: Area under the error-versus-discard curve of the held-out people; smaller is better. NaN where there is none.
        gain: Area minus that of theta 0; below 0 the candidate is better.
        low: Lower end of the gain's 95 % interval over people; NaN where there is none.
        high: Upper end.
        is_chosen: Whether this theta is chosen.
        summary: In one sentence, whether the prior gains, and by how much; the same in all rows of a method.
        n_people: People with mated pairs.
        n_images: Images.
        n_mated: Mated pairs.
        n_nonmated: Non-mated pairs.
        fmr: False match rate of the threshold.
        fnmr: False non-match rate before anything is discarded.
    """

    TABLE: ClassVar = "theta"

    method: str
    theta: float
    area: float
    gain: float
    low: float
    high: float
    is_chosen: bool
    summary: str
    n_people: int
    n_images: int
    n_mated: int
    n_nonmated: int
    fmr: float
    fnmr: float
