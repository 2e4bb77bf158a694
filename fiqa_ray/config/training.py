"""Settings of the regressors' training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fiqa_ray.config.section import Section


class TrainSettings(Section):
    """The training of the regressor H on M. Defaults that depend on the mode are in `fiqa_ray.training.loop.RECIPES`."""

    mode: Literal["head", "finetune"] = Field(
        "head", description="head: a linear head on stored embeddings; finetune: the released recipe"
    )
    head: Literal["norm", "linear"] | None = Field(
        None,
        description="what the head sees: norm, the embedding and its length (default of mode head); linear, the "
        "embedding alone as published (finetune has no other)",
    )
    seeds: int | None = Field(
        None,
        ge=1,
        le=100,
        description="trainings of each regressor, which differ in their random draws; its score is their mean; default: "
        "head 5; finetune has 1",
    )
    n_epochs: int | None = Field(None, ge=1, description="epochs; default: head 100, finetune 1")
    batch_size: int | None = Field(None, ge=1, description="images per step of all workers; default: 512 or 128")
    learning_rate: float | None = Field(
        None, gt=0, description="head: Adam's rate, default 0.01; finetune: factor on the recipe's rates, default 1"
    )
    gradients: Literal["clean", "published"] = Field(
        "clean",
        description="finetune: clip over trained weights only and let the rate fall to 0, or clip over all at a constant "
        "rate as the released code does",
    )
    validations_per_epoch: int | None = Field(
        None,
        ge=1,
        description="validations per epoch; default: head 1, finetune 20; finetune saves the best weights, head the last",
    )

    @model_validator(mode="after")
    def _check_finetune(self) -> TrainSettings:
        if self.mode == "finetune" and self.head == "norm":
            raise ValueError("mode finetune trains the published head; leave out head, or take mode: head")
        if self.mode == "finetune" and (self.seeds or 1) > 1:
            raise ValueError(
                f"mode finetune trains one network per label set, not {self.seeds}; leave out seeds, or take mode: head"
            )
        return self
