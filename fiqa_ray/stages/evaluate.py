"""evaluate: what a score is worth for verification (paper IV): EDC, AUC with intervals, accuracy, correlations.

Every scorer of a benchmark is judged on the same pairs and the same bootstrap draws: each method's scores, its regressors
on prior and on optimized labels, the user's further scores, and random numbers as the floor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings, PairListSettings, ScoresSettings
from fiqa_ray.core.bootstrap import AucBootstrap, bootstrap_auc
from fiqa_ray.core.edc import EDC, edc_curve
from fiqa_ray.core.kernels.draws import counter_draws
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.verification import equal_error_rate, fold_accuracy, tar_at_fmr, threshold_at_fmr
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.results import (
    AucRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    VerificationRow,
    edc_table,
    table_of,
)
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.sources.degradations import read_degradations
from fiqa_ray.sources.kinds import PROTOCOLS
from fiqa_ray.sources.protocols import VerificationPairs, pair_rows
from fiqa_ray.sources.scores import scores_by_id
from fiqa_ray.storage import storage_errors

RANDOM, ORACLE = "random", "oracle"
"""Scorers for reference: random numbers, and the recorded truth where it covers all images."""

USUAL_FMR = 1e-3
PAUC_LIMITS = (0.2, 0.3)
"""Discard limits of the partial areas that are reported beside the whole one."""

_RANDOM_STREAM = 0x4A2D


@dataclass(frozen=True)
class BenchmarkShard:
    """One benchmark: its datasets and the scorers to compare.

    Attributes:
        scorers: Scores of the job by the scorer's name.
        files: files of further scores of the user by name.
        compare: Pairs of scorers whose areas are compared.
    """

    benchmark: BenchmarkSettings
    settings: EvaluateSettings
    seed: int
    fr: str
    faces: Dataset
    embeddings: Dataset
    scorers: dict[str, Dataset]
    files: dict[str, ScoresSettings]
    compare: list[tuple[str, str]]


def evaluate_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per benchmark."""
    steps = []
    for benchmark in job.settings.benchmarks:
        scorers, compare = {}, []
        for m in job.settings.methods:
            if job.has_scores(benchmark.name, m):
                scorers[m.label] = job.prior_scores(benchmark.name, m)
        for label_set in job.label_sets():
            name = job.scorer_name(label_set)
            scorers[name] = job.regressor_scores(benchmark.name, label_set)
            if not label_set.is_prior:
                compare.append((name, job.scorer_name(LabelSet(label_set.method))))
        compare += [(name, RANDOM) for name in scorers]
        labels = {m.label for m in job.settings.methods}
        shard = BenchmarkShard(
            benchmark=benchmark,
            settings=job.settings.evaluate,
            seed=job.settings.seed,
            fr=job.fr,
            faces=job.faces(benchmark.name),
            embeddings=job.embeddings(benchmark.name),
            scorers=scorers,
            files={k: v for k, v in benchmark.scores.items() if k not in labels},
            compare=compare,
        )
        dataset = job.evaluation(benchmark)
        n_pairs = len(read_pairs(benchmark.pairs).mated)
        steps.append(Step("evaluate", dataset, [shard], stateless_worker(run_shard, dataset), n_pairs, unit="pairs"))
    if steps:
        yield steps


def read_pairs(settings: PairListSettings) -> VerificationPairs:
    """Return the pairs of a benchmark."""
    protocol = PROTOCOLS[settings.kind]
    with storage_errors(settings.uri):
        return protocol.read_pairs(settings.uri, **{name: getattr(settings, name) for name in protocol.options})


