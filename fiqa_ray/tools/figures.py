"""`fiqa-ray figures`: the figures of a paper as SVG and PDF files, from a finished run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.config import theta_name
from fiqa_ray.core.verdicts import mean_ranks
from fiqa_ray.datasets.results import (
    RANDOM,
    BandRow,
    ConventionRow,
    EdcLine,
    VerificationRow,
    edc_lines,
    rows_of,
)
from fiqa_ray.report.paper_figures import (
    DetCurve,
    Figure,
    Similarities,
    competing,
    det_figure,
    edc_figure,
    faces_figure,
    files_of,
    labels_figure,
    mean_rank_figure,
    quality_figure,
    similarity_figure,
)
from fiqa_ray.storage import join, write_atomic
from fiqa_ray.tools.open_run import Run
from fiqa_ray.tools.paper_tables import OperatingPoint, Results

MOST_POINTS = 2000
"""Points of a DET curve, and of a scatter."""

FloatArray = NDArray[np.float64]


def write_figures(run: Run, results: Results, point: OperatingPoint, folder: str) -> list[str]:
    """Write each figure into a folder as .svg and .pdf and return their names.

    Args:
        run: The run.
        results: Its results.
        point: Operating point of the curves and of the mean ranks.
        folder: Path or any fsspec URL.
    """
    names = []
    for name, figure in _figures(run, results, point):
        for ending, content in files_of(figure).items():
            write_atomic(join(folder, f"{name}.{ending}"), content)
        names.append(name)
    return names


def _figures(run: Run, results: Results, point: OperatingPoint) -> Iterator[tuple[str, Figure]]:
    """Yield the name of each figure and the figure, one after the other."""
    benchmarks = list(dict.fromkeys(r.benchmark for r in results.areas))
    yield from _edc_figures(run, results, point)
    rates = rows_of(VerificationRow, run.result_table(VerificationRow.TABLE))
    for benchmark in benchmarks:
        similarities = [_similarities(run, benchmark, row, rates) for row in _recognizers(rates, benchmark)]
        yield _file_name("det", benchmark), det_figure([_det_curve(row) for row in similarities])
        yield _file_name("similarities", benchmark), similarity_figure(similarities)
        scores = _scores(run, benchmark)
        yield _file_name("qualities", benchmark), quality_figure(scores)
        faces = _faces(run, benchmark, scores)
        if any(faces.values()):  # a source of embeddings has no pictures
            yield _file_name("faces", benchmark), faces_figure(faces)
    if run.has_labels:
        for rule, labels in _labels(run).items():
            yield _file_name("labels", rule), labels_figure(labels)
    if len(benchmarks) > 1:
        yield "mean-rank", mean_rank_figure(_ranks(results, point, benchmarks))


def _file_name(*parts: str) -> str:
    """Return parts as a file name without characters that a file system or LaTeX would refuse."""
    return "-".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip("-") for part in parts)


def _edc_figures(run: Run, results: Results, point: OperatingPoint) -> Iterator[tuple[str, Figure]]:
    """Yield one figure per benchmark, or group of people in it, and recogniser."""
    convention: ConventionRow = results.conventions[point.convention]
    tables = EdcLine.TABLE, f"group_{EdcLine.TABLE}"
    lines = [line for table in tables for line in edc_lines(run.result_table(table)) if point.holds_cell(line)]
    tables = BandRow.TABLE, f"group_{BandRow.TABLE}"
    bands = [band for table in tables for band in rows_of(BandRow, run.result_table(table)) if point.holds_cell(band)]
    limits = [] if point.limit is None else [point.limit]
    for benchmark, recognizer in dict.fromkeys((line.benchmark, line.recognizer) for line in lines):
        of_cell = [line for line in lines if (line.benchmark, line.recognizer) == (benchmark, recognizer)]
        yield _file_name("edc", benchmark, recognizer), edc_figure(of_cell, bands, convention, limits)


def _recognizers(rates: list[VerificationRow], benchmark: str) -> list[str]:
    return list(dict.fromkeys(r.recognizer for r in rates if r.benchmark == benchmark))


def _similarities(run: Run, benchmark: str, recognizer: str, rates: list[VerificationRow]) -> Similarities:
    pairs = run.comparisons(benchmark, recognizer)
    similarity, mated = pairs["similarity"].to_numpy(), pairs["mated"].to_numpy(zero_copy_only=False)
    of_both = [r for r in rates if (r.benchmark, r.recognizer) == (benchmark, recognizer)]
    thresholds = {r.fmr: r.threshold for r in of_both if r.fmr * r.n_nonmated >= 1}
    return Similarities(recognizer, similarity[mated], similarity[~mated], thresholds)


def _det_curve(row: Similarities) -> DetCurve:
    """Return both error rates at thresholds spread over all similarities."""
    mated, nonmated = np.sort(row.mated), np.sort(row.nonmated)
    thresholds = np.unique(np.concatenate([mated, nonmated]))
    tail = nonmated[-MOST_POINTS // 2 :]  # where few non-mated pairs are left, each of them
    spread = thresholds[np.unique(np.linspace(0, thresholds.size - 1, MOST_POINTS).astype(int))]
    fmr, fnmr = _error_rates(mated, nonmated, np.unique(np.concatenate([spread, tail]))[::-1])
    points = {}
    for wanted, threshold in row.thresholds.items():
        (x,), (y,) = _error_rates(mated, nonmated, np.array([threshold]))
        points[wanted] = float(x), float(y)
    return DetCurve(row.name, fmr, fnmr, points)


def _error_rates(mated: FloatArray, nonmated: FloatArray, thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return FMR and FNMR at thresholds, where a similarity above the threshold is accepted; arrays rise."""
    fmr = 1 - np.searchsorted(nonmated, thresholds, side="right") / nonmated.size
    return fmr, np.searchsorted(mated, thresholds, side="right") / mated.size


