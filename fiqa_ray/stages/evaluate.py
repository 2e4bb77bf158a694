"""evaluate: what a score is worth for verification (paper IV): EDC, AUC with intervals, accuracy, correlations.

Every scorer of a benchmark is judged on the same comparisons and the same bootstrap draws: each method's own scores, its
regressors on prior and on optimized labels, the user's further scores, and random numbers as the floor.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from scipy.stats import spearmanr

from fiqa_ray.config import BenchmarkSettings, EvaluateSettings, PairListSettings
from fiqa_ray.core.bootstrap import bootstrap_auc
from fiqa_ray.core.edc import edc_curve
from fiqa_ray.core.kernels.draws import counter_draws
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.core.verification import equal_error_rate, fold_accuracy, tar_at_fmr
from fiqa_ray.datasets import columns, schemas
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.sources.kinds import PROTOCOLS
from fiqa_ray.sources.protocols import VerificationPairs
from fiqa_ray.sources.scores import scores_by_id
from fiqa_ray.storage import read_bytes, storage_errors

RANDOM, ORACLE = "random", "oracle"
"""Names of the floor, random numbers, and of the recorded truth, which is compared where it covers all images."""

USUAL_FMR = 1e-3
PAUC_LIMITS = (0.2, 0.3)
"""Discard limits of the partial areas that are reported beside the whole one."""

_RANDOM_STREAM = 0x4A2D


@dataclass(frozen=True)
class BenchmarkShard:
    """One benchmark: its data sets and the scorers to compare. ``scorers``: name -> scores; ``files``: name -> URI."""

    benchmark: BenchmarkSettings
    settings: EvaluateSettings
    seed: int
    fr: str
    faces: Dataset
    embeddings: Dataset
    scorers: dict[str, Dataset]
    files: dict[str, str]
    compare: list[tuple[str, str]]


def evaluate_steps(job: Job) -> Iterator[list[Step]]:
    """One step per benchmark."""
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
    """Everything of one benchmark. Memory: its embeddings, scores and pairs."""
    started = time.monotonic()
    name = shard.benchmark.name
    faces = shard.faces.read_all(["image_row", "image_id"])
    image_id = faces["image_id"].combine_chunks()
    protocol = read_pairs(shard.benchmark.pairs)
    rows = [_rows_of(ids, image_id, shard) for ids in (protocol.image_id_a, protocol.image_id_b)]

    embeddings = shard.embeddings.read_all(["image_row", "embedding"])
    values, good = columns.embedding_values(embeddings)
    place = np.full(len(image_id), -1, np.int64)
    place[good] = np.arange(len(good))
    scores = {k: _scores(d) for k, d in shard.scorers.items()}
    scores |= {k: scores_by_id(uri, image_id) for k, uri in shard.files.items()}
    truth = _recorded_truth(shard.benchmark.degradations, image_id)
    if truth is not None and np.isfinite(truth.quality).all():
        scores[ORACLE] = truth.quality
    random = counter_draws(shard.seed, _RANDOM_STREAM, np.arange(len(image_id))).astype(np.float64)
    scores[RANDOM] = random / 2.0**64

    # a pair counts where both images have an embedding and every score: all scorers see the same pairs
    usable = (place >= 0) & np.all([np.isfinite(s) for s in scores.values()], axis=0)
    kept = usable[rows[0]] & usable[rows[1]]
    a, b = rows[0][kept], rows[1][kept]
    mated, fold = np.asarray(protocol.mated)[kept], np.asarray(protocol.fold)[kept]
    if not mated.any() or mated.all():
        raise FiqaRayError(
            f"benchmark {name}: {int(mated.sum())} mated and {int((~mated).sum())} non-mated pairs are usable "
            f"({int((~kept).sum())} skipped for bad images); both kinds are needed, see {shard.benchmark.pairs.uri}"
        )
    units = unit_vectors(values)
    similarity = np.einsum("ij,ij->i", units[place[a]], units[place[b]], dtype=np.float64).clip(-1, 1)

    edc, auc, differences = _curves(shard, similarity, mated, {k: (s[a], s[b]) for k, s in scores.items()})
    verification = _verification(shard, similarity, mated, fold)
    tables = {
        "comparisons": pa.table(
            {
                "image_row_a": a,
                "image_row_b": b,
                "mated": mated,
                "fold": fold.astype(np.int32),
                "similarity": similarity,
            },
            schema=schemas.COMPARISONS,
        ),
        "edc": pa.Table.from_pylist(edc, schema=schemas.EDC),
        "auc": pa.Table.from_pylist(auc, schema=schemas.AUC),
        "differences": pa.Table.from_pylist(differences, schema=schemas.DIFFERENCES),
        "verification": pa.Table.from_pylist(verification, schema=schemas.VERIFICATION),
        "correlations": pa.Table.from_pylist(_correlations(shard, truth, scores), schema=schemas.CORRELATIONS),
        "scores": pa.table({"image_row": faces["image_row"], **scores}),
    }
    return dataset.write_part(
        0,
        {f".{k}.parquet": t for k, t in tables.items()},
        n_rows=len(protocol.mated),
        stats={"n_pairs_used": int(kept.sum()), "n_pairs_skipped": int((~kept).sum())},
        duration_s=time.monotonic() - started,
    )


def _rows_of(ids: Any, image_id: pa.Array, shard: BenchmarkShard) -> np.ndarray:
    wanted = pa.array(list(ids), pa.string())
    at = pc.index_in(wanted, value_set=image_id)
    if at.null_count:
        missing = wanted.filter(at.is_null())
        raise FiqaRayError(
            f"{shard.benchmark.pairs.uri}: {len(missing.unique())} image(s) of the pair list are not in "
            f"{shard.benchmark.source.uri}, such as {missing[0]} (the data set has {image_id[0]} and others); "
            "correct source.uri, pairs.extension or the list"
        )
    return at.to_numpy().astype(np.int64)


def _scores(dataset: Dataset) -> np.ndarray:
    """(n_images,) float64, NaN where an image has no score."""
    return dataset.read_all(["score"])["score"].to_numpy().astype(np.float64)


def _curves(
    shard: BenchmarkShard,
    similarity: np.ndarray,
    mated: np.ndarray,
    qualities: dict[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    name, fmr = shard.benchmark.name, shard.settings.fmr
    edc, auc, differences = [], [], []
    for convention in shard.settings.conventions:
        curves = {
            k: edc_curve(similarity, mated, qa, qb, fmr=fmr, convention=convention) for k, (qa, qb) in qualities.items()
        }
        for scorer, curve in curves.items():
            for x, y, t in zip(curve.discard_fraction, curve.fnmr, curve.threshold, strict=True):
                edc.append(
                    {
                        "benchmark": name,
                        "fr": shard.fr,
                        "scorer": scorer,
                        "convention": convention,
                        "fmr_target": fmr,
                        "discard_fraction": x,
                        "fnmr": _number(y),
                        "threshold": _number(t),
                    }
                )
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
            for scorer, curve in curves.items():
                interval = draws.interval(scorer) if draws else None
                auc.append(
                    {
                        "benchmark": name,
                        "fr": shard.fr,
                        "scorer": scorer,
                        "convention": convention,
                        "fmr_target": fmr,
                        "fmr_achieved": curve.fmr_achieved,
                        "discard_limit": limit,
                        "auc": curve.auc(limit),
                        "auc_low": _number(interval.low) if interval else None,
                        "auc_high": _number(interval.high) if interval else None,
                        "n_mated": int(mated.sum()),
                        "n_nonmated": int((~mated).sum()),
                    }
                )
            if draws and limit == whole:
                for first, second in shard.compare:
                    d = draws.difference(first, second)
                    differences.append(
                        {
                            "benchmark": name,
                            "convention": convention,
                            "scorer_a": first,
                            "scorer_b": second,
                            "difference": d.value,
                            "low": _number(d.low),
                            "high": _number(d.high),
                        }
                    )
    return edc, auc, differences


def _verification(
    shard: BenchmarkShard, similarity: np.ndarray, mated: np.ndarray, fold: np.ndarray
) -> list[dict[str, Any]]:
    """The recogniser without quality, at the job's FMR and at the usual one."""
    folds = len(np.unique(fold[fold >= 0]))
    accuracy = fold_accuracy(similarity, mated, fold) if folds >= 2 else None
    return [
        {
            "benchmark": shard.benchmark.name,
            "fr": shard.fr,
            "accuracy_mean": accuracy.mean if accuracy else None,
            "accuracy_std": accuracy.std if accuracy else None,
            "tar_at_fmr": tar_at_fmr(similarity, mated, fmr),
            "fmr": fmr,
            "eer": equal_error_rate(similarity, mated),
            "n_mated": int(mated.sum()),
            "n_nonmated": int((~mated).sum()),
        }
        for fmr in dict.fromkeys([shard.settings.fmr, USUAL_FMR])
    ]


