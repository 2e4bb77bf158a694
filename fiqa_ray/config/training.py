"""Settings of the regressors' training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fiqa_ray.config.section import Section


class TrainSettings(Section):
    """The training of the regressor H on M. Defaults that depend on the mode are in `fiqa_ray.training.loop.RECIPES`."""

    mode: Literal["head", "finetune"] = Field(
        "head", description="head: a linear head on stored embeddings; finetune: the released recipe"
    )
    n_epochs: int | None = Field(None, ge=1, description="epochs; default: head 20, finetune 1")
    batch_size: int | None = Field(None, ge=1, description="images per step of all workers; default: 512 or 128")
    learning_rate: float | None = Field(
        None, gt=0, description="head: Adam's rate, default 0.01; finetune: factor on the recipe's rates, default 1"
    )
    gradients: Literal["clean", "published"] = Field(
        "clean", description="finetune: clip over trained weights only, or over all as the released code does"
    )
    validations_per_epoch: int = Field(20, ge=1, description="validations per epoch; the best weights are saved")
