"""Runs a job: the ordered stages, one step at a time, with the in-process or the Ray mapper; continues what exists."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from fiqa_ray import __version__
from fiqa_ray.config import ComputeSettings, Settings
from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError, UsageError
from fiqa_ray.lineage import Job
from fiqa_ray.progress import StepProgress
from fiqa_ray.stages import Step, Worker
from fiqa_ray.storage import Manifest, Part, RunLock, fingerprint, join, put_if_absent, read_json, sizes_below

Outcome = Part | Exception
Item = tuple[Step, Any]
"""A shard and the step that it belongs to."""
Mapper = Callable[[Sequence[Item]], Iterator[tuple[Item | None, Outcome]]]
"""Runs shards: yields each with its part or the exception it raised, in any order (None: nobody knows which)."""

STEPS_OF = {  # stage -> where its steps are planned: (module of fiqa_ray.stages, function)
    "pack": [("pack", "pack_steps")],
    "embed": [("infer", "embed_steps")],
    "score": [("infer", "score_steps")],
    "pair": [("pair", "pair_steps")],
    "fuse": [("fuse", "fuse_steps")],
    "rank": [("rank", "rank_steps")],
    "optimize": [("optimize", "optimize_steps")],
    "train": [("train", "train_steps")],
    "evaluate": [("infer", "regressor_score_steps"), ("evaluate", "evaluate_steps")],
    "report": [("report", "report_steps")],
}
STAGES = tuple(STEPS_OF)
MAX_FAILED_SHARDS = 3
"""A step gives up after so many failed shards; what the others made stays."""
LARGE_BYTES = 1 << 30
"""A process gives back the memory of shards that take more; smaller ones leave theirs to the next shard."""


def run_job(settings: Settings, stages: Iterable[str] = STAGES, *, new_settings: bool = False) -> Job:
    """Runs the stages of a job in order; finished parts are kept. Raises `FiqaRayError` with what went wrong."""
    wanted = [s for s in STAGES if s in set(_known(stages))]
    job = Job(settings)
    if settings.compute.engine == "ray" and settings.run_uri.startswith("memory://"):
        raise UsageError(
            f"run_uri={settings.run_uri}: memory:// lives in one process, Ray has many; use compute.engine=local"
        )
    with RunLock(settings.run_uri), ray_session(settings.compute):
        _record_settings(settings, new_settings)
        if "score" in wanted:
            _require_method_files(job)
        mapper = ray_mapper(settings.compute) if settings.compute.engine == "ray" else local_map
        for stage in wanted:
            for steps in stage_steps(stage, job):
                run_steps(steps, mapper, settings.max_bad_fraction)
    return job


def _require_method_files(job: Job) -> None:
    """Raises before the first stage what a missing checkpoint or score file would raise hours later."""
    for method in job.settings.methods:
        try:
            job.prior_scores("train", method)
        except FiqaRayError as exc:
            raise type(exc)(f"methods: {method.label}: {exc}") from exc


def stage_steps(stage: str, job: Job) -> Iterator[list[Step]]:
    """The steps of a stage in groups that run side by side, each group planned when the one before it has finished."""
    # stages import torch and more; a job pays only for those it runs
    from importlib import import_module

    for module, function in STEPS_OF[stage]:
        yield from getattr(import_module(f"fiqa_ray.stages.{module}"), function)(job)


def run_steps(steps: Sequence[Step], mapper: Mapper, max_bad_fraction: float = 1.0) -> list[Manifest]:
    """Makes the steps' datasets, or what is missing of them, commits them and reconciles their counts with their input's.

    The missing shards of all steps go through the mapper together.
    """
    manifests = [[dataset.manifest() for dataset in step.datasets] for step in steps]
    items: list[Item] = []
    done: list[tuple[Step, int]] = []
    unfinished = []
    for step, stored in zip(steps, manifests, strict=True):
        finished = step.finished_parts()
        missing = [s for i, s in enumerate(step.shards) if i not in finished]
        if missing or None in stored:
            plan = {"stage": step.stage, "n_parts": len(step.shards), "n_rows": step.n_rows, "unit": step.unit}
            for dataset in step.datasets:
                dataset.write_plan({**plan, "created_s": time.time(), **step.plan})
            items += [(step, s) for s in missing]
            done += [(step, p.n_rows) for p in finished.values()]
            unfinished.append(step)
    if items:
        if steps[0].engine == "driver":  # shows its own progress
            _map(items, mapper, lambda *_: None)
        else:
            unit = _main(unfinished).unit  # what counts in other units is small beside it
            total = sum(s.n_rows for s in unfinished if s.unit == unit)
            n_done = sum(n for s, n in done if s.unit == unit)
            with StepProgress(group_name(unfinished), total, unit, n_done) as progress:
                _map(items, mapper, lambda step, n: progress.advance(n if step.unit == unit else 0))
    committed = []
    for step, stored in zip(steps, manifests, strict=True):
        for dataset, manifest in zip(step.datasets, stored, strict=True):
            whole = manifest if manifest and step not in unfinished else dataset.commit(len(step.shards))
            _reconcile(step, whole, max_bad_fraction)
            committed.append(whole)
    return committed


def _map(items: list[Item], mapper: Mapper, advance: Callable[[Step, int], None]) -> None:
    failures: list[tuple[Item | None, Exception]] = []
    for item, outcome in mapper(items):
        if isinstance(outcome, Exception):
            failures.append((item, outcome))
            hopeless = isinstance(outcome, FiqaRayError) and not isinstance(outcome, StorageError)
            if hopeless or len(failures) >= MAX_FAILED_SHARDS:
                break
        else:
            advance((item or items[0])[0], outcome.n_rows)
    if not failures:
        return
    item, first = failures[0]
    if isinstance(first, FiqaRayError):
        raise first
    place = (item or items[0])[0]
    line = "".join(f" ({note})" for note in getattr(first, "__notes__", []))
    raise IncompleteError(
        f"{place.stage}: {len(failures)} shard(s) of {place.dataset.uri} failed, the first with "
        f"{type(first).__name__}: {first}{line}; mend the cause if it is in your model or data, and run the same "
        "command again to continue"
    ) from first


def group_name(steps: Sequence[Step]) -> str:
    """What a group of steps is doing, in a few words."""
    more = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
    main = _main(steps)
    return f"{main.stage}: {short_name(main)}{more}"


def _main(steps: Sequence[Step]) -> Step:
    """The step of a group with the most to do."""
    return max(steps, key=lambda step: step.n_rows)


def short_name(step: Step) -> str:
    """A dataset's name and keys, without root and fingerprint."""
    uri = step.dataset.uri.rsplit("/v=", 1)[0]
    keys = [p.split("=", 1)[1] for p in uri.split("/") if "=" in p]
    return " ".join([step.dataset.name.replace("_", " "), *keys])


