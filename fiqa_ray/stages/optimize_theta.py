"""optimize, second step: theta of each FIQA method, chosen on held-out training people; only where settings ask for it.

One task per method. It reads the embeddings of at most `MAX_IMAGES` images, whole parts in a random order, and their
optimized indices at every candidate theta.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fiqa_ray.core.candidates import CANDIDATES, HELDOUT, MAX_IMAGES
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.label_result import sign_doubt, sign_facts
from fiqa_ray.core.labels import quality_index, reassign_scores
from fiqa_ray.datasets.columns import embedding_values
from fiqa_ray.datasets.dataset import Dataset, Manifest, Part
from fiqa_ray.datasets.image_rows import PartRange, read_image_rows
from fiqa_ray.datasets.pairs import pair_part_sizes
from fiqa_ray.datasets.results import ThetaRow, table_of
from fiqa_ray.datasets.schemas import index_suffix
from fiqa_ray.engine.cost import Cost, Workload
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job

if TYPE_CHECKING:
    from fiqa_ray.core.theta import ThetaCurve

CHOICE_S = 10.0
"""Seconds per method, on a core, with `MAX_IMAGES` images of 512 numbers; they fall with the images."""


@dataclass(frozen=True)
class ThetaShard:
    """One FIQA method: its label and its quality indices."""

    method: str
    quality_index: Dataset


def theta_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per method."""
    if HELDOUT not in job.settings.optimize.thetas:
        return
    embeddings, updates, seed = job.embeddings("train"), job.optimized_index(), job.settings.seed
    steps = []
    for method in job.settings.methods:
        dataset = job.theta_choice(method)
        worker = stateless_worker(choose_shard, dataset, embeddings, updates, seed)
        shard = ThetaShard(method.label, job.quality_index(method))
        say = partial(_say_choice, dataset)
        steps.append(Step("optimize", dataset, [shard], worker, len(CANDIDATES), unit="thetas", check=say))
    yield steps


def _say_choice(dataset: Dataset, choice: Manifest) -> None:
    """Print in a line whether the prior gains, and which theta was chosen."""
    note(dataset.read(choice.parts[0], ["summary"])["summary"][0].as_py())


def theta_cost(job: Job, workload: Workload) -> Cost:
    """Return the cost of choosing theta for all methods."""
    scale, methods = workload.scale, job.settings.methods
    n = min(scale.n_images, MAX_IMAGES)
    _, part_rows = pair_part_sizes(scale.n_images, scale.rows_per_part)
    held = min(scale.n_images, -(-n // scale.rows_per_part) * part_rows)  # images in the parts that are read
    return Cost(
        "optimize",
        "choice of theta",
        scale.n_images,
        len(methods),
        work_s=len(methods) * (1 + CHOICE_S * n / MAX_IMAGES),
        memory_bytes=40.0 * scale.dim * n + 60.0 * part_rows,
        read_bytes=len(methods) * (4.0 * scale.dim * n + 17.0 * held * len(CANDIDATES)),
        written_bytes=0.0,
        datasets=tuple(job.theta_choice(m) for m in methods),
    )


@dataclass(frozen=True)
class _Sample:
    """Images of some parts of embeddings, part after part.

    Attributes:
        values: `(I, D)` embeddings.
        prior: `(I,)` scores.
        person: `(I,)` identity rows.
        rows: `(I,)` image rows by the span of rows that a part has.
    """

    values: NDArray[np.float32]
    prior: NDArray[np.float64]
    person: NDArray[np.int64]
    rows: dict[tuple[int, int], NDArray[np.int64]]


def choose_shard(dataset: Dataset, embeddings: Dataset, updates: Dataset, seed: int, shard: ThetaShard) -> Part:
    """Compare all candidates on a sample of the people, and write what each is worth.

    Memory: the sample's embeddings, five times as float64, and a part of optimized indices.
    """
    from fiqa_ray.core.theta import (
        compare_thetas,
    )  # late: it loads scipy.stats, and a job with a given theta plans this step too

    started = time.monotonic()
    sample = _sample(embeddings, shard.quality_index, seed)
    index, parts = quality_index(sample.prior), PartRange.of(updates.require())

    def of_sample(column: str, theta: float) -> NDArray[np.float64]:
        """Return a column of the optimized indices `(I,)`; NaN where it has no value."""
        values = []
        for span, rows in sample.rows.items():
            held, suffix = parts.between(*span).parts, index_suffix(shard.method, theta)
            table = read_image_rows(updates, held, *span, [column], suffix)
            values.append(table[column].to_numpy()[np.searchsorted(table["image_row"].to_numpy(), rows)])
        return np.concatenate(values)

    targets = {t: reassign_scores(sample.prior, index, of_sample("optimized_index", t))[1] for t in CANDIDATES}
    facts = sign_facts(index, of_sample("mean_similarity_rank", CANDIDATES[0]))
    with one_thread():
        curve = compare_thetas(sample.values, sample.person, targets, seed=seed)
    curve = replace(curve, sign=sign_doubt("", facts))
    return dataset.write_part(
        0,
        {".parquet": table_of(ThetaRow, _rows(shard.method, curve))},
        n_rows=len(CANDIDATES),
        stats={"theta": curve.chosen},
        duration_s=time.monotonic() - started,
    )


def _sample(embeddings: Dataset, quality_index: Dataset, seed: int) -> _Sample:
    """Return images with a score from parts in a random order, until there are `MAX_IMAGES`."""
    manifest, indices = embeddings.require(), PartRange.of(quality_index.require())
    first_rows = manifest.first_rows
    loaded: list[tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]] = []
    rows = {}
    n_images = 0
    for p in np.random.default_rng([seed, len(manifest.parts)]).permutation(len(manifest.parts)).tolist():
        table = embeddings.read(manifest.parts[p], ["identity_row", "embedding"])
        values, good = embedding_values(table)
        span = first_rows[p], first_rows[p + 1]
        stored = read_image_rows(quality_index, indices.between(*span).parts, *span, ["prior_score"])
        prior = stored["prior_score"].to_numpy()[good]
        person = table["identity_row"].to_numpy()[good].astype(np.int64)
        usable = np.isfinite(prior)
        within = np.cumsum(usable) <= MAX_IMAGES - n_images
        usable &= ~np.isin(person, person[usable & ~within])  # whole people only
        loaded.append((values[usable], prior[usable], person[usable]))
        rows[span] = good[usable] + span[0]
        n_images += int(usable.sum())
        if not within.all() and n_images:
            break
    values, prior, person = (np.concatenate(arrays) for arrays in zip(*loaded, strict=True))
    return _Sample(values, prior, person, rows)


def _rows(method: str, curve: ThetaCurve) -> list[ThetaRow]:
    summary = curve.sentence(method)
    return [
        ThetaRow(
            method=method,
            theta=theta,
            area=area,
            gain=gain,
            low=low,
            high=high,
            is_chosen=theta == curve.chosen,
            summary=summary,
            n_people=curve.n_people,
            n_images=curve.n_images,
            n_mated=curve.n_mated,
            n_nonmated=curve.n_nonmated,
            fmr=curve.fmr,
            fnmr=curve.fnmr,
        )
        for theta, area, gain, low, high in zip(curve.theta, curve.area, curve.gain, curve.low, curve.high, strict=True)
    ]
