"""The commands that write the results of a run as one file: labels, scores, embeddings."""

from __future__ import annotations

from typing import Annotated

import typer

RunUri = Annotated[str, typer.Argument(metavar="RUN_URI", help="run_uri of a job")]
FaceSet = Annotated[str | None, typer.Option("--set", help="train or the name of a benchmark; default: all")]


def scores(
    run_uri: RunUri,
    output: Annotated[str, typer.Option("-o", "--output", help=".parquet or .csv")] = "scores.csv",
    face_set: FaceSet = None,
) -> None:
    """Write a run's scores, of every method and regressor, with file names: set, image_id, identity, method, score."""
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.table_files import check_ending, write_tables

    check_ending(output, (".parquet", ".csv"))
    n_rows = write_tables(open_run(run_uri).score_tables(face_set), output)
    print(f"{n_rows:,} scores written to {output}")


def embeddings(
    run_uri: RunUri,
    output: Annotated[str, typer.Option("-o", "--output", help=".parquet or .npz")] = "embeddings.parquet",
    face_set: Annotated[str, typer.Option("--set", help="train or the name of a benchmark")] = "train",
) -> None:
    """Write a run's embeddings with file names: image_id, identity, embedding, status."""
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.table_files import check_ending, write_tables

    check_ending(output, (".parquet", ".npz"))
    n_rows = write_tables(open_run(run_uri).embedding_tables(face_set), output)
    print(f"{n_rows:,} embeddings written to {output}")


def labels(
    run_uri: RunUri,
    output: Annotated[str, typer.Option("-o", "--output", help=".parquet or .csv")] = "labels.csv",
) -> None:
    """Write a run's optimized labels with file names: image_id, identity, method, theta, prior, label."""
    from fiqa_ray.tools.open_run import open_run
    from fiqa_ray.tools.table_files import check_ending, write_tables

    check_ending(output, (".parquet", ".csv"))
    n_rows = write_tables(open_run(run_uri).label_tables(), output)
    print(f"{n_rows:,} labels written to {output}")
