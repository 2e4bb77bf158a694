"""Ends a run with a sentence when the head of its Ray cluster dies; Ray itself ends the process after 60 s without one."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fiqa_ray.engine.interrupts import interrupt_main_thread
from fiqa_ray.engine.metrics import Gauges
from fiqa_ray.engine.run_state import run_state
from fiqa_ray.errors import IncompleteError

LOOK_EVERY_S = 5.0
LOST_S = 35.0
"""A head that has not answered for so long is lost. Ray waits 60 s for one that restarts, then ends the process."""
_GRACE_S = 15.0


class HeadWatch:
    """Looks at the head's port; also counts the machines of the cluster.

    Attributes:
        is_lost: Whether the head is lost.
    """

    def __init__(self, address: str) -> None:
        self.address, self.is_lost = address, False
        self._ended = threading.Event()

    def start(self) -> None:
        """Watch in a thread."""
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()

    def message(self) -> str:
        """Return what happened and the remedy."""
        return (
            f"the head of the Ray cluster at {self.address} does not answer any more; start the cluster again and run the "
            "same command again to continue"
        )

    def _watch(self) -> None:
        last_answer, gauges = time.monotonic(), Gauges()
        while not self._ended.wait(LOOK_EVERY_S):
            if self._answers():
                last_answer = time.monotonic()
                _count_machines()
                gauges.set(run_state.as_dict())
            elif time.monotonic() - last_answer > LOST_S:
                self.is_lost = True
                interrupt_main_thread()
                if not self._ended.wait(_GRACE_S):  # it waits inside of Ray
                    print(f"error: {self.message()}", file=sys.stderr, flush=True)
                    os._exit(IncompleteError.exit_code)
                return

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_EVERY_S).close()
        except OSError:
            return False
        return True


def _count_machines() -> None:
    import ray

    run_state.count_machines(sum(1 for node in ray.nodes() if node["Alive"]))


@contextmanager
def head_watch() -> Iterator[HeadWatch]:
    """Watch the head of the cluster that this process has joined.

    Raises:
        IncompleteError: The head is lost.
    """
    import ray

    watch = HeadWatch(str(ray.get_runtime_context().gcs_address))
    watch.start()
    try:
        yield watch
    except (KeyboardInterrupt, Exception) as exc:
        if not watch.is_lost:
            raise
        error = IncompleteError(watch.message())
        error.is_end_of_process = True
        raise error from exc
    finally:
        watch.stop()
