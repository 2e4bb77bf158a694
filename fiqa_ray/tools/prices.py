"""What a run costs on named machines: a table of prices that the user can replace, times the hours that `plan` predicts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fiqa_ray.errors import UsageError
from fiqa_ray.storage import read_bytes

_COLUMNS = ("machine", "n_cpus", "memory_gib", "price_per_hour")


@dataclass(frozen=True)
class Machine:
    """A row of the table of prices.

    Attributes:
        name: As the cloud calls it.
        n_cpus: Processors, each of which runs one worker.
        memory_gib: Memory.
        price_per_hour: In the currency of the table; the shipped one has US dollars, on demand, in us-east-1, early 2025.
    """

    name: str
    n_cpus: int
    memory_gib: float
    price_per_hour: float


def read_machine(name: str, prices_uri: str | None = None) -> Machine:
    """Return a machine from a table of prices.

    Args:
        name: The machine.
        prices_uri: A CSV with the columns machine, n_cpus, memory_gib and price_per_hour; None for the shipped table.

    Raises:
        UsageError: The table is no such CSV, or lacks the machine.
    """
    where = prices_uri or "the shipped table"
    text = resources.files(__package__).joinpath("prices.csv").read_text() if prices_uri is None else _text(prices_uri)
    reader = csv.DictReader(io.StringIO(text))
    if not set(_COLUMNS) <= set(reader.fieldnames or ()):
        raise UsageError(f"{where}: the columns are {reader.fieldnames}, wanted {', '.join(_COLUMNS)}")
    machines = {}
    for row in reader:
        try:
            price, memory = float(row["price_per_hour"]), float(row["memory_gib"])
            machines[row["machine"]] = Machine(row["machine"], int(row["n_cpus"]), memory, price)
        except (TypeError, ValueError) as exc:
            raise UsageError(f"{where}, line {reader.line_num}: {exc}; wanted numbers") from exc
    if name not in machines:
        raise UsageError(
            f"{where} has no machine {name!r}; it has {', '.join(machines)}; --prices names a table of your own"
        )
    return machines[name]


def _text(uri: str) -> str:
    return read_bytes(uri).decode("utf-8-sig", errors="replace")


def cost_line(rows: Sequence[dict[str, Any]], machine: Machine, n_machines: int) -> str:
    """Return what a run costs: hours, money, and whether memory suffices.

    Args:
        rows: As `plan_job` gives them for a worker on each processor of the machines.
        machine: The machine.
        n_machines: How many of them.
    """
    hours = sum(r["time_s"] for r in rows) / 3600
    price = hours * n_machines * machine.price_per_hour
    line = f"{n_machines} x {machine.name}: {hours:,.2f} h, {price:,.2f} at {machine.price_per_hour:g} per machine and hour"
    largest = max((r["memory_bytes"] for r in rows), default=0)
    room = int(machine.memory_gib * 2**30 // max(largest, 1))
    if room < machine.n_cpus:
        line += f"; its memory holds {room} of {machine.n_cpus} workers in the largest step, which then takes longer"
    return line
