"""The command `models`: the list of FR models and FIQA methods that have a name, and their files."""

from __future__ import annotations

from typing import Annotated

import typer

from fiqa_ray.cli.arguments import console

models = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List the FR models and FIQA methods that have a name; `models fetch NAME` gets the file of one."""
    if context.invoked_subcommand is not None:
        return
    from fiqa_ray.tools.show import methods_table, recognizers_table

    console.print(recognizers_table())
    console.print(methods_table())
    console.print(
        "A larger score means better quality everywhere. F, B: forward and backward passes of the FR model. "
        "fetch: `fiqa-ray models fetch NAME` gets the file."
    )


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="an FR model or a FIQA method of the list")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="where the file goes (default: its own name, in this folder)")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="fetch without the question: the licence is known and accepted")
    ] = False,
) -> None:
    """Show the licence of a model's released file and, after your word, fetch the file and check its hash."""
    from fiqa_ray.tools.fetch import fetch_file, file_of

    file = file_of(name)
    print(f"{file.uri}\n  by {file.source}\n  licence: {file.licence}\n  SHA-256: {file.sha256 or 'none is published'}")
    if not accept_licence and not typer.confirm("Fetch it under this licence?"):
        raise typer.Exit(1)
    print(fetch_file(file, output))
