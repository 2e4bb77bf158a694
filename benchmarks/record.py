"""Run a benchmark and keep its result with command, machine and commit, for the page of recorded runs in the documentation.

python benchmarks/record.py ranking.py --keys 2000000       # writes benchmarks/results/ranking.json
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def main(script: str, *arguments: str) -> None:
    """Run `benchmarks/SCRIPT ARGUMENTS --json FILE` and write the record of it."""
    load, commit = os.getloadavg()[0], git("rev-parse", "--short", "HEAD")
    commit += " and changes" if git("status", "--porcelain", "-uno") else ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        subprocess.run([sys.executable, FOLDER / script, *arguments, "--json", file], check=True)
        result = json.loads(file.read_text(encoding="utf-8"))
    record = {
        "command": shlex.join(["python", f"benchmarks/{script}", *arguments]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "machine": {**machine(), "load_before": round(load, 1)},
        "result": result,
    }
    (FOLDER / "results").mkdir(exist_ok=True)
    path = FOLDER / "results" / f"{Path(script).stem}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def git(*arguments: str) -> str:
    """Return the output of a git command in the repository."""
    return subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """Return processor, cores and versions; no names of host or user."""
    import numpy

    cpu = [line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "processor": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
