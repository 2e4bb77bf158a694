"""Progress of a run: what a step waits for is said, again and again, and never hidden behind a rate of 0."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine import progress
from fiqa_ray.engine.metrics import METRICS, metric_values
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.ray import RayMapper
from fiqa_ray.engine.run_state import run_state
from fiqa_ray.engine.step import Step

STEP = Step("embed", Dataset("memory://r/embeddings/v=0", "embeddings"), [0, 1, 2], lambda: None, 3)


@pytest.mark.parametrize(
    ("resources", "device", "step", "lacks"),
    [
        ({"CPU": 4.0}, "auto", STEP, ""),
        ({"memory": 1e9}, "auto", STEP, "no CPU"),
        ({"CPU": 4.0}, "cuda", replace(STEP, uses_model=True), "no GPU"),
        ({"CPU": 4.0}, "cuda", STEP, ""),
        ({}, "cuda", replace(STEP, needs_gpu=True), "no CPU and no GPU"),
    ],
)
def test_a_cluster_without_what_a_step_needs(monkeypatch, resources, device, step, lacks):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    items = [(replace(STEP, shards=[0]), 0), (step, 1), (step, 2)]  # not the first step alone counts
    reason = RayMapper(ComputeSettings(device=device)).waits_for(items)
    assert reason == "" if not lacks else f"has {lacks}, and 3 parts wait" in reason


@pytest.mark.parametrize(
    ("rate", "text"), [(0.05, "3.0 scores/min"), (0.5, "0.5 scores/s"), (1234.5, "1,234 scores/s")]
)
def test_slow_rates_are_per_minute(rate, text):
    assert progress.rate_text(rate, "scores") == text


def _read_until(capsys, is_enough):
    """Return what was printed once there is enough of it."""
    text, until = "", time.monotonic() + 300
    while not is_enough(text):
        assert time.monotonic() < until, text
        time.sleep(0.02)
        text += capsys.readouterr().err
    return text


def test_the_reason_is_printed_by_the_clock(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.02)
    with StepProgress("embed: train", 30, "images", waits_for=lambda: "the Ray cluster has no CPU", is_run=True):
        text = _read_until(capsys, lambda text: text.count("no CPU\n") >= 2)
    lines = [line for line in text.splitlines() if "done in" not in line]
    assert len(lines) >= 2  # for people alone: none of them is JSON
    assert all(line.endswith("embed: train: 0 of 30 images, the Ray cluster has no CPU") for line in lines)


def test_the_log_has_a_line_for_programs(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.02)
    monkeypatch.setenv("FIQA_RAY_JSON_LOG", "1")
    run_state.reset()
    run_state.add_part(1000, 3)
    with StepProgress("embed: train", 30, "images", done=10, is_run=True) as bar:
        bar.advance(5)
        text = _read_until(capsys, lambda text: re.search(r'"done": 15.*\n', text))
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    step = lines[-1]["step"]
    assert (step["name"], step["done"], step["total"], step["unit"]) == ("embed: train", 15, 30, "images")
    assert step["left_s"] == pytest.approx(15 / step["rows_per_s"], abs=0.06)
    assert (lines[-1]["n_parts"], lines[-1]["n_bytes"], lines[-1]["n_rejected"]) == (1, 1000, 3)


def test_the_board_shows_every_metric_and_no_other():
    board = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text())
    shown = {m for p in board["panels"] for t in p["targets"] for m in re.findall(r"ray_(fiqa_ray_\w+)", t["expr"])}
    assert shown == METRICS.keys()
    assert metric_values(run_state.as_dict()).keys() == METRICS.keys()
