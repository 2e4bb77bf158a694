"""A board, a Ray actor without a processor, on which workers write which shards they begin and end, and where.

Of plain tasks only those are written that take longer than a moment.

This module loads nothing of the package: the actor starts beside the first shards of a run, which need the processors.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LONGEST_LOOK_S = 30.0
"""Seconds after which nobody waits for the board any longer: it is a help, without which a run goes on as well."""


class Board:
    """Which shards run, since when and on which node; runs as a Ray actor, so that all times come from one clock."""

    def __init__(self) -> None:
        self._group = -1
        self._running: dict[int, tuple[float, str]] = {}
        self._last: dict[str, int] = {}
        self._changed = time.monotonic()

    def begin(self, group: int, number: int, node: str, actor: str | None = None, age_s: float = 0.0) -> None:
        """Note that a shard of a group of steps began `age_s` ago; one that began again elsewhere replaces its entry."""
        if group > self._group:
            self._group, self._running, self._last = group, {}, {}
        if group == self._group:
            self._changed = time.monotonic()
            self._running[number] = (self._changed - age_s, node)
            if actor is not None:
                self._last[actor] = number

    def end(self, group: int, number: int) -> None:
        """Note that a shard has ended."""
        if group == self._group:
            self._changed = time.monotonic()
            self._running.pop(number, None)

    def last_of(self, group: int, actor: str) -> int | None:
        """Return the shard of a group that an actor began last."""
        return self._last.get(actor) if group == self._group else None

    def look(self, group: int) -> tuple[dict[int, tuple[float, str]], float]:
        """Return for each running shard of a group how many seconds ago it began, and where; and seconds without change."""
        now = time.monotonic()
        shards = self._running.items() if group == self._group else ()
        return {number: (now - at, node) for number, (at, node) in shards}, now - self._changed


def start_board() -> Any:
    """Start the board on this machine, which lives as long as the run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Announcer:
    """Tells the board from a worker which shards run there; waits for no answer."""

    board: Any
    group: int

    @contextmanager
    def __call__(self, number: int) -> Iterator[None]:
        """Announce the shard of this number within its group for the time of a block."""
        self.begin(number)
        yield
        self.board.end.remote(self.group, number)

    @contextmanager
    def after(self, seconds: float, number: int) -> Iterator[None]:
        """Announce a shard for the rest of a block that takes longer than some seconds; a short one costs no message."""
        is_over = threading.Event()

        def announce() -> None:
            if not is_over.wait(seconds):
                self.begin(number, seconds)
                is_over.wait()
                self.board.end.remote(self.group, number)

        threading.Thread(target=announce, daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def begin(self, number: int, age_s: float = 0.0) -> None:
        """Announce that a shard begins, or begins its work on the model: it is then the actor's last."""
        import ray

        node = ray.get_runtime_context().get_node_id()[:8]
        place = f"{socket.gethostname()} ({ray.util.get_node_ip_address()}, Ray node {node})"
        self.board.begin.remote(self.group, number, place, ray.get_runtime_context().get_actor_id(), age_s)

    def in_hand(self, exc: Exception) -> int | None:
        """Return the shard that a dead actor had begun last, if Ray's error names the actor."""
        import ray

        actor = getattr(exc, "actor_id", None) or next(iter(re.findall(r"\b[0-9a-f]{32}\b", str(exc))), None)
        if actor is None:
            return None
        try:
            number: int | None = ray.get(self.board.last_of.remote(self.group, actor), timeout=LONGEST_LOOK_S)
        except ray.exceptions.RayError:
            return None
        return number
