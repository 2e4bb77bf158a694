"""evaluate: what a score is worth for verification (paper IV): EDC, AUC with intervals, accuracy, correlations.

Every scorer of a benchmark is judged on the same pairs and the same bootstrap draws: each method's scores, its regressors
on prior and on optimized labels, the user's further scores, and random numbers as the floor. Each curve has its own limit:
where the pairs of one score run out before the end, the others keep theirs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings, ScoresSettings
from fiqa_ray.core.bootstrap import AreaDraws, Cell, bootstrap_areas
from fiqa_ray.core.floor import RANDOM, n_random_orders, random_qualities
from fiqa_ray.core.intervals import Interval
from fiqa_ray.core.templates import pair_similarities
from fiqa_ray.core.verdicts import holm
from fiqa_ray.core.verification import equal_error_rate, fold_accuracy, tar_at_fmr, threshold_at_fmr
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.results import (
    GIVEN,
    AucRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    ScorerKey,
    VerificationRow,
    edc_table,
    table_of,
)
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.sources.comparisons import Comparisons, match_pairs, read_pairs
from fiqa_ray.sources.degradations import read_degradations
from fiqa_ray.sources.scores import scores_by_id

ORACLE = "oracle"
"""Name of the recorded truth, which is a scorer where it covers all images."""
REFERENCES = (RANDOM, ORACLE)
"""Scorers that never compete for the best: random numbers, and the recorded truth."""

USUAL_FMR = 1e-3
PAUC_LIMITS = (0.2, 0.3)
"""Discard limits of the partial areas that are reported beside the whole one."""


@dataclass(frozen=True)
class BenchmarkShard:
    """One benchmark: its datasets and the scorers to compare.

    Attributes:
        scorers: Scores of the job by the scorer's name.
        keys: What these are, by the same name.
        files: Files of further scores of the user by name.
        compare: Pairs of scorers whose areas are compared, by family.
    """

    benchmark: BenchmarkSettings
    settings: EvaluateSettings
    seed: int
    fr: str
    faces: Dataset
    embeddings: Dataset
    scorers: dict[str, Dataset]
    keys: dict[str, ScorerKey]
    files: dict[str, ScoresSettings]
    compare: dict[str, list[tuple[str, str]]]


def evaluate_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per benchmark."""
    steps = []
    for benchmark in job.settings.benchmarks:
        baselines = [m for m in job.settings.methods if job.has_scores(benchmark.name, m)]
        scorers = {m.label: job.prior_scores(benchmark.name, m) for m in baselines}
        scorers |= {job.scorer_name(t): job.regressor_scores(benchmark.name, t) for t in job.label_sets()}
        labels = {m.label for m in job.settings.methods}
        files = {k: v for k, v in benchmark.scores.items() if k not in labels}
        shard = BenchmarkShard(
            benchmark=benchmark,
            settings=job.settings.evaluate,
            seed=job.settings.seed,
            fr=job.fr,
            faces=job.faces(benchmark.name),
            embeddings=job.embeddings(benchmark.name),
            scorers=scorers,
            keys=job.scorer_keys(),
            files=files,
            compare=_comparisons(job, [*scorers, *files]),
        )
        dataset = job.evaluation(benchmark)
        n_pairs = len(read_pairs(benchmark.pairs).mated)
        steps.append(Step("evaluate", dataset, [shard], stateless_worker(run_shard, dataset), n_pairs, unit="pairs"))
    if steps:
        yield steps


