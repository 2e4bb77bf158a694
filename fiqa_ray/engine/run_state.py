"""What a run does at the moment: for its log, for `fiqa-ray status` (in the lock's beat), and for dashboards."""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from fiqa_ray.public_uri import public_text
from fiqa_ray.storage.patience import n_retries

MAX_FAILURES_KEPT = 50


class Progress(Protocol):
    """The progress of a step."""

    name: str
    unit: str
    total: int
    done: int

    @property
    def rate(self) -> float:
        """Rows per second."""


class RunState:
    """Counts of a run, from its start on. Threads may call all of it.

    Attributes:
        n_machines: Machines that the run has at the moment.
        waits_for: What the run waits for, or an empty text.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin a run."""
        self.n_machines, self.waits_for = 1, ""
        self._started_s = self._counted_s = time.time()
        self._machine_s = 0.0
        self._n_retries_before = n_retries()
        self._failures: list[dict[str, Any]] = []
        self._n_failures = {"code": 0, "system": 0}
        self._n_parts = self._n_bytes = self._n_rejected = 0
        self._progress: Progress | None = None

    def show(self, progress: Progress | None) -> None:
        """Take the numbers of a step from now on, or of none."""
        self._progress = progress

    def add_part(self, n_bytes: int, n_rejected: int) -> None:
        """Count a finished part, its bytes, and its images that could not be used."""
        with self._lock:
            self._n_parts += 1
            self._n_bytes += n_bytes
            self._n_rejected += n_rejected

    def add_failure(self, dataset: str, part: str, kind: str, error: str, n_tries: int) -> None:
        """Record that a part failed.

        Args:
            dataset: Its name and keys, as `run_steps.short_name` gives them.
            part: The name of the part, or an empty text.
            kind: `code` for what running again does not mend, `system` for lost machines and storage.
            error: What happened, in one line.
            n_tries: How often the part was tried so far.
        """
        text = public_text(" ".join(error.split()))[:300]
        entry = {"dataset": dataset, "part": part, "kind": kind, "error": text, "n_tries": n_tries}
        with self._lock:
            self._n_failures[kind] += 1
            self._failures = [*self._failures, {**entry, "time_s": round(time.time(), 1)}][-MAX_FAILURES_KEPT:]

    def count_machines(self, n_machines: int) -> None:
        """Set how many machines work, and count their time until now."""
        self._count_time()
        self.n_machines = n_machines

    def _count_time(self) -> None:
        with self._lock:
            now = time.time()
            self._machine_s += self.n_machines * max(0.0, now - self._counted_s)
            self._counted_s = now

    def as_dict(self) -> dict[str, Any]:
        """Return the state as JSON-able entries."""
        self._count_time()
        step = self._progress
        state: dict[str, Any] = {
            "started_s": round(self._started_s, 1),
            "n_machines": self.n_machines,
            "machine_s": round(self._machine_s, 1),
            "n_parts": self._n_parts,
            "n_bytes": self._n_bytes,
            "n_rejected": self._n_rejected,
            "storage_retries": n_retries() - self._n_retries_before,
            "n_failures": dict(self._n_failures),
            "failures": list(self._failures),
            "waits_for": self.waits_for,
        }
        if step is not None:
            rate = step.rate
            left_s = round((step.total - step.done) / rate, 1) if rate > 0 else None
            state["step"] = {
                "name": step.name,
                "unit": step.unit,
                "done": step.done,
                "total": step.total,
                "rows_per_s": round(rate, 4),
                "left_s": left_s,
            }
        return state


run_state = RunState()
"""The state of the run in this process; a process runs one job at a time."""
