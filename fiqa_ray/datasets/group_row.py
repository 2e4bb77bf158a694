"""The row of the table `group_rates`; `datasets.results` makes it a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class GroupRateRow:
    """Error rates of one group of people at the threshold that all pairs of the benchmark set.

    Attributes:
        benchmark: Name of the benchmark.
        recognizer: Recogniser whose errors are counted.
        group: The group.
        fmr_wanted: False match rate of all pairs that sets the threshold.
        threshold: The threshold.
        n_mated: Mated pairs of the group.
        n_nonmated: Non-mated pairs within the group.
        fmr: False match rate within the group.
        fmr_low: Lower end of its 95 % interval.
        fmr_high: Upper end.
        fnmr: False non-match rate of the group.
        fnmr_low: Lower end of its 95 % interval.
        fnmr_high: Upper end.
        unit: What was resampled: "pairs" or "identities".
    """

    TABLE: ClassVar = "group_rates"

    benchmark: str
    recognizer: str
    group: str
    fmr_wanted: float
    threshold: float
    n_mated: int
    n_nonmated: int
    fmr: float
    fmr_low: float
    fmr_high: float
    fnmr: float
    fnmr_low: float
    fnmr_high: float
    unit: str