def _comparisons(job: Job, scorers: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the pairs of scorers whose areas are compared, by family.

    Raises:
        UsageError: A comparison names an unknown scorer, or a scorer has the name of a reference.
    """
    for name in scorers:
        if name in REFERENCES:
            raise UsageError(f"a scorer may not be named {name!r}, which stands for a reference: choose another label")
    settings = job.settings.evaluate
    optimized = [t for t in job.label_sets() if not t.is_prior]
    families = {
        "baseline": [(job.scorer_name(t), t.method.label) for t in optimized if t.method.label in scorers],
        "unoptimized": [(job.scorer_name(t), job.scorer_name(LabelSet(t.method))) for t in optimized],
        "random": [(name, RANDOM) for name in scorers],
    }
    for name in dict.fromkeys(name for pair in settings.compare_scorers for name in pair):
        if name not in (*scorers, *REFERENCES):
            raise UsageError(
                f"evaluate.compare_scorers: there is no scorer {name!r}; choose from {', '.join((*scorers, *REFERENCES))}"
            )
    chosen = {family: families[family] for family in dict.fromkeys(settings.compare)}
    return chosen | {"scorers": list(settings.compare_scorers)}


def run_shard(dataset: Dataset, shard: BenchmarkShard) -> Part:
    """Evaluate one benchmark and write its results. Memory: its embeddings, scores and pairs."""
    started = time.monotonic()
    faces = shard.faces.read_all(["image_row", "image_id"])
    image_id = faces["image_id"].combine_chunks()
    truth = _recorded_truth(shard.benchmark.degradations, image_id)
    scores = _all_scores(shard, image_id, truth)
    compared = match_pairs(shard.benchmark, image_id)
    qualities = {name: compared.qualities(score) for name, score in scores.items()}
    pairs = _usable_pairs(shard, compared, image_id, qualities)

    areas = _bootstrap(shard, compared.names(image_id), pairs, qualities)
    comparisons = {
        "image_row_a": pairs.row_a,
        "image_row_b": pairs.row_b,
        "mated": pairs.mated,
        "fold": pairs.fold.astype(np.int32),
        "similarity": pairs.similarity,
    }
    tables = {
        "comparisons": pa.table(comparisons, schema=schemas.COMPARISONS),
        EdcLine.TABLE: edc_table(_lines(shard, areas)),
        AucRow.TABLE: table_of(AucRow, _area_rows(shard, areas)),
        DifferenceRow.TABLE: table_of(DifferenceRow, _difference_rows(shard, areas)),
        VerificationRow.TABLE: table_of(VerificationRow, _verification(shard, pairs)),
        CorrelationRow.TABLE: table_of(CorrelationRow, _correlations(shard, truth, scores)),
        "scores": pa.table({"image_row": faces["image_row"], **scores}),
    }
    return dataset.write_part(
        0,
        {f".{k}.parquet": t for k, t in tables.items()},
        n_rows=len(pairs.mated) + pairs.n_skipped,
        stats={"n_pairs_used": len(pairs.mated), "n_pairs_skipped": pairs.n_skipped},
        duration_s=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Truth:
    """What is recorded of the images: `(I,)` kinds of degradation and true qualities; None and NaN where nothing is."""

    kind: np.ndarray
    quality: np.ndarray


def _recorded_truth(uri: str | None, image_id: pa.Array) -> Truth | None:
    if uri is None:
        return None
    table = read_degradations(uri)
    records = table.take(pc.index_in(image_id.cast(pa.large_string()), value_set=table["image_id"].combine_chunks()))
    quality = records["quality"].to_numpy(zero_copy_only=False)
    return Truth(np.array(records["kind"].to_pylist(), dtype=object), quality)


def _all_scores(shard: BenchmarkShard, image_id: pa.Array, truth: Truth | None) -> dict[str, np.ndarray]:
    """Return `(I,) float64` scores by scorer, NaN where an image has none; with the recorded truth."""
    scores = {
        name: dataset.read_all(["score"])["score"].to_numpy().astype(np.float64)
        for name, dataset in shard.scorers.items()
    }
    scores |= {name: scores_by_id(image_id, **file.model_dump()) for name, file in shard.files.items()}
    if truth is not None and np.isfinite(truth.quality).all():
        scores[ORACLE] = truth.quality
    return scores


@dataclass(frozen=True)
class UsablePairs:
    """Pairs whose images, or templates, both have an embedding and every score: all scorers are judged on the same pairs.

    Attributes:
        row_a: `(L,)` rows of the first images or templates.
        row_b: `(L,)` rows of the second ones.
        mated: `(L,) bool`.
        fold: `(L,)` folds of the protocol, -1 where it has none.
        similarity: `(L,) float64` cosines.
        n_skipped: Pairs of the list that are not usable.
        person: Person of each template; None: the faces name the persons.
    """

    row_a: np.ndarray
    row_b: np.ndarray
    mated: np.ndarray
    fold: np.ndarray
    similarity: np.ndarray
    n_skipped: int
    person: np.ndarray | None = None


def _usable_pairs(
    shard: BenchmarkShard, pairs: Comparisons, image_id: pa.Array, scores: dict[str, np.ndarray]
) -> UsablePairs:
    values, rows = columns.embedding_values(shard.embeddings.read_all(["image_row", "embedding"]))
    values, rows = pairs.embeddings(values, rows, len(image_id))
    position = np.full(len(pairs.names(image_id)), -1, np.int64)  # of a unit's embedding in `values`
    position[rows] = np.arange(len(rows))

    row_a, row_b = pairs.row_a, pairs.row_b
    is_usable = (position >= 0) & np.all([np.isfinite(s) for s in scores.values()], axis=0)
    chosen = (row_a >= 0) & (row_b >= 0) & is_usable[row_a] & is_usable[row_b]
    a, b = row_a[chosen], row_b[chosen]
    mated = pairs.mated[chosen]
    n_skipped = int((~chosen).sum())
    if not mated.any() or mated.all():
        raise FiqaRayError(
            f"benchmark {shard.benchmark.name}: {int(mated.sum())} mated and {int((~mated).sum())} non-mated pairs are "
            f"usable ({n_skipped} skipped for bad or absent images); both kinds are needed, see {shard.benchmark.pairs.uri}"
        )
    similarity = pair_similarities(values, position[a], position[b])
    person = None if pairs.templates is None else pairs.subjects()
    return UsablePairs(a, b, mated, pairs.fold[chosen], similarity, n_skipped, person)


def _bootstrap(shard: BenchmarkShard, names: pa.Array, pairs: UsablePairs, scores: dict[str, np.ndarray]) -> AreaDraws:
    """Return curves and draws of all scorers and of random numbers; `names` are those of images or templates."""
    settings = shard.settings
    is_used = np.zeros(len(names), bool)
    is_used[pairs.row_a] = is_used[pairs.row_b] = True
    row = np.cumsum(is_used) - 1  # among the used ones
    rows_a, rows_b = row[pairs.row_a], row[pairs.row_b]
    n_orders = n_random_orders(len(rows_a))
    random = random_qualities(names.filter(pa.array(is_used)).to_pylist(), shard.seed, n_orders)
    return bootstrap_areas(
        pairs.similarity,
        pairs.mated,
        {name: (s[pairs.row_a], s[pairs.row_b]) for name, s in scores.items()},
        random_orders=[(quality[rows_a], quality[rows_b]) for quality in random],
        fmrs=(settings.fmr,),
        conventions=settings.conventions,
        images=(rows_a, rows_b),
        limits=PAUC_LIMITS,
        identities=_identities(shard, pairs),
        n_draws=settings.draws,
        seed=shard.seed,
    )


def _identities(shard: BenchmarkShard, pairs: UsablePairs) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the persons of both images where persons are to be resampled, else None."""
    if shard.settings.resample == "pairs":
        return None
    names = pairs.person
    if names is None:
        names = shard.faces.read_all(["identity"])["identity"].to_numpy(zero_copy_only=False)
    identities = names[pairs.row_a], names[pairs.row_b]
    # auto: a flat folder names no persons, and its identities contradict the pairs; so may a wrong label
    is_named = np.array_equal(identities[0] == identities[1], pairs.mated)
    return identities if is_named or shard.settings.resample == "identities" else None


def _lines(shard: BenchmarkShard, areas: AreaDraws) -> list[EdcLine]:
    return [
        EdcLine(
            **_cell_key(shard, scorer, cell),
            discard_fraction=e.discard_fraction,
            fnmr=e.fnmr,
            threshold=e.threshold,
            n_mated=e.n_mated,
            n_nonmated=e.n_nonmated,
            n_false_nonmatches=e.n_false_nonmatches,
            n_allowed=e.n_allowed,
            n_false_matches=e.n_false_matches,
        )
        for (scorer, cell), e in areas.curves.items()
    ]


def _cell_key(shard: BenchmarkShard, scorer: str, cell: Cell) -> dict[str, Any]:
    """Return the columns of `CellKey`."""
    key = shard.keys.get(scorer) or ScorerKey(
        scorer, "", scorer, scorer if scorer in REFERENCES else GIVEN, np.nan, None
    )
    return vars(key) | {
        "benchmark": shard.benchmark.name,
        "recognizer": shard.fr,
        "convention": cell[0],
        "fmr": cell[1],
    }


def _area_rows(shard: BenchmarkShard, areas: AreaDraws) -> list[AucRow]:
    """Return the area of each curve up to its own limit and up to the partial ones below that."""
    rows = []
    for cell in dict.fromkeys(cell for _, cell in areas.curves):
        own_limits = {scorer: areas.own_limit(scorer, cell) for scorer, c in areas.curves if c == cell}
        limits = sorted(set(own_limits.values()), reverse=True) + [
            p for p in PAUC_LIMITS if p not in own_limits.values()
        ]
        for limit in limits:
            scorers = [s for s, own in own_limits.items() if own == limit or (limit in PAUC_LIMITS and limit < own)]
            leaders = areas.leaders([s for s in scorers if s not in REFERENCES], cell, limit)
            rows += [_area_row(shard, areas, scorer, cell, limit, scorer in leaders) for scorer in scorers]
    return rows


def _area_row(
    shard: BenchmarkShard, areas: AreaDraws, scorer: str, cell: Cell, limit: float, is_leading: bool
) -> AucRow:
    curve, interval, settings = areas.curves[scorer, cell], areas.interval(scorer, cell, limit), areas.settings
    fnmr_0 = float(curve.fnmr[0])
    return AucRow(
        **_cell_key(shard, scorer, cell),
        fmr_achieved=curve.fmr_achieved,
        fnmr_0=fnmr_0,
        discard_limit=limit,
        is_own_limit=limit == areas.own_limit(scorer, cell),
        auc=interval.value,
        auc_low=interval.low,
        auc_high=interval.high,
        auc_normalized=interval.value / (fnmr_0 * limit) if fnmr_0 > 0 else np.nan,
        auc_above_best=interval.value - curve.best_auc(limit),
        fnmr_at_limit=curve.at(limit),
        n_mated=int(curve.n_mated[0]),
        n_nonmated=int(curve.n_nonmated[0]),
        interval=interval.kind,
        reason=interval.reason,
        level=settings.level,
        unit=settings.unit,
        n_draws=settings.n_draws,
        draws_seed=settings.seed,
        n_undefined=interval.n_undefined,
        is_leading=is_leading,
    )


def _difference_rows(shard: BenchmarkShard, areas: AreaDraws) -> list[DifferenceRow]:
    """Return the differences of all families, each corrected for its comparisons under one convention and rate."""
    rows = []
    for cell in dict.fromkeys(cell for _, cell in areas.curves):
        for family, pairs in shard.compare.items():
            intervals = [areas.difference(a, b, cell) for a, b in pairs]
            adjusted = holm([interval.p_value for interval in intervals])
            for (a, b), interval, p_holm in zip(pairs, intervals, adjusted, strict=True):
                rows.append(_difference_row(shard, areas, family, (a, b), cell, interval, p_holm))
    return rows


def _difference_row(
    shard: BenchmarkShard,
    areas: AreaDraws,
    family: str,
    scorers: tuple[str, str],
    cell: Cell,
    interval: Interval,
    p_holm: float,
) -> DifferenceRow:
    return DifferenceRow(
        benchmark=shard.benchmark.name,
        recognizer=shard.fr,
        convention=cell[0],
        fmr=np.nan if cell[1] is None else cell[1],
        method=shard.keys[scorers[0]].method if scorers[0] in shard.keys else scorers[0],
        theta=shard.keys[scorers[0]].theta if scorers[0] in shard.keys else np.nan,
        discard_limit=areas.common_limit(*scorers, cell),
        family=family,
        scorer_a=scorers[0],
        scorer_b=scorers[1],
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value,
        p_holm=p_holm,
        reason=interval.reason,
        level=interval.settings.level,
        unit=interval.settings.unit,
        n_draws=interval.settings.n_draws,
        draws_seed=interval.settings.seed,
        n_undefined=interval.n_undefined,
    )


def _verification(shard: BenchmarkShard, pairs: UsablePairs) -> list[VerificationRow]:
    """Return what the recogniser is worth without quality, at the job's FMR and at the usual one."""
    similarity, mated = pairs.similarity, pairs.mated
    n_folds = len(np.unique(pairs.fold[pairs.fold >= 0]))
    accuracy = fold_accuracy(similarity, mated, pairs.fold) if n_folds >= 2 else None
    return [
        VerificationRow(
            benchmark=shard.benchmark.name,
            recognizer=shard.fr,
            accuracy_mean=accuracy.mean if accuracy else np.nan,
            accuracy_std=accuracy.std if accuracy else np.nan,
            tar_at_fmr=tar_at_fmr(similarity, mated, fmr),
            fmr=fmr,
            threshold=threshold_at_fmr(similarity, mated, fmr),
            eer=equal_error_rate(similarity, mated),
            n_mated=int(mated.sum()),
            n_nonmated=int((~mated).sum()),
        )
        for fmr in dict.fromkeys([shard.settings.fmr, USUAL_FMR])
    ]


def _correlations(shard: BenchmarkShard, truth: Truth | None, scores: dict[str, np.ndarray]) -> list[CorrelationRow]:
    """Return Spearman's rho of every scorer with the recorded true quality: of all images, and of each kind's."""
    if truth is None:
        return []
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
