"""The commands about one model: its check, its export, the training of PCNet, and the calibration of FROQ."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fiqa_ray.cli.arguments import (
    AllowImport,
    Device,
    Job_,
    Json,
    NewSettings,
    Options,
    Overrides,
    Recognizer_,
    RecognizerOptions,
    RecognizerWeights,
    Weights,
    console,
    named_model,
)
from fiqa_ray.errors import UsageError


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="a FIQA method or a regressor, named as elsewhere; leave it out to check --recognizer itself",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="folder of aligned crops, one folder per person, or a .csv or .parquet of faces (default: synthetic faces)"
        ),
    ] = None,
    landmarks: Annotated[
        str | None, typer.Option(help="landmarks of a folder of raw images: a CSV in VGGFace2's form")
    ] = None,
    landmark_order: Annotated[
        str | None, typer.Option(help="order of the landmarks, as source.landmark_order names it")
    ] = None,
    people: Annotated[int, typer.Option(min=3, help="people to look at, four images each")] = 32,
    recognizer: Recognizer_ = None,
    weights: Weights = None,
    recognizer_weights: RecognizerWeights = None,
    option: Options = None,
    recognizer_option: RecognizerOptions = None,
    allow_import: AllowImport = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Check that a model gets the input it was made for and gives sound output. Exit code 1 if anything is wrong.

    An FR model is checked by --recognizer alone, with its --recognizer-weights and --recognizer-option.
    """
    from fiqa_ray.tools.doctor import examine
    from fiqa_ray.tools.show import findings_table, findings_total

    if images is None and (landmarks or landmark_order):
        raise UsageError("--landmarks and --landmark-order belong to --images; name the images")
    if model is None:
        if recognizer is None:
            raise UsageError("name a FIQA method or a regressor, or an FR model by --recognizer")
        if weights or option or allow_import:
            raise UsageError(
                "--weights, --option and --allow-import belong to a MODEL; an FR model has --recognizer-..."
            )
        named = named_model(recognizer, None, recognizer_weights, None, recognizer_option, None, False, device)
    else:
        named = named_model(
            model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device
        )
    findings = examine(
        named, images, people, landmarks=landmarks, landmark_order=landmark_order, as_recognizer=model is None
    )
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
    else:
        console.print(findings_table(findings))
        console.print(findings_total(findings))
    if any(f.state == "fault" for f in findings):
        raise typer.Exit(1)


def export(
    regressor: Annotated[str, typer.Argument(metavar="REGRESSOR", help="a trained regressor's folder; any fsspec URL")],
    output: Annotated[str, typer.Option("-o", "--output", help="an .onnx file")] = "regressor.onnx",
    images: Annotated[
        list[str] | None,
        typer.Option(help="112x112 crops to check the file on (default: 16 synthetic ones); as many as needed"),
    ] = None,
    allow_import: AllowImport = False,
) -> None:
    """Write a regressor as one ONNX file, from uint8 faces to score and embedding, if it gives the same results as torch."""
    import numpy as np

    from fiqa_ray.models.formats.export import TOLERANCE, export_onnx
    from fiqa_ray.models.regressor import load_regressor
    from fiqa_ray.sources.command_line import list_images
    from fiqa_ray.storage import write_atomic
    from fiqa_ray.synthetic.dataset import aligned_faces
    from fiqa_ray.tools.score import read_crops

    if not output.endswith(".onnx"):
        raise UsageError(f"output {output!r} must end in .onnx")
    if images:
        faces = read_crops(list_images(images))
    else:
        faces = np.concatenate([aligned_faces((0, 0, person, 2)) for person in range(4)]).transpose(0, 3, 1, 2).copy()
    model, card = load_regressor(regressor, allow_import=allow_import)
    data = export_onnx(model, card, faces)
    write_atomic(output, data)
    print(
        f"onnxruntime gives torch's scores of {len(faces)} crops within {TOLERANCE:g} of their range; written to {output}"
    )


def train_pcnet(
    job: Job_,
    output: Annotated[str, typer.Argument(metavar="HEAD.pt", help="where the trained head goes; any fsspec URL")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="training steps of 10 people x 8 images")] = 2000,
    new_settings: NewSettings = False,
) -> None:
    """Train PCNet's head on a job's recogniser and training faces; then `methods: [{name: pcnet, weights: HEAD.pt}]`."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.engine.ray import ray_session
    from fiqa_ray.tools.run_job import run_job
    from fiqa_ray.training.pcnet import train_pcnet as train

    settings = load_settings(job, overrides or [])
    packed = run_job(settings, ["pack"], new_settings=new_settings)
    with ray_session(settings.compute):
        card = train(packed, output, steps)
    loss = card["validation_loss"]
    print(f"{output}: loss on held-out people {'not known, too few people' if loss is None else f'{loss:.4f}'}")


def calibrate_froq(
    recognizer: Annotated[str, typer.Argument(metavar="FR-MODEL", help="the FR model, named as elsewhere")],
    images: Annotated[str, typer.Option(help="folder of aligned crops, one folder per person")],
    weights: Weights = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="an option of the FR model")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="CSV or Parquet of labels, larger is better (default: FROQ's own quality)")
    ] = None,
    label_column: Annotated[str, typer.Option(help="column of the labels, beside image_id")] = "label",
    max_images: Annotated[int, typer.Option(min=10, help="faces to use at most")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="of the draw of faces and of the noise")] = 0,
) -> None:
    """Find the layers of an FR model that the method froq needs, by labels of faces; they are printed as settings."""
    from fiqa_ray.models.recognition import load_recognizer
    from fiqa_ray.safe_yaml import parse_options
    from fiqa_ray.tools.froq import calibrate

    network = load_recognizer(recognizer, weights, **parse_options(option or []))
    chosen = calibrate(network, images, labels, label_column, max_images, seed)
    print(f"# {len(chosen.layers)} of {chosen.n_layers} layers, by {chosen.n_images} faces")
    print(f"methods: [{{name: froq, options: {{layers: {json.dumps(chosen.layers)}}}}}]")
