"""Settings of the faces and of the FR model M."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fiqa_ray.config.section import Section
from fiqa_ray.core.landmark_order import LandmarkOrder
from fiqa_ray.public_uri import public_uri
from fiqa_ray.setting_types import Options, Uri


class SourceSettings(Section):
    """Where the faces of a set come from.

    Kinds: `folder`: one folder per identity; `vggface2`: the data set as distributed; `table`: CSV or Parquet that names
    image files; `recordio`: MXNet's `train.rec` with its `.idx`; `webdataset`: tar shards, by braces or glob;
    `parquet_images`: images inside Parquet, as Hugging Face stores them; `bin`: InsightFace's verification file;
    `ijb`: the root of IJB-B or IJB-C, with `loose_crop` and `meta`; `embeddings`: Parquet with image_id, identity and
    embedding, without images.
    """

    kind: Literal[
        "folder", "vggface2", "table", "recordio", "webdataset", "parquet_images", "bin", "ijb", "embeddings"
    ] = Field(description="format of the source")
    uri: Uri = Field(description="path or URL of the folder or file")
    landmarks_uri: Uri | None = Field(None, description="folder: CSV with five landmarks per image, in VGGFace2's form")
    identity_level: int | None = Field(
        0, ge=0, description="folder: which path component below uri is the identity, counted from 0; null: none is"
    )
    splits: tuple[Literal["train", "test"], ...] = Field(("train", "test"), description="vggface2: parts to read")
    limit: int | None = Field(None, ge=1, description="read only this number of identities, for a trial")
    identity_key: str | None = Field(
        None, description="webdataset: JSON key of the identity; parquet_images: its column; default: see each kind"
    )
    detector: Uri | None = Field(None, description="YuNet's .onnx file, to align images that come without landmarks")
    landmark_order: str | None = Field(
        None,
        description="order of the ten landmark numbers, such as planar, nose_first or standard; default: standard, and a "
        "set that another order fits clearly better is refused",
    )
    allow_missing_end: bool = Field(
        False, description="read JPEGs without an end mark whose pixels are all there, as some phones write them"
    )
    exif: Literal["apply", "ignore"] = Field(
        "apply",
        description="turn images as their EXIF orientation says, or leave them as stored, as PIL's users often do",
    )
    resize_crops: bool = Field(
        False, description="take images without landmarks and detector for aligned crops and resize them to 112x112"
    )
    jitter: bool = Field(
        False,
        description="move each aligned crop at random, by up to 4 px, 5 degrees and 5 % of its size; "
        "`evaluate.alignment: [as_is, jitter]` sets it for a second copy of each benchmark",
    )
    allow_mixed_crops: bool = Field(False, description="accept a data set whose crops were aligned in different ways")
    allow_single_images: bool = Field(False, description="accept training faces of which most people have one image")

    @field_validator("landmark_order")
    @classmethod
    def _check_order(cls, value: str | None) -> str | None:
        return value if value is None else LandmarkOrder.parse(value).name

    @model_validator(mode="after")
    def _check_crops(self) -> SourceSettings:
        if self.resize_crops and self.detector is not None:
            raise ValueError(
                "resize_crops takes images for aligned crops, and detector aligns them; give one of the two"
            )
        return self


STORED = "embeddings"
"""The name of the recogniser of a job whose embeddings are given."""


class RecognizerSettings(Section):
    """The FR model M; left out where the source holds embeddings."""

    name: Uri = Field(description="a name of `fiqa-ray models`, `module:function`, or an .onnx file")
    label: str = Field(
        "", pattern="^[^/=]*$", description="name of the model in results; default: the last part of name"
    )
    weights: Uri | None = Field(None, description="path or URL of the weights")
    options: Options = Field({}, description="keyword arguments of the model")
    flip: Literal["none", "sum", "concat"] = Field(
        "none", description="add the mirrored face's embedding, or append it; sum and concat need train.mode: finetune"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, value: Any) -> Any:
        return labelled(value)


def labelled(value: Any) -> Any:
    """Return the settings of a model with its label, if they name it."""
    if isinstance(value, dict) and not value.get("label") and isinstance(value.get("name"), str):
        return {**value, "label": label_of(value["name"])}
    return value


def label_of(name: str) -> str:
    """Return a model's name as a path component: `package:net` becomes `package.net`, and folders are left out."""
    return public_uri(name).replace(":", ".").rsplit("/", 1)[-1]
