"""The commands that look closely: at one image's label, and at the run time of methods."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fiqa_ray.cli.arguments import (
    AllowImport,
    Device,
    Job_,
    Json,
    Options,
    Recognizer_,
    RecognizerOptions,
    RecognizerWeights,
    console,
    named_model,
)


def explain(
    job: Job_,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="image_id of a training face, such as anna/1.jpg")],
    method: Annotated[str | None, typer.Option(help="label of a method; default: the first")] = None,
    theta: Annotated[str | None, typer.Option(help="default: the first of the job")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="a .png of the image and its mates, repeat by repeat")
    ] = None,
) -> None:
    """Explain the label of an image: its pairs, their similarities and ranks, and its index before and after."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.job import Job
    from fiqa_ray.tools.explain import explain_image, write_picture

    loaded = Job(load_settings(job))
    explained = explain_image(loaded, image, method, theta)
    print("\n".join(explained.lines()))
    if output is not None:
        write_picture(loaded, explained, output)
        print(f"{output} shows the image and its mates")


def time_(
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="METHODS...|JOB.yaml",
            help="FIQA methods or regressors, NAME=FILE gives the weights; or a job: its methods and their regressors",
        ),
    ],
    images: Annotated[list[str] | None, typer.Option(help="aligned crops; default: synthetic faces")] = None,
    n_images: Annotated[int, typer.Option(min=1, help="images for each batch size")] = 100,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="a size to try, may be repeated; default: 1, 8, 32, 128")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as torch takes them")] = 0,
    recognizer: Recognizer_ = None,
    recognizer_weights: RecognizerWeights = None,
    option: Options = None,
    recognizer_option: RecognizerOptions = None,
    allow_import: AllowImport = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure the run time of methods per image: mean and standard deviation, alone and in the best batch size."""
    from fiqa_ray.tools.show import times_table
    from fiqa_ray.tools.time_methods import BATCH_SIZES, time_methods
    from fiqa_ray.tools.timed_models import models_of_job, named_models

    if methods[0].lower().endswith((".yaml", ".yml")):
        from fiqa_ray.config import load_settings
        from fiqa_ray.job import Job

        timed = models_of_job(Job(load_settings(methods[0], methods[1:])), device)
    else:
        models = []
        for text in methods:
            name, _, weights = text.partition("=")
            models.append(
                named_model(
                    name,
                    recognizer,
                    weights or None,
                    recognizer_weights,
                    option,
                    recognizer_option,
                    allow_import,
                    device,
                )
            )
        timed = named_models(models)
    timing = time_methods(
        timed, images=images or (), n_images=n_images, batch_sizes=batch_size or BATCH_SIZES, n_threads=threads
    )
    if as_json:
        print(json.dumps(timing.to_json(), indent=1))
        return
    console.print(times_table(timing))
    versions = ", ".join(f"{name} {version}" for name, version in timing.versions.items())
    print(
        f"{timing.n_images} images or more after {timing.n_warm_up} calls; {timing.device}, {timing.n_threads} threads"
    )
    print(versions)
    print(f"decoding, not part of the above: {timing.decode_mean:.3f} ± {timing.decode_sd:.3f} ms per image")
