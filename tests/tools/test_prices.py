"""Hours and money of a plan, worked by hand."""

import pytest

from fiqa_ray.errors import UsageError
from fiqa_ray.tools.prices import Machine, cost_line, read_machine


def test_hours_times_machines_times_price():
    rows = [{"time_s": 5400.0, "memory_bytes": 1e9}, {"time_s": 1800.0, "memory_bytes": 6e9}]
    machine = Machine("big", 16, 64.0, 0.75)
    line = cost_line(rows, machine, 4)  # 2 h x 4 x 0.75
    assert line.startswith("4 x big: 2.00 h, 6.00 at 0.75 per machine and hour")
    assert "its memory holds 11 of 16 workers" in line  # 64 GiB / 6 GB = 11.4


def test_tables(tmp_path):
    assert read_machine("m6i.4xlarge").n_cpus == 16
    own = tmp_path / "prices.csv"
    own.write_text("machine,n_cpus,memory_gib,price_per_hour\nrack,48,192,1.5\n")
    assert read_machine("rack", str(own)) == Machine("rack", 48, 192.0, 1.5)
    with pytest.raises(UsageError, match=r"no machine 'rack'; it has m6i\.xlarge"):
        read_machine("rack")
    own.write_text("machine,n_cpus,memory_gib,price_per_hour\nrack,many,192,1.5\n")
    with pytest.raises(UsageError, match=r"prices\.csv, line 2: .*many.*wanted numbers"):
        read_machine("rack", str(own))
    own.write_text("name,price\nrack,1\n")
    with pytest.raises(UsageError, match="wanted machine, n_cpus, memory_gib, price_per_hour"):
        read_machine("rack", str(own))
