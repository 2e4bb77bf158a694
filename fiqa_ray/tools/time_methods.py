"""`fiqa-ray time`: run time of FIQA methods per image (the paper's Table IV)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fiqa_ray._version import __version__
from fiqa_ray.errors import UsageError
from fiqa_ray.images import decode_faces, encode_png, prepare_face
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.sources.command_line import list_images, read_images
from fiqa_ray.synthetic.dataset import aligned_faces
from fiqa_ray.tools.timed_models import TimedModel

MIN_IMAGES = 100
BATCH_SIZES = (1, 8, 32, 128)


@dataclass(frozen=True)
class MethodTime:
    """Milliseconds per image, without reading and decoding.

    Attributes:
        method: Its name.
        variant: "baseline" or "optimized" where a job is timed, else empty.
        mean: Mean at batch size 1.
        sd: Standard deviation over the images.
        best_batch: The fastest of the batch sizes.
        best_mean: Mean at that size.
        best_sd: Standard deviation over the batches, per image.
    """

    method: str
    variant: str
    mean: float
    sd: float
    best_batch: int
    best_mean: float
    best_sd: float


@dataclass(frozen=True)
class Timing:
    """The times of some methods.

    Attributes:
        methods: One per method.
        decode_mean: Milliseconds to decode an image, whatever the method.
        decode_sd: Standard deviation over the images.
        n_images: Images that were timed at each batch size.
        n_warm_up: Calls before.
        device: Name of the device.
        n_threads: CPU threads of torch.
        versions: Of Python, torch and fiqa_ray.
    """

    methods: list[MethodTime]
    decode_mean: float
    decode_sd: float
    n_images: int
    n_warm_up: int
    device: str
    n_threads: int
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return all values."""
        return vars(self) | {"methods": [vars(method) for method in self.methods]}


def time_methods(
    models: Sequence[TimedModel],
    *,
    images: Sequence[str] = (),
    n_images: int = MIN_IMAGES,
    n_warm_up: int = 10,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    n_threads: int = 0,
) -> Timing:
    """Time methods on the same faces.

    A call ends when the device has finished. Each batch size gets at least `n_images` images in whole batches.

    Args:
        models: the methods; all on one device.
        images: aligned crops to time on; none: synthetic faces.
        n_images: at least 100.
        n_warm_up: calls before those that are timed, for each batch size.
        batch_sizes: sizes of which the best is reported; 1 is always timed.
        n_threads: CPU threads of torch; 0: as they are.

    Raises:
        UsageError: too few images, or a size below 1.
    """
    if n_images < MIN_IMAGES or n_warm_up < 1 or min(batch_sizes, default=1) < 1:
        raise UsageError(f"give {MIN_IMAGES} images or more, one warm-up call or more, and batch sizes from 1")
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        encoded = _encoded_faces(images, n_images)
        faces, decode_ms = _decode(encoded, n_warm_up)
        methods = []
        for model in models:
            scorer = model.load()
            methods.append(_time_method(model, scorer, faces, n_images, n_warm_up, batch_sizes))
        device = torch.device(models[0].device)
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
        )
        versions = {"python": platform.python_version(), "torch": torch.__version__, "fiqa_ray": __version__}
        n_used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return Timing(methods, float(decode_ms.mean()), float(decode_ms.std()), n_images, n_warm_up, name, n_used, versions)


def _encoded_faces(images: Sequence[str], n_images: int) -> list[bytes]:
    """Return at least `n_images` encoded crops; given ones are repeated."""
    if not images:
        people = -(-n_images // 4)
        faces = [face for person in range(people) for face in aligned_faces((30_000, 0, person, 2))]
        return [encode_png(face) for face in faces]
    contents = [content for content in read_images(list_images(list(images))) if content is not None]
    prepared = [prepare_face(content, None) for content in contents]
    usable = [face.face for face in prepared if face.status == "ok" and face.face is not None]
    if not usable:
        raise UsageError(f"none of the {len(contents)} images is an aligned crop of 112x112 pixels")
    return usable * -(-n_images // len(usable))


def _decode(encoded: Sequence[bytes], n_warm_up: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the faces `(N, 3, 112, 112) uint8` and the milliseconds that each took to decode."""
    decode_faces(encoded[:n_warm_up])
    seconds, faces = [], []
    for content in encoded:
        started = time.perf_counter()
        face, _ = decode_faces([content])
        seconds.append(time.perf_counter() - started)
        faces.append(face)
    return np.concatenate(faces), 1e3 * np.array(seconds)


def _time_method(
    model: TimedModel,
    scorer: Scorer,
    faces: NDArray[np.uint8],
    n_images: int,
    n_warm_up: int,
    batch_sizes: Sequence[int],
) -> MethodTime:
    times = {size: _batch_times(scorer, faces, size, n_images, n_warm_up) for size in sorted({1, *batch_sizes})}
    best = min(times, key=lambda size: float(times[size].mean()))
    return MethodTime(
        method=model.method,
        variant=model.variant,
        mean=float(times[1].mean()),
        sd=float(times[1].std()),
        best_batch=best,
        best_mean=float(times[best].mean()),
        best_sd=float(times[best].std()),
    )


def _batch_times(
    scorer: Callable[[torch.Tensor, NDArray[np.int64]], object],
    faces: NDArray[np.uint8],
    size: int,
    n_images: int,
    n_warm_up: int,
) -> NDArray[np.float64]:
    """Return milliseconds per image of each batch."""
    n_batches, times = -(-n_images // size), []
    for i in range(-min(n_warm_up, n_batches), n_batches):
        rows = np.arange(i * size, (i + 1) * size) % len(faces)
        batch = torch.from_numpy(faces[rows])
        _finish()
        started = time.perf_counter()
        scorer(batch, rows)
        _finish()
        if i >= 0:
            times.append((time.perf_counter() - started) / size)
    return 1e3 * np.array(times)


def _finish() -> None:
    """Wait until the GPU has done all work that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
