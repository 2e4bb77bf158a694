"""Progress of long work: a bar with rate and remaining time on a terminal, a log line every 30 s elsewhere.

For a run of `fiqa-ray submit` a second log line gives its state as JSON, for programs that read the log.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fiqa_ray.engine.run_state import run_state
from fiqa_ray.public_uri import public_text

LOG_INTERVAL_S = 30.0
JSON_LOG = "FIQA_RAY_JSON_LOG"
"""Environment variable that `fiqa-ray submit` sets for the job: its log has a line of JSON every 30 s."""


def note(text: str) -> None:
    """Print a line about the run to stderr; its URIs lose user info and query strings."""
    print(f"{time.strftime('%H:%M:%S')} {public_text(text)}", file=sys.stderr, flush=True)


def rate_text(rate: float, unit: str) -> str:
    """Write rows per second; slow ones per minute."""
    if 0 < rate < 0.1:
        return f"{60 * rate:.1f} {unit}/min"
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s"


class StepProgress:
    """Counts the rows of the steps that run side by side, in the unit of the largest.

    Use it as a context, and call `advance` for each finished part.

    `waits_for` says why nothing can run at the moment; it returns an empty text where something does. With `is_run` the log
    also gets a line of JSON for programs where the environment variable `JSON_LOG` is set.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        done: int = 0,
        waits_for: Callable[[], str] = lambda: "",
        *,
        is_run: bool = False,
    ) -> None:
        self._is_run = is_run
        self.name = public_text(name)
        self.total, self.unit, self.done, self.waits_for = total, unit, done, waits_for
        self._at_start = done
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> StepProgress:
        run_state.show(self)
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
        # by the clock, as a part may take longer than the interval
        threading.Thread(target=self._log, daemon=True).start()
        return self

    def _log(self) -> None:
        while not self._ended.wait(LOG_INTERVAL_S):
            waits_for = self.waits_for()
            if self._ended.is_set():
                return
            run_state.waits_for = waits_for
            if self._bar is None:
                rate = self.rate
                left = (
                    f"about {(self.total - self.done) / rate:,.0f} s left"
                    if rate > 0
                    else "the first part is under way"
                )
                self._line(waits_for or f"{rate_text(rate, self.unit)}, {left}")
            if self._is_run and os.environ.get(JSON_LOG):
                print(json.dumps({"time_s": round(time.time(), 1), **run_state.as_dict()}), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Rows per second since the start."""
        return (self.done - self._at_start) / max(time.monotonic() - self._started, 1e-9)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._ended.set()
        run_state.show(None)
        run_state.waits_for = ""
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._line(f"done in {time.monotonic() - self._started:.1f} s")

    def advance(self, n_rows: int) -> None:
        """Add finished rows."""
        self.done += n_rows
        if self._bar:
            self._bar.update(self._task, completed=self.done, rate=rate_text(self.rate, self.unit))

    def _line(self, text: str) -> None:
        share = f"{self.done:,} of {self.total:,} {self.unit}"
        print(f"{time.strftime('%H:%M:%S')} {self.name}: {share}, {text}", file=sys.stderr, flush=True)
