"""Thetas and the index scale that goes with them; settings and names of datasets need these without any numerics."""

from __future__ import annotations

from collections.abc import Sequence

PAPER_THETA = 1e-3
"""The paper's theta, on the index scale `raw`."""

HELDOUT = "heldout"
"""Stands for the theta that is best on held-out people."""

CANDIDATES = (0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
"""Thetas to choose from, on the index scale `normalized`; 0 leaves the labels as they are."""

MAX_IMAGES = 20_000
"""The most images that a job's choice uses: parts are taken in a random order until they hold as many."""

N_FOLDS = 10
"""Folds of the people, each of which is held out once."""


MIN_SEPARATION = 1.0
"""Distance d' of mated from non-mated similarities, in standard deviations, below which nothing is chosen."""


def default_scale(thetas: Sequence[float | str]) -> str:
    """Return the index scale where none is given: the published one for the paper's theta alone."""
    return "raw" if list(thetas) == [PAPER_THETA] else "normalized"
