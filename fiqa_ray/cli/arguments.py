"""Arguments and options that several commands share, and the console that tables go to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from fiqa_ray.tools.named_model import NamedModel

Job_ = Annotated[str, typer.Argument(metavar="JOB.yaml", help="a job's settings; any fsspec URL")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to change")]
AllowImport = Annotated[
    bool, typer.Option("--allow-import", help="let the regressor import the code of the FR model it was trained on")
]
Recognizer_ = Annotated[str | None, typer.Option("--recognizer", help="the FR model; of a method, the one it needs")]
Weights = Annotated[str | None, typer.Option("--weights", help="checkpoint of a method with a network of its own")]
RecognizerWeights = Annotated[str | None, typer.Option("--recognizer-weights", help="checkpoint of the FR model")]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="an option of the method; may be repeated")
]
RecognizerOptions = Annotated[
    list[str] | None,
    typer.Option("--recognizer-option", metavar="KEY=VALUE", help="an option of the FR model, such as mean=127.5"),
]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda")]
NewSettings = Annotated[
    bool,
    typer.Option("--new-settings", help="allow a run folder made by other settings; reuses what is still valid"),
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
console = Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160)


def named_model(
    model: str,
    recognizer: str | None,
    weights: str | None,
    recognizer_weights: str | None,
    option: list[str] | None,
    recognizer_option: list[str] | None,
    allow_import: bool,
    device: str,
) -> NamedModel:
    """Return what the options of a command say about a model."""
    from fiqa_ray.safe_yaml import parse_options
    from fiqa_ray.tools.named_model import NamedModel

    return NamedModel(
        model,
        recognizer,
        weights,
        recognizer_weights,
        parse_options(option or []),
        parse_options(recognizer_option or []),
        allow_import,
        device,
    )
