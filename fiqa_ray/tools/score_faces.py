"""`fiqa_ray.score`: scores of images, however they are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fiqa_ray.config import default_batch_size
from fiqa_ray.errors import UsageError
from fiqa_ray.images import encode_png
from fiqa_ray.models.batch_check import BatchCheck, check_function
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.sources.command_line import ImageFile, list_images, read_images
from fiqa_ray.tools.open_run import find_regressor
from fiqa_ray.tools.score import score_images

Image = Any
"""A path or URL, a PIL image, or an array or tensor of one image."""


def score(
    images: Image | Iterable[Image],
    model: str | Scorer | Callable[[torch.Tensor], Any],
    detector: str | FaceDetector | None = None,
    *,
    recognizer: Recognizer | str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    progress: Callable[[float], None] | None = None,
    **options: Any,
) -> pa.Table:
    """Score face images; a larger score means better quality.

    Args:
        images: paths (files, folders, globs, tars, URLs), PIL images, or arrays and tensors: one image or a batch,
            `(h, w, 3)` or `(3, h, w)` RGB, uint8 or float in [0, 1]. Without a detector they are aligned
            crops of 112x112 px. Files and PIL images are turned upright as their EXIF orientation says.
        model: a regressor's folder, a run with one regressor, a method as `load_scorer` names it, a loaded scorer, or a
            function that maps faces `(N, 3, 112, 112)`, float32 in [0, 1], to `(N,)` scores.
        detector: YuNet's .onnx file: images are raw, and the largest face of each is aligned and scored.
        recognizer: for a method that works on one: its name, or a loaded one.
        weights: checkpoint of the model, see `load_scorer`.
        device: as torch names it.
        batch_size: images per forward pass; default: as in a job.
        progress: is called with the share of the images that is done, from 0 to 1.
        **options: of the model, see `load_scorer`.

    Returns:
        One row per image, in order: `image_id` (its path below the given folder; of an array its position), `uri`, `score`
        (null if it has none), `percentile` (of a trained regressor: the share of its validation scores below, 0 to 100),
        `quality` (0 to 100, -1 without a score; of a regressor and of methods with such a scale), `status`, `error`.
        `to_pandas()` makes a DataFrame.

    Raises:
        UsageError: images of another shape, type or range.
        FiqaRayError: the model cannot be loaded, or a location has no image.
    """
    files, read = _image_files(images)
    is_function = not isinstance(model, Scorer | str | os.PathLike)
    if isinstance(model, Scorer):
        if recognizer is not None or weights is not None or options:
            raise UsageError("a loaded scorer has its recognizer, weights and options already; leave them out")
        scorer = model
    elif isinstance(model, str | os.PathLike):
        scorer = load_scorer(find_regressor(os.fspath(model)), recognizer, weights, device, **options)
    else:
        scorer = _function_scorer(model)
    if detector is not None and not isinstance(detector, FaceDetector):
        detector = FaceDetector(os.fspath(detector))
    n_threads, n_done = torch.get_num_threads(), 0

    def advance(n_images: int) -> None:
        nonlocal n_done
        n_done += n_images
        if progress:
            progress(n_done / len(files))

    try:
        return score_images(
            files,
            BatchCheck(scorer.name, scorer) if is_function else check_function(scorer.name, scorer),
            detector=detector,
            validation_scores=(scorer.card or {}).get("validation_scores"),
            scale=scorer.scale,
            batch_size=batch_size or min(default_batch_size(device), max(len(files), 1)),
            read=read,
            advance=advance,
        )
    finally:
        torch.set_num_threads(n_threads)


def _function_scorer(function: Callable[[torch.Tensor], Any]) -> Scorer:
    if not callable(function):
        raise UsageError(f"model is {type(function).__name__}; give a name, a loaded scorer or a function of faces")
    name = getattr(function, "__name__", type(function).__name__)
    return Scorer(name, lambda clean, _: function(clean.faces.to(torch.float32) / 255), torch.device("cpu"))


def _image_files(
    images: Any,
) -> tuple[list[ImageFile], Callable[[Sequence[ImageFile]], Iterable[bytes | None]]]:
    """Return the images as files, and a function that reads them; arrays are files in memory, called by their position."""
    is_one = isinstance(images, str | os.PathLike) or hasattr(images, "shape") or _is_pil(images)
    given = [images] if is_one else list(images)
    if not given:
        raise UsageError("there are no images; give paths, PIL images or arrays")
    if all(isinstance(image, str | os.PathLike) for image in given):
        return list_images([os.fspath(image) for image in given]), read_images
    if any(isinstance(image, str | os.PathLike) for image in given):
        raise UsageError("images are both paths and arrays; score them one kind at a time")
    arrays = [array for number, image in enumerate(given) for array in _rgb(image, number)]
    files = [ImageFile(str(i)) for i in range(len(arrays))]
    return files, lambda batch: [encode_png(arrays[int(file.uri)]) for file in batch]


def _is_pil(image: Any) -> bool:
    return type(image).__module__.split(".")[0] == "PIL"


def _rgb(image: Any, number: int) -> list[NDArray[np.uint8]]:
    """Return the images `(h, w, 3) uint8` of one entry, which may be a batch."""
    if _is_pil(image):
        image = _upright_rgb(image, number)
    elif np.ma.is_masked(image):
        raise UsageError(f"image {number} is a masked array; fill it")
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    try:
        array = np.asarray(image)
    except ValueError as exc:
        raise UsageError(f"image {number} is no array of numbers: {exc}") from exc
    pixels = _uint8(array, number)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    batch = pixels[None] if pixels.ndim == 3 else pixels
    if batch.ndim != 4 or (batch.shape[1] == 3) == (batch.shape[3] == 3):
        raise UsageError(
            f"image {number} has the shape {array.shape}; wanted (h, w, 3), (3, h, w) or a batch of one of these"
        )
    if batch.shape[1] == 3:
        batch = batch.transpose(0, 2, 3, 1)
    return [np.ascontiguousarray(face) for face in batch]


def _upright_rgb(image: Any, number: int) -> Any:
    """Return a PIL image in RGB, turned as a file's would be; PIL would cut 16 bits a channel at 255."""
    from PIL import ImageOps

    if image.mode[0] in "IF":
        raise UsageError(
            f"image {number} is a PIL image of mode {image.mode}; give one of 8 bits a channel, or its file"
        )
    return ImageOps.exif_transpose(image).convert("RGB")


def _uint8(array: NDArray[Any], number: int) -> NDArray[np.uint8]:
    """Return pixels as uint8: floats from [0, 1] are scaled, whole numbers from 0 to 255 stay."""
    if array.size == 0 or array.dtype.kind not in "biuf":
        raise UsageError(f"image {number} is {array.dtype} of shape {array.shape}; give uint8, or floats in [0, 1]")
    if array.dtype == np.uint8:
        return array.astype(np.uint8)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise UsageError(f"image {number} has floats from {low:g} to {high:g}; floats must lie in [0, 1]")
        return np.rint(array * 255).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    raise UsageError(f"image {number} is {array.dtype} from {low} to {high}; give uint8, or floats in [0, 1]")
