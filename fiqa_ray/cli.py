"""The `fiqa-ray` command. Exit codes: 0 done, 1 error, 2 wrong usage or settings, 3 incomplete (run again to continue)."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fiqa_ray._version import __version__
from fiqa_ray.errors import FiqaRayError, UsageError

if TYPE_CHECKING:
    from fiqa_ray.models.scorer import Scorer

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
_ClickError: Any = typer.BadParameter.__mro__[2]  # ClickException: click's, or that of the click inside newer typers


@app.command()
def run(
    job: Job_,
    overrides: Overrides = None,
    stages: Annotated[str, typer.Option(help="only these, comma-separated: pack, embed, score, ...")] = "",
    limit: Annotated[int, typer.Option(help="for a trial: only the first N identities of the training faces")] = 0,
    new_settings: NewSettings = False,
) -> None:
    """Runs a job, or what is missing of it, and prints where the report lies."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.stages import STAGES
    from fiqa_ray.tools.run_job import run_job

    settings = load_settings(job, [*(overrides or []), *([f"source.limit={limit}"] if limit else [])])
    if limit:  # a trial has a folder of its own
        settings = settings.model_copy(update={"run_uri": f"{settings.run_uri.rstrip('/')}-limit{limit}"})
    wanted = [s.strip() for s in stages.split(",") if s.strip()] or list(STAGES)
    done = run_job(settings, wanted, new_settings=new_settings)
    if "report" in wanted:
        print(f"report: {done.report().at('report.html')}")


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
    """Shows what a run would do: shards, bytes, time and memory per step, measured on a sample here."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.job import Job
    from fiqa_ray.tools.plan import plan_job

    rows = plan_job(Job(load_settings(job, overrides or [])), workers, bandwidth and 1e6 * bandwidth)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    time_column = f"time, {workers} worker{'s' if workers > 1 else ''}"
    table = Table(
        "stage", "what", "state", "rows", "shards", "read", "written", "work, 1 CPU", time_column, "memory/worker"
    )
    for r in rows:
        table.add_row(
            r["stage"],
            r["what"],
            r["state"],
            f"{r['n_rows']:,}",
            f"{r['n_shards']:,}",
            _bytes(r["read_bytes"]),
            _bytes(r["written_bytes"]),
            _seconds(r["work_s"]),
            _seconds(r["time_s"]),
            _bytes(r["memory_bytes"]),
        )
    console.print(table)
    keys = ("work_s", "time_s", "read_bytes", "written_bytes", "object_store_bytes")
    total = {key: sum(r[key] for r in rows) for key in keys}
    console.print(
        f"together {_seconds(total['work_s'])} of work on this machine's CPU, {_seconds(total['time_s'])} on {workers} "
        f"worker(s); {_bytes(total['read_bytes'])} read from storage, {_bytes(total['written_bytes'])} written, "
        f"{_bytes(total['object_store_bytes'])} through Ray's object store"
    )


@app.command()
def status(
    run_uri: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")], as_json: Json = False
) -> None:
    """Shows how far a run is, from storage alone. Exit code 3 while something that was started is unfinished."""
    from fiqa_ray.tools.status import is_locked, run_status

    records = run_status(run_uri)
    if as_json:
        print(json.dumps(records, indent=1))
    else:
        table = Table("stage", "dataset", "parts", "rows", "failed", "size", "work")
        for r in records:
            failed = ", ".join(f"{k} {v}" for k, v in r["failed"].items()) or "0"
            table.add_row(
                r["stage"],
                r["dataset"].rsplit("/v=", 1)[0],
                f"{r['n_parts_done']}/{r['n_parts']}" + (" ok" if r["finished"] else ""),
                f"{r['n_rows_done']:,}/{r['n_rows']:,} {r['unit']}",
                failed,
                _bytes(r["n_bytes"]),
                _seconds(r["work_s"]),
            )
        console.print(table)
        console.print("a run is at work" if is_locked(run_uri) else "no run is at work")
    if not all(r["finished"] for r in records):
        raise typer.Exit(3)


@app.command()
def rejects(
    run_uri: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="write the list to this .csv")] = None,
) -> None:
    """Lists the images that pack could not use, with the reason of each, as CSV."""
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
    """Scores images, larger is better; needs neither YAML nor cluster. A bad image gets a row with its fault."""
    from fiqa_ray.config import default_batch_size
    from fiqa_ray.engine.progress import StepProgress
    from fiqa_ray.models.detector import FaceDetector
    from fiqa_ray.models.imported import IMPORTED
    from fiqa_ray.sources.command_line import list_images
    from fiqa_ray.tools.score import check_output, score_images, write_scores

    check_output(output)
    files = list_images(images)
    scorer = _load_scorer(
        model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device
    )
    # somebody's own code may not bear several threads at a time
    own_code = allow_import or any(IMPORTED.fullmatch(name) for name in (model, recognizer or ""))
    n_threads = 1 if own_code or device != "cpu" else os.cpu_count() or 1
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
    n_bad = table["score"].null_count
    reasons = {r["values"]: r["counts"] for r in table["status"].value_counts().to_pylist() if r["values"] != "ok"}
    why = f" ({', '.join(f'{k} {n}' for k, n in reasons.items())})" if reasons else ""
    hint = "; --detector aligns raw images" if "no_landmarks" in reasons else ""
    print(f"{len(table) - n_bad} scored, {n_bad} not{why}{hint}; written to {output}")


def _load_scorer(
    model: str,
    recognizer: str | None,
    weights: str | None,
    recognizer_weights: str | None,
    option: list[str] | None,
    recognizer_option: list[str] | None,
    allow_import: bool,
    device: str,
) -> Scorer:
    """The method or regressor that the options name; options that would have no effect are refused."""
    from fiqa_ray.config import parse_options
    from fiqa_ray.models.imported import IMPORTED
    from fiqa_ray.models.quality import METHODS, load_scorer
    from fiqa_ray.models.recognition import load_recognizer

    if recognizer_option and not recognizer:
        raise UsageError(f"--recognizer-option {recognizer_option[0]!r} belongs to a --recognizer; name it")
    if recognizer_weights and not recognizer:
        raise UsageError(f"--recognizer-weights {recognizer_weights} belongs to no FR model: add --recognizer")
    own_weights = weights
    has_head = model in METHODS and METHODS[model].head is not None
    if recognizer and not recognizer_weights and not has_head:
        recognizer_weights, own_weights = weights, None
    fr = None
    if recognizer:
        fr = load_recognizer(recognizer, recognizer_weights, device, **parse_options(recognizer_option or []))
    options = parse_options(option or [])
    if allow_import and model not in METHODS and not IMPORTED.fullmatch(model):
        options["allow_import"] = True
    scorer = load_scorer(model, fr, own_weights, device, **options)
    if fr and scorer.network is not fr:
        raise UsageError(f"--recognizer {recognizer}: {model!r} works on none; leave it out")
    return scorer


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
    """Checks that a model is fed and read as it was made to be, and says what is wrong. Exit code 1 if anything is."""
    from fiqa_ray.config import parse_options
    from fiqa_ray.models.devices import find_device
    from fiqa_ray.models.quality import METHODS
    from fiqa_ray.models.recognition import RECOGNIZERS, load_recognizer
    from fiqa_ray.models.recognizer import Recognizer
    from fiqa_ray.tools.doctor import Finding, check_file, check_recognizer, check_scorer, load_trial_faces

    is_recognizer = as_recognizer or (model in RECOGNIZERS and model not in METHODS)
    if is_recognizer and (recognizer or recognizer_weights or recognizer_option or allow_import):
        raise UsageError(f"{model} is an FR model itself: give its own --weights and --option only")
    find_device(device)
    faces = load_trial_faces(images, people)
    loaded: Recognizer | Scorer | None = None
    try:
        if is_recognizer:
            loaded = load_recognizer(model, weights, device, **parse_options(option or []))
        else:
            loaded = _load_scorer(
                model, recognizer, weights, recognizer_weights, option, recognizer_option, allow_import, device
            )
    except UsageError as error:
        if not is_recognizer and (model.lower().endswith(".onnx") or ":" in model):
            raise UsageError(f"{error}. If {model} is an FR model, add --as-recognizer") from error
        raise
    except FiqaRayError as error:
        either = not is_recognizer and model.lower().endswith(".onnx")
        hint = ". If it is an FR model, add --as-recognizer" if either else ""
        found = [Finding("file", "fault", f"{error}{hint}")]
    if isinstance(loaded, Recognizer):
        found = [check_file(loaded, RECOGNIZERS.get(model)), *check_recognizer(loaded, faces)]
    elif loaded is not None:
        own = METHODS[model].network if model in METHODS else None
        found = [check_file(loaded.network, own)] if loaded.network is not None else []
        found += check_scorer(loaded, faces)
    if as_json:
        print(json.dumps([vars(f) for f in found], indent=1))
    else:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("check", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("found", overflow="fold")
        for f in found:
            table.add_row(f.check, {"ok": "ok", "fault": "FAULT", "open": "open"}[f.state], f.words)
        console.print(table)
        n_faults = sum(f.state == "fault" for f in found)
        n_open = sum(f.state == "open" for f in found)
        told = f"{n_faults} fault(s) found" if n_faults else "nothing wrong was found"
        console.print(told + (f"; {n_open} check(s) could not tell" if n_open else ""))
    if any(f.state == "fault" for f in found):
        raise typer.Exit(1)


@app.command(name="train-pcnet")
def train_pcnet(
    job: Job_,
    output: Annotated[str, typer.Argument(metavar="HEAD.pt", help="where the trained head goes; any fsspec URL")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="training steps of 10 people x 8 images")] = 2000,
    new_settings: NewSettings = False,
) -> None:
    """Trains PCNet's head on a job's recogniser and training faces; then `methods: [{name: pcnet, weights: HEAD.pt}]`."""
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
    """Writes a regressor as one ONNX file, from uint8 faces to score and embedding, once it gives torch's results."""
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
    """Writes the report of a finished job and prints its place."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.storage import read_bytes, write_atomic
    from fiqa_ray.tools.run_job import run_job

    settings = load_settings(job, [*(overrides or []), "compute.engine=local"])
    place = run_job(settings, ["report"], new_settings=new_settings).report().at("report.html")
    if output:
        write_atomic(output, read_bytes(place))
    print(f"report: {output or place}")


@app.command()
def submit(
    job: Job_,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="the cluster's dashboard, such as http://HEAD:8265")] = "",
    working_dir: Annotated[str, typer.Option(help="folder to upload; jobs and your own models lie in it")] = ".",
    wait: Annotated[bool, typer.Option(help="follow the job and end with its state")] = False,
) -> None:
    """Submits `fiqa-ray run` as a Ray job and prints its id."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.engine.submit import submit_job

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise UsageError("no cluster: give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS")
    load_settings(job, overrides or [])  # mistakes show here, not on the cluster
    command = shlex.join(["python", "-m", "fiqa_ray.cli", "run", job, *(overrides or [])])
    submit_job(address, command, working_dir, wait=wait, say=lambda text: print(text, end="", flush=True))


