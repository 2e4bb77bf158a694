"""What a run would do: shards, bytes, time and memory of every step, as the stages estimate them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fiqa_ray.config import Settings
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.core.intervals import MIN_UNITS
from fiqa_ray.core.label_result import LARGEST_RAW_THETA, LEAST_MOVE, expected_move, move_advice, raw_scale_advice
from fiqa_ray.engine.progress import note
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job

if TYPE_CHECKING:
    from fiqa_ray.engine.cost import Scale, Workload

RAY_START_S = 15.0
"""Seconds that Ray costs a run on two quiet cores: 4 to 8 for its start, 2 for the first worker, 5 to 8 for the first
dataset of Ray Data, and 1 to stop."""


def plan_job(job: Job, n_workers: int = 1, bandwidth: float | None = None) -> list[dict[str, Any]]:
    """Return what a run of the job would do, a record per step.

    Lists the source unless the faces are packed, and refuses what a run would refuse before its first image: files that
    cannot be read, names that do not meet, false match rates that the pairs cannot carry. Work comes from running each model
    and the numerics on a small sample on this machine's CPU.

    Args:
        job: The job.
        n_workers: Workers to predict the time for.
        bandwidth: Bytes/s between each worker and storage; None where storage is a local disk.

    Returns:
        Records with stage, what, state, rows, shards, bytes read, written and sent through Ray, work and time in seconds,
        and memory of a worker. Work and time are those of what is left to do.

    Raises:
        FiqaRayError: the run would be refused.
    """
    from fiqa_ray.engine.cost import PROCESS_BYTES, RECORD_BYTES
    from fiqa_ray.stages import STAGES, stage_costs
    from fiqa_ray.tools.inputs import match_inputs, read_inputs

    read_inputs(job, STAGES)
    faces = {face_set: _list_faces(job, face_set) for face_set in job.face_sets}
    match_inputs(job, STAGES, lambda face_set: faces[face_set].table)
    workload = _workload(job, {name: len(listed.table) for name, listed in faces.items()}, faces["train"].n_people)
    people = {face_set: listed.n_people for face_set, listed in faces.items()}
    for line in (*theta_notes(job, workload.scale), *interval_notes(job.settings, people)):
        note(line)
    rows = []
    for cost in (cost for stage in STAGES for cost in stage_costs(stage, job, workload)):
        manifests = [d.manifest() for d in cost.datasets]
        is_finished = all(m is not None for m in manifests)
        n_done = 0 if is_finished else sum(p.n_rows for d in cost.datasets for p in d.finished_parts().values())
        share_left = 0.0 if is_finished else max(0.0, 1 - n_done / max(cost.n_rows * len(cost.datasets), 1))
        rows.append(
            {
                "stage": cost.stage,
                "what": cost.what,
                "state": "finished" if is_finished else "partly done" if n_done else "to do",
                "n_rows": cost.n_rows,
                "n_shards": sum(len(m.parts) for m in manifests if m) if is_finished else cost.n_shards,
                "read_bytes": int(cost.read_bytes),
                "written_bytes": int(cost.written_bytes),
                "through_store_bytes": RECORD_BYTES * cost.n_shards,
                "work_s": round(share_left * cost.work_s, 1),
                "time_s": round(share_left * cost.wall_s(n_workers, bandwidth), 1),
                "memory_bytes": int(cost.memory_bytes + PROCESS_BYTES),
            }
        )
    start = _start_of_ray(job) if any(row["state"] != "finished" for row in rows) else []
    if start and sum(float(row["work_s"]) for row in rows) < RAY_START_S:
        note("less work than Ray takes to start: add compute.engine=local, which works in one process")
    return start + rows


def _start_of_ray(job: Job) -> list[dict[str, Any]]:
    """Return the record of Ray's start on this machine, where the job starts one."""
    compute = job.settings.compute
    if compute.engine != "ray" or compute.address or os.environ.get("RAY_ADDRESS"):
        return []
    zeros = ("n_rows", "n_shards", "read_bytes", "written_bytes", "through_store_bytes", "work_s", "memory_bytes")
    row = {"stage": "start", "what": "Ray on this machine", "state": "to do", **dict.fromkeys(zeros, 0)}
    return [row | {"time_s": RAY_START_S}]


def theta_notes(job: Job, scale: Scale) -> Iterator[str]:
    """Yield how far each theta is expected to move images, and what speaks against it."""
    index_scale = job.settings.optimize.index_scale
    for theta in job.settings.optimize.thetas:
        if isinstance(theta, str):
            yield "theta heldout: chosen for each method on held-out people; 0 where nothing is gained"
            continue
        size = scale.pairs_per_image, scale.n_images
        low, high = expected_move(theta, *size, index_scale)
        yield (
            f"theta {theta:g} ({index_scale}) is expected to move an image by {100 * low:.2g} to {100 * high:.2g} % of the "
            "ranks, the less the more the scores follow the similarities"
        )
        if 0 < high < LEAST_MOVE:
            with_pairs = min(1.0, scale.pairs_per_image)
            advice = move_advice("", theta, high, scale.n_images, index_scale, share_with_pairs=with_pairs)
            yield f"warning: {advice}"
        if index_scale == "raw" and theta > LARGEST_RAW_THETA:
            yield f"warning: {raw_scale_advice(theta)}"


