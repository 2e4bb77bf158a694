"""Runs the shards of a step on a Ray cluster, and joins or starts the cluster.

Steps that load a model or decode images run in actor pools (`actor_pool.py`), numerics in plain tasks.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import Any

from fiqa_ray.config import ComputeSettings
from fiqa_ray.engine.actor_pool import run_in_pools
from fiqa_ray.engine.board import Announcer, start_board
from fiqa_ray.engine.head_watch import HeadWatch, head_watch
from fiqa_ray.engine.interrupts import catch_sigterm
from fiqa_ray.engine.late_shards import LateShards
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.mapper import Item, Mapper, Outcome, call_and_catch
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.ray_workers import lost_process, machine_labels
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage.patience import set_patience

N_STARTS = 3
"""Times that a Ray of our own is started before the run gives up."""
ANNOUNCE_AFTER_S = 2.0
"""A task that runs longer is announced on the board; the messages of short ones would take time from the work."""
LARGE_BYTES = 1 << 27
"""A process returns the memory of larger shards to the system; that of smaller ones serves its next shard."""


class RayMapper:
    """Runs shards on a Ray cluster: in actor pools of Ray Data for models and decoding, in plain tasks for numerics."""

    def __init__(self, compute: ComputeSettings) -> None:
        self.compute = compute
        self._groups = itertools.count()

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        """Run shards, and name those that are late."""
        place = items[0][0].runs_in
        if place == "driver":
            yield from local_map(items)
            return
        run = run_in_pools if place == "pool" else _ray_tasks
        announce = Announcer(self.board, next(self._groups))
        with LateShards(items, announce, self.compute.late_after_s, lambda: self.waits_for(items)) as watch:
            for number, outcome in run(items, self.compute, announce):
                if number is not None:
                    watch.finish(number, outcome)
                yield None if number is None else items[number], outcome

    @cached_property
    def board(self) -> Any:
        """The board on which workers write which shards they run, as a Ray actor; started at its first use."""
        return start_board()

    def waits_for(self, items: Sequence[Item]) -> str:
        """Return which resource the cluster lacks altogether, or an empty text."""
        import ray

        if not ray.is_initialized():
            return ""
        steps = {id(step): step for step, _ in items}.values()
        on_gpu = any(step.needs_gpu or (step.uses_model and self.compute.device == "cuda") for step in steps)
        present = ray.cluster_resources()
        lacking = [name for name in (["CPU", "GPU"] if on_gpu else ["CPU"]) if not present.get(name)]
        if not lacking:
            return ""
        return (
            f"the Ray cluster has no {' and no '.join(lacking)}, and {len(items)} parts wait; this is right if it starts "
            "machines on demand, else add one"
        )


def _ray_tasks(
    items: Sequence[Item], compute: ComputeSettings, announce: Announcer
) -> Iterator[tuple[int | None, Outcome]]:
    """Run shards as tasks; yield their numbers with what came of them."""
    import ray

    def run_shard(number: int, make_worker: Any, shard: Any, is_large: bool, patience_s: float) -> Outcome:
        from fiqa_ray.core.kernels.threads import one_thread
        from fiqa_ray.engine.memory import give_back_memory, reuse_memory

        set_patience(patience_s, has_answered=True)
        reuse_memory()
        with announce.after(announce_after_s, number), one_thread():
            outcome = call_and_catch(lambda: make_worker()(shard))
        if is_large:  # another process may get the next one
            give_back_memory()
        return outcome

    # a lost machine is Ray's to retry; what the code raises comes back as a result
    task = ray.remote(num_cpus=1, max_retries=5)(run_shard)
    announce_after_s = min(ANNOUNCE_AFTER_S, compute.late_after_s / 4)
    width = _tasks_at_once(compute.n_workers, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(enumerate(items))
    running: dict[Any, int] = {}
    while True:
        while len(running) < width and (item := next(waiting, None)) is not None:
            number, (step, shard) = item
            memory = _grantable(step.memory_bytes) if step.memory_bytes else 0
            options = task.options(
                memory=memory or None,
                num_gpus=1 if step.needs_gpu else None,
                label_selector=machine_labels(step, compute),
            )
            is_large = step.memory_bytes > LARGE_BYTES
            sent = options.remote(number, step.make_worker, shard, is_large, compute.storage_patience_s)
            running[sent] = number
        if not running:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(ready)
        try:
            outcome: Outcome = ray.get(ready)
        except ray.exceptions.RayError as exc:
            outcome = lost_process(exc)
        yield number, outcome


def _tasks_at_once(n_workers: int | None, n_cpus: int) -> int:
    """Return how many tasks Ray gets at a time: twice what the processors run, so that none waits for the driver.

    A run whose number of workers is not that of the processors gets one task per worker: it must leave the others free, or
    machines are still to come.
    """
    if n_workers and n_workers != n_cpus:
        return n_workers
    return 2 * max(1, n_cpus)


def _grantable(memory_bytes: int) -> int:
    """Cap a memory request at the largest CPU node's memory; Ray would queue a larger request forever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((r.get("memory", 0) for r in nodes if r.get("CPU", 0) >= 1), default=0)
    return int(min(memory_bytes, largest))  # 0 before the first machine is there: it then asks for a processor alone


