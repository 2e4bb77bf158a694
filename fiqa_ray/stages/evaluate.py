"""evaluate, last part: the stored cells as rows of results.

Areas with intervals, differences on common draws, how far conventions agree, what a recogniser is worth without quality, and
correlations with the recorded truth. Every scorer of a benchmark is judged on the same pairs and the same draws. Each curve
has its own limit: where the pairs of one score run out before the end, the others keep theirs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from fiqa_ray.config import EDIFF, BenchmarkSettings, EvaluateSettings
from fiqa_ray.core.conventions import Cell, Convention
from fiqa_ray.core.group_rates import error_rates
from fiqa_ray.core.verification import equal_error_rate, fold_accuracy, tar_at_fmr, threshold_at_fmr
from fiqa_ray.datasets.cells import read_cell
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.judgement import Judgement, correct_families
from fiqa_ray.datasets.results import (
    GROUPED,
    ORACLE,
    RANDOM,
    AucRow,
    BandRow,
    ConventionRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    ExclusionRow,
    GroupRateRow,
    RankingRow,
    VerificationRow,
    edc_table,
    rows_of,
    table_of,
)
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import UsageError
from fiqa_ray.job import Job
from fiqa_ray.sources.degradations import recorded_truth
from fiqa_ray.sources.judged_score import JudgedScore

REFERENCES = (RANDOM, ORACLE)
"""Scorers that never compete for the best: random numbers, and the recorded truth."""
USUAL_FMR = 1e-3


@dataclass(frozen=True)
class EvaluateShard:
    """One benchmark under one recogniser.

    Attributes:
        cells: Judged score and cell -> convention and dataset.
        groups: The same of each group of people.
        compare: Pairs of scorers whose areas are compared, by family.
        is_first: Whether it is the first recogniser: what does not depend on recognisers is stored with it.
    """

    benchmark: BenchmarkSettings
    recognizer: str
    settings: EvaluateSettings
    seed: int
    faces: Dataset
    comparisons: Dataset
    scorers: list[JudgedScore]
    cells: dict[tuple[str, Cell], tuple[Convention, Dataset]]
    groups: dict[str, dict[tuple[str, Cell], tuple[Convention, Dataset]]]
    compare: dict[str, list[tuple[str, str]]]
    is_first: bool


def evaluate_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per benchmark and recogniser, then the one that puts their results together."""
    steps = []
    for benchmark in job.settings.benchmarks:
        scorers = job.scorers(benchmark)
        compare = comparisons_of(job, [s.key.scorer for s in scorers])
        for recognizer in job.judges:
            cells = {
                group: {
                    (scorer.key.scorer, cell): stored
                    for scorer in scorers
                    for cell, stored in job.cells(benchmark, recognizer, scorer, group).items()
                }
                for group in ["", *job.groups(benchmark, recognizer)]
            }
            shard = EvaluateShard(
                benchmark=benchmark,
                recognizer=recognizer.label,
                settings=job.settings.evaluate,
                seed=job.settings.seed,
                faces=job.faces(benchmark.name),
                comparisons=job.comparisons(benchmark, recognizer),
                scorers=scorers,
                cells=cells.pop(""),
                groups=cells,
                compare=compare,
                is_first=recognizer == job.judges[0],
            )
            dataset = job.evaluation(benchmark, recognizer)
            n_pairs = shard.comparisons.require().n_rows
            worker = stateless_worker(run_shard, dataset)
            steps.append(Step("evaluate", dataset, [shard], worker, n_pairs, unit="pairs"))
    if steps:
        yield steps
        results = job.results()
        parts = [job.evaluation(b, r) for b in job.settings.benchmarks for r in job.judges]
        worker = stateless_worker(join_results, results, job.settings.evaluate.curve_conventions())
        yield [Step("evaluate", results, [parts], worker, 1, unit="runs")]


