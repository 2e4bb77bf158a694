"""Settings of where a job runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fiqa_ray.config.section import Section


class ComputeSettings(Section):
    """Where the job runs and with how many workers; never part of a result, except `precision`."""

    engine: Literal["ray", "local"] = Field("ray", description="local: in this process, without Ray")
    address: str | None = Field(None, description="Ray cluster to join; default: RAY_ADDRESS, else a local one")
    n_workers: int | None = Field(
        None, ge=1, description="parallel tasks and actors; default: all CPUs, or all GPUs for models"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device of the models; auto: cuda if available")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images per forward pass; default: 16 on a CPU (small batches stay in cache), 256 on CUDA",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="precision of products in embed and score; float32 uses no TF32. A lower one is refused where the first "
        "256 faces do not agree with float32",
    )
    rows_per_part: int = Field(4096, ge=1, description="faces per part; all faces of a person lie in one part")
    late_after_s: float = Field(
        600.0, gt=0, description="seconds after which a log line names a part that is still made on Ray, and its node"
    )
    train_workers: int = Field(1, ge=0, description="Ray Train workers; 0: train in this process")
    model_labels: dict[str, str] = Field(
        {},
        description="labels of the machines that embed and score, such as {ray.io/accelerator-type: A10G}; Ray's "
        "autoscaler v2 starts such machines",
    )
    other_labels: dict[str, str] = Field(
        {}, description="labels of the machines that do the rest but train, such as {ray.io/market-type: spot}"
    )
    storage_patience_s: float = Field(
        600.0,
        ge=0,
        description="seconds for which storage that is away or overloaded is tried again, with growing pauses",
    )
    object_store_bytes: int | None = Field(None, ge=80_000_000, description="object store of a local Ray, in bytes")


def default_batch_size(device: str) -> int:
    """Return the images per forward pass if the job does not say; the last bits of results depend on it."""
    return 256 if device.startswith("cuda") else 16
