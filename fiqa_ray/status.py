"""What a run has done so far, from storage alone, and what a job would do."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.lineage import Job
from fiqa_ray.run import STAGES
from fiqa_ray.storage import Dataset, add_stats, join, sizes_below


def run_status(run_uri: str) -> list[dict[str, Any]]:
    """One record per dataset of a run, in the order of the stages: parts and rows done, failures, bytes, seconds.

    Reads one listing and the parts' records; works from any machine, while the run is under way.
    """
    sizes = sizes_below(run_uri)
    folders = [n.removesuffix("/_plan.json") for n in sizes if n.endswith("/_plan.json")]
    if not folders:
        raise FiqaRayError(f"{run_uri} holds no run; give the run_uri of a job that was started")
    records = []
    for folder in folders:
        dataset = Dataset(join(run_uri, folder), folder.split("/")[0])
        plan = dataset.plan() or {}
        parts = list(dataset.finished_parts().values())
        stats = add_stats([p.stats for p in parts])
        failed = {k: v for k, v in stats.get("status", {}).items() if k != "ok"}
        records.append(
            {
                "stage": plan.get("stage", ""),
                "dataset": folder,
                "n_parts_done": len(parts),
                "n_parts": plan.get("n_parts", 0),
                "n_rows_done": sum(p.n_rows for p in parts),
                "n_rows": plan.get("n_rows", 0),
                "unit": plan.get("unit", "rows"),
                "failed": failed,
                "n_bytes": sum(f["n_bytes"] for p in parts for f in p.files.values()),
                "work_s": round(sum(p.duration_s for p in parts), 2),
                "finished": f"{folder}/_manifest.json" in sizes,
                "started_s": plan.get("created_s", 0.0),
            }
        )
    order = {name: i for i, name in enumerate(STAGES)}
    return sorted(records, key=lambda r: (order.get(r["stage"], 99), r["started_s"]))


def run_is_held(run_uri: str) -> bool:
    """Whether some process says that it is at work on the run (its lock is not released)."""
    names = [n for n in sizes_below(join(run_uri, "_lock")) if n[:6].isdigit()]
    newest = max((n[:6] for n in names), default=None)
    return newest is not None and f"{newest}.released" not in names


def plan_job(job: Job, measure: bool = True) -> list[dict[str, Any]]:
    """What a run of the job would do: per step its state, shards and rows, with estimated bytes, seconds and memory.

    Lists the source unless the faces are packed. Seconds come from running each model once on this machine's CPU
    (``measure``) and from unit costs of the numerics; they hold for one worker and fall with their number.
    """
    settings = job.settings
    n_images = {s: _count_images(job, s) for s in job.face_sets}
    rates = _measured_rates(job) if measure else {}
    dim = rates.get("dim", 512)
    n_train = n_images["train"]
    n_pairs = n_train * (settings.pair.n_clusters - 1) * settings.pair.n_repeats
    part_rows = min(settings.compute.rows_per_part, max(n_images.values()))
    train_parts = int(np.ceil(n_train / settings.compute.rows_per_part))
    rows = []

    def add(
        stage: str,
        what: str,
        dataset: Dataset,
        n: int,
        bytes_per_row: float,
        s_per_row: float,
        memory: float,
        n_shards: int = train_parts,
    ) -> None:
        manifest = dataset.manifest()
        done = n if manifest else sum(p.n_rows for p in dataset.finished_parts().values())
        left = 0.0 if manifest else max(0.0, 1 - done / max(n, 1))
        rows.append(
            {
                "stage": stage,
                "what": what,
                "state": "finished" if manifest else "partly done" if done else "to do",
                "n_rows": n,
                "n_shards": len(manifest.parts) if manifest else n_shards,
                "n_bytes": int(n * bytes_per_row),
                "work_s": round(left * n * s_per_row, 1),
                "memory_bytes": int(memory),
            }
        )

    face_memory = part_rows * 30_000.0
    for face_set, n in n_images.items():
        parts = int(np.ceil(n / settings.compute.rows_per_part))
        add("pack", face_set, job.faces(face_set), n, 25_000, 1.2e-3, face_memory, parts)
        add("embed", face_set, job.embeddings(face_set), n, 4 * dim, rates.get("embed", 0.0), face_memory, parts)
        for m in settings.methods:
            if job.has_scores(face_set, m):
                what, cost = f"{m.label}, {face_set}", rates.get(m.label, 1e-6)
                n_parts = 1 if job.scores_uri(face_set, m) else parts
                add("score", what, job.prior_scores(face_set, m), n, 12, cost, face_memory, n_parts)
    share = n_pairs / max(n_train, 1)
    add("pair", "mated pairs", job.pairs(), n_train, 8 * share, 2e-7 * share + 5e-5, part_rows * (4 * dim + 60 * share))
    add("rank", settings.rank.engine, job.similarity_ranks(), n_pairs, 2, 1e-7, 400e6, settings.pair.n_repeats)
    n_label_sets = len(settings.methods) * len(settings.optimize.theta)
    add(
        "optimize", f"{n_label_sets} label set(s)", job.optimized_index(), n_train, 40 * n_label_sets, 2e-6 * share, 4e8
    )
    epochs = settings.train.n_epochs or (20 if settings.train.mode == "head" else 1)
    cost = 2e-6 * epochs if settings.train.mode == "head" else 4 * rates.get("embed", 0.0) * epochs
    for m, theta in job.label_sets():
        add("train", job.scorer_name(m, theta), job.regressor(m, theta), n_train, 0, cost, 8 * part_rows * 30_000.0, 1)
    for b in settings.benchmarks:
        n_scores = n_images[b.name] * len(job.label_sets())
        add(
            "evaluate",
            b.name,
            job.evaluation(b),
            n_images[b.name],
            100,
            rates.get("embed", 0.0) * n_scores / max(n_images[b.name], 1),
            3e8,
            1,
        )
    return rows


def _count_images(job: Job, face_set: str) -> int:
    manifest = job.faces(face_set).manifest()
    if manifest is not None:
        return manifest.n_rows
    plan = job.faces(face_set).plan()
    if plan is not None:
        return int(plan["n_rows"])
    from fiqa_ray.stages.pack import list_faces

    return len(list_faces(job.face_sets[face_set]))


def _measured_rates(job: Job) -> dict[str, Any]:
    """Seconds per image of the recogniser and of each method, from one small batch each on one thread."""
    import torch

    from fiqa_ray.core.threads import one_thread
    from fiqa_ray.stages.infer import ModelCall

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
            if m.scores is None:
                call = ModelCall(s.recognizer, m.name, m.weights, dict(m.options), s.seed, "cpu")
                found[m.label], _ = time_of(m.name, call)
    return found