def run_shard(dataset: Dataset, shard: BenchmarkShard) -> Part:
    """Evaluate one benchmark and write its results. Memory: its embeddings, scores and pairs."""
    started = time.monotonic()
    faces = shard.faces.read_all(["image_row", "image_id"])
    image_id = faces["image_id"].combine_chunks()
    truth = _recorded_truth(shard.benchmark.degradations, image_id)
    scores = _all_scores(shard, image_id, truth)
    pairs = _usable_pairs(shard, image_id, scores)

    qualities = {k: (s[pairs.row_a], s[pairs.row_b]) for k, s in scores.items()}
    lines, areas, differences = _curves(shard, pairs.similarity, pairs.mated, qualities)
    comparisons = {
        "image_row_a": pairs.row_a,
        "image_row_b": pairs.row_b,
        "mated": pairs.mated,
        "fold": pairs.fold.astype(np.int32),
        "similarity": pairs.similarity,
    }
    tables = {
        "comparisons": pa.table(comparisons, schema=schemas.COMPARISONS),
        EdcLine.TABLE: edc_table(lines),
        AucRow.TABLE: table_of(AucRow, areas),
        DifferenceRow.TABLE: table_of(DifferenceRow, differences),
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
    """Return `(I,) float64` scores by scorer, NaN where an image has none; with random numbers and the recorded truth."""
    scores = {
        name: dataset.read_all(["score"])["score"].to_numpy().astype(np.float64)
        for name, dataset in shard.scorers.items()
    }
    scores |= {name: scores_by_id(image_id, **file.model_dump()) for name, file in shard.files.items()}
    if truth is not None and np.isfinite(truth.quality).all():
        scores[ORACLE] = truth.quality
    random = counter_draws(shard.seed, _RANDOM_STREAM, np.arange(len(image_id))).astype(np.float64)
    scores[RANDOM] = random / 2.0**64
    return scores


@dataclass(frozen=True)
class UsablePairs:
    """Pairs whose images both have an embedding and every score, so that all scorers are judged on the same pairs.

    Attributes:
        row_a: `(L,)` rows of the first images.
        row_b: `(L,)` rows of the second images.
        mated: `(L,) bool`.
        fold: `(L,)` folds of the protocol, -1 where it has none.
        similarity: `(L,) float64` cosines.
        n_skipped: Pairs of the list that are not usable.
    """

    row_a: np.ndarray
    row_b: np.ndarray
    mated: np.ndarray
    fold: np.ndarray
    similarity: np.ndarray
    n_skipped: int


def _usable_pairs(shard: BenchmarkShard, image_id: pa.Array, scores: dict[str, np.ndarray]) -> UsablePairs:
    settings = shard.benchmark.pairs
    protocol = read_pairs(settings)
    row_a, row_b = pair_rows(
        protocol, image_id, settings.key_rule, list_uri=settings.uri, source_uri=shard.benchmark.source.uri
    )
    embeddings = shard.embeddings.read_all(["image_row", "embedding"])
    values, rows = columns.embedding_values(embeddings)
    position = np.full(len(image_id), -1, np.int64)  # of an image's embedding in `values`
    position[rows] = np.arange(len(rows))

    is_usable = (position >= 0) & np.all([np.isfinite(s) for s in scores.values()], axis=0)
    chosen = is_usable[row_a] & is_usable[row_b]
    a, b = row_a[chosen], row_b[chosen]
    mated = np.asarray(protocol.mated)[chosen]
    n_skipped = int((~chosen).sum())
    if not mated.any() or mated.all():
        raise FiqaRayError(
            f"benchmark {shard.benchmark.name}: {int(mated.sum())} mated and {int((~mated).sum())} non-mated pairs are "
            f"usable ({n_skipped} skipped for bad images); both kinds are needed, see {shard.benchmark.pairs.uri}"
        )
    units = unit_vectors(values)
    similarity = np.einsum("ij,ij->i", units[position[a]], units[position[b]], dtype=np.float64).clip(-1, 1)
    return UsablePairs(a, b, mated, np.asarray(protocol.fold)[chosen], similarity, n_skipped)


def _curves(
    shard: BenchmarkShard,
    similarity: np.ndarray,
    mated: np.ndarray,
    qualities: dict[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[list[EdcLine], list[AucRow], list[DifferenceRow]]:
    fmr = shard.settings.fmr
    lines: list[EdcLine] = []
    areas: list[AucRow] = []
    differences: list[DifferenceRow] = []
    for convention in shard.settings.conventions:
        curves = {
            k: edc_curve(similarity, mated, qa, qb, fmr=fmr, convention=convention) for k, (qa, qb) in qualities.items()
        }
        lines += [
            EdcLine(shard.benchmark.name, shard.fr, scorer, convention, fmr, c.discard_fraction, c.fnmr, c.threshold)
            for scorer, c in curves.items()
        ]
        # a curve that runs out of pairs before its end is judged up to where all of them are defined
        whole = min(c.defined_limit for c in curves.values())
        for limit in (whole, *[p for p in PAUC_LIMITS if p < whole]):
            draws = None
            if shard.settings.n_bootstrap:
                draws = bootstrap_auc(
                    similarity,
                    mated,
                    qualities,
                    fmr=fmr,
                    convention=convention,
                    limit=limit,
                    n_draws=shard.settings.n_bootstrap,
                    seed=shard.seed,
                )
            areas += [_area(shard, scorer, c, limit, draws, mated) for scorer, c in curves.items()]
            if draws and limit == whole:
                differences += [_difference(shard, convention, a, b, draws) for a, b in shard.compare]
    return lines, areas, differences


def _area(
    shard: BenchmarkShard, scorer: str, curve: EDC, limit: float, draws: AucBootstrap | None, mated: np.ndarray
) -> AucRow:
    interval = draws.interval(scorer) if draws else None
    return AucRow(
        benchmark=shard.benchmark.name,
        fr=shard.fr,
        scorer=scorer,
        convention=curve.convention,
        fmr_target=shard.settings.fmr,
        fmr_achieved=curve.fmr_achieved,
        discard_limit=limit,
        auc=curve.auc(limit),
        auc_low=interval.low if interval else np.nan,
        auc_high=interval.high if interval else np.nan,
        n_mated=int(mated.sum()),
        n_nonmated=int((~mated).sum()),
    )


def _difference(shard: BenchmarkShard, convention: str, a: str, b: str, draws: AucBootstrap) -> DifferenceRow:
    interval = draws.difference(a, b)
    return DifferenceRow(shard.benchmark.name, shard.fr, convention, a, b, interval.value, interval.low, interval.high)


def _verification(shard: BenchmarkShard, pairs: UsablePairs) -> list[VerificationRow]:
    """Return what the recogniser is worth without quality, at the job's FMR and at the usual one."""
    similarity, mated = pairs.similarity, pairs.mated
    n_folds = len(np.unique(pairs.fold[pairs.fold >= 0]))
    accuracy = fold_accuracy(similarity, mated, pairs.fold) if n_folds >= 2 else None
    return [
        VerificationRow(
            benchmark=shard.benchmark.name,
            fr=shard.fr,
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
