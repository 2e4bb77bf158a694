"""The commands that run a job, look at it, and submit it to a cluster."""

from __future__ import annotations

import json
import os
import time
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
    """Run a job, or the missing parts of it, and print whether labels help, where the report lies, and what to do next."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.stages import STAGES
    from fiqa_ray.tools.inputs import input_warnings
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.run_job import run_job

    settings = load_settings(job, [*(overrides or []), *([f"source.limit={limit}"] if limit else [])])
    if limit:  # a trial has a folder of its own
        settings = settings.model_copy(update={"run_uri": f"{settings.run_uri.rstrip('/')}-limit{limit}"})
    stage_names = [s.strip() for s in stages.split(",") if s.strip()] or list(STAGES)
    finished_job = run_job(settings, stage_names, new_settings=new_settings)
    if "report" not in stage_names:
        return
    opened = open_run(settings.run_uri)
    lines = [*(opened.answer() if settings.benchmarks else []), *opened.unchanged(), *opened.signs()]
    lines += input_warnings(settings)  # said at the start as well, hours ago
    print("".join(f"{line}\n" for line in lines), end="")
    print(public_text(f"report: {finished_job.report().at('report.html')}"))
    if settings.source is not None:
        print(public_text(f"labels: fiqa-ray labels {settings.run_uri} -o labels.csv"))


def plan(
    job: Job_,
    overrides: Overrides = None,
    as_json: Json = False,
    workers: Annotated[
        int,
        typer.Option(min=1, help="for how many workers to predict the time", show_default="this machine's processors"),
    ] = os.cpu_count() or 1,
    bandwidth: Annotated[
        float | None, typer.Option(min=1.0, help="MB/s between a worker and storage, where that is no local disk")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="also print the money for this machine, such as m6i.4xlarge")
    ] = None,
    machines: Annotated[int, typer.Option(min=1, help="how many of them; each processor then runs one worker")] = 1,
    prices: Annotated[
        str | None, typer.Option(help="a .csv of your own: machine, n_cpus, memory_gib, price_per_hour")
    ] = None,
) -> None:
    """Show what a run would do: shards, bytes, time and memory per step, measured on a sample on this machine."""
    from fiqa_ray.config import load_settings
    from fiqa_ray.job import Job
    from fiqa_ray.tools.plan import plan_job
    from fiqa_ray.tools.prices import cost_line, read_machine
    from fiqa_ray.tools.show import plan_table, plan_total

    named = read_machine(machine, prices) if machine else None
    workers = machines * named.n_cpus if named else workers
    rows = plan_job(Job(load_settings(job, overrides or [])), workers, bandwidth and 1e6 * bandwidth)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console.print(plan_table(rows, workers))
        console.print(plan_total(rows, workers))
        if named:
            console.print(cost_line(rows, named, machines))


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
    run_uri: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")],
    as_json: Json = False,
    follow: Annotated[bool, typer.Option("--follow", help="show it again every 5 s while a run is at work")] = False,
    by_dataset: Annotated[bool, typer.Option("--datasets", help="a line per dataset, not per stage")] = False,
) -> None:
    """Show the progress of a run, from storage alone. Exit code 3 while its last settings lack something."""
    from rich.text import Text

    from fiqa_ray.tools.show import datasets_table, earlier_lines, run_lines, stages_table
    from fiqa_ray.tools.status import run_now, run_status

    while True:
        now, records = run_now(run_uri), run_status(run_uri)
        if as_json:
            print(json.dumps({"run": now, "datasets": records}, indent=None if follow else 1), flush=True)
        else:
            console.print(datasets_table(records) if by_dataset else stages_table(records))
            console.print(Text("\n".join([*earlier_lines(records), *run_lines(now)])), soft_wrap=True)
        if not (follow and now["is_at_work"]):
            break
        time.sleep(5.0)
    if not all(r["finished"] or r["is_earlier"] for r in records):
        raise typer.Exit(3)


def rejects(
    run_uri: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="write the list to this .csv")] = None,
) -> None:
    """List the images that pack could not use, with the reason for each, as CSV.

    Images with status ok are used, though libjpeg complained of them.
    """
    import io

    from pyarrow import csv

    from fiqa_ray.storage import write_atomic
    from fiqa_ray.tools.status import rejected_images

    table = rejected_images(run_uri)
    text = io.BytesIO()
    csv.write_csv(table, text)
    if output:
        write_atomic(output, text.getvalue())
        n_used = table["status"].to_pylist().count("ok")
        used = f", {n_used} used though libjpeg complained" if n_used else ""
        print(f"{len(table) - n_used} image(s) rejected{used}; written to {output}")
    else:
        print(text.getvalue().decode(), end="")


def submit(
    job: Job_,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="the cluster's dashboard, such as http://HEAD:8265")] = "",
    working_dir: Annotated[str, typer.Option(help="folder to upload; jobs and your own models lie in it")] = ".",
    wait: Annotated[bool, typer.Option(help="follow the job's log and end with its exit code")] = False,
    with_dependencies: Annotated[
        bool, typer.Option("--with-dependencies", help="install what fiqa_ray needs: for a cluster with Ray alone")
    ] = False,
) -> None:
    """Submit `fiqa-ray run` as a Ray job and print its id. Submit it again to follow it, or to continue it."""
    from fiqa_ray.config import load_settings, settings_values
    from fiqa_ray.engine.submit import Submission, submit_job
    from fiqa_ray.safe_yaml import yaml_text

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise UsageError("no cluster: give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS")
    run_uri = load_settings(job, overrides or []).run_uri  # mistakes show here, not on the cluster
    text = yaml_text(settings_values(job, overrides or []))
    submission = Submission(text, run_uri, working_dir, with_dependencies)
    code = submit_job(address, submission, wait=wait, say=lambda line: print(line, end="", flush=True))
    if code:
        raise typer.Exit(code)
