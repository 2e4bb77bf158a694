"""Progress of a run: what a step waits for is said, again and again, and never hidden behind a rate of 0."""

import time
from dataclasses import replace

import pytest

from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine import progress
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.ray import RayMapper
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
    reason = RayMapper(ComputeSettings(device=device)).waits_for([(step, i) for i in step.shards])
    assert reason == "" if not lacks else f"has {lacks}, and 3 parts wait" in reason


def test_the_reason_is_printed_by_the_clock(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.02)
    with StepProgress("embed: train", 30, "images", waits_for=lambda: "the Ray cluster has no CPU"):
        time.sleep(0.2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "done in" not in line]
    assert len(lines) >= 2
    assert all(line.endswith("embed: train: 0 of 30 images, the Ray cluster has no CPU") for line in lines)
