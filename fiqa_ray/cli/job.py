"""The commands that run a job, look at it, and submit it to a cluster."""

from __future__ import annotations

import json
import os
import shlex
from typing import Annotated

import typer

from fiqa_ray.cli.arguments import Job_, Json, NewSettings, Overrides, console
from fiqa_ray.errors import UsageError
from fiqa_ray.public_uri import public_text


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


def report(
    job: Annotated[str, typer.Argument(metavar="RUN_URI|JOB.yaml", help="run_uri of a job, or its settings")],
    overrides: Overrides = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="also copy the page to this file")] = None,
    new_settings: NewSettings = False,
) -> None:
    """Print where the report of a run lies; of a JOB.yaml, write it first."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.storage import read_bytes, write_atomic

    if job.lower().endswith((".yaml", ".yml")):
        from fiqa_ray.tools.run_job import run_job

        settings = load_settings(job, [*(overrides or []), "compute.engine=local"])
        uri = run_job(settings, ["report"], new_settings=new_settings).report().at("report.html")
    else:
        from fiqa_ray.tools.open_run import open_run

        if overrides or new_settings:
            raise UsageError("settings and --new-settings belong to a JOB.yaml; a run has its own")
        uri = open_run(job).report
    if output:
        write_atomic(output, read_bytes(uri))
    print(public_text(f"report: {output or uri}"))


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
