"""Progress of long work: a bar with rate and remaining time on a terminal, one log line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_INTERVAL_S = 30.0


class StepProgress:
    """Counts the rows of one step; use as a context, call `advance` per finished part."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._at_start = done
        self._started = self._logged = time.monotonic()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> StepProgress:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<34}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._line(f"done in {time.monotonic() - self._started:.1f} s")

    def advance(self, n_rows: int) -> None:
        """Adds finished rows."""
        self.done += n_rows
        rate = (self.done - self._at_start) / max(time.monotonic() - self._started, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=self.done, rate=f"{rate:,.0f} {self.unit}/s")
        elif self.done < self.total and time.monotonic() - self._logged >= LOG_INTERVAL_S:
            self._logged = time.monotonic()
            left_s = (self.total - self.done) / rate if rate > 0 else float("inf")
            self._line(f"{rate:,.0f} {self.unit}/s, about {left_s:,.0f} s left")

    def _line(self, text: str) -> None:
        share = f"{self.done:,} of {self.total:,} {self.unit}"
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {share}, {text}", file=sys.stderr, flush=True)