def interval_notes(settings: Settings, people: Mapping[str, int]) -> Iterator[str]:
    """Yield which benchmarks have too few people for intervals; a flat folder names no people.

    Args:
        settings: the job.
        people: people of each face set.
    """
    if settings.evaluate.resample == "pairs" or not settings.evaluate.draws:
        return
    for benchmark in settings.benchmarks:
        if 1 < people[benchmark.name] < MIN_UNITS:
            heldout = " (that of theta heldout is on training people, and wider where these are few)"
            yield (
                f"{benchmark.name}: {people[benchmark.name]} people are too few for intervals of areas and differences: "
                f"{MIN_UNITS} are needed{heldout if HELDOUT in settings.optimize.thetas else ''}"
            )


def needs_no_ray(job: Job, n_images: int, n_people: int) -> bool:
    """Return whether a new run of a job without benchmarks is less work than the start of Ray.

    Args:
        job: the job.
        n_images: images of its faces.
        n_people: people of its faces.
    """
    from fiqa_ray.stages import STAGES, stage_costs

    workload = _workload(job, {"train": n_images}, n_people)
    return sum(cost.work_s for stage in STAGES for cost in stage_costs(stage, job, workload)) < RAY_START_S


def _workload(job: Job, n_images: Mapping[str, int], n_people: int) -> Workload:
    """Return the sizes of the job's face sets, by their names, and what its models and this machine take, as measured."""
    from fiqa_ray.engine.cost import Scale, Workload
    from fiqa_ray.tools.unit_costs import measure_units

    settings = job.settings
    embed_s, dim, score_s = _measure_models(job)
    scale = Scale(
        n_images["train"],
        n_people,
        dim=dim,
        n_clusters=settings.pair.n_clusters,
        n_repeats=settings.pair.n_repeats,
        n_methods=len(settings.methods),
        n_thetas=len(job.index_thetas()),
        engine=settings.rank.engine,
        n_ranges=settings.rank.n_ranges,
        keep=settings.pair.keep,
        rows_per_part=settings.compute.rows_per_part,
    )
    return Workload(scale, measure_units(scale), dict(n_images), embed_s, score_s)


@dataclass(frozen=True)
class _Faces:
    """A face set as listed: `image_id` and `identity` of its images in their order, and how many people it has."""

    table: pa.Table
    n_people: int


def _list_faces(job: Job, face_set: str) -> _Faces:
    """List a face set, or read its list in the run, and print its account."""
    from fiqa_ray.sources.account import Account
    from fiqa_ray.stages.pack import check_account, list_faces, listed_faces

    plan = job.faces(face_set).plan()
    if plan is not None:
        check_account(face_set, job.face_sets[face_set], Account.from_json(plan["account"]))
        return _Faces(listed_faces(job.faces(face_set)), int(plan["n_identities"]))
    faces, account = list_faces(face_set, job.face_sets[face_set])
    return _Faces(faces.select(["image_id", "identity"]), account.n_people)


def _given_dim(job: Job) -> int:
    """Return the dimensions of embeddings that are given, from the first of them."""
    from fiqa_ray.sources.stored_embeddings import list_embeddings, read_stored_embeddings

    uri = next(iter(job.face_sets.values())).uri
    return read_stored_embeddings(uri, list_embeddings(uri).slice(0, 1)).shape[1]


def _measure_models(job: Job) -> tuple[dict[str, float], int, dict[str, float]]:
    """Return the seconds per image of each FR model, the job's dimensions, and the seconds of each method with a model.

    Each is measured on one small batch and one thread.
    """
    import torch

    from fiqa_ray.core.kernels.threads import one_thread
    from fiqa_ray.stages.infer import is_from_embeddings, method_call
    from fiqa_ray.stages.infer_parts import ModelCall

    s = job.settings
    if s.has_given_embeddings:
        return {s.recognizer.label: 0.0}, _given_dim(job), {}
    faces = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8)

    def measure(name: str, call: ModelCall) -> tuple[float, Any]:
        model = call.load()
        try:
            model(faces, np.arange(4))
            started = time.monotonic()
            output = model(faces, np.arange(4))
        except FiqaRayError:
            raise
        except Exception as exc:  # a user's network may raise anything
            raise FiqaRayError(f"{name}: fails on four faces of random pixels: {type(exc).__name__}: {exc}") from exc
        return (time.monotonic() - started) / 4, output

    with one_thread():
        embed_s, n_dims = {}, 0
        for recognizer in {r.label: r for r in (*job.judges, s.recognizer)}.values():
            call = ModelCall(recognizer, None, None, {}, s.seed, "cpu")
            embed_s[recognizer.label], output = measure(recognizer.name, call)
            n_dims = int(output.shape[1])  # the last one is the job's
        score_s = {
            m.label: measure(m.name, replace(method_call(job, m), device="cpu"))[0]
            for m in s.methods
            if m.scores is None and m.fuse is None and not is_from_embeddings(job, m)
        }
    return embed_s, n_dims, score_s
