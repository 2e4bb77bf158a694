"""Verdicts on many comparisons: which differences hold together, and which scorers cannot be told from the best."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.stats import rankdata

from fiqa_ray.core.intervals import Interval

Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the family that they form (Holm 1979): with 20 comparisons one in 20 errs by chance.

    The i-th smallest of n is multiplied by n - i + 1, and none falls below a smaller one's. NaN, a comparison without an
    interval, stays NaN and does not count.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(p.size, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)), 1)
    return adjusted.tolist()


def leading_group(
    areas: Mapping[str, float], difference: Callable[[str, str], Interval], level: float = 0.95
) -> list[str]:
    """Return the scorer with the lowest area, and every rival that cannot be told from it, lowest area first.

    A rival is told apart where its paired interval does not hold zero and its p-value, adjusted for all rivals, is below
    1 - level. One name alone is the best.

    Args:
        areas: scorer -> area up to a common limit, NaN where undefined. The floor and the oracle are not among them.
        difference: the interval of the area of the first scorer minus that of the second.
        level: confidence.
    """
    ranked = sorted((name for name in areas if not np.isnan(areas[name])), key=lambda name: (areas[name], name))
    if not ranked:
        return []
    best, rivals = ranked[0], ranked[1:]
    intervals = [difference(best, rival) for rival in rivals]
    adjusted = holm([interval.p_value for interval in intervals])
    return [best] + [
        rival
        for rival, interval, p in zip(rivals, intervals, adjusted, strict=True)
        if not (interval.high < 0 and p < 1 - level)
    ]


def mean_ranks(columns: Sequence[Mapping[Name, float]]) -> dict[Name, float]:
    """Return each name's rank, 1 for the smallest value, averaged over the columns; of names that all columns have.

    Equal values share their mean rank; a value that is NaN counts as none.
    """
    names = [n for n in (columns[0] if columns else ()) if not any(np.isnan(c.get(n, np.nan)) for c in columns)]
    ranks = [rankdata([column[name] for name in names]) for column in columns if names]
    return {name: float(np.mean([r[i] for r in ranks])) for i, name in enumerate(names)}
