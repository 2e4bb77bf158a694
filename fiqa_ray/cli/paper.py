"""The commands that write the tables and the figures of a paper."""

from __future__ import annotations

from typing import Annotated

import typer

from fiqa_ray.errors import FiqaRayError

Convention_ = Annotated[str | None, typer.Option(help="convention of the areas (default: the job's first)")]
Rate_ = Annotated[float | None, typer.Option("--fmr", help="false match rate (default: the job's first)")]
Limit_ = Annotated[
    float | None, typer.Option(help="discarded share at which areas end (default: the end of each curve)")
]


def tables(
    runs: Annotated[list[str], typer.Argument(metavar="RUN_URI...", help="run_uri of finished jobs")],
    output: Annotated[str, typer.Option("-o", "--output", help="folder for the files; any fsspec URL")] = "tables",
    convention: Convention_ = None,
    fmr: Rate_ = None,
    limit: Limit_ = None,
    beside: Annotated[str | None, typer.Option(help="JSON of published numbers, to stand beside the run's own")] = None,
    times: Annotated[str | None, typer.Option(help="what `fiqa-ray time JOB.yaml --json` wrote, for Table IV")] = None,
) -> None:
    """Write Tables I to IV of the paper, all differences and all areas: CSV, Markdown and LaTeX (booktabs)."""
    try:
        import pandas  # noqa: F401
        import tabulate  # noqa: F401
    except ImportError as error:
        raise FiqaRayError(
            f"tables need {error.name}, which is not installed: pip install 'fiqa-ray[tables]'"
        ) from error
    from fiqa_ray.tools.paper_files import write_tables
    from fiqa_ray.tools.paper_tables import choose_point, read_group_rates, read_published, read_results, why_missing
    from fiqa_ray.tools.time_table import read_times

    results = read_results(runs)
    point = choose_point(results, convention, fmr, limit)
    names = write_tables(
        results,
        point,
        output,
        read_published(beside) if beside else (),
        read_times(times) if times else None,
        read_results(runs, of_groups=True),
        read_group_rates(runs),
    )
    print(f"{', '.join(names)} written to {output}: convention {point.convention}, {point.rate_text}")
    for name, why in why_missing(results, point).items():
        print(f"{name} left out: {why}")


def figures(
    run: Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a finished job")],
    output: Annotated[str, typer.Option("-o", "--output", help="folder for the files; any fsspec URL")] = "figures",
    convention: Convention_ = None,
    fmr: Rate_ = None,
    limit: Limit_ = None,
) -> None:
    """Draw the figures of a paper as SVG and PDF: curves with bands, DET, histograms, Fig. 4, mean ranks, faces."""
    from fiqa_ray.tools.figures import write_figures
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.paper_tables import choose_point, read_results

    results = read_results([run])
    point = choose_point(results, convention, fmr, limit)
    names = write_figures(open_run(run), results, point, output)
    print(f"{len(names)} figures, each as .svg and .pdf, written to {output}: {', '.join(names)}")
