"""Threads decode batches of faces ahead of the models, part after part in the order in which the parts were read.

So they go on with the next part while the models take the last batches of this one.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch

from fiqa_ray.engine.cores import cores
from fiqa_ray.images import decode_packed_faces

BATCHES_AHEAD = 3
"""Decoded batches that wait for the models, for each thread that decodes."""
MAX_DECODERS = 16
"""Threads of a worker that decode; more would wait for Python's lock."""


class Decoders:
    """Threads that decode the batches of the parts that a worker has read.

    Memory: `BATCHES_AHEAD` decoded batches per thread.

    Args:
        batch_size: faces per batch.
    """

    def __init__(self, batch_size: int) -> None:
        n_threads = min(cores(), MAX_DECODERS)
        self._batch_size, self._limit = batch_size, BATCHES_AHEAD * n_threads
        self._threads = ThreadPoolExecutor(n_threads)
        self._parts: deque[_PartBatches] = deque()  # those with batches that no thread has begun
        self._n_ahead = 0
        self._lock = threading.Lock()

    def batches(self, encoded: pa.ChunkedArray) -> Generator[torch.Tensor]:
        """Begin a part, and return its batches `(batch_size, 3, 112, 112) uint8`; the last one is filled up with zeros.

        A part without faces has one batch.

        Args:
            encoded: `(I,)` packed faces, without nulls.

        Raises:
            FiqaRayError: while iterating; a face cannot be decoded any more.
        """
        part = _PartBatches(_views(encoded), self._batch_size)
        with self._lock:
            self._parts.append(part)
            self._begin_some()
        return self._taken(part)

    def _taken(self, part: _PartBatches) -> Generator[torch.Tensor]:
        try:
            while (batch := self._next_of(part)) is not None:
                yield batch.result()
        finally:  # also where the models failed, and whoever iterates closes the generator
            with self._lock:
                self._n_ahead -= len(part.begun)
                part.begun.clear()
                part.firsts.clear()
                self._begin_some()

    def _next_of(self, part: _PartBatches) -> Future[torch.Tensor] | None:
        """Take a part's next batch, begun if it is not yet: the models may take another part than the one read first."""
        with self._lock:
            if not part.begun:
                if not part.firsts:
                    return None
                self._begin(part)
            self._n_ahead -= 1
            batch = part.begun.popleft()
            self._begin_some()
        return batch

    def _begin_some(self) -> None:
        """Begin batches as long as there are few ahead."""
        while self._parts and self._n_ahead < self._limit:
            if self._parts[0].firsts:
                self._begin(self._parts[0])
            else:
                self._parts.popleft()

    def _begin(self, part: _PartBatches) -> None:
        part.begun.append(self._threads.submit(part.decode, part.firsts.popleft()))
        self._n_ahead += 1


class _PartBatches:
    """A part's encoded faces: the first of each batch that is not begun, and the batches that are."""

    def __init__(self, faces: list[memoryview], batch_size: int) -> None:
        self._faces, self._batch_size = faces, batch_size
        self.firsts = deque(range(0, max(len(faces), 1), batch_size))
        self.begun: deque[Future[torch.Tensor]] = deque()

    def decode(self, first: int) -> torch.Tensor:
        """Return a batch."""
        faces = decode_packed_faces(self._faces[first : first + self._batch_size])
        if len(faces) < self._batch_size:
            faces = np.concatenate([faces, np.zeros((self._batch_size - len(faces), *faces.shape[1:]), np.uint8)])
        return torch.from_numpy(faces)


def _views(column: pa.ChunkedArray) -> list[memoryview]:
    """Return the values of a binary column without nulls, without copying them."""
    values: list[memoryview] = []
    for chunk in column.chunks:
        _, offsets, content = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        view = memoryview(content or b"")
        values += [view[start:end] for start, end in itertools.pairwise(bounds)]
    return values
