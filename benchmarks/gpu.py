"""One table of what a GPU does with this package, within six minutes; or, as a dry run, of what the processor does.

python benchmarks/gpu.py [--cpu] [--json FILE]

Needs the package alone. Networks have random weights, faces and embeddings are synthetic. Each row holds a figure beside one
that was measured side by side with it; a ratio above 1 means that the first is faster.

embed         Faces per second of an IResNet-100 (on a processor a MobileFaceNet) through the worker of embed, which also
              reads, decodes and writes, in each precision; beside it a bare torch loop over a batch that lies on the device.
bare loop     The same loop beside the rate at which the device multiplies matrices in that precision, as faces per second.
              float32 is computed in full, without TF32.
decode        Faces per second that the worker's threads decode, beside the fastest bare loop: below 1 decoding is the limit.
methods       Seconds per image of FaceQAN and SER-FIQ in a batch, beside one image at a time as their released scripts work.
labels        Seconds of pairs and labels of a share of VGGFace2's shape on the device, beside the compiled loops of the
              processor; and the share of labels with the same bits, of these embeddings and of ones whose products are
              exact. Of the latter all must be equal, else the script fails.

`--cpu` measures all rows but those in float16, at a small size. For its labels torch's operations on the processor stand in
for the device's.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference import make_faces, single_image_ratios
from numpy.typing import NDArray
from pipeline import write_faces
from shapes import SHAPES, make_identities

from fiqa_ray import optimize_labels
from fiqa_ray.config import RecognizerSettings
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine.cores import cores
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.engine.step import Step
from fiqa_ray.images import decode_faces
from fiqa_ray.models.devices import set_cuda_precision
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer_table import RECOGNIZERS
from fiqa_ray.packed_faces import pack_face
from fiqa_ray.stages.infer_parts import ModelCall, load_calls, model_worker

LOOP_BATCHES = 4
EXACT_DIM = 256
"""Embeddings of so many numbers, each 1 or -1, have the length 16, so that all products of them are exact."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        device: As torch names it.
        recognizer: Network of embed.
        precisions: Those of its products.
        batch: Faces per batch.
        part_rows: Faces of a part.
        n_parts: Parts that embed reads at most.
        seconds: Seconds of a measurement that is repeated, and of embed at the rate of the bare loop.
        matrix: Rows of the square matrices that are multiplied.
        images: Share of 16 images for FaceQAN and of 4 for SER-FIQ; two images at least.
        people: Share of VGGFace2's people for labels.
    """

    device: str
    recognizer: str
    precisions: tuple[str, ...]
    batch: int
    part_rows: int
    n_parts: int
    seconds: float
    matrix: int
    images: float
    people: float


CARD = Sizes("cuda", "arcface_r100", ("float32", "bfloat16", "float16"), 256, 4096, 12, 5.0, 8192, 2.0, 0.1)
PROCESSOR = Sizes("cpu", "arcface_torch_mobilefacenet", ("float32", "bfloat16"), 16, 128, 3, 2.0, 512, 0.1, 0.003)


@dataclass(frozen=True)
class Row:
    """A figure beside another one.

    Attributes:
        what: What was measured.
        measured: The figure.
        unit: Of both figures.
        against: What stands beside it.
        reference: The other figure.
        ratio: Above 1 where the first is better.
    """

    what: str
    measured: float
    unit: str
    against: str
    reference: float
    ratio: float

    @staticmethod
    def of_rates(what: str, rate: float, against: str, reference: float) -> Row:
        """Return a row of two rates."""
        return Row(what, rate, "faces/s", against, reference, rate / reference)

    @staticmethod
    def of_times(what: str, seconds: float, unit: str, against: str, reference: float) -> Row:
        """Return a row of two times."""
        return Row(what, seconds, unit, against, reference, reference / seconds)

    def markdown(self) -> str:
        """Return the row of a Markdown table."""
        cells = (self.what, f"{self.measured:,.4g}", self.unit, self.against, f"{self.reference:,.4g}")
        return f"| {' | '.join(cells)} | {self.ratio:.3g} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="a dry run without a GPU")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if not a.cpu and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; install a torch build with CUDA, or try the script with --cpu")
    sizes, started = PROCESSOR if a.cpu else CARD, time.perf_counter()
    name = platform.machine() if a.cpu else torch.cuda.get_device_name()
    print(f"{name}, {cores()} cores, torch {torch.__version__}\n")
    print("| what | measured | unit | against | reference | ratio |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for row in measure_all(sizes):
        rows.append(row)
        print(row.markdown(), flush=True)
    seconds = round(time.perf_counter() - started)
    print(f"\n{seconds} s in all")
    if a.json:
        result = {"device": name, "cores": cores(), "torch": torch.__version__, "seconds": seconds}
        a.json.write_text(json.dumps({**result, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if rows[-1].measured < 100:
        raise SystemExit("labels of embeddings with exact products differ between the device and the compiled loops")


def measure_all(sizes: Sizes) -> Iterator[Row]:
    """Yield the rows of the table."""
    pixels = make_faces()
    yield from embed_rows(sizes, pixels)
    set_cuda_precision("float32")
    faces = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    for method, times in single_image_ratios(faces, sizes.images, sizes.device).items():
        what, against = f"{method} on {times['recognizer']}", "one image at a time"
        yield Row.of_times(what, times["ours_s_per_image"], "s/image", against, times["alone_s_per_image"])
    yield from label_rows(sizes)


def embed_rows(sizes: Sizes, pixels: NDArray[np.uint8]) -> Iterator[Row]:
    """Yield the rows of embed, of its bare loop and of decoding, from faces `(I, 112, 112, 3) uint8`."""
    encoded = [pack_face(face) for face in pixels]
    chosen = pixels[np.arange(sizes.batch) % len(pixels)].transpose(0, 3, 1, 2)
    batch = torch.from_numpy(np.ascontiguousarray(chosen)).to(sizes.device)
    fastest = 0.0
    with tempfile.TemporaryDirectory() as root, one_thread():
        faces = write_faces(root, encoded, sizes.n_parts, sizes.part_rows)
        for precision in sizes.precisions:
            set_cuda_precision(precision)
            bare = bare_rate(sizes, precision, batch)
            what = f"{sizes.recognizer}, {precision}"
            embed = embed_rate(sizes, precision, faces, root, bare)
            yield Row.of_rates(f"embed {what}", embed, "bare loop", bare)
            products = product_rate(sizes, precision)
            bound = products / 2 / RECOGNIZERS[sizes.recognizer].macs
            yield Row.of_rates(f"bare loop {what}", bare, f"matrix products, {products / 1e12:.3g} TFLOP/s", bound)
            fastest = max(fastest, bare)
    many = encoded * max(1, 4 * sizes.batch // len(encoded))
    decoded = len(many) / seconds_of(lambda: decode_faces(many, cores()), "cpu", sizes.seconds)
    yield Row.of_rates(f"decode, {cores()} threads", decoded, "fastest bare loop", fastest)


def seconds_of(call: Callable[[], object], device: str, at_least_s: float) -> float:
    """Return the seconds of a call: the mean of calls in so many seconds, after one that warms up."""

    def called() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    called()
    started, n_calls = time.perf_counter(), 0
    while n_calls == 0 or time.perf_counter() - started < at_least_s:
        called()
        n_calls += 1
    return (time.perf_counter() - started) / n_calls


def bare_rate(sizes: Sizes, precision: str, batch: torch.Tensor) -> float:
    """Return the faces per second of the network in a loop over a batch on the device, by autocast where not float32."""
    recognizer = load_recognizer(sizes.recognizer, "random:0", sizes.device)
    if sizes.device == "cuda":
        recognizer.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    is_full = precision == "float32"
    context = nullcontext() if is_full else torch.autocast(sizes.device, dtype=getattr(torch, precision))

    def loop() -> None:
        for _ in range(LOOP_BATCHES):
            recognizer.backbone((batch.float() / 255 - 0.5) / 0.5)

    with torch.inference_mode(), context:
        return LOOP_BATCHES * len(batch) / seconds_of(loop, sizes.device, sizes.seconds)


def embed_rate(sizes: Sizes, precision: str, faces: Dataset, root: str, bare: float) -> float:
    """Return the faces per second of embed from stored faces to stored embeddings, without the loading of the network."""
    settings = RecognizerSettings(name=sizes.recognizer, weights="random:0")
    models = load_calls([ModelCall(settings, None, None, {}, 0, sizes.device, precision)])
    n_parts = round(sizes.seconds * bare / sizes.part_rows)
    parts = faces.require().parts[: max(2, n_parts)]
    n_rows = sum(part.n_rows for part in parts)
    dataset = Dataset(f"{root}/embeddings/v={precision}", "embeddings")
    worker = model_worker([dataset], faces, models, "embedding", sizes.batch, sizes.device)
    models(torch.zeros((sizes.batch, 3, 112, 112), dtype=torch.uint8), np.arange(sizes.batch))  # which warms up
    step = Step("embed", dataset, parts, lambda: worker, n_rows, uses_model=True)
    started = time.perf_counter()
    run_steps([step], local_map)
    return n_rows / (time.perf_counter() - started)


def product_rate(sizes: Sizes, precision: str) -> float:
    """Return the operations per second of a product of large matrices in a precision."""
    n, dtype = sizes.matrix, getattr(torch, precision)
    a, b = (torch.randn(n, n, device=sizes.device).to(dtype) for _ in range(2))
    return 2.0 * n**3 / seconds_of(lambda: a @ b, sizes.device, sizes.seconds / 4)


def label_rows(sizes: Sizes) -> Iterator[Row]:
    """Yield the times of pairs and labels, and how many labels have the same bits."""
    n_images = SHAPES["vggface2"].sizes(sizes.people)
    embeddings = make_identities(range(len(n_images)), n_images)
    person = np.repeat(np.arange(len(n_images)), n_images)
    device = "cuda" if sizes.device == "cuda" else "cpu:0"  # torch's operations, also on a processor

    def run(values: NDArray[np.float32], where: str) -> tuple[float, NDArray[np.float32]]:
        options: dict[str, Any] = {"theta": 0.1, "index_scale": "normalized", "device": where}
        prior = -np.linalg.norm(embeddings, axis=1)  # noise makes them longer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what such scores are worth does not matter here
            optimize_labels(values[: n_images[0]], person[: n_images[0]], prior[: n_images[0]], **options)
            started = time.perf_counter()
            label = optimize_labels(values, person, prior, **options).label
        return time.perf_counter() - started, label

    what, loops = f"{len(person):,} images in VGGFace2's shape", "compiled loops of the processor"
    exact = np.where(embeddings[:, :EXACT_DIM] < 0, np.float32(-1), np.float32(1))
    for kind, values in ((what, embeddings), (f"{len(person):,} images, exact products", exact)):
        device_s, on_device = run(values, device)
        loops_s, by_loops = run(values, "cpu")
        if values is embeddings:
            yield Row.of_times(f"labels of {kind}", device_s, "s", loops, loops_s)
        share = 100 * float((on_device.view(np.int32) == by_loops.view(np.int32)).mean())
        yield Row(f"labels with the same bits, {kind}", share, "%", loops, 100.0, share / 100)


if __name__ == "__main__":
    main()
