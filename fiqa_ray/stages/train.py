"""train: the regressor H on M, with an L1 loss on labels scaled to [0, 1] (paper, section III-D; Ray Train).

`head`: M is left unchanged; heads for all label sets and training seeds are fitted side by side on the stored embeddings,
with one pass over them per epoch. No head's bits depend on the others, so a lost one is made again alone. `finetune`: the
released recipe (LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques, src/transfer_learning): H and the last layers
of M, one network per label set. An interrupted training continues from its last validation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import torch

from fiqa_ray._version import __version__
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.datasets.dataset import Part
from fiqa_ray.documents import read_document
from fiqa_ray.engine.cost import FACE_BYTES, FACE_MEMORY, Cost, Workload
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.ray_train import ALONE, TrainHost, fit_with_ray
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.models.devices import resolve_device
from fiqa_ray.storage import fingerprint, join, public_uri, storage_quiet
from fiqa_ray.training.finetune import FinetuneTraining
from fiqa_ray.training.head import CACHE_BYTES, HeadTraining
from fiqa_ray.training.loop import PARTS_AT_ONCE, RECIPES, Plan, Recipe, Task, TrainingLoop


def train_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step with one shard, which trains all regressors; none where a job has no images."""
    if not job.label_sets():
        return
    plan = training_plan(job)
    n_rows = plan.embeddings.require().n_rows
    for task in plan.tasks:
        task.labels.require()
    first, *others = (task.regressor for task in plan.tasks)
    n_workers = job.settings.compute.train_workers if job.settings.compute.engine == "ray" else 0
    worker = stateless_worker(train_regressors, n_workers)
    yield [Step("train", first, [plan], worker, n_rows, runs_in="driver", unit="images", extra_datasets=tuple(others))]


FINETUNE_PASSES = 4
"""A training step of the released recipe takes as long as so many forward passes: one forward, two backward, the rest."""


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of each regressor; heads are trained together, so each takes its share of a pass."""
    recipe, label_sets = training_recipe(job), job.label_sets()
    n, n_epochs = workload.n_images["train"], recipe.n_epochs
    for label_set in label_sets:
        if job.settings.train.mode == "head":
            work_s = n * n_epochs * workload.units.head_image / len(label_sets)
            memory, read = min(workload.scale.embedding_bytes, CACHE_BYTES), workload.scale.embedding_bytes
        else:
            work_s = FINETUNE_PASSES * n * n_epochs * workload.embed_s[job.fr]
            memory, read = PARTS_AT_ONCE * workload.part_rows * FACE_MEMORY, float(n * n_epochs * FACE_BYTES)
        yield Cost(
            "train",
            job.scorer_name(label_set),
            n,
            1,
            work_s=work_s,
            memory_bytes=memory,
            read_bytes=read,
            written_bytes=0.0,
            datasets=(job.regressor(label_set),),
        )


def training_recipe(job: Job) -> Recipe:
    """Return the recipe of the job's mode with the job's changes."""
    settings = job.settings.train
    default = RECIPES[settings.mode]
    return Recipe(
        head=settings.head or default.head,
        n_seeds=settings.seeds or default.n_seeds,
        n_epochs=settings.n_epochs or default.n_epochs,
        batch_size=settings.batch_size or default.batch_size,
        learning_rate=settings.learning_rate or default.learning_rate,
        validations_per_epoch=settings.validations_per_epoch or default.validations_per_epoch,
    )


def training_plan(job: Job) -> Plan:
    """Return what the workers need to train the job's regressors."""
    tasks = [training_task(job, label_set) for label_set in job.label_sets()]
    version = fingerprint([t.regressor.fingerprint for t in tasks])
    return Plan(
        tasks=tasks,
        settings=job.settings.train,
        recipe=training_recipe(job),
        seed=job.settings.seed,
        recognizer=job.settings.recognizer,
        faces=job.faces("train"),
        embeddings=job.embeddings("train"),
        device=job.settings.compute.device,
        state_uri=join(job.settings.run_uri, "_training", f"v={version}"),
    )


def training_task(job: Job, label_set: LabelSet) -> Task:
    """Return the task that trains a regressor on one label set."""
    s = job.settings
    card = {
        "scorer": job.scorer_name(label_set),
        "fiqa_method": label_set.method.label,
        "labels": label_set.kind,
        "theta": job.theta_of(label_set) if label_set.kind == "optimized" else None,
        "is_theta_chosen": label_set.theta == HELDOUT,
        "index_scale": s.optimize.index_scale,
        "n_clusters": s.pair.n_clusters,
        "n_repeats": s.pair.n_repeats,
        "seed": s.seed,
        "dataset": public_uri(s.train_source.uri),
        "job": s.name,
        "training": s.train.model_dump(mode="json"),
        "code_version": __version__,
    }
    return Task(job.regressor(label_set), job.labels(label_set), label_set, card)


def train_regressors(n_workers: int, plan: Plan) -> Part:
    """Train the plan's regressors that are missing and return the record of the first regressor.

    Args:
        n_workers: workers of Ray Train; 0 trains in this process.
        plan: what to train.
    """
    missing = replace(plan, tasks=[t for t in plan.tasks if not t.regressor.finished_parts(verify=True)])
    n_workers = min(n_workers, len(plan.embeddings.require().parts))
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            if n_workers:
                fit_with_ray(train_loop, missing, n_workers, plan.device)
            else:
                train_loop(missing)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=fit, daemon=True)  # training may block, and the bar must move
    thread.start()
    _show_progress(plan, thread)
    if failures:
        raise failures[0]
    return plan.tasks[0].regressor.finished_parts()[0]


def _show_progress(plan: Plan, thread: threading.Thread) -> None:
    """Show a bar of training steps until the thread ends."""
    progress = _next_progress(plan, thread)
    if progress is None:
        return
    name = f"train: {plan.settings.mode} {plan.recognizer.label}"
    with StepProgress(name, progress["n_steps"], "steps", progress["step"], is_run=True) as bar:
        while progress is not None:
            bar.advance(max(0, progress["step"] - bar.done))
            progress = _next_progress(plan, thread)


def _next_progress(plan: Plan, thread: threading.Thread) -> dict[str, int] | None:
    """Return the progress that the workers left in storage, read each second; None when the thread has ended."""
    while thread.is_alive():
        thread.join(1.0)
        progress: dict[str, int] | None = None
        with storage_quiet():
            progress = read_document(plan.progress_uri, "remove this file; it only moves the progress bar")
        if progress is not None:
            return progress
    return None


def train_loop(plan: Plan, rank: int = 0, world: int = 1, host: TrainHost = ALONE) -> None:
    """Train the plan's tasks in one of `world` workers; rank 0 writes state and results."""
    device = resolve_device(plan.device)
    if plan.settings.mode == "head":
        with one_thread():  # products of a few rows: more threads only wait for each other
            TrainingLoop(plan, HeadTraining(plan, device, rank, world), rank, world, host).run()
        return
    for i, task in enumerate(plan.tasks):
        if not task.regressor.finished_parts(verify=True):
            torch.manual_seed(plan.seed)  # every network starts from the same head, also after a restart
            training = FinetuneTraining(plan, task, device, rank, world)
            TrainingLoop(plan, training, rank, world, host).run(i, len(plan.tasks))