def _check_address(address: str) -> None:
    """Raise `FiqaRayError` where nothing listens at host:port: Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as exc:
            raise FiqaRayError(
                f"no Ray cluster answers at address {address!r} ({exc}); correct compute.address or RAY_ADDRESS, or leave "
                "both out for a Ray on this machine"
            ) from exc


def _check_token(address: str) -> None:
    """Raise `FiqaRayError` where the cluster at host:port wants another token: Ray would try for 20 s and not say so."""
    if "://" in address or not address.rpartition(":")[2].isdecimal():
        return
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    refusal = getattr(ray.exceptions, "AuthenticationError", None)  # versions without tokens have none
    if refusal is None:
        return
    try:
        GcsClient(address=address).internal_kv_keys(b"", None, timeout=10)
    except refusal as exc:
        raise FiqaRayError(
            f"the Ray cluster at {address!r} wants a token, and this machine has none or another; set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, to those of the cluster's head, whose file is ~/.ray/auth_token "
            f"({str(exc).splitlines()[0].split('. ')[0]})"
        ) from exc
    except ray.exceptions.RayError:
        return  # another fault, of which `ray.init` tells more


_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Despite its name, Ray reads this on every system: 0 makes it listen on the loopback interface alone."""


@contextmanager
def _loopback() -> Iterator[None]:
    """Let a Ray that starts here listen on the loopback interface alone, unless the environment says otherwise."""
    from ray._private import ray_constants

    if _LOOPBACK in os.environ:
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOOPBACK], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:  # this process may join a cluster later
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[_LOOPBACK]


@contextmanager
def ray_when_needed(compute: ComputeSettings) -> Iterator[Mapper]:
    """Yield a mapper that joins or starts Ray when the first shard is to run; a run with nothing to do needs none."""
    with ExitStack() as stack:
        yield _LazyRay(compute, stack)


class _LazyRay:
    """Runs shards as `RayMapper` does, on a Ray that is there from the first of them on."""

    def __init__(self, compute: ComputeSettings, stack: ExitStack) -> None:
        self._mapper, self._stack, self._has_ray = RayMapper(compute), stack, False

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        """Run shards."""
        if not self._has_ray:
            self._stack.enter_context(ray_session(self._mapper.compute))
            self._has_ray = True
        return self._mapper(items)

    def waits_for(self, items: Sequence[Item]) -> str:
        """Return which resource the cluster lacks altogether, or an empty text."""
        return self._mapper.waits_for(items) if self._has_ray else ""


@contextmanager
def ray_session(compute: ComputeSettings) -> Iterator[None]:
    """Join or start Ray for the time of a run; where Ray is up already, only set its options."""
    if compute.engine != "ray":
        yield
        return
    address = compute.address or os.environ.get("RAY_ADDRESS", "local")
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault(
        "MIMALLOC_PURGE_DELAY", "2000"
    )  # ms that Arrow keeps freed memory: see fiqa_ray.engine.memory
    import warnings

    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    import ray

    logging.getLogger("ray.data._internal").setLevel(logging.ERROR)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # tracebacks of what is raised as well
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray Data ends a dataset after half an hour without output: one slow part, or spot machines that do not come
    context.execution_no_progress_timeout_s = -1
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
    else:
        _check_token(address)
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # workers of a submitted job are in its working_dir
            options = {"runtime_env": {"worker_process_setup_hook": _enter(os.getcwd())}}
    with _loopback() if address == "local" else nullcontext():
        _start({"address": address, "log_to_driver": False, "logging_level": logging.ERROR, **options})
        watch: HeadWatch | None = None
        try:
            with head_watch() as watch:
                yield
        finally:
            if watch is not None and watch.is_lost:  # nothing answers any more
                atexit.unregister(ray.shutdown)
            else:
                with _without_stderr():
                    ray.shutdown()


def _enter(folder: str) -> Callable[[], None]:
    """Return what a worker of a running cluster does first: it goes where the command runs, if its machine has that folder.

    Relative paths and the user's module:function then mean the same everywhere.
    """

    def enter() -> None:
        with suppress(OSError):
            os.chdir(folder)
            sys.path.insert(0, folder)

    return enter


def _start(options: dict[str, Any]) -> None:
    """Join or start Ray; a Ray of our own that does not come up is started again.

    Raises:
        FiqaRayError: one line on what failed and what to do.
    """
    import ray

    address = options["address"]
    for trial in range(N_STARTS if address == "local" else 1):
        if trial:
            note("Ray did not start; trying again")
        try:
            with _without_stderr():
                ray.init(**options)
            catch_sigterm()
            return
        except Exception as exc:  # Ray raises what it likes, a bare Exception where its processes come too late
            fault = exc
            with _without_stderr(), suppress(Exception):
                ray.shutdown()
    reason = next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
    if address != "local":
        raise FiqaRayError(f"cannot start or join Ray at address {address!r}: {reason}") from fault
    raise FiqaRayError(
        f"Ray did not start in {N_STARTS} trials ({reason[:200]}). Is the machine busy? Run the same command again, or work "
        "without Ray, in one process: compute.engine=local"
    ) from fault


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Send what Ray's C++ parts write to this process's stderr nowhere: they say how they set up their own logs."""
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        stderr_copy = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(nowhere)
