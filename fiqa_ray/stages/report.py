"""report: one self-contained HTML page of what ran, what came out and what it is worth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from fiqa_ray._version import __version__
from fiqa_ray.config import EDIFF, BenchmarkSettings, MethodSettings, RecognizerSettings, Theta, theta_name
from fiqa_ray.content_ids import model_id
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.core.kernels.draws import counter_draws
from fiqa_ray.core.label_result import LARGEST_RAW_THETA, LEAST_MOVE, move_advice, raw_scale_advice, sign_doubt
from fiqa_ray.core.verification import threshold_at_fmr
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.datasets.pictures import read_pictures
from fiqa_ray.datasets.results import (
    AucRow,
    ConventionRow,
    CorrelationRow,
    DifferenceRow,
    EdcLine,
    GroupRateRow,
    Row,
    ThetaRow,
    VerificationRow,
    edc_lines,
    rows_of,
)
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.images import small_picture
from fiqa_ray.job import Job
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.public_uri import public_uri
from fiqa_ray.report.answer import sign_lines
from fiqa_ray.report.data import (
    EdiffSummary,
    Face,
    FaceRow,
    FaceStrip,
    LabelSummary,
    ModelRow,
    ReportData,
    SimilarityHistogram,
    StageRow,
)
from fiqa_ray.report.render import render_report
from fiqa_ray.sources.account import Account

N_SCATTER = 20_000
N_FACES = 6


def report_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step: the page."""
    dataset = job.report()
    yield [Step("report", dataset, [job], stateless_worker(write_report, dataset), 1, runs_in="driver", unit="pages")]


def write_report(dataset: Dataset, job: Job) -> Part:
    """Render the page. Memory: per-image scores of all label sets."""
    started = time.monotonic()
    page = render_report(collect(job)).encode()
    return dataset.write_part(0, {"report.html": page}, n_rows=1, duration_s=time.monotonic() - started)


def collect(job: Job) -> ReportData:
    """Return everything that the page shows, read from the job's datasets."""
    s = job.settings
    return ReportData(
        title=f"Face image quality: {s.name}",
        code_version=__version__,
        settings=_settings(job),
        stages=_stages(job),
        models=_models(job),
        labels=[_labels(job, m, t) for m in s.methods for t in s.optimize.thetas] if job.with_training else [],
        ediff=_ediff_labels(job),
        thetas=_thetas(job),
        signs=list(sign_lines(_sign_doubts(job), _rows(job, AucRow))),
        edc=edc_lines(_results(job, EdcLine.TABLE)) if s.benchmarks else [],
        conventions=_rows(job, ConventionRow),
        auc=_rows(job, AucRow),
        differences=_rows(job, DifferenceRow),
        verification=_rows(job, VerificationRow),
        similarities=[_similarities(job, b, r) for b in s.benchmarks for r in job.judges],
        correlations=_rows(job, CorrelationRow),
        group_rates=_rows(job, GroupRateRow),
        group_auc=_rows(job, AucRow, "group_"),
        group_differences=_rows(job, DifferenceRow, "group_"),
        faces=_face_strips(job),
        notes=_notes(job),
    )


def _rows(job: Job, row_class: type[Row], prefix: str = "") -> list[Row]:
    """Return the rows of all benchmarks."""
    return rows_of(row_class, _results(job, f"{prefix}{row_class.TABLE}")) if job.settings.benchmarks else []


def _results(job: Job, table: str) -> pa.Table:
    """Return one table of the results of all benchmarks."""
    return job.results().read_all(suffix=f".{table}.parquet")


