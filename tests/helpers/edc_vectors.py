"""Expected curves, thresholds and areas, from published code (tests/golden/edc_vectors.json.gz)."""

import gzip
import json
import math
from pathlib import Path

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "edc_vectors.json.gz").read_bytes()))
CASES = {case["name"]: case for case in GOLDEN["cases"]}
EMPTY = ("empty_genuine", "empty_impostor")
TARGETS = [(name, fmr) for name, case in CASES.items() if name not in EMPTY for fmr in case["targets"]]


def same(actual: float, expected: float | None) -> bool:
    """Whether a number is the expected one to 1e-12; None stands for undefined."""
    return math.isnan(actual) if expected is None else abs(actual - expected) <= 1e-12
