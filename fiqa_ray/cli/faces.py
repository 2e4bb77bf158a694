"""The command that scores images."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from fiqa_ray.cli.arguments import (
    AllowImport,
    Device,
    Options,
    Recognizer_,
    RecognizerOptions,
    RecognizerWeights,
    Weights,
    named_model,
)
from fiqa_ray.errors import FiqaRayError

if TYPE_CHECKING:
    import pyarrow as pa


def score(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="aligned 112x112 crops, or raw with --detector: files, folders, globs, tars, URLs"
        ),
    ],
    model: Annotated[
        str, typer.Option(help="a trained regressor's folder or exported .onnx, a FIQA method, or module:function")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help=".parquet, .csv or .json")] = "scores.parquet",
    recognizer: Recognizer_ = None,
    weights: Weights = None,
    recognizer_weights: RecognizerWeights = None,
    option: Options = None,
    recognizer_option: RecognizerOptions = None,
    allow_import: AllowImport = False,
    detector: Annotated[
        str | None, typer.Option(help="YuNet's .onnx: images are raw, and the largest face of each is aligned")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=0, help="images per forward pass; 0: as in a job")] = 0,
    device: Device = "cpu",
    form: Annotated[
        str | None, typer.Option("--format", help="ofiq: OFIQ's CSV, with -1 where an image could not be scored")
    ] = None,
) -> None:
    """Score images, larger is better; needs neither YAML nor cluster. A bad image gets a row with its fault.

    Exit code 1 if no image could be scored.
    """
    from fiqa_ray.config import default_batch_size
    from fiqa_ray.engine.progress import StepProgress
    from fiqa_ray.models.detector import FaceDetector
    from fiqa_ray.sources.command_line import list_images
    from fiqa_ray.sources.leftovers import count_text
    from fiqa_ray.tools.score import check_output, score_images, write_scores

    if form is None:
        check_output(output)
    left_out: Counter[str] = Counter()
    files = list_images(images, left_out)
    if left_out:
        print(f"{len(files):,} images; {left_out.total():,} files left out ({count_text(left_out)})", file=sys.stderr)
    named = named_model(model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device)
    scorer = named.load()
    check_output(output, form, scorer.scale, model)
    n_threads = 1 if named.runs_user_code or device != "cpu" else os.cpu_count() or 1
    with StepProgress("score", len(files), "images") as progress:
        table = score_images(
            files,
            scorer,
            detector=FaceDetector(detector) if detector else None,
            validation_scores=(scorer.card or {}).get("validation_scores"),
            scale=scorer.scale,
            batch_size=batch_size or default_batch_size(device),
            n_threads=n_threads,
            advance=progress.advance,
        )
    write_scores(table, output, form)
    print(f"{_score_summary(table)}; written to {output}")
    if table["score"].null_count == len(table):
        raise FiqaRayError(f"none of the {len(table):,} images could be scored; the rows in {output} say why")


def _score_summary(table: pa.Table) -> str:
    n_bad = table["score"].null_count
    reasons = {r["values"]: r["counts"] for r in table["status"].value_counts().to_pylist() if r["values"] != "ok"}
    why = f" ({', '.join(f'{k} {n}' for k, n in reasons.items())})" if reasons else ""
    hint = "; --detector aligns raw images" if "no_landmarks" in reasons else ""
    return f"{len(table) - n_bad} scored, {n_bad} not{why}{hint}"
