"""The command that finds a quality threshold for operation."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fiqa_ray.cli.arguments import Json


def threshold(
    pairs: Annotated[
        str,
        typer.Argument(metavar="PAIRS", help="CSV or Parquet with image_id_a, image_id_b, mated, similarity"),
    ],
    scores: Annotated[
        str | None, typer.Option(help="scores of the images; default: the columns quality_a and quality_b of PAIRS")
    ] = None,
    fnmr: Annotated[float | None, typer.Option(help="FNMR that the pairs left shall not exceed, such as 0.01")] = None,
    reject: Annotated[
        float | None, typer.Option(help="or share of the images that may be refused, such as 0.1")
    ] = None,
    fmr: Annotated[float, typer.Option(help="false match rate at which pairs are accepted")] = 1e-3,
    similarity_threshold: Annotated[
        float | None, typer.Option(help="accept pairs above this similarity instead")
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="bootstrap draws of persons")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the draws and of the halves of persons")] = 0,
    as_json: Json = False,
) -> None:
    """Find the quality threshold for a target FNMR or a maximal reject rate, and check it on held-out persons."""
    from fiqa_ray.tools.threshold import check_wishes, find_threshold

    check_wishes(fnmr, reject)
    report = find_threshold(
        pairs,
        scores,
        target_fnmr=fnmr,
        max_reject_rate=reject,
        fmr=fmr,
        similarity_threshold=similarity_threshold,
        n_draws=draws,
        seed=seed,
    )
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
        return
    choice, half = report.choice, report.half
    print(
        f"refuse images of quality below {choice.threshold:.6g}   (other samples: {_interval(choice.threshold_interval)})"
    )
    print(f"  refused images    {_rate(choice.reject_rate)}   on new persons: {_interval(choice.reject_interval)}")
    print(f"  FNMR without it   {_rate(choice.fnmr_before)}")
    print(f"  FNMR with it      {_rate(choice.fnmr)}   on new persons: {_interval(choice.fnmr_interval)}")
    print(
        f"  {choice.n_errors:,} errors in {choice.n_pairs:,} mated pairs left, {choice.n_persons:,} persons; 95 % intervals"
    )
    print(f"  accepted above similarity {report.similarity_threshold:.6g}, FMR {_rate(report.fmr)}")
    print("check: a threshold by half of the persons, on the other half")
    print(f"  threshold {half.threshold:.6g}")
    print(f"  FNMR              {_rate(report.held_out_fnmr)}   predicted: {_interval(half.fnmr_interval)}")
    print(f"  refused images    {_rate(report.held_out_reject_rate)}   predicted: {_interval(half.reject_interval)}")


def _rate(value: float) -> str:
    return f"{value:8.3%}" if value == value else "undefined"


def _interval(ends: tuple[float, float]) -> str:
    return "no interval: too few pairs meet the target" if ends[0] != ends[0] else f"{ends[0]:.4g} to {ends[1]:.4g}"
