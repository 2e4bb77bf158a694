"""The state of a run as metrics of Ray, which its dashboard, Prometheus and Grafana show (`deploy/grafana.json`)."""

from __future__ import annotations

from typing import Any

METRICS = {
    "fiqa_ray_parts": "parts that this run has finished",
    "fiqa_ray_bytes": "bytes that this run has written",
    "fiqa_ray_rejected_images": "images that this run could not use",
    "fiqa_ray_failures": "parts that failed, each try counted",
    "fiqa_ray_storage_retries": "times that the driver tried storage again",
    "fiqa_ray_machines": "machines of the cluster",
    "fiqa_ray_machine_seconds": "seconds of all machines since the run began",
    "fiqa_ray_rows_done": "finished rows of the steps at work",
    "fiqa_ray_rows_total": "rows of the steps at work",
    "fiqa_ray_rows_per_second": "rows per second of the steps at work",
}
"""Name and description; Prometheus sees each name with `ray_` before it."""


class Gauges:
    """Gauges of the run in this process."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(name, description=text) for name, text in METRICS.items()}

    def set(self, state: dict[str, Any]) -> None:
        """Show a state, as `RunState.as_dict` gives it."""
        for name, value in metric_values(state).items():
            self._gauges[name].set(value)


def metric_values(state: dict[str, Any]) -> dict[str, float]:
    """Return the value of each metric."""
    step = state.get("step", {})
    return {
        "fiqa_ray_parts": state["n_parts"],
        "fiqa_ray_bytes": state["n_bytes"],
        "fiqa_ray_rejected_images": state["n_rejected"],
        "fiqa_ray_failures": sum(state["n_failures"].values()),
        "fiqa_ray_storage_retries": state["storage_retries"],
        "fiqa_ray_machines": state["n_machines"],
        "fiqa_ray_machine_seconds": state["machine_s"],
        "fiqa_ray_rows_done": step.get("done", 0),
        "fiqa_ray_rows_total": step.get("total", 0),
        "fiqa_ray_rows_per_second": step.get("rows_per_s", 0.0),
    }
