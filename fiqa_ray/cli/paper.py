"""The command that writes the tables of a paper."""

from __future__ import annotations

from typing import Annotated

import typer

from fiqa_ray.errors import FiqaRayError


def tables(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_URI...", help="run_uri of finished jobs")],
    output: Annotated[str, typer.Option("-o", "--output", help="folder for the files; any fsspec URL")] = "tables",
    convention: Annotated[str | None, typer.Option(help="convention of the areas (default: the job's first)")] = None,
    fmr: Annotated[float | None, typer.Option(help="false match rate (default: the job's first)")] = None,
    limit: Annotated[
        float | None, typer.Option(help="discarded share at which areas end (default: the end of each curve)")
    ] = None,
    beside: Annotated[str | None, typer.Option(help="JSON of published numbers, to stand beside the run's own")] = None,
) -> None:
    """Write Tables I to III of the paper, all differences and all areas: CSV, Markdown and LaTeX (booktabs)."""
    try:
        import pandas  # noqa: F401
        import tabulate  # noqa: F401
    except ImportError as error:
        raise FiqaRayError(
            f"tables need {error.name}, which is not installed: pip install 'fiqa-ray[tables]'"
        ) from error
    from fiqa_ray.tools.paper_tables import choose_point, read_published, read_results, write_tables

    results = read_results(runs)
    point = choose_point(results, convention, fmr, limit)
    names = write_tables(results, point, output, read_published(beside) if beside else ())
    print(f"{', '.join(names)} written to {output}: convention {point.convention}, FMR {point.fmr:g}")
