"""The `fiqa-ray` command. Exit codes: 0 done, 1 error, 2 wrong usage or settings, 3 incomplete (run again to continue)."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fiqa_ray._version import __version__
from fiqa_ray.cli import results
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.public_uri import public_text

if TYPE_CHECKING:
    import pyarrow as pa

    from fiqa_ray.tools.named_model import NamedModel

app = typer.Typer(
    help="Face-image-quality labels and scores at any scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Job_ = Annotated[str, typer.Argument(metavar="JOB.yaml", help="a job's settings; any fsspec URL")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to change")]
AllowImport = Annotated[
    bool, typer.Option("--allow-import", help="let the regressor import the code of the FR model it was trained on")
]
Recognizer_ = Annotated[str | None, typer.Option("--recognizer", help="for a method: the FR model it needs")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="checkpoint of the FR model, or of a method with a network of its own")
]
RecognizerWeights = Annotated[
    str | None,
    typer.Option("--recognizer-weights", help="checkpoint of the FR model where --weights is the method's (pcnet)"),
]
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
console = Console(width=None if sys.stdout.isatty() else 160)
_ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of all command-line errors; not always `click.ClickException`, because newer typers contain their own click."""


@app.command()
def run(
    job: Job_,
    overrides: Overrides = None,
    stages: Annotated[str, typer.Option(help="only these, comma-separated: pack, embed, score, ...")] = "",
    limit: Annotated[int, typer.Option(help="for a trial: only the first N identities of the training faces")] = 0,
    new_settings: NewSettings = False,
) -> None:
    """Run a job, or the missing parts of it, and print the location of the report."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.stages import STAGES
    from fiqa_ray.tools.run_job import run_job

    settings = load_settings(job, [*(overrides or []), *([f"source.limit={limit}"] if limit else [])])
    if limit:  # a trial has a folder of its own
        settings = settings.model_copy(update={"run_uri": f"{settings.run_uri.rstrip('/')}-limit{limit}"})
    stage_names = [s.strip() for s in stages.split(",") if s.strip()] or list(STAGES)
    finished_job = run_job(settings, stage_names, new_settings=new_settings)
    if "report" in stage_names:
        print(public_text(f"report: {finished_job.report().at('report.html')}"))


@app.command()
def plan(
    job: Job_,
    overrides: Overrides = None,
    as_json: Json = False,
    workers: Annotated[int, typer.Option(min=1, help="for how many workers to predict the time")] = os.cpu_count() or 1,
    bandwidth: Annotated[
        float | None, typer.Option(min=1.0, help="MB/s between a worker and storage, where that is no local disk")
    ] = None,
) -> None:
    """Show what a run would do: shards, bytes, time and memory per step, measured on a sample on this machine."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.job import Job
    from fiqa_ray.tools.plan import plan_job
    from fiqa_ray.tools.show import plan_table, plan_total

    rows = plan_job(Job(load_settings(job, overrides or [])), workers, bandwidth and 1e6 * bandwidth)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console.print(plan_table(rows, workers))
        console.print(plan_total(rows, workers))


@app.command()
def status(
    run_uri: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")], as_json: Json = False
) -> None:
    """Show the progress of a run, from storage alone. Exit code 3 while something that was started is unfinished."""
    from fiqa_ray.tools.show import status_table
    from fiqa_ray.tools.status import is_locked, run_status

    records = run_status(run_uri)
    if as_json:
        print(json.dumps(records, indent=1))
    else:
        console.print(status_table(records))
        console.print("a run is at work" if is_locked(run_uri) else "no run is at work")
    if not all(r["finished"] for r in records):
        raise typer.Exit(3)


@app.command()
def rejects(
    run_uri: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="write the list to this .csv")] = None,
) -> None:
    """List the images that pack could not use, with the reason for each, as CSV."""
    import io

    from pyarrow import csv

    from fiqa_ray.storage import write_atomic
    from fiqa_ray.tools.status import rejected_images

    table = rejected_images(run_uri)
    text = io.BytesIO()
    csv.write_csv(table, text)
    if output:
        write_atomic(output, text.getvalue())
        print(f"{len(table)} image(s) rejected; written to {output}")
    else:
        print(text.getvalue().decode(), end="")


for _command in (results.labels, results.scores, results.embeddings, results.verify):
    app.command()(_command)


@app.command()
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

    check_output(output)
    left_out: Counter[str] = Counter()
    files = list_images(images, left_out)
    if left_out:
        print(f"{len(files):,} images; {left_out.total():,} files left out ({count_text(left_out)})", file=sys.stderr)
    named = _named_model(
        model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device
    )
    scorer = named.load()
    n_threads = 1 if named.runs_user_code or device != "cpu" else os.cpu_count() or 1
    with StepProgress("score", len(files), "images") as progress:
        table = score_images(
            files,
            scorer,
            detector=FaceDetector(detector) if detector else None,
            validation_scores=(scorer.card or {}).get("validation_scores"),
            batch_size=batch_size or default_batch_size(device),
            n_threads=n_threads,
            advance=progress.advance,
        )
    write_scores(table, output)
    print(f"{_score_summary(table)}; written to {output}")
    if table["score"].null_count == len(table):
        raise FiqaRayError(f"none of the {len(table):,} images could be scored; the rows in {output} say why")