def _settings(job: Job) -> dict[str, Any]:
    s = job.settings
    training = {
        "training faces": public_uri(s.source.uri) if s.source else "none",
        "clusters C": s.pair.n_clusters,
        "repeats R": s.pair.n_repeats,
        "labels by": ", ".join(s.optimize.mode),
        "theta": ", ".join(theta_name(t) for t in s.optimize.thetas) or "none",
        "index scale": s.optimize.index_scale,
        "eDifFIQA's rule": s.optimize.ediff.model_dump(mode="json") if EDIFF in s.optimize.mode else "none",
        "clusters fitted": "in each repeat" if s.pair.recluster else "once per identity",
        "ranking engine": s.rank.engine,
        "regressor": {k: v for k, v in s.train.model_dump(mode="json").items() if v is not None},
    }
    return {
        "recogniser": job.fr,
        "FIQA methods": ", ".join(_method(job, m) for m in s.methods),
        **(training if job.with_training else {}),
        "benchmarks": ", ".join(b.name for b in s.benchmarks),
        "recognisers whose errors are counted": ", ".join(r.label for r in job.judges),
        "FMR": ", ".join(f"{fmr:g}" for fmr in s.evaluate.fmr),
        "conventions": {c.name: c.describe() for c in s.evaluate.curve_conventions()},
        "resampled": s.evaluate.resample,
        "bootstrap draws": s.evaluate.draws,
        "seed": s.seed,
    }


def _method(job: Job, method: MethodSettings) -> str:
    """Return a method's label; of a fused one also its weights."""
    if method.fuse is None:
        return method.label
    if not job.with_training:
        return method.label
    weights = job.prior_scores("train", method).require().stats["weights"]
    return f"{method.label} ({' + '.join(f'{w:.2f} {label}' for label, w in weights.items())})"


def _stages(job: Job) -> list[StageRow]:
    s = job.settings
    named: list[tuple[str, Dataset]] = []
    for face_set in job.face_sets:
        named.append((f"pack {face_set}", job.faces(face_set)))
        for r in job.recognizers_of(face_set):
            named.append((f"embed {face_set}: {r.label}", job.embeddings(face_set, r)))
        named += [
            (f"{'score' if m.fuse is None else 'fuse'} {face_set}: {m.label}", job.prior_scores(face_set, m))
            for m in s.methods
            if job.has_scores(face_set, m)
        ]
    if job.with_training and s.needs_pairs:
        named.append(("pairs", job.pairs()))
    if job.with_training and s.optimize.thetas:
        named += [("ranks", job.similarity_ranks()), ("optimized indices", job.optimized_index())]
    if job.with_training and EDIFF in s.optimize.mode:
        named += [(f"eDifFIQA labels: {m.label}", job.ediff("ediff_labels", m)) for m in s.methods]
    named += [(f"train: {job.scorer_name(labels)}", job.regressor(labels)) for labels in job.label_sets()]
    named += [(f"evaluate {b.name}: {r.label}", job.evaluation(b, r)) for b in s.benchmarks for r in job.judges]
    rows = []
    for name, dataset in named:
        manifest = dataset.require()
        reasons = {k: v for k, v in manifest.stats.get("status", {}).items() if k != "ok"}
        seconds = sum(p.duration_s for p in manifest.parts)
        rows.append(StageRow(name, manifest.n_rows, sum(reasons.values()), reasons, seconds))
    return rows


def _models(job: Job) -> list[ModelRow]:
    def row(name: str, weights: str | None, identity: dict[str, Any], table: dict[str, Any]) -> ModelRow:
        licence = table[name].licence if name in table else "the user's own"
        return ModelRow(
            public_uri(name), public_uri(weights or name).rsplit("/", 1)[-1], identity.get("sha256", ""), licence
        )

    others = [m.recognizer for m in job.settings.methods if m.recognizer is not None]
    recognizers = {r.label: r for r in (job.settings.recognizer, *job.judges, *others)}.values()
    rows = [row(r.name, r.weights, model_id(r), RECOGNIZERS) for r in recognizers]
    methods = [m for m in job.settings.methods if m.fuse is None]
    return rows + [
        row(m.name, m.weights or (m.scores.uri if m.scores else None), model_id(m), METHODS) for m in methods
    ]


