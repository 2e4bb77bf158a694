"""Runs the shards of a step on a Ray cluster, and joins or starts the cluster.

Steps that load a model or decode images run in an actor pool of Ray Data, of a fixed size; it replaces actors that die. Its
rows are the numbers of shards, one per block: a shard reads and writes its own part, so that a lost actor costs one part and
a resumed run repeats none. Numerics run as plain tasks.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from fiqa_ray.config import ComputeSettings
from fiqa_ray.engine.head_watch import head_watch
from fiqa_ray.engine.interrupts import catch_sigterm
from fiqa_ray.engine.local import Item, LostProcessError, Outcome, WorkerSlot, call_and_catch, local_map
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage.patience import set_patience

LARGE_BYTES = 1 << 30
"""A process returns the memory of larger shards to the system; that of smaller ones serves its next shard."""


@dataclass(frozen=True)
class RayMapper:
    """Runs shards on a Ray cluster: in actor pools of Ray Data for models and decoding, in plain tasks for numerics."""

    compute: ComputeSettings

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item | None, Outcome]]:
        """Run shards."""
        engine = items[0][0].engine
        if engine == "driver":
            return local_map(items)
        return _ray_data(items, self.compute) if engine == "data" else _ray_tasks(items, self.compute)

    def waits_for(self, items: Sequence[Item]) -> str:
        """Return which resource the cluster lacks altogether, or an empty text."""
        import ray

        if not ray.is_initialized():
            return ""
        step = items[0][0]
        on_gpu = step.needs_gpu or (step.uses_model and self.compute.device == "cuda")
        present = ray.cluster_resources()
        lacking = [name for name in (["CPU", "GPU"] if on_gpu else ["CPU"]) if not present.get(name)]
        if not lacking:
            return ""
        return (
            f"the Ray cluster has no {' and no '.join(lacking)}, and {len(items)} parts wait; this is right if it starts "
            "machines on demand, else add one"
        )


def _ray_tasks(items: Sequence[Item], compute: ComputeSettings) -> Iterator[tuple[Item | None, Outcome]]:
    import ray

    def run_shard(make_worker: Any, shard: Any, is_large: bool, patience_s: float) -> Outcome:
        from fiqa_ray.core.kernels.threads import one_thread
        from fiqa_ray.engine.memory import give_back_memory, reuse_memory

        set_patience(patience_s, has_answered=True)
        reuse_memory()
        with one_thread():
            outcome = call_and_catch(lambda: make_worker()(shard))
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
            options = task.options(memory=memory or None, num_gpus=1 if step.needs_gpu else None)
            is_large = step.memory_bytes > LARGE_BYTES
            sent = options.remote(step.make_worker, shard, is_large, compute.storage_patience_s)
            running[sent] = item
        if not running:
            return
        (ready,), _ = ray.wait(list(running), num_returns=1)
        item = running.pop(ready)
        try:
            outcome: Outcome = ray.get(ready)
        except ray.exceptions.RayError as exc:
            outcome = lost_process(exc)
        yield item, outcome


def lost_process(exc: Exception) -> Exception:
    """Return what Ray says of a lost worker as one sentence; other faults of Ray stay as they are."""
    import ray

    text = " ".join(str(exc).split())
    if isinstance(exc, ray.exceptions.OutOfMemoryError):
        cause = "its machine ran out of memory; run fewer workers (compute.n_workers) or smaller parts (rows_per_part)"
        return LostProcessError(cause)
    is_node = isinstance(exc, ray.exceptions.NodeDiedError) or re.search(
        r"node .{0,80}(died|dead|terminated|failed)", text
    )
    if is_node:
        return LostProcessError("its machine was lost time after time", is_machine=True)
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError)
    if not isinstance(exc, (*lost, ray.exceptions.ObjectLostError)):
        return exc
    code = re.search(r"exit code[:= ]*(-?\d+)", text)
    how = f"exit code {code[1]}" if code else "killed, out of memory, or a crash in native code"
    return LostProcessError(f"its process ended in the middle of the work, also when it was tried again ({how})")


def _grantable(memory_bytes: int) -> int:
    """Cap a memory request at the largest CPU node's memory; Ray would queue a larger request forever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((r.get("memory", 0) for r in nodes if r.get("CPU", 0) >= 1), default=0)
    return int(min(memory_bytes, largest))  # 0 before the first machine is there: it then asks for a processor alone


class _ShardActor:
    """One worker of a Ray Data actor pool; loads a model when the first of its shards comes."""

    def __init__(self, makers: list[Callable[[], Worker]], chunks: _Chunks, patience_s: float) -> None:
        import torch

        torch.set_num_threads(1)
        set_patience(patience_s, has_answered=True)
        self._makers, self._chunks, self._workers = makers, chunks, WorkerSlot()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        from ray import cloudpickle

        outcomes = []
        for i in batch["id"]:
            maker, shard = self._chunks.shard(int(i))
            self._chunks.note_in_hand(int(i))
            outcomes.append(call_and_catch(lambda m=maker, s=shard: self._workers.get(self._makers[m])(s)))  # type: ignore[misc]
        return {"item": list(batch["id"]), "outcome": [cloudpickle.dumps(o) for o in outcomes]}


