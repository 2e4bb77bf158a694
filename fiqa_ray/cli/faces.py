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
from fiqa_ray.errors import FiqaRayError, UsageError

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
        str,
        typer.Option(
            help="a regressor's folder or .onnx, a run_uri (lists its regressors), a FIQA method, or module:function"
        ),
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
    sheet: Annotated[
        str | None,
        typer.Option(help="also write a contact sheet to this .jpg: faces by decile of quality, worst first"),
    ] = None,
    histogram: Annotated[
        bool, typer.Option("--histogram", help="also draw a histogram of the scores, as .png beside the scores")
    ] = False,
    ignore_exif: Annotated[
        bool, typer.Option("--ignore-exif", help="take pixels as they are stored, as code that reads by PIL does")
    ] = False,
    resize_crops: Annotated[
        bool,
        typer.Option("--resize-crops", help="square crops of another size are aligned too: resize them to 112x112"),
    ] = False,
    allow_missing_end: Annotated[
        bool, typer.Option("--allow-missing-end", help="read JPEGs that lack nothing but their end mark")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=0, help="images per forward pass; 0: as in a job")] = 0,
    device: Device = "cpu",
    form: Annotated[
        str | None, typer.Option("--format", help="ofiq: OFIQ's CSV, with -1 where an image could not be scored")
    ] = None,
) -> None:
    """Score images, larger is better; needs neither YAML nor cluster. A bad image gets a row with its fault.

    Exit code 1 if no image could be scored.
    """
    from fiqa_ray.config import default_batch_size, label_of
    from fiqa_ray.engine.progress import StepProgress, note
    from fiqa_ray.models.batch_check import check_function
    from fiqa_ray.models.detector import FaceDetector
    from fiqa_ray.sources.command_line import list_images
    from fiqa_ray.sources.leftovers import count_text
    from fiqa_ray.storage import write_atomic
    from fiqa_ray.tools.open_run import find_regressor
    from fiqa_ray.tools.score import check_output, score_images, write_scores

    if form is None:
        check_output(output)
    if sheet is not None and not sheet.lower().endswith((".jpg", ".jpeg")):
        raise UsageError(f"--sheet {sheet!r} must end in .jpg")
    if detector and resize_crops:
        raise UsageError(
            "--resize-crops takes images for aligned crops, and --detector aligns them; give one of the two"
        )
    left_out: Counter[str] = Counter()
    files = list_images(images, left_out)
    if left_out:
        print(f"{len(files):,} images; {left_out.total():,} files left out ({count_text(left_out)})", file=sys.stderr)
    model = find_regressor(model)
    named = named_model(model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device)
    scorer = named.load()
    check_output(output, form, scorer.scale, model)
    n_threads = 1 if named.runs_user_code or device != "cpu" else os.cpu_count() or 1
    face_detector = FaceDetector(detector) if detector else None
    with StepProgress("score", len(files), "images") as progress:
        table = score_images(
            files,
            check_function(scorer.name, scorer),
            detector=face_detector,
            validation_scores=(scorer.card or {}).get("validation_scores"),
            scale=scorer.scale,
            batch_size=batch_size or default_batch_size(device),
            n_threads=n_threads,
            apply_exif=not ignore_exif,
            resize_crops=resize_crops,
            allow_missing_end=allow_missing_end,
            advance=progress.advance,
        )
    write_scores(table, output, form)
    print(f"{_score_summary(table)}; written to {output}")
    values = table["score"].drop_null().unique()
    if len(values) == 1 and table["score"].null_count < len(table) - 1:
        note(
            f"all scores are {values[0].as_py():g}, so they tell no image from another; faces go in as float32 in [0, 1]"
        )
    if table["score"].null_count == len(table):
        raise FiqaRayError(f"none of the {len(table):,} images could be scored; the rows in {output} say why")
    if sheet is not None:
        from fiqa_ray.tools.score_pictures import sheet_of_scores

        write_atomic(sheet, sheet_of_scores(files, table, face_detector))
        print(f"faces by decile, worst first: {sheet}")
    if histogram:
        from fiqa_ray.report.score_pictures import histogram_png

        picture = f"{output.rsplit('.', 1)[0]}_histogram.png"
        write_atomic(picture, histogram_png(table["score"].drop_null().to_numpy(), label_of(model)))
        print(f"histogram: {picture}")


def _score_summary(table: pa.Table) -> str:
    n_bad = table["score"].null_count
    reasons = {r["values"]: r["counts"] for r in table["status"].value_counts().to_pylist() if r["values"] != "ok"}
    why = f" ({', '.join(f'{k} {n}' for k, n in reasons.items())})" if reasons else ""
    hint = "; --detector aligns raw images" if "no_landmarks" in reasons else ""
    return f"{len(table) - n_bad} scored, {n_bad} not{why}{hint}"
