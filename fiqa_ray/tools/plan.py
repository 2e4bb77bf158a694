"""What a run would do: shards, bytes, time and memory of every step."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job


def plan_job(job: Job, n_workers: int = 1, bandwidth: float | None = None) -> list[dict[str, Any]]:
    """What a run of the job would do: per step its state, shards, rows, bytes, work, memory, and time on ``n_workers``.

    Lists the source unless the faces are packed. Work comes from running each model and the numerics on a small
    sample on this machine's CPU. ``bandwidth``: bytes/s between each worker and storage; None where it is a local disk.
    """
    from fiqa_ray.tools.costs import PROCESS_BYTES, RECORD_BYTES, Scale, label_costs, measure_units

    settings = job.settings
    sizes = {s: _count_faces(job, s) for s in job.face_sets}
    n_images = {s: n for s, (n, _) in sizes.items()}
    rates = _measured_rates(job)
    dim = rates["dim"]
    n_train, n_identities = sizes["train"]
    part_rows = min(settings.compute.rows_per_part, max(n_images.values()))
    rows: list[dict[str, Any]] = []

    def add(
        stage: str,
        what: str,
        datasets: list[Dataset],
        n: int,
        n_shards: int,
        *,
        work_s: float,
        wall_s: float,
        memory: float,
        read: float,
        written: float,
    ) -> None:
        manifests = [d.manifest() for d in datasets]
        finished = all(m is not None for m in manifests)
        done = 0 if finished else sum(p.n_rows for d in datasets for p in d.finished_parts().values())
        left = 0.0 if finished else max(0.0, 1 - done / max(n * len(datasets), 1))
        rows.append(
            {
                "stage": stage,
                "what": what,
                "state": "finished" if finished else "partly done" if done else "to do",
                "n_rows": n,
                "n_shards": sum(len(m.parts) for m in manifests if m) if finished else n_shards,
                "read_bytes": int(read),
                "written_bytes": int(written),
                "object_store_bytes": RECORD_BYTES * n_shards,
                "work_s": round(left * work_s, 1),
                "time_s": round(left * wall_s, 1),
                "memory_bytes": int(memory),
            }
        )

    def add_per_row(
        stage: str,
        what: str,
        dataset: Dataset,
        n: int,
        n_shards: int,
        s_per_row: float,
        *,
        read: float,
        written: float,
        memory: float,
    ) -> None:
        turns = int(np.ceil(n_shards / n_workers)) / max(n_shards, 1)
        wait = (read + written) * n * turns / bandwidth if bandwidth else 0.0
        add(
            stage,
            what,
            [dataset],
            n,
            n_shards,
            work_s=n * s_per_row,
            wall_s=n * s_per_row * turns + wait,
            memory=memory + PROCESS_BYTES,
            read=read * n,
            written=written * n,
        )

    face, face_memory = 25_000.0, part_rows * 30_000.0
    for face_set, n in n_images.items():
        parts = int(np.ceil(n / settings.compute.rows_per_part))
        embedding = rates["embed"]
        faces, embeddings = job.faces(face_set), job.embeddings(face_set)
        add_per_row("pack", face_set, faces, n, parts, 1.2e-3, read=face, written=face, memory=face_memory)
        add_per_row("embed", face_set, embeddings, n, parts, embedding, read=face, written=4 * dim, memory=face_memory)
        for m in settings.methods:
            if job.has_scores(face_set, m):
                what, cost = f"{m.label}, {face_set}", rates.get(m.label, 1e-6)
                n_parts = 1 if job.scores_file(face_set, m) else parts
                scores = job.prior_scores(face_set, m)
                if m.fuse is not None:
                    read = 16.0 * len(m.fuse.of)
                    add_per_row("fuse", what, scores, n, 1, 1e-6, read=read, written=12, memory=40.0 * n)
                    continue
                add_per_row("score", what, scores, n, n_parts, cost, read=face, written=12, memory=face_memory)
    scale = Scale(
        n_train,
        n_identities,
        dim=dim,
        n_clusters=settings.pair.n_clusters,
        n_repeats=settings.pair.n_repeats,
        n_methods=len(settings.methods),
        n_thetas=len(settings.optimize.theta),
        engine=settings.rank.engine,
        n_ranges=settings.rank.n_ranges,
        keep=settings.pair.keep,
        rows_per_part=settings.compute.rows_per_part,
    )
    thetas = settings.optimize.theta
    made = {
        "pair": [job.pairs()],
        "rank": [job.similarity_ranks()],
        "places of prior scores": [job.quality_index(m) for m in settings.methods],
        "optimized indices": [job.optimized_index()],
        "labels": [job.optimized_labels(m, t) for m in settings.methods for t in thetas],
    }
    for step in label_costs(scale, measure_units(scale), n_workers, bandwidth):
        add(
            step.stage,
            step.what,
            made.get(step.what) or made[step.stage],
            n_train if step.stage != "rank" or step.what in made else int(scale.n_pairs * scale.n_repeats),
            step.n_shards,
            work_s=step.work_s,
            wall_s=step.wall_s,
            memory=step.memory_bytes,
            read=step.read_bytes,
            written=step.written_bytes,
        )
    epochs = settings.train.n_epochs or (20 if settings.train.mode == "head" else 1)
    head = settings.train.mode == "head"
    cost = 2e-6 * epochs if head else 4 * rates["embed"] * epochs
    read = 4.0 * dim if head else face * epochs
    for label_set in job.label_sets():
        name, regressor = job.scorer_name(label_set), job.regressor(label_set)
        add_per_row("train", name, regressor, n_train, 1, cost, read=read, written=0, memory=8 * part_rows * 30_000.0)
    for b in settings.benchmarks:
        n = n_images[b.name]
        cost = rates["embed"] * len(job.label_sets())
        add_per_row("evaluate", b.name, job.evaluation(b), n, 1, cost, read=face, written=100, memory=3e8)
    return rows


def _count_faces(job: Job, face_set: str) -> tuple[int, int]:
    """Return the number of images and of identities of a face set, and print its account."""
    from fiqa_ray.sources.account import Account
    from fiqa_ray.stages.pack import check_account, list_faces

    plan = job.faces(face_set).plan()
    if plan is not None:
        check_account(face_set, job.face_sets[face_set], Account.from_json(plan["account"]))
        return int(plan["n_rows"]), int(plan["n_identities"])
    faces, account = list_faces(face_set, job.face_sets[face_set])
    return len(faces), account.n_people


def _measured_rates(job: Job) -> dict[str, Any]:
    """Seconds per image of the recogniser and of each method, from one small batch each on one thread."""
    import torch

    from fiqa_ray.core.kernels.threads import one_thread
    from fiqa_ray.stages.infer import ModelCall, method_call

    s = job.settings
    faces = torch.randint(0, 256, (4, 3, 112, 112), dtype=torch.uint8)
    found: dict[str, Any] = {}

    def time_of(name: str, call: ModelCall) -> tuple[float, Any]:
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
        found["embed"], output = time_of(s.recognizer.name, ModelCall(s.recognizer, None, None, {}, s.seed, "cpu"))
        found["dim"] = output.shape[1]
        for m in s.methods:
            if m.scores is None and m.fuse is None:
                found[m.label], _ = time_of(m.name, replace(method_call(job, m), device="cpu"))
    return found