def _labels(job: Job, method: Any, theta: Theta) -> LabelSummary:
    dataset = job.optimized_labels(method, theta)
    stats = dataset.require().stats
    table = dataset.read_all(["prior_score", "optimized_score"]).drop_null()
    prior, optimized = table["prior_score"].to_numpy(), table["optimized_score"].to_numpy()
    counts, edges = np.histogram(prior, bins=80)
    chosen = np.arange(len(prior))
    if len(prior) > N_SCATTER:
        chosen = np.sort(np.argsort(counter_draws(job.settings.seed, chosen))[:N_SCATTER])
    return LabelSummary(
        method=method.label,
        theta=stats["theta"],
        theta_effective=stats["theta_effective"],
        prior_score=prior[chosen],
        optimized_score=optimized[chosen],
        histogram_counts=counts,
        histogram_edges=edges,
        n_images=len(prior),
        n_without_pairs=stats["n_without_pairs"],
        mean_move=stats["mean_move_fraction"],
    )


def _ediff_labels(job: Job) -> list[EdiffSummary]:
    """Return what eDifFIQA's rule gave each method; nothing where it makes no labels."""
    if not job.with_training or EDIFF not in job.settings.optimize.mode:
        return []
    rows = []
    for method in job.settings.methods:
        manifest = job.ediff("ediff_labels", method).require()
        stats, n_labelled = manifest.stats, int(manifest.stats["n_labelled"])
        label = job.ediff("ediff_labels", method).read_all(["label"])["label"].drop_null().to_numpy()
        row = EdiffSummary(
            method.label, stats["threshold"], manifest.n_rows, int(stats["n_good"]), n_labelled, float(label.mean())
        )
        rows.append(row)
    return rows


def _similarities(job: Job, benchmark: BenchmarkSettings, recognizer: RecognizerSettings) -> SimilarityHistogram:
    pairs = job.comparisons(benchmark, recognizer).read_all(["similarity", "mated"])
    similarity, mated = pairs["similarity"].to_numpy(), pairs["mated"].to_numpy()
    edges = np.linspace(similarity.min(), similarity.max() + 1e-9, 61)
    return SimilarityHistogram(
        benchmark=benchmark.name,
        recognizer=recognizer.label,
        threshold=threshold_at_fmr(similarity, mated, job.settings.evaluate.fmr[0]),
        edges=edges,
        mated_counts=np.histogram(similarity[mated], edges)[0],
        nonmated_counts=np.histogram(similarity[~mated], edges)[0],
    )


def _face_strips(job: Job) -> list[FaceStrip]:
    """Return faces by score of each benchmark, and those that label optimization moved most, where there are pictures."""
    s = job.settings
    strips = [strip for b in s.benchmarks for strip in _faces(job, b.name)]
    if job.with_training and s.source is not None and s.source.kind != "embeddings":
        strips += [_moved_faces(job, m, t) for m in s.methods for t in s.optimize.thetas]
    return strips


