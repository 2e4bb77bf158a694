"""train: the regressor H on M, with L1 on labels scaled to [0, 1] (paper III-D; Ray Train).

``head``: M stays as it is; linear heads for all label sets are fitted together on the stored embeddings, one pass over them
per epoch. ``finetune``: the released recipe (LSIbabnikz/Optimization-Based-Improvement-of-FIQA-Techniques
src/transfer_learning): H and the last layers of M, one network per label set. Validation images are every 20th of the
images sorted by label, starting with the worst; the weights with the lowest validation loss are kept.

The state is written to the run's storage at validations; a trainer that is started again continues from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fiqa_ray._version import __version__
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.datasets.dataset import Part
from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.engine.ray_train import fit_with_ray
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import PRIOR, Job
from fiqa_ray.storage import fingerprint, join, read_json, storage_quiet
from fiqa_ray.training.finetune import _FinetuneTraining
from fiqa_ray.training.head import _HeadTraining
from fiqa_ray.training.loop import RECIPES, Plan, Recipe, Task, _Run


def train_steps(job: Job) -> Iterator[list[Step]]:
    """One step per regressor; the first that is missing trains all that are."""
    settings = job.settings.train
    default = RECIPES[settings.mode]
    recipe = Recipe(
        settings.n_epochs or default.n_epochs,
        settings.batch_size or default.batch_size,
        settings.learning_rate or default.learning_rate,
    )
    tasks = [_task(job, *which) for which in job.label_sets()]
    mark = fingerprint([t.regressor.fingerprint for t in tasks])
    plan = Plan(
        tasks=tasks,
        settings=settings,
        recipe=recipe,
        seed=job.settings.seed,
        recognizer=job.settings.recognizer,
        faces=job.faces("train"),
        embeddings=job.embeddings("train"),
        device=job.settings.compute.device,
        state_uri=join(job.settings.run_uri, "_training", f"v={mark}"),
    )
    n_rows = plan.embeddings.require().n_rows
    n_workers = job.settings.compute.train_workers if job.settings.compute.engine == "ray" else 0
    for i, task in enumerate(tasks):
        task.labels.require()
        worker = stateless_worker(run_task, plan, n_workers)
        yield [Step("train", task.regressor, [i], worker, n_rows, engine="driver", unit="images")]


def _task(job: Job, method: Any, theta: float | str) -> Task:
    s = job.settings
    card = {
        "scorer": job.scorer_name(method, theta),
        "fiqa_method": method.label,
        "labels": PRIOR if isinstance(theta, str) else "optimized",
        "theta": None if isinstance(theta, str) else theta,
        "index_scale": s.optimize.index_scale,
        "n_clusters": s.pair.n_clusters,
        "n_repeats": s.pair.n_repeats,
        "seed": s.seed,
        "dataset": s.source.uri,
        "job": s.name,
        "training": s.train.model_dump(mode="json"),
        "code_version": __version__,
    }
    column = "prior_score" if isinstance(theta, str) else "optimized_score"
    return Task(job.regressor(method, theta), job.labels(method, theta), column, card)


def run_task(plan: Plan, n_workers: int, i: int) -> Part:
    """Trains all regressors that are still missing and returns the record of regressor ``i``."""
    pending = Plan(**{**plan.__dict__, "tasks": [t for t in plan.tasks if not t.regressor.finished_parts(verify=True)]})
    n_workers = min(n_workers, len(plan.embeddings.require().parts))
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            if n_workers:
                fit_with_ray(train_loop, pending, n_workers, plan.device)
            else:
                train_loop(pending)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    _show_progress(plan, thread)
    if failures:
        raise failures[0]
    return plan.tasks[i].regressor.finished_parts()[0]


def _show_progress(plan: Plan, thread: threading.Thread) -> None:
    """A bar of training steps, read from the state that the workers leave in storage."""
    bar: StepProgress | None = None
    while thread.is_alive():
        thread.join(1.0)
        state = None
        with storage_quiet():
            state = read_json(join(plan.state_uri, "progress.json"))
        if state is None:
            continue
        if bar is None:
            bar = StepProgress(
                f"train: {plan.settings.mode} {plan.recognizer.name}", state["n_steps"], "steps", state["step"]
            )
            bar.__enter__()
        bar.advance(max(0, state["step"] - bar.done))
    if bar is not None:
        bar.__exit__(None, None, None)


def train_loop(
    plan: Plan, rank: int = 0, world: int = 1, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> None:
    """Trains the plan's tasks; rank 0 writes state and results."""
    device = plan.device if plan.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if plan.settings.mode == "head":
        with one_thread():  # products of a few rows: more threads only wait for one another
            _Run(plan, plan.tasks, _HeadTraining(plan, device, rank, world), rank, world, report, n_total=1).run(0)
    else:
        for i, task in enumerate(plan.tasks):
            if not task.regressor.finished_parts(verify=True):
                torch.manual_seed(plan.seed)  # every network starts from the same head, also after a restart
                training = _FinetuneTraining(plan, task, device, rank, world)
                _Run(plan, [task], training, rank, world, report, n_total=len(plan.tasks)).run(i)
