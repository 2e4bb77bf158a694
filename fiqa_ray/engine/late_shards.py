"""Names shards on a Ray cluster that run much longer than their fellows; never ends the run. `LateShards` is the entry.

Each worker tells the board, an actor without a processor, which shards it begins and ends, and on which node. The driver
looks at the board now and then.
"""

from __future__ import annotations

import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from fiqa_ray.datasets.dataset import Part
from fiqa_ray.engine.mapper import Item, Outcome
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.run_steps import short_name

LATE_FACTOR = 5.0
"""A shard is late if it runs this many times longer than the median of the finished shards of its dataset."""
MAX_NAMED = 3
"""Late shards that one line names."""
_LONGEST_LOOK_S = 30.0


class Board:
    """Which shards run, since when and on which node; runs as a Ray actor, so that all times come from one clock."""

    def __init__(self) -> None:
        self._group = -1
        self._running: dict[int, tuple[float, str]] = {}
        self._last: dict[str, int] = {}
        self._changed = time.monotonic()

    def begin(self, group: int, number: int, node: str, actor: str | None = None) -> None:
        """Note that a shard of a group of steps begins; one that begins again, on another node, replaces its entry."""
        if group > self._group:
            self._group, self._running, self._last = group, {}, {}
        if group == self._group:
            self._changed = time.monotonic()
            self._running[number] = (self._changed, node)
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

    def begin(self, number: int) -> None:
        """Announce that a shard begins, or begins its work on the model: it is then the actor's last."""
        import ray

        node = ray.get_runtime_context().get_node_id()[:8]
        place = f"{socket.gethostname()} ({ray.util.get_node_ip_address()}, Ray node {node})"
        self.board.begin.remote(self.group, number, place, ray.get_runtime_context().get_actor_id())

    def in_hand(self, exc: Exception) -> int | None:
        """Return the shard that a dead actor had begun last, if Ray's error names the actor."""
        import ray

        actor = getattr(exc, "actor_id", None) or next(iter(re.findall(r"\b[0-9a-f]{32}\b", str(exc))), None)
        if actor is None:
            return None
        try:
            number: int | None = ray.get(self.board.last_of.remote(self.group, actor), timeout=_LONGEST_LOOK_S)
        except ray.exceptions.RayError:
            return None
        return number


class LateShards:
    """Watches the shards of a group of steps; use as a context, and call `finish` for each shard that came back.

    Args:
        items: the shards with their steps.
        announcer: what the workers call.
        late_after_s: seconds that a shard may run in any case.
        waits_for: says why nothing can run at the moment, or returns an empty text.
    """

    def __init__(
        self, items: Sequence[Item], announcer: Announcer, late_after_s: float, waits_for: Callable[[], str]
    ) -> None:
        self._items, self._announcer, self._late_after_s, self._waits_for = items, announcer, late_after_s, waits_for
        self._seconds: dict[int, list[float]] = {}
        self._next_line: dict[int, float] = {}
        self._started = time.monotonic()
        self._next_idle_line = late_after_s
        self._ended = threading.Event()

    def __enter__(self) -> LateShards:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._ended.set()

    def finish(self, number: int, outcome: Outcome) -> None:
        """Note how long a shard took."""
        if isinstance(outcome, Part):
            self._seconds.setdefault(id(self._items[number][0]), []).append(outcome.duration_s)

    def _watch(self) -> None:
        import ray

        while not self._ended.wait(min(_LONGEST_LOOK_S, self._late_after_s / 4)):
            look = self._announcer.board.look.remote(self._announcer.group)
            try:
                running, unchanged_s = ray.get(look, timeout=_LONGEST_LOOK_S)
            except ray.exceptions.RayError:
                continue  # the board is a help; without it the run goes on as well
            idle_s = min(unchanged_s, time.monotonic() - self._started)
            text = self.late_line(running) if running else self.idle_line(idle_s)
            if text and not self._ended.is_set():
                note(text)

    def late_line(self, running: dict[int, tuple[float, str]]) -> str:
        """Return a line about late shards, or an empty text; a shard is named again when its time has doubled.

        Args:
            running: for each shard that runs, the seconds since it began, and its node.
        """
        late = sorted(((s, n, node) for n, (s, node) in running.items() if s > self._limit_s(n)), reverse=True)
        begun_again = {n for n, at in self._next_line.items() if n not in running or running[n][0] < at / 2}
        self._next_line = {n: at for n, at in self._next_line.items() if n not in begun_again}
        due = [(s, n, node) for s, n, node in late if s >= self._next_line.get(n, 0.0)]
        if not due:
            return ""
        self._next_line |= {n: 2 * s for s, n, _ in due}
        step = self._items[due[0][1]][0]
        named = "; ".join(f"{self._name(n)} has run for {s:,.0f} s on {node}" for s, n, node in due[:MAX_NAMED])
        more = f"; and {len(due) - MAX_NAMED} more parts" if len(due) > MAX_NAMED else ""
        return f"{step.stage}: late: {named}{more}; the run goes on"

    def idle_line(self, seconds: float) -> str:
        """Return a line if nothing has run for long, or an empty text; it comes again when the time has doubled."""
        if seconds < self._late_after_s:
            self._next_idle_line = self._late_after_s
        if seconds < self._next_idle_line or self._waits_for():
            return ""
        self._next_idle_line = 2 * seconds
        return (
            f"{self._items[0][0].stage}: no part has run for {seconds:,.0f} s: the cluster is busy, or its machines do not "
            "come; the run waits"
        )

    def _limit_s(self, number: int) -> float:
        """Return the seconds after which a shard is late."""
        seconds = self._seconds.get(id(self._items[number][0]))
        return max(self._late_after_s, LATE_FACTOR * statistics.median(seconds)) if seconds else self._late_after_s

    def _name(self, number: int) -> str:
        """Return part, dataset and what its fellows took."""
        step, shard = self._items[number]
        part = next(i for i, other in enumerate(step.shards) if other is shard)
        seconds = self._seconds.get(id(step))
        fellows = (
            f"half of the {len(seconds)} finished took under {statistics.median(seconds):,.1f} s"
            if seconds
            else ("none is finished")
        )
        return f"part {part} of {short_name(step)} ({fellows})"