def _faces(job: Job, name: str) -> list[FaceStrip]:
    """Return faces of a benchmark by each score: the worst, one of each decile from the worst, the best."""
    scores = job.evaluation(job.benchmark(name)).read_all(suffix=".scores.parquet")
    rows_of: dict[str, dict[str, list[int]]] = {}
    for scorer in scores.column_names[1:]:
        if scorer != "random":
            score = scores[scorer].to_numpy()
            finite = np.flatnonzero(np.isfinite(score))
            order = finite[np.argsort(score[finite], kind="stable")]
            deciles = [int(order[(2 * d + 1) * len(order) // 20]) for d in range(10 if len(order) else 0)]
            best = order[::-1][:N_FACES].tolist()
            rows_of[scorer] = {"worst": order[:N_FACES].tolist(), "middle of each tenth": deciles, "best": best}
    wanted = sorted({r for rows in rows_of.values() for row in rows.values() for r in row})
    pictures = read_pictures(job.faces(name), wanted, small_picture)
    return [
        FaceStrip(
            f"{scorer} ({name})",
            [
                FaceRow(what, [Face(pictures[r][0], scores[scorer][r].as_py(), pictures[r][1]) for r in row])
                for what, row in rows.items()
            ],
        )
        for scorer, rows in rows_of.items()
    ]


def _moved_faces(job: Job, method: MethodSettings, theta: Theta) -> FaceStrip:
    """Return the training faces whose rank the optimization raised and lowered most."""
    columns = ["quality_index", "optimized_index"]
    labels = job.optimized_labels(method, theta).read_all(["image_row", *columns]).drop_null()
    row, before, optimized = (labels[name].to_numpy() for name in ("image_row", *columns))
    after = np.empty(len(row), np.int64)
    after[np.lexsort((before, optimized))] = np.arange(len(row))
    change = after - np.argsort(np.argsort(before, kind="stable"), kind="stable")
    order = np.argsort(change, kind="stable")
    raised = [i for i in order[::-1][:N_FACES] if change[i] > 0]
    lowered = [i for i in order[:N_FACES] if change[i] < 0]
    pictures = read_pictures(job.faces("train"), sorted(int(row[i]) for i in (*raised, *lowered)), small_picture)

    def faces(chosen: list[int]) -> list[Face]:
        return [Face(pictures[row[i]][0], change[i] / len(row), pictures[row[i]][1]) for i in chosen]

    title = f"{method.label}, theta {theta_name(theta)}: moved most among the training faces, in shares of the ranks"
    return FaceStrip(title, [FaceRow("raised", faces(raised)), FaceRow("lowered", faces(lowered))])


def _thetas(job: Job) -> list[ThetaRow]:
    """Return what each candidate theta is worth for each method; nothing where the job gives theta."""
    if not job.with_training or HELDOUT not in job.settings.optimize.thetas:
        return []
    return [row for m in job.settings.methods for row in rows_of(ThetaRow, job.theta_choice(m).read_all())]


def _sign_doubts(job: Job) -> dict[str, str]:
    """Return what the similarities say against the sign of each method, by the facts of its first optimized labels."""
    if not job.with_training or not job.settings.optimize.thetas:
        return {}
    theta = job.settings.optimize.thetas[0]
    stats = {m.label: job.optimized_labels(m, theta).require().stats for m in job.settings.methods}
    return {method: sign_doubt(method, facts) for method, facts in stats.items() if "score_rho" in facts}


def _theta_notes(job: Job) -> Iterator[str]:
    """Yield what speaks against the thetas of the job."""
    if not job.with_training:
        return
    index_scale = job.settings.optimize.index_scale
    for label_set in job.label_sets():
        theta = job.theta_of(label_set)
        if label_set.kind != "optimized" or theta == 0:
            continue
        stats = job.labels(label_set).require().stats
        move, n = stats["mean_move_fraction"], max(int(stats["n_scored"]), 1)
        if move < LEAST_MOVE:
            with_pairs = 1 - stats["n_without_pairs"] / n
            name, rho = label_set.method.label, stats.get("score_rho")
            yield f"{move_advice(name, theta, move, n, index_scale, share_with_pairs=with_pairs, rho=rho)}."
        if index_scale == "raw" and theta > LARGEST_RAW_THETA:
            yield f"{label_set.method.label}: {raw_scale_advice(theta)}."


def _notes(job: Job) -> list[str]:
    s = job.settings
    notes = [f"Source of {f}: {Account.from_json(job.faces(f).require().plan['account'])}." for f in job.face_sets]
    pairs = job.pairs().require().stats if job.with_training and s.needs_pairs else {}
    if pairs.get("n_identities_of_one_image"):
        notes.append(f"{pairs['n_identities_of_one_image']} identities have one usable image and so no mated pair.")
    if pairs.get("n_identities_below_n_clusters"):
        notes.append(
            f"{pairs['n_identities_below_n_clusters']} of {pairs['n_identities']} identities have fewer than "
            f"C = {s.pair.n_clusters} images; each of them forms as many clusters as it has images."
        )
    for b in s.benchmarks:
        stats = job.evaluation(b).require().stats
        if stats["n_pairs_skipped"]:
            notes.append(f"{b.name}: {stats['n_pairs_skipped']} pairs were skipped for images without embedding.")
    notes += _theta_notes(job)
    if job.with_training and s.optimize.thetas and s.optimize.index_scale == "raw":
        notes.append(
            "Similarity ranks run over pairs and quality indices over images, unscaled, as published; the effective "
            "step is theta times the ratio of the two."
        )
    return notes
