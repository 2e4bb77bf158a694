"""The `fiqa-ray` command: a table of commands. Exit codes: 0 done, 1 error, 2 wrong usage or settings, 3 incomplete."""

from __future__ import annotations

import os
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from fiqa_ray._version import __version__
from fiqa_ray.cli import evaluate, faces, inspect, job, model, paper, results, start, tables, threshold
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.public_uri import public_text

app = typer.Typer(
    help="Face-image-quality labels and scores at any scale.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of all command-line errors; not always `click.ClickException`, because newer typers contain their own click."""

COMMANDS = (
    start.demo,
    start.init,
    start.jobs,
    job.run,
    evaluate.evaluate,
    job.plan,
    job.status,
    job.rejects,
    results.labels,
    results.scores,
    results.embeddings,
    results.verify,
    paper.tables,
    paper.figures,
    threshold.threshold,
    inspect.explain,
    inspect.time_,
    faces.score,
    model.doctor,
    model.train_pcnet,
    model.calibrate_froq,
    model.export,
    job.report,
    job.submit,
)
"""All commands, in the order of `--help`. A command is a function with typer's arguments; its name is the function's,
without the `_` at the end of a name that Python's library has too."""

for _command in COMMANDS:
    app.command(_command.__name__.rstrip("_").replace("_", "-"))(_command)
app.add_typer(tables.models, name="models")


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


@cache
def _program() -> Any:
    """Return the command line that typer builds from the signatures of all commands."""
    return typer.main.get_command(app)


def main(argv: list[str] | None = None) -> Any:
    """Run the command; print errors as one message and exit with their code."""
    sys.path.insert(0, str(Path.cwd()))  # so that a user's own module:function can be imported
    try:
        code = _program()(argv, standalone_mode=False)
        if code == 130:  # newer typers return this on Ctrl-C
            raise KeyboardInterrupt
    except FiqaRayError as exc:
        print(f"error: {exc}", file=sys.stderr, flush=True)
        if isinstance(exc, IncompleteError) and exc.is_end_of_process:  # Ray's own threads would crash at a usual exit
            os._exit(exc.exit_code)
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