def _scores(run: Run, benchmark: str) -> dict[str, FloatArray]:
    """Return all scores of the images of a benchmark but random ones."""
    table = run.judged_scores(benchmark)
    return {name: table[name].to_numpy() for name in table.column_names if name not in ("image_row", RANDOM)}


def _faces(run: Run, benchmark: str, scores: Mapping[str, FloatArray]) -> dict[str, list[bytes]]:
    """Return, per score, the face in the middle of each tenth of the images."""
    rows = {}
    for name, score in scores.items():
        finite = np.flatnonzero(np.isfinite(score))
        order = finite[np.argsort(score[finite], kind="stable")]
        rows[name] = [int(order[(2 * d + 1) * len(order) // 20]) for d in range(10)] if len(order) else []
    pictures = run.pictures(benchmark, sorted({row for chosen in rows.values() for row in chosen}))
    return {name: [pictures[row] for row in chosen if row in pictures] for name, chosen in rows.items()}


def _labels(run: Run) -> dict[str, dict[str, tuple[FloatArray, FloatArray]]]:
    """Return, per theta or other rule and method, priors and labels from 0 to 1, of a sample of large sets."""
    by_rule: dict[str, dict[str, tuple[FloatArray, FloatArray]]] = {}
    for table in run.label_tables():
        method, variant, theta = (table[name][0].as_py() for name in ("method", "variant", "theta"))
        if theta == 0:  # these labels are the scores
            continue
        rule = variant if theta is None else f"theta-{theta_name(theta)}"
        table = table.select(["prior", "label"]).drop_null()
        prior, label = table["prior"].to_numpy(), table["label"].to_numpy().astype(np.float64)
        span = float(np.ptp(prior)) or 1.0
        step = -(-len(prior) // (10 * MOST_POINTS))
        by_rule.setdefault(rule, {})[method] = ((prior - prior.min()) / span)[::step], label[::step]
    return by_rule


def _ranks(results: Results, point: OperatingPoint, benchmarks: list[str]) -> dict[str, dict[str, float]]:
    """Return the mean rank of each score over the benchmarks that have it, per recogniser."""
    rows = competing(results.at(point))
    ranks = {}
    for recognizer in dict.fromkeys(r.recognizer for r in rows):
        of_recognizer = [r for r in rows if r.recognizer == recognizer]
        ranks[recognizer] = mean_ranks(
            [{r.scorer: r.auc for r in of_recognizer if r.benchmark == b} for b in benchmarks]
        )
    return ranks
