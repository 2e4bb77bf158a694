"""Names shards on a Ray cluster that run much longer than their fellows; never ends the run. `LateShards` is the entry.

Workers write on the board (`engine.board`) which shards they begin and end; the driver looks at it now and then.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from fiqa_ray.datasets.dataset import Part
from fiqa_ray.engine.board import LONGEST_LOOK_S, Announcer
from fiqa_ray.engine.mapper import Item, Outcome
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.run_steps import short_name

LATE_FACTOR = 5.0
"""A shard is late if it runs this many times longer than the median of the finished shards of its dataset."""
MAX_NAMED = 3
"""Late shards that one line names."""


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
        self._last_finish = time.monotonic()
        self._next_idle_line = late_after_s
        self._ended = threading.Event()

    def __enter__(self) -> LateShards:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._ended.set()

    def finish(self, number: int, outcome: Outcome) -> None:
        """Note that a shard came back, and how long it took."""
        self._last_finish = time.monotonic()
        if isinstance(outcome, Part):
            self._seconds.setdefault(id(self._items[number][0]), []).append(outcome.duration_s)

    def _watch(self) -> None:
        import ray

        while not self._ended.wait(min(LONGEST_LOOK_S, self._late_after_s / 4)):
            look = self._announcer.board.look.remote(self._announcer.group)
            try:
                running, unchanged_s = ray.get(look, timeout=LONGEST_LOOK_S)
            except ray.exceptions.RayError:
                continue  # the board is a help; without it the run goes on as well
            idle_s = min(unchanged_s, time.monotonic() - self._last_finish)
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
