"""The commands to begin with: the demo, a job for one's own faces, and the jobs that the package ships."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fiqa_ray.cli.arguments import Overrides, RecognizerOptions
from fiqa_ray.public_uri import public_text

Output = Annotated[str | None, typer.Option("-o", "--output", help="write the YAML to this file; default: print it")]


def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="where the demo writes everything")] = Path(
        "runs/demo"
    ),
    overrides: Overrides = None,
) -> None:
    """Run the whole job on synthetic faces, without data of your own, and say whether optimized labels help.

    A second call goes on where the first one stopped, or prints the result again.
    """
    from fiqa_ray.config import load_settings
    from fiqa_ray.engine.progress import note
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.run_job import run_job
    from fiqa_ray.tools.shipped_jobs import write_demo

    note(f"demo: synthetic faces and a recogniser for them in {folder}")
    job_file = write_demo(folder)
    finished_job = run_job(load_settings(str(job_file), overrides or []))
    opened = open_run(finished_job.settings.run_uri)
    print("\n".join([*opened.answer(), *opened.unchanged(), *opened.signs()]))
    print(public_text(f"report: {finished_job.report().at('report.html')}"))
    print(f"job: {job_file}; change it and run it again with fiqa-ray run {job_file} --new-settings")


def init(
    faces: Annotated[
        str,
        typer.Argument(metavar="FACES", help="folder with one folder per person, or another source; any fsspec URL"),
    ],
    recognizer: Annotated[
        str, typer.Option(help="your FR model: an .onnx file, a name of `models`, or module:function")
    ],
    weights: Annotated[str | None, typer.Option(help="checkpoint of the FR model")] = None,
    recognizer_option: RecognizerOptions = None,
    detector: Annotated[
        str | None, typer.Option(help="YuNet's .onnx: images are raw photographs, and the largest face is aligned")
    ] = None,
    run_uri: Annotated[
        str | None, typer.Option(help="where the job writes; default: runs/ and the folder's name")
    ] = None,
    output: Output = None,
) -> None:
    """Look at your faces and recogniser, and write a job for them as YAML with comments.

    It finds the layout of the folder, counts images per person, chooses C and theta, finds scaling and colour order of an
    ONNX file that does not show them, and checks the recogniser as `doctor` does.
    """
    from fiqa_ray.safe_yaml import parse_options
    from fiqa_ray.tools.init_job import init_job

    options = parse_options(recognizer_option or [])

    def say(text: str) -> None:
        print(public_text(text), file=sys.stderr)

    text, faults = init_job(faces, recognizer, weights, options, detector=detector, run_uri=run_uri, say=say)
    _write(text, output)
    if faults:
        say(f"mend the recogniser first: {', '.join(faults)} (see FAULT above); labels of this one are worth nothing")
    elif output:
        say(f"now: fiqa-ray run {output}")


def jobs(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="print this job; default: list all")] = None,
    output: Output = None,
) -> None:
    """List the jobs that the package ships, or print one as YAML, to edit and run."""
    from fiqa_ray.tools.shipped_jobs import job_names, job_summary, job_text

    if name is None:
        for job in job_names():
            print(f"{job:<16} {job_summary(job)}")
        return
    _write(job_text(name), output)
    if output:
        print(f"now: fiqa-ray run {output}", file=sys.stderr)


def _write(text: str, output: str | None) -> None:
    """Write a YAML to a file, or print it."""
    if output is None:
        print(text, end="")
        return
    from fiqa_ray.storage import write_atomic

    write_atomic(output, text.encode())
    print(f"written to {output}", file=sys.stderr)
