"""The cost model of `fiqa-ray plan`: against runs measured here, and for known databases on clusters.

python benchmarks/cost_model.py [--measured full_size.json ...] [--bandwidth 300] [--json FILE]

--measured: what benchmarks/full_size.py wrote with --json on this machine. The table prints hours of pair, rank and optimize
(one prior, one theta), GB read and written, and the largest memory of a worker, from unit costs measured in this run, with
--bandwidth MB/s between each worker and storage. Then the bytes that each ranking engine moves, by pairs per repeat.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from shapes import SHAPES

from fiqa_ray.engine.cost import PROCESS_BYTES, START_S, Cost, Scale, Units
from fiqa_ray.stages import optimize, pair, rank
from fiqa_ray.tools.unit_costs import measure_units

ENGINES: tuple[Literal["counting", "sort"], ...] = ("counting", "sort")
DATABASES = {  # identities, images: as their authors give them
    "VGGFace2": (9_131, 3_311_286),
    "MS1MV3": (93_431, 5_179_510),
    "Glint360K": (360_232, 17_091_657),
    "WebFace42M": (2_059_906, 42_474_558),
    "WebFace260M": (4_008_130, 260_890_076),
}


def label_costs(scale: Scale, units: Units) -> list[Cost]:
    """Return the cost of each step of label optimization."""
    return [
        pair.step_cost(scale, units),
        *rank.step_costs(scale, units),
        *optimize.step_costs(scale, units),
    ]


def by_stage(steps: list[Cost], n_workers: int) -> dict[str, float]:
    """Return seconds of the clock per stage."""
    return {s: round(sum(c.wall_s(n_workers) for c in steps if c.stage == s), 1) for s in ("pair", "rank", "optimize")}


def check(path: Path) -> dict[str, Any]:
    """Predicted against measured seconds of a run of full_size.py, stage by stage."""
    run = json.loads(path.read_text())
    scale = Scale(
        run["n_images"],
        round(SHAPES[run["shape"]].n_identities * run["share"]),
        engine=run["engine"],
        keep=run["pairs_kept"],
        n_methods=run["n_methods"],
        n_thetas=run["n_label_sets"] // run["n_methods"],
        size_spread=SHAPES[run["shape"]].size_spread,
    )
    steps = label_costs(scale, measure_units(scale))
    measured: dict[str, float] = {}
    for name, seconds in run["seconds"].items():
        stage = name.split(":")[0]
        measured[stage] = round(measured.get(stage, 0.0) + seconds, 1)
    predicted = by_stage(steps, run["n_workers"])
    predicted["pair"] = round(predicted["pair"] - START_S, 1)  # which full_size.py does not count
    total = sum(predicted.values())
    return {
        "run": {k: run[k] for k in ("shape", "share", "engine", "n_workers")},
        "predicted_s": {**predicted, "total": round(total, 1)},
        "measured_s": {**measured, "total": run["total_s"]},
        "ratio": round(total / run["total_s"], 2),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, nargs="*", default=[])
    parser.add_argument("--bandwidth", type=float, default=300.0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    checks = [check(path) for path in a.measured]
    for c in checks:
        print(json.dumps(c))
    print(
        "| database | pairs per repeat | read + written | memory/worker | 1 worker | 8 workers | 64 workers | 512 workers |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    table, shuffles = [], []
    for name, (n_identities, n_images) in DATABASES.items():
        scale = Scale(n_images, n_identities)
        units = measure_units(scale)
        steps = label_costs(scale, units)
        moved = sum(s.read_bytes + s.written_bytes for s in steps)
        memory = PROCESS_BYTES + max(s.memory_bytes for s in steps)
        minutes = {w: sum(s.wall_s(w, 1e6 * a.bandwidth) for s in steps) / 60 for w in (1, 8, 64, 512)}
        row = {"database": name, "n_pairs": scale.n_pairs, "bytes": moved, "memory_bytes": memory, "minutes": minutes}
        table.append(row)
        times = " | ".join(f"{m:,.1f} min" if m < 120 else f"{m / 60:,.1f} h" for m in minutes.values())
        print(f"| {name} | {scale.n_pairs / 1e6:,.0f} M | {moved / 1e9:,.0f} GB | {memory / 1e9:,.1f} GB | {times} |")
        engines: dict[str, Any] = {}
        for engine in ENGINES:
            similarities = rank.similarity_costs(replace(scale, engine=engine), units)
            # what goes from task to task: histograms or sorted runs, written once and read once
            engines[engine] = {
                "shuffled_bytes": 2 * sum(s.written_bytes for s in similarities[:-1]),
                "work_s": sum(s.work_s for s in similarities),
            }
        shuffles.append({"database": name, **engines})
    print(json.dumps(shuffles, indent=1))
    if a.json:
        result = {"checks": checks, "table": table, "shuffles": shuffles}
        a.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
