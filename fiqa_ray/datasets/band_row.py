"""The row of the table `bands`: how sure a curve is between two levels; `datasets.results` makes it a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiqa_ray.datasets.cell_key import CellKey


@dataclass(frozen=True)
class BandRow(CellKey):
    """The mean rate of a curve between two neighbouring discard levels, over the bootstrap draws.

    Where a cell has no interval it has no rows either.

    Attributes:
        discard_from: Discarded share at which the stretch begins.
        discard_to: Discarded share at which it ends.
        low: Lower percentile of the mean rate over the stretch.
        high: Upper percentile.
    """

    TABLE: ClassVar = "bands"

    discard_from: float
    discard_to: float
    low: float
    high: float
