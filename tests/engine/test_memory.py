"""Memory of workers: kept between arrays, and given back when asked to."""

import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np, pyarrow as pa
from fiqa_ray.engine.memory import give_back_memory, reuse_memory

def resident_mb():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1000

reuse_memory()
start = resident_mb()
for _ in range(2):
    arrays = [np.ones(25_000_000), pa.array(np.arange(12_500_000)).cast(pa.float64())]  # 400 MB in all
    used = resident_mb()
    del arrays
    kept = resident_mb()
give_back_memory()
print(used - start, kept - start, resident_mb() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_memory_is_kept_until_it_is_given_back():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    used, kept, given_back = map(float, found.stdout.split())
    assert used > 290
    assert kept > 190  # numpy's share at least
    assert given_back < 100
