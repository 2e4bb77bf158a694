"""The commands about what a run has stored: labels, scores and embeddings as one file each, and a check of all files."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from fiqa_ray.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

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
    run_or_thetas: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_URI]", help="run_uri of a job; leave it out to give --embeddings", show_default=False
        ),
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help=".parquet or .csv")] = "labels.csv",
    embeddings: Annotated[
        str | None, typer.Option(help=".npy, .npz, .parquet, or .pkl of {path: vector}: labels without images")
    ] = None,
    identities: Annotated[
        str | None,
        typer.Option(
            help=".txt with a name per line, .npy, or .csv of image_id and identity; default: each image's folder"
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(help=".csv of image_id and score, .npy, .txt or .pkl; repeat it for several methods"),
    ] = None,
    theta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THETA...",
            help="weights of the update, such as 0.01 0.1; of a run: only these of its thetas, such as heldout",
        ),
    ] = None,
    n_clusters: Annotated[int, typer.Option(min=1, help="clusters of a person's images")] = 20,
    n_repeats: Annotated[int, typer.Option(min=1, help="repeats of the pair draw")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="of all random draws")] = 0,
    index_scale: Annotated[str, typer.Option(help="normalized, or raw as in the paper")] = "normalized",
    ediff: Annotated[
        float | None,
        typer.Option(min=0, metavar="EPSILON", help="labels by eDifFIQA's rule with this weight, in place of --theta"),
    ] = None,
    ediff_least: Annotated[
        int, typer.Option(min=1, help="eDifFIQA's rule: images among the best fifth that a person must have")
    ] = 10,
) -> None:
    """Write a run's labels with file names, or make labels from stored embeddings, names of people and scores.

    Columns: image_id, identity, method, variant, theta, chosen (on held-out people), prior, label.
    """
    from fiqa_ray.tools.table_files import check_ending, write_tables

    check_ending(output, (".parquet", ".csv"))
    words = run_or_thetas or []
    if embeddings is None:
        if not words or (len(words) > 1 and not theta) or identities or scores:
            raise UsageError(
                "give the run_uri of one job, or --embeddings, --scores and --theta for labels without images"
            )
        from fiqa_ray.tools.open_run import open_run

        run, of_run = open_run(words[0]), [*(theta or []), *words[1:]]
        tables = run.label_tables([t for text in of_run for t in ([text] if text == "heldout" else _numbers([text]))])
        print("".join(f"{line}\n" for line in run.signs()), end="", file=sys.stderr)
    else:
        from fiqa_ray.tools.labels import labels_of_files

        thetas = _numbers([*(theta or []), *words])  # `--theta 0.01 0.1`: what follows the first one is an argument
        if not scores or bool(thetas) == (ediff is not None):
            raise UsageError(
                "labels of --embeddings need --scores FILE and either --theta NUMBER... or --ediff EPSILON"
            )
        tables = labels_of_files(
            embeddings,
            identities,
            scores,
            thetas,
            n_clusters=n_clusters,
            n_repeats=n_repeats,
            seed=seed,
            index_scale=index_scale,
            epsilon=ediff,
            least=ediff_least,
        )
    with _short_warnings():
        n_rows = write_tables(_saying_zero(tables), output)
    print(f"{n_rows:,} labels written to {output}")


def _saying_zero(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables of labels; say of which theta is 0, whose labels tell nothing that the scores did not."""
    for table in tables:
        yield table
        if len(table) and table["theta"][0].as_py() == 0:
            print(
                f"{table['method'][0]}: its labels with theta 0 are its own scores, scaled to 0 to 1; those with other "
                "thetas are not. The report of a job with theta heldout says why 0 was chosen, docs/how-to/theta.md what "
                "else to try",
                file=sys.stderr,
            )


def _numbers(words: list[str]) -> list[float]:
    try:
        return [float(number) for word in words for number in word.split(",") if number]
    except ValueError as exc:
        raise UsageError(f"--theta: {exc}; with --embeddings give numbers only, and no run") from exc


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings as one line each, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning):
        print(f"warning: {text}", file=sys.stderr)


def verify(
    run_uri: RunUri,
    repair: Annotated[
        bool, typer.Option("--repair", help="remove the damaged files, and no others; the next run makes them again")
    ] = False,
) -> None:
    """Read all files of a run once, and name each damaged one and what was made from it.

    Exit code 1 if a file is damaged or lost, 3 after a repair: run the job again.
    """
    from fiqa_ray.tools.verify import repair_run, verify_run

    verification = repair_run(run_uri) if repair else verify_run(run_uri)
    for damage in verification.damages:
        print(damage.fault)
        if damage.made_from_it:
            print(f"  made from it while it was sound: {', '.join(damage.made_from_it)}")
    n = len(verification.damages)
    print(f"{verification.n_files:,} files, {verification.n_bytes:,} bytes: {n} damaged or lost")
    if n and repair:
        print("the damaged files are removed; run the same job again, it makes them again")
    elif n:
        print("fiqa-ray verify --repair removes the damaged files, and no others; the next run makes them again")
    if n:
        raise typer.Exit(3 if repair else 1)