def _score_summary(table: pa.Table) -> str:
    n_bad = table["score"].null_count
    reasons = {r["values"]: r["counts"] for r in table["status"].value_counts().to_pylist() if r["values"] != "ok"}
    why = f" ({', '.join(f'{k} {n}' for k, n in reasons.items())})" if reasons else ""
    hint = "; --detector aligns raw images" if "no_landmarks" in reasons else ""
    return f"{len(table) - n_bad} scored, {n_bad} not{why}{hint}"


def _named_model(
    model: str,
    recognizer: str | None,
    weights: str | None,
    recognizer_weights: str | None,
    option: list[str] | None,
    recognizer_option: list[str] | None,
    allow_import: bool,
    device: str,
) -> NamedModel:
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


@app.command()
def doctor(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="an FR model, a FIQA method or a regressor, named as elsewhere"),
    ],
    images: Annotated[
        str | None, typer.Option(help="folder of aligned crops, one folder per person (default: synthetic faces)")
    ] = None,
    people: Annotated[int, typer.Option(min=3, help="people to look at, four images each")] = 32,
    recognizer: Recognizer_ = None,
    weights: Weights = None,
    recognizer_weights: RecognizerWeights = None,
    option: Options = None,
    recognizer_option: RecognizerOptions = None,
    allow_import: AllowImport = False,
    as_recognizer: Annotated[
        bool,
        typer.Option(
            "--as-recognizer", help="MODEL is an FR model where its name could be either (.onnx, module:function)"
        ),
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Check that a model gets the input it was made for and gives sound output. Exit code 1 if anything is wrong."""
    from fiqa_ray.tools.doctor import examine
    from fiqa_ray.tools.show import findings_table, findings_total

    named = _named_model(
        model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device
    )
    findings = examine(named, images, people, as_recognizer=as_recognizer)
    if as_json:
        print(json.dumps([vars(f) for f in findings], indent=1))
    else:
        console.print(findings_table(findings))
        console.print(findings_total(findings))
    if any(f.state == "fault" for f in findings):
        raise typer.Exit(1)


@app.command(name="train-pcnet")
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


@app.command()
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


@app.command()
def report(
    job: Job_,
    overrides: Overrides = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="also copy the page to this file")] = None,
    new_settings: NewSettings = False,
) -> None:
    """Write the report of a finished job and print its location."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.storage import read_bytes, write_atomic
    from fiqa_ray.tools.run_job import run_job

    settings = load_settings(job, [*(overrides or []), "compute.engine=local"])
    uri = run_job(settings, ["report"], new_settings=new_settings).report().at("report.html")
    if output:
        write_atomic(output, read_bytes(uri))
    print(public_text(f"report: {output or uri}"))


@app.command()
def submit(
    job: Job_,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="the cluster's dashboard, such as http://HEAD:8265")] = "",
    working_dir: Annotated[str, typer.Option(help="folder to upload; jobs and your own models lie in it")] = ".",
    wait: Annotated[bool, typer.Option(help="follow the job and end with its state")] = False,
) -> None:
    """Submit `fiqa-ray run` as a Ray job and print its id."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.engine.submit import submit_job

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise UsageError("no cluster: give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS")
    load_settings(job, overrides or [])  # mistakes show here, not on the cluster
    command = shlex.join(["python", "-m", "fiqa_ray", "run", job, *(overrides or [])])
    submit_job(address, command, working_dir, wait=wait, say=lambda text: print(text, end="", flush=True))


@app.command()
def models() -> None:
    """List the FR models and FIQA methods that have a name."""
    from fiqa_ray.tools.show import methods_table, recognizers_table

    console.print(recognizers_table())
    console.print(methods_table())
    console.print("A larger score means better quality everywhere. F, B: forward and backward passes of the FR model.")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Face-image-quality labels and scores at any scale."""


def main(argv: list[str] | None = None) -> Any:
    """Run the command; print errors as one message and exit with their code."""
    sys.path.insert(0, str(Path.cwd()))  # so that a user's own module:function can be imported
    try:
        code = app(argv, standalone_mode=False)
        if code == 130:  # newer typers return this on Ctrl-C
            raise KeyboardInterrupt
    except FiqaRayError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except _ClickError as exc:
        exc.show()
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(3)
    except Exception:  # a fault of the program: its traceback, without secrets of URIs
        print(public_text(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