def check_comparisons(job: Job) -> None:
    """Raise `UsageError` if `evaluate.compare_scorers` names what no benchmark has; needs no result of the job."""
    known = {name for benchmark in job.settings.benchmarks for name in scorer_names(job, benchmark)}
    for name in dict.fromkeys(name for pair in job.settings.evaluate.compare_scorers for name in pair):
        if name not in known:
            raise UsageError(
                f"evaluate.compare_scorers: there is no scorer {name!r}; choose from {', '.join(sorted(known))}"
            )


def scorer_names(job: Job, benchmark: BenchmarkSettings) -> set[str]:
    """Return the names of `Job.scorers`, which itself needs the theta that the job may have to choose first."""
    methods = {m.label for m in job.settings.methods}
    scored = {m.label for m in job.settings.methods if job.has_scores(benchmark.name, m)}
    files = set(benchmark.scores) - methods
    trained = {job.scorer_name(t) for t in job.label_sets() if t.method.label not in benchmark.exclude}
    references = {RANDOM, *({ORACLE} if benchmark.degradations is not None else ())}
    return (scored | files) - set(benchmark.exclude) | trained | references


def comparisons_of(job: Job, scorers: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the pairs of scorers whose areas are compared, by family; those that a benchmark lacks are left out.

    Args:
        job: The job.
        scorers: Those of the benchmark.
    """
    scored = [name for name in scorers if name not in REFERENCES]
    settings = job.settings.evaluate
    trained = [t for t in job.label_sets() if job.scorer_name(t) in scored]
    prior, changed = ([t for t in trained if t.is_prior == is_prior] for is_prior in (True, False))
    families = {
        "imitated": [(job.scorer_name(t), t.method.label) for t in prior if t.method.label in scored],
        "baseline": [(job.scorer_name(t), t.method.label) for t in changed if t.method.label in scored],
        "unoptimized": [
            (job.scorer_name(t), job.scorer_name(p)) for t in changed for p in prior if p.method == t.method
        ],
        "random": [(name, RANDOM) for name in scored],
    }
    chosen: dict[str, list[tuple[str, str]]] = {family: families[family] for family in dict.fromkeys(settings.compare)}
    by_rule = {t.method.label: job.scorer_name(t) for t in changed if t.kind == EDIFF}
    both = [t for t in changed if t.kind == "optimized" and t.method.label in by_rule]
    chosen |= {EDIFF: [(job.scorer_name(t), by_rule[t.method.label]) for t in both]} if both else {}
    return chosen | {"scorers": [pair for pair in settings.compare_scorers if set(pair) <= set(scorers)]}


def run_shard(dataset: Dataset, shard: EvaluateShard) -> Part:
    """Write the results of one benchmark under one recogniser. Memory: the draws of its cells, pairs and scores."""
    started = time.monotonic()
    judgement = _judgement(shard, shard.benchmark.name, shard.cells)
    pairs = shard.comparisons.read_all()
    facts = shard.comparisons.require().stats
    tables = {
        EdcLine.TABLE: edc_table(judgement.lines()),
        BandRow.TABLE: table_of(BandRow, judgement.band_rows()),
        AucRow.TABLE: table_of(AucRow, judgement.area_rows()),
        DifferenceRow.TABLE: table_of(DifferenceRow, judgement.difference_rows(shard.compare)),
        RankingRow.TABLE: table_of(RankingRow, judgement.ranking_rows()),
        VerificationRow.TABLE: table_of(VerificationRow, _verification(shard, shard.benchmark.name, pairs)),
        **_group_tables(shard, pairs),
        **(_common_tables(shard) if shard.is_first else _no_common_tables()),
    }
    return dataset.write_part(
        0,
        {f".{k}.parquet": t for k, t in tables.items()},
        n_rows=shard.comparisons.require().n_rows,
        stats={name: facts[name] for name in ("n_pairs_used", "n_pairs_skipped")},
        duration_s=time.monotonic() - started,
    )


def _judgement(
    shard: EvaluateShard, name: str, stored_cells: dict[tuple[str, Cell], tuple[Convention, Dataset]]
) -> Judgement:
    cells = {key: read_cell(stored, key[1], convention) for key, (convention, stored) in stored_cells.items()}
    return Judgement(
        benchmark=name,
        recognizer=shard.recognizer,
        keys={scorer.key.scorer: scorer.key for scorer in shard.scorers},
        cells={key: cell for key, cell in cells.items() if cell is not None},
        limits=shard.settings.limits,
        n_draws=shard.settings.draws,
        seed=shard.seed,
        references=REFERENCES,
    )


def _group_tables(shard: EvaluateShard, pairs: pa.Table) -> dict[str, pa.Table]:
    """Return the tables of the groups of people: every figure from the pairs of a group, and its rates at one threshold."""
    lines: list[EdcLine] = []
    bands: list[BandRow] = []
    areas: list[AucRow] = []
    differences: list[DifferenceRow] = []
    rates: list[VerificationRow] = []
    group_rates: list[GroupRateRow] = []
    for group, cells in shard.groups.items():
        name = f"{shard.benchmark.name}: {group}"
        judgement, of_group = _judgement(shard, name, cells), pairs.filter(pc.equal(pairs["group"], group))
        lines += judgement.lines()
        bands += judgement.band_rows()
        areas += judgement.area_rows()
        differences += judgement.difference_rows(shard.compare)
        rates += _verification(shard, name, of_group)
        group_rates += _group_rates(shard, group, pairs, of_group)
    return {
        f"group_{EdcLine.TABLE}": edc_table(lines),
        f"group_{BandRow.TABLE}": table_of(BandRow, bands),
        f"group_{AucRow.TABLE}": table_of(AucRow, areas),
        f"group_{DifferenceRow.TABLE}": table_of(DifferenceRow, differences),
        f"group_{VerificationRow.TABLE}": table_of(VerificationRow, rates),
        GroupRateRow.TABLE: table_of(GroupRateRow, group_rates),
    }


def _group_rates(shard: EvaluateShard, group: str, pairs: pa.Table, of_group: pa.Table) -> list[GroupRateRow]:
    """Return the error rates of a group at the thresholds that all pairs set."""
    similarity, mated = pairs["similarity"].to_numpy(), pairs["mated"].to_numpy(zero_copy_only=False)
    own, own_mated = of_group["similarity"].to_numpy(), of_group["mated"].to_numpy(zero_copy_only=False)
    identity = shard.faces.read_all(["identity"])["identity"].to_numpy(zero_copy_only=False)
    persons = tuple(identity[of_group[f"image_row_{side}"].to_numpy()] for side in "ab")
    is_named = shard.settings.resample == "identities" or (
        shard.settings.resample == "auto" and np.array_equal(persons[0] == persons[1], own_mated)
    )
    rows = []
    for fmr in shard.settings.fmr:
        threshold = threshold_at_fmr(similarity, mated, fmr)
        by = (persons[0], persons[1]) if is_named else None
        matches, nonmatches = error_rates(own, own_mated, threshold, by, n_draws=shard.settings.draws, seed=shard.seed)
        rows.append(
            GroupRateRow(
                benchmark=shard.benchmark.name,
                recognizer=shard.recognizer,
                group=group,
                fmr_wanted=fmr,
                threshold=threshold,
                n_mated=int(own_mated.sum()),
                n_nonmated=int((~own_mated).sum()),
                fmr=matches.value,
                fmr_low=matches.low,
                fmr_high=matches.high,
                fnmr=nonmatches.value,
                fnmr_low=nonmatches.low,
                fnmr_high=nonmatches.high,
                unit="identities" if is_named else "pairs",
            )
        )
    return rows


def _common_tables(shard: EvaluateShard) -> dict[str, pa.Table]:
    """Return the tables that do not depend on a recogniser."""
    faces = shard.faces.read_all(["image_row", "image_id"])
    image_id = faces["image_id"].combine_chunks()
    scores = {s.key.scorer: s.scores(image_id) for s in shard.scorers if s.key.variant != RANDOM}
    excluded = [ExclusionRow(shard.benchmark.name, name, why) for name, why in shard.benchmark.exclude.items()]
    return {
        CorrelationRow.TABLE: table_of(CorrelationRow, _correlations(shard, image_id, scores)),
        ExclusionRow.TABLE: table_of(ExclusionRow, excluded),
        "scores": pa.table({"image_row": faces["image_row"], **scores}),
    }


def _no_common_tables() -> dict[str, pa.Table]:
    return {
        CorrelationRow.TABLE: table_of(CorrelationRow, []),
        ExclusionRow.TABLE: table_of(ExclusionRow, []),
    }


def _verification(shard: EvaluateShard, name: str, pairs: pa.Table) -> list[VerificationRow]:
    """Return what the recogniser is worth without quality, at the job's rates and at the usual one."""
    similarity, fold = pairs["similarity"].to_numpy(), pairs["fold"].to_numpy()
    mated = pairs["mated"].to_numpy(zero_copy_only=False)
    n_folds = len(np.unique(fold[fold >= 0]))
    accuracy = fold_accuracy(similarity, mated, fold) if n_folds >= 2 else None
    return [
        VerificationRow(
            benchmark=name,
            recognizer=shard.recognizer,
            accuracy_mean=accuracy.mean if accuracy else np.nan,
            accuracy_std=accuracy.std if accuracy else np.nan,
            tar_at_fmr=tar_at_fmr(similarity, mated, fmr),
            fmr=fmr,
            threshold=threshold_at_fmr(similarity, mated, fmr),
            eer=equal_error_rate(similarity, mated),
            n_mated=int(mated.sum()),
            n_nonmated=int((~mated).sum()),
        )
        for fmr in dict.fromkeys([*shard.settings.fmr, USUAL_FMR])
    ]


def _correlations(shard: EvaluateShard, image_id: pa.Array, scores: dict[str, np.ndarray]) -> list[CorrelationRow]:
    """Return Spearman's rho of every scorer with the recorded true quality: of all images, and of each kind's."""
    if shard.benchmark.degradations is None:
        return []
    truth = recorded_truth(shard.benchmark.degradations, image_id)
    kinds = sorted({k for k in truth.kind.tolist() if k is not None})
    rows = []
    for scorer, score in scores.items():
        is_known = np.isfinite(score) & np.isfinite(truth.quality)
        for kind in ["all", *kinds]:
            chosen = is_known & ((truth.kind == kind) | (kind == "all"))
            x, y = score[chosen], truth.quality[chosen]
            if len(x) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
                rho = float(spearmanr(x, y).statistic)
                rows.append(CorrelationRow(shard.benchmark.name, scorer, kind, rho, len(x)))
    return rows


def join_results(dataset: Dataset, conventions: list[Convention], evaluations: list[Dataset]) -> Part:
    """Write the results of all benchmarks and recognisers as one table of each kind, with corrections over benchmarks."""
    started = time.monotonic()

    def together(name: str) -> pa.Table:
        return pa.concat_tables(evaluation.read_all(suffix=f".{name}.parquet") for evaluation in evaluations)

    names = [row.TABLE for row in (EdcLine, BandRow, AucRow, RankingRow, VerificationRow, CorrelationRow, ExclusionRow)]
    tables = {name: together(name) for name in names}
    tables |= {f"group_{name}": together(f"group_{name}") for name in GROUPED}
    tables[GroupRateRow.TABLE] = together(GroupRateRow.TABLE)
    for name in (DifferenceRow.TABLE, f"group_{DifferenceRow.TABLE}"):
        tables[name] = table_of(DifferenceRow, correct_families(rows_of(DifferenceRow, together(name))))
    tables[ConventionRow.TABLE] = table_of(ConventionRow, [convention_row(c) for c in conventions])
    files = {f".{name}.parquet": table for name, table in tables.items()}
    return dataset.write_part(0, files, n_rows=1, duration_s=time.monotonic() - started)


def convention_row(c: Convention) -> ConventionRow:
    """Return a convention as a row."""
    names = [f.name for f in fields(ConventionRow) if f.name != "convention"]
    choices: dict[str, Any] = {name: np.nan if getattr(c, name) is None else getattr(c, name) for name in names}
    return ConventionRow(c.name, **choices)