def _reconcile(step: Step, manifest: Manifest, max_bad_fraction: float) -> None:
    if manifest.n_rows != step.n_rows:
        raise FiqaRayError(
            f"{step.stage}: {manifest.n_rows} rows in {manifest.uri} where its input has {step.n_rows}; "
            "the input changed under the run: choose another run_uri"
        )
    reasons = {k: v for k, v in manifest.stats.get("status", {}).items() if k != "ok"}
    n_bad = sum(reasons.values())
    if manifest.n_rows and n_bad / manifest.n_rows > max_bad_fraction:
        counts = ", ".join(f"{k} {v}" for k, v in reasons.items())
        raise FiqaRayError(
            f"{step.stage}: {n_bad} of {manifest.n_rows} images are bad ({counts}), more than "
            f"max_bad_fraction={max_bad_fraction:g}; their rows with status and error are in {manifest.uri} "
            "(`fiqa-ray rejects` lists those of pack): mend the source or the model and choose another run_uri, or raise "
            "max_bad_fraction and run again"
        )
    step.check(manifest)


def _known(stages: Iterable[str]) -> list[str]:
    chosen = list(stages)
    unknown = [s for s in chosen if s not in STAGES]
    if unknown:
        raise UsageError(f"unknown stage(s) {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    return chosen


# --- the run's own record ---


def _record_settings(settings: Settings, new_settings: bool) -> None:
    identity = settings.identity()
    mark = fingerprint(identity)
    folder = join(settings.run_uri, "_settings")
    known = [n for n in sizes_below(folder) if n.endswith(".json")]
    if known and f"{mark}.json" not in known and not new_settings:
        before = max((read_json(join(folder, n)) or {} for n in known), key=lambda r: r.get("created_s", 0.0))
        changes = "; ".join(_differences(before.get("settings", {}), identity))
        raise UsageError(
            f"{settings.run_uri} was made with other settings ({changes}); choose another run_uri, or add "
            "--new-settings: what the change leaves valid is used again, the rest is made anew beside it"
        )
    record = {
        "settings": identity,
        "created_s": time.time(),
        "code_version": __version__,
        "python": platform.python_version(),
    }
    put_if_absent(join(folder, f"{mark}.json"), (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def _differences(before: Any, now: Any, place: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{place}.{k}" if place else k)]
    return [] if before == now else [f"{place}: {json.dumps(before)} there, {json.dumps(now)} here"]


# --- mappers ---


def local_map(items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
    """Runs shards one by one in this process."""
    from fiqa_ray.core.threads import one_thread

    workers = WorkerSlot()
    for step, shard in items:
        with one_thread() if step.engine != "driver" else nullcontext():
            yield (step, shard), _outcome(lambda step=step, shard=shard: workers.get(step.make_worker)(shard))  # type: ignore[misc]


def _outcome(call: Callable[[], Part]) -> Outcome:
    try:
        return call()
    except Exception as exc:
        # the traceback does not survive the way back from a worker: the line nearest to the fault does, as a note
        frames = traceback.extract_tb(exc.__traceback__)
        own = [f for f in frames if "site-packages" not in f.filename] or frames
        if type(exc).__module__ not in ("builtins", "fiqa_ray.errors"):  # others may not survive pickling
            exc = RuntimeError(f"{type(exc).__name__}: {exc}")
        exc.add_note(f"at {own[-1].filename}:{own[-1].lineno}")
        return exc


class WorkerSlot:
    """Holds the last worker made: steps follow one another, and two models need not share the memory."""

    def __init__(self) -> None:
        self._made_by: Any = None
        self._worker: Worker | None = None

    def get(self, make_worker: Callable[[], Worker]) -> Worker:
        """The worker of this maker, made if another's was held."""
        if self._worker is None or self._made_by is not make_worker:
            self._worker, self._made_by = None, None
            self._worker, self._made_by = make_worker(), make_worker
        return self._worker


def ray_mapper(compute: ComputeSettings) -> Mapper:
    """The mapper of a Ray cluster: actor pools of Ray Data for models and decoding, plain tasks for numerics."""

    def run(items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        engine = items[0][0].engine
        if engine == "driver":
            return local_map(items)
        return _ray_data(items, compute) if engine == "data" else _ray_tasks(items, compute)

    return run


def _ray_tasks(items: Sequence[Item], compute: ComputeSettings) -> Iterator[tuple[Item | None, Outcome]]:
    import ray

    def run_shard(make_worker: Any, shard: Any, is_large: bool) -> Outcome:
        from fiqa_ray.core.threads import one_thread
        from fiqa_ray.memory import give_back_memory, reuse_memory

        reuse_memory()
        with one_thread():
            outcome = _outcome(lambda: make_worker()(shard))
        if is_large:  # another process may get the next one
            give_back_memory()
        return outcome

    # a lost machine is Ray's to retry; what the code raises comes back as a result
    task = ray.remote(num_cpus=1, max_retries=5)(run_shard)
    width = compute.n_workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(items)
    running: dict[Any, Item] = {}
    while True:
        while len(running) < width and (item := next(waiting, None)) is not None:
            step, shard = item
            memory = _grantable(step.memory_bytes) if step.memory_bytes else 0
            sent = task.options(memory=memory or None).remote(step.make_worker, shard, step.memory_bytes > LARGE_BYTES)
            running[sent] = item
        if not running:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        item = running.pop(ready)
        try:
            outcome: Outcome = ray.get(ready)
        except ray.exceptions.RayError as exc:
            outcome = exc
        yield item, outcome


def _grantable(memory_bytes: int) -> int:
    """Memory to ask Ray for: what no machine with processors has, Ray would wait for without end."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((r.get("memory", 0) for r in nodes if r.get("CPU", 0) >= 1), default=0)
    return int(min(memory_bytes, most))  # 0 before the first machine is there: it then asks for a processor alone


class _ShardActor:
    """One worker of a Ray Data actor pool; loads a model when the first of its shards comes."""

    def __init__(self, makers: list[Callable[[], Worker]], items: list[tuple[int, Any]]) -> None:
        import torch

        torch.set_num_threads(1)
        self._makers, self._items, self._workers = makers, items, WorkerSlot()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        import ray
        from ray import cloudpickle

        outcomes = []
        for i in batch["item"]:
            maker, shard = self._items[int(i)]
            outcomes.append(_outcome(lambda m=maker, s=shard: self._workers.get(self._makers[m])(ray.get(s))))  # type: ignore[misc]
        return {"item": list(batch["item"]), "outcome": [cloudpickle.dumps(o) for o in outcomes]}


def _ray_data(items: Sequence[Item], compute: ComputeSettings) -> Iterator[tuple[Item | None, Outcome]]:
    import warnings

    import ray
    from ray import cloudpickle

    resources = ray.cluster_resources()
    n_gpus = int(resources.get("GPU", 0))
    # "cuda" is a demand, which makes an autoscaled cluster start its GPU machines; "auto" takes what is there
    on_gpu = items[0][0].uses_model and (compute.device == "cuda" or (compute.device == "auto" and n_gpus > 0))
    n_present = n_gpus if on_gpu else int(resources.get("CPU", 1))
    size = min(compute.n_workers or max(1, n_present), len(items))
    steps = list({id(step): step for step, _ in items}.values())
    number = {id(step): i for i, step in enumerate(steps)}
    shards = [(number[id(step)], ray.put(shard)) for step, shard in items]
    data: ray.data.Dataset = ray.data.from_items(
        [{"item": i} for i in range(len(items))], override_num_blocks=len(items)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_restarts has no named parameter yet
        data = data.map_batches(
            _ShardActor,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=size),
            fn_constructor_args=([s.make_worker for s in steps], shards),
            num_gpus=1 if on_gpu else 0,
            num_cpus=1,
            # a worker that dies for good must end the step: Ray Data's own default is to try for ever
            max_restarts=3,
            max_task_retries=3,
        )
    try:
        for row in data.iter_rows():
            yield items[int(row["item"])], cloudpickle.loads(row["outcome"])
    except ray.exceptions.RayError as exc:
        yield None, exc


def _check_address(address: str) -> None:
    """Raises where nothing listens at host:port: Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as exc:
            raise FiqaRayError(
                f"no Ray cluster answers at address {address!r} ({exc}); correct compute.address or RAY_ADDRESS, or leave "
                "both out for a Ray on this machine"
            ) from exc


@contextmanager
def ray_session(compute: ComputeSettings) -> Iterator[None]:
    """Joins or starts Ray for the time of a run; nothing where the engine is local or Ray is up already."""
    if compute.engine != "ray":
        yield
        return
    address = compute.address or os.environ.get("RAY_ADDRESS", "local")
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "2000")  # ms that Arrow keeps freed memory: see fiqa_ray.memory
    import logging
    import warnings

    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    import ray

    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {}
    if address == "local":
        options = {"include_dashboard": False}
        # workers find the user's module:function where this process does; on a cluster the job's working_dir does it
        paths = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
        if compute.object_store_bytes:
            options["object_store_memory"] = compute.object_store_bytes
        if compute.n_workers:
            options["num_cpus"] = max(compute.n_workers, 2)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, OSError, ValueError, RuntimeError) as exc:
        raise FiqaRayError(f"cannot start or join Ray at address {address!r}: {exc}") from exc
    try:
        yield
    finally:
        ray.shutdown()
