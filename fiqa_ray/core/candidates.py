"""The thetas that `core.theta` chooses from; settings and names of datasets need them without any numerics."""

from __future__ import annotations

HELDOUT = "heldout"
"""Stands for the theta that is best on held-out people."""

CANDIDATES = (0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
"""Thetas to choose from, on the index scale `normalized`; 0 leaves the labels as they are."""

N_FOLDS = 10
"""Folds of the people, each of which is held out once."""
