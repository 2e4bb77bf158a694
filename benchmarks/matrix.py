"""The matrix of the paper and a large one, each from one YAML and one command, with tiny random networks: cells are counted.

python benchmarks/matrix.py [paper large] [--folder FOLDER] [--json FILE]

    paper   the shipped `jobs/paper_matrix.yaml` with small networks: six methods, three recognisers, five layouts. The
            process is killed in mid-matrix, the same command goes on; then run times, tables and figures.
    large   20 methods x 9 sets x 6 recognisers without training; then one score file is added.

The numbers mean nothing. What counts: cells that are made, made twice or missing, and those with an interval.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from fiqa_ray.synthetic.layouts import write_layouts
from fiqa_ray.tools.open_run import open_run

JOB = Path(__file__).parents[1] / "fiqa_ray" / "jobs" / "paper_matrix.yaml"
SMALL = {
    "arcface": '{name: "networks.py:network", label: arcface}',
    "elasticface": '{name: "networks.py:network", options: {number: 5}, label: elasticface}',
    "curricularface": '{name: "networks.py:network", options: {number: 6}, label: curricularface}',
    "crfiqa": '{name: "networks.py:score", options: {number: 1}, label: crfiqa}',
    "sddfiqa": '{name: "networks.py:score", options: {number: 2}, label: sddfiqa}',
    "magface": "{name: embedding_norm, label: magface}",
}
"""What stands in place of the large networks, by label."""


def paper(folder: Path) -> dict[str, Any]:
    """Run the matrix of the paper, kill it once, and return what was made."""
    text = JOB.read_text(encoding="utf-8")
    for label, model in SMALL.items():
        text = re.sub(rf"\{{[^{{}}]*label: {label}\}}", model, text)
    (folder / "job.yaml").write_text(text, encoding="utf-8")
    write_layouts(folder / "runs" / "paper_matrix" / "faces")
    command = ["run", "job.yaml", "compute.engine=local"]
    run = folder / "runs" / "paper_matrix" / "run"
    process = start(folder, *command)
    while len(parts(run, "cells")) < 100 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = parts(run)
    call(folder, *command)
    after = parts(run)
    uri = "runs/paper_matrix/run"
    (folder / "times.json").write_bytes(call(folder, "time", "job.yaml", "--json"))
    call(folder, "tables", uri, "-o", "tables", "--times", "times.json")
    call(folder, "figures", uri, "-o", "figures")
    results = open_run(str(run))
    areas = [r for r in results.areas().to_pylist() if r["is_own_limit"] and r["variant"] != "random"]
    differences = [r for r in results.result_table("differences").to_pylist() if r["family"] == "baseline"]
    with open(folder / "tables" / "table-1.csv", newline="", encoding="utf-8") as file:
        excluded = [(r["method"], r["variant"]) for r in csv.DictReader(file) if r["xqlfw"] == "/"]
    return {
        "yaml_lines": len(text.splitlines()),
        "parts_before_the_kill": len(before),
        "cells_before_the_kill": sum("/cells/" in name for name in before),
        "parts_made_twice": sum(after[name] != time_ns for name, time_ns in before.items()),
        "cells": len(parts(run, "cells")),
        "cells_of_random_numbers": len(list((run / "cells").rglob("scorer=random"))),
        "cells_of_tables_1_to_3": len(areas),
        "of_these_with_interval": sum(r["interval"] == "interval" for r in areas),
        "reasons_for_none": sorted({r["reason"] for r in areas if r["reason"]}),
        "differences_of_tables_1_and_2": len(differences),
        "of_these_with_interval_too": sum(r["low"] is not None for r in differences),
        "slashes_on_xqlfw": excluded,
        "tables": sorted(p.name for p in (folder / "tables").iterdir()),
        "figures": len(list((folder / "figures").iterdir())),
    }


def large(folder: Path) -> dict[str, Any]:
    """Judge 20 methods on 9 sets under 6 recognisers, add a score file, and return how many cells were made."""
    benchmarks: list[dict[str, Any]] = []
    for seed in (0, 1):
        write_layouts(folder / f"faces{seed}", n_people=5, n_views=2, n_pairs=20, seed=seed, train=(1, 1))
    text = JOB.read_text(encoding="utf-8")
    for benchmark in yaml.safe_load(text)["benchmarks"]:
        for seed in (0, 1):
            values = yaml.safe_load(json.dumps(benchmark).replace("runs/paper_matrix/faces", f"faces{seed}"))
            benchmarks.append({**values, "name": f"{benchmark['name']}{seed}", "exclude": {}})
    job = {
        "name": "large",
        "run_uri": "run",
        "recognizer": {"name": "networks.py:network", "label": "r0"},
        "methods": [{"name": "networks.py:score", "options": {"number": k}, "label": f"m{k}"} for k in range(20)],
        "benchmarks": benchmarks[:9],
        "evaluate": {
            "recognizers": [
                {"name": "networks.py:network", "options": {"number": k} if k else {}, "label": f"r{k}"}
                for k in range(6)
            ],
            "fmr": 0.2,
            "draws": 100,
            "conventions": ["paper"],
        },
        "compute": {"engine": "local"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    call(folder, "evaluate", "job.yaml")
    before = parts(folder / "run", "cells", "quality_scores", "embeddings", "comparisons")
    images = sorted((folder / "faces0" / "lfw").rglob("*.png"))
    with open(folder / "more.csv", "w", newline="", encoding="utf-8") as file:
        names = [image.relative_to(folder / "faces0" / "lfw").as_posix() for image in images]
        csv.writer(file).writerows([("image_id", "score"), *((name, i) for i, name in enumerate(names))])
    job["benchmarks"][0]["scores"] = {"more": "more.csv"}  # type: ignore[index]
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    call(folder, "evaluate", "job.yaml", "--new-settings")
    after = parts(folder / "run", "cells", "quality_scores", "embeddings", "comparisons")
    cells = [name for name in before if "/cells/" in name]
    return {
        "sets": len(job["benchmarks"]),  # type: ignore[arg-type]
        "cells": sum("scorer=random" not in name for name in cells),
        "cells_of_random_numbers": sum("scorer=random" in name for name in cells),
        "made_for_one_more_score_file": len(after) - len(before),
        "made_twice": sum(after[name] != time_ns for name, time_ns in before.items()),
    }


def parts(run: Path, *kinds: str) -> dict[str, int]:
    """Return every finished part of a run, or of some kinds of datasets, with the time it was written."""
    folders = [run / kind for kind in kinds] if kinds else [run]
    return {str(p): p.stat().st_mtime_ns for folder in folders for p in folder.rglob("_part-*.json")}


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a command of fiqa-ray in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "fiqa_ray", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def call(folder: Path, *arguments: str) -> bytes:
    """Run a command of fiqa-ray in a folder and return what it prints."""
    process = start(folder, *arguments)
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"fiqa-ray {' '.join(arguments)}: {err.decode()[-2000:]}")
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="*", default=["paper", "large"], choices=["paper", "large"])
    parser.add_argument("--folder", type=Path, help="a new folder for all files; default: a temporary one")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    root = a.folder or Path(tempfile.mkdtemp())
    result = {}
    for name in a.matrices:
        folder = root / name
        folder.mkdir(parents=True)
        shutil.copy(Path(__file__).parent / "matrix_networks.py", folder / "networks.py")
        started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        result[name] = {"paper": paper, "large": large}[name](folder)
        result[name]["cpu_s"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started)
        print(name, json.dumps(result[name], indent=1), flush=True)
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if a.folder is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
