"""CPU seconds of the bootstrap: draws of a benchmark of LFW's size, per convention, and for a whole matrix of scores.

    python benchmarks/bootstrap_speed.py [--draws 2000] [--scorers 19]

Prints one line per convention (one scorer, FMR 0.001, areas up to all stored limits), then one for all scorers at three
rates in three conventions, each scorer in a pass of its own as a job makes them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fiqa_ray.core.bootstrap import bootstrap_cells
from fiqa_ray.core.conventions import CONVENTIONS, cells_of, stored_limits

FMRS = (1e-2, 1e-3, 1e-4)


def seconds(n_draws: int, names: list[str], fmrs: tuple[float, ...], n_scorers: int = 1) -> float:
    """Return the CPU seconds of a bootstrap of 6,000 pairs."""
    rng = np.random.default_rng(0)
    n = 6000
    images = rng.integers(7000, size=(2, n))
    mated = np.arange(n) < n // 2
    utility = rng.beta(5, 2, size=7000)
    similarity = np.where(mated, 0.6 * utility[images].min(axis=0), 0) + 0.1 * rng.normal(size=n)
    conventions = [CONVENTIONS[name] for name in names]
    limits = sorted({limit for c in conventions for limit in stored_limits(c, (0.2, 0.3))})
    started = time.process_time()
    for k in range(n_scorers):
        score = utility + 0.02 * k * rng.normal(size=7000)
        qualities = {"score": (score[images[0]], score[images[1]])}
        cells = cells_of(conventions, fmrs)
        bootstrap_cells(similarity, mated, qualities, cells, limits=limits, images=tuple(images), n_draws=n_draws)
    return time.process_time() - started


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--scorers", type=int, default=19)
    a = parser.parse_args()
    seconds(2, list(CONVENTIONS), FMRS)  # compiles
    for name in CONVENTIONS:
        print(f"{name:8} {seconds(a.draws, [name], (1e-3,)):6.2f} s CPU", flush=True)
    total = seconds(a.draws, ["paper", "nearest", "dasec"], FMRS, a.scorers)
    print(f"{a.scorers} scorers, 3 rates, 3 conventions: {total:.1f} s CPU")


if __name__ == "__main__":
    main()