@dataclass(frozen=True)
class Truth:
    """What is recorded of the images: (n_images,) kind of degradation and true quality; None and NaN where nothing is."""

    kind: np.ndarray
    quality: np.ndarray


def _recorded_truth(uri: str | None, image_id: pa.Array) -> Truth | None:
    if uri is None:
        return None
    types = {"image_id": pa.string(), "kind": pa.string(), "quality": pa.float64()}
    try:
        table = pacsv.read_csv(io.BytesIO(read_bytes(uri)), convert_options=pacsv.ConvertOptions(column_types=types))
    except pa.ArrowInvalid as exc:
        raise FiqaRayError(
            f"{uri}: {str(exc).splitlines()[0]}; degradations are a CSV of image_id, kind and quality, a number"
        ) from exc
    for column in ("image_id", "kind", "quality"):
        if column not in table.column_names:
            raise FiqaRayError(f"{uri} has no column {column!r}; degradations need image_id, kind and quality")
    found = table.take(pc.index_in(image_id, value_set=table["image_id"].combine_chunks()))
    quality = found["quality"].to_numpy(zero_copy_only=False)
    return Truth(np.array(found["kind"].to_pylist(), dtype=object), quality)


def _correlations(shard: BenchmarkShard, truth: Truth | None, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Spearman's rho of every scorer with the recorded true quality: all images, and the images of each kind."""
    if truth is None:
        return []
    kinds = sorted({k for k in truth.kind.tolist() if k is not None})
    rows = []
    for scorer, score in scores.items():
        known = np.isfinite(score) & np.isfinite(truth.quality)
        for kind in ["all", *kinds]:
            chosen = known & ((truth.kind == kind) | (kind == "all"))
            quality, mine = truth.quality[chosen], score[chosen]
            if len(mine) >= 3 and np.ptp(quality) > 0 and np.ptp(mine) > 0:
                rho = float(spearmanr(mine, quality).statistic)
                row = {
                    "benchmark": shard.benchmark.name,
                    "scorer": scorer,
                    "kind": kind,
                    "spearman": rho,
                    "n": len(mine),
                }
                rows.append(row)
    return rows


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