class _Chunks:
    """Shards by number, in a few objects of Ray's store; an actor holds the chunk that it works on."""

    def __init__(self, shards: list[tuple[int, Any]], n_chunks: int) -> None:
        import ray

        self._size = max(1, -(-len(shards) // n_chunks))
        self._refs = [ray.put(shards[i : i + self._size]) for i in range(0, len(shards), self._size)]
        self._held: tuple[int, list[tuple[int, Any]]] = (-1, [])
        self._key = f"fiqa_ray:{uuid.uuid4().hex}:"

    def shard(self, number: int) -> tuple[int, Any]:
        """Return the number of a shard's maker, and the shard."""
        import ray

        chunk, place = divmod(number, self._size)
        if self._held[0] != chunk:
            self._held = (chunk, ray.get(self._refs[chunk]))
        return self._held[1][place]

    def note_in_hand(self, number: int) -> None:
        """Leave the number of the shard that this actor begins where the driver finds it if the process dies."""
        import ray
        from ray.experimental import internal_kv

        key = f"{self._key}{ray.get_runtime_context().get_actor_id()}"
        internal_kv._internal_kv_put(key.encode(), str(number).encode(), overwrite=True)

    def in_hand(self, exc: Exception) -> int | None:
        """Return the shard that a dead actor had begun last, if Ray says which actor died."""
        from ray.experimental import internal_kv

        actor = getattr(exc, "actor_id", None) or next(iter(re.findall(r"\b[0-9a-f]{32}\b", str(exc))), None)
        number = internal_kv._internal_kv_get(f"{self._key}{actor}".encode())
        return None if number is None else int(number)

    def forget(self) -> None:
        """Remove what the actors left."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self._key.encode(), del_by_prefix=True)


def _ray_data(items: Sequence[Item], compute: ComputeSettings) -> Iterator[tuple[Item | None, Outcome]]:
    """Run shards in actor pools; a shard that ends its process time after time ends its pool, and the next does the rest."""
    import ray

    pending = list(items)
    while pending:
        left = dict(enumerate(pending))
        pool = _ActorPool(pending, compute)
        try:
            for number, outcome in pool.run():
                yield left.pop(number), outcome
        except ray.exceptions.RayError as exc:
            culprit = pool.chunks.in_hand(exc)
            outcome = lost_process(exc)
            if culprit not in left:
                yield None, outcome
                return
            yield left.pop(culprit), outcome
        finally:
            pool.chunks.forget()
        pending = list(left.values())


class _ActorPool:
    """An actor pool of Ray Data for some shards."""

    def __init__(self, items: Sequence[Item], compute: ComputeSettings) -> None:
        import ray

        resources = ray.cluster_resources()
        n_gpus = int(resources.get("GPU", 0))
        self.on_gpu = items[0][0].uses_model and wants_gpus(compute.device, 1)
        n_present = n_gpus if self.on_gpu else int(resources.get("CPU", 1))
        self.size = min(compute.n_workers or max(1, n_present), len(items))
        self.patience_s = compute.storage_patience_s
        steps = list({id(step): step for step, _ in items}.values())
        number = {id(step): i for i, step in enumerate(steps)}
        self.makers = [step.make_worker for step in steps]
        self.n_items = len(items)
        self.chunks = _Chunks([(number[id(step)], shard) for step, shard in items], 2 * self.size)

    def run(self) -> Iterator[tuple[int, Outcome]]:
        """Yield the number of each shard with its part, or with the exception that it raised."""
        import warnings

        import ray
        from ray import cloudpickle

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_restarts has no named parameter yet
            data = ray.data.range(self.n_items, override_num_blocks=self.n_items).map_batches(
                _ShardActor,
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(size=self.size),
                fn_constructor_args=(self.makers, self.chunks, self.patience_s),
                num_gpus=1 if self.on_gpu else 0,
                num_cpus=1,
                # a worker that dies for good must end the step: by default Ray Data tries forever
                max_restarts=3,
                max_task_retries=3,
            )
        for row in data.iter_rows():
            yield int(row["item"]), cloudpickle.loads(row["outcome"])


def wants_gpus(device: str, n_workers: int) -> bool:
    """Return whether workers ask for a GPU each.

    `cuda` is a demand, which makes an autoscaled cluster start its GPU machines; `auto` takes GPUs if all workers get one.
    """
    import ray

    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= n_workers)


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
    with _loopback() if address == "local" else nullcontext():
        _start(address, options)
        try:
            with head_watch() as watch:
                yield
        finally:
            if watch.is_lost:  # nothing answers any more
                atexit.unregister(ray.shutdown)
            else:
                ray.shutdown()


def _start(address: str, options: dict[str, Any]) -> None:
    """Start or join Ray; try once more if it does not start in time, as on a machine under load."""
    import ray

    for is_last in (False, True):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            catch_sigterm()
            return
        except (ConnectionError, OSError, ValueError, RuntimeError) as exc:
            is_late = "timed out" in str(exc).lower() or "timeout" in str(exc).lower()
            if is_last or not is_late:
                raise FiqaRayError(f"cannot start or join Ray at address {address!r}: {exc}") from exc
            note(f"Ray did not start in time ({' '.join(str(exc).split())[:120]}); trying once more")
            ray.shutdown()
