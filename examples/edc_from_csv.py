"""Draw error-versus-discard curves of your own pairs: CSV in, areas and a figure out.

Usage: python examples/edc_from_csv.py PAIRS.csv CURVES.png [FMR]

PAIRS has a header and the columns similarity and mated (1 or 0), and for each quality score two columns NAME_a and NAME_b
with the quality of the pair's first and second image, larger is better.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import pyarrow.csv as pacsv

import fiqa_ray


def main(pairs_file: str, figure_file: str, fmr: str = "0.01") -> None:
    """Print the area under the curve of each score, and draw the curves."""
    table = pacsv.read_csv(pairs_file)
    pairs = {name: table[name].to_numpy() for name in table.column_names}
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name in [column.removesuffix("_a") for column in pairs if column.endswith("_a")]:
        curve = fiqa_ray.edc_curve(
            pairs["similarity"], pairs["mated"], pairs[f"{name}_a"], pairs[f"{name}_b"], fmr=float(fmr)
        )
        axes.plot(curve.discard_fraction, curve.fnmr, label=name)
        print(f"{name}: area {curve.auc():.5f} (lower is better)")
    axes.set(xlabel="share of pairs discarded", ylabel=f"false non-match rate at FMR {fmr}")
    axes.legend()
    figure.savefig(figure_file, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