@app.command()
def models() -> None:
    """Lists the FR models and FIQA methods that are known by name."""
    from fiqa_ray.models.quality import METHODS
    from fiqa_ray.models.recognition import RECOGNIZERS

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, column in enumerate(columns):
            made.add_column(column, no_wrap=i == 0, overflow="fold")
        return made

    known = table("recognizer.name", "FR model", "GMAC", "pixels", "released file", "licence")
    for name, fr in RECOGNIZERS.items():
        pixels = f"{fr.preprocessing.colour} (v-{fr.preprocessing.mean:g})/{fr.preprocessing.scale:g}"
        known.add_row(name, f"{fr.macs / 1e9:.2f}", pixels, fr.released_file, fr.licence)
    console.print(known)
    known = table("methods[].name", "FIQA method", "needs", "cost per face", "usual range", "licence")
    for name, method in METHODS.items():
        if method.network is not None:
            needs = f"weights: {method.network.released_file}"
        elif method.head is not None:
            needs = f"FR model; weights: {method.head.released_file}"
        elif method.from_embedding:
            needs = "stored embeddings"
        else:
            needs = "FR model with gradients" if method.needs_gradient else "FR model"
        known.add_row(name, needs, method.cost, method.usual_range, method.licence)
    console.print(known)
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


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:,.0f} {unit}" if unit == "B" or n >= 10 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"


def _seconds(s: float) -> str:
    if s < 120:
        return f"{s:.1f} s"
    return f"{s / 60:.1f} min" if s < 7200 else f"{s / 3600:,.1f} h"


def main(argv: list[str] | None = None) -> Any:
    """Entry point: runs the command and turns errors into one message and an exit code."""
    sys.path.insert(0, str(Path.cwd()))  # module:function names of the user's own models
    try:
        code = app(argv, standalone_mode=False)
        if code == 130:  # so newer typers hand on Ctrl-C
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
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
