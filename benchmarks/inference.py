"""Images per second of embed and of FIQA methods: through the Ray stage, in a bare torch loop, and one image at a time.

python benchmarks/inference.py [--share 1.0] [--device cpu] [--recognizer NAME] [--json FILE]

Networks have random weights, faces are synthetic. The bare loop runs the same model over the same batches, decoded and in
memory, in one process per worker; the stage also reads shards, decodes, and writes Parquet. Its rate is counted in the time
that its workers spend on shards; Ray's start and the loading of models are left out on both sides. The loop runs before and
after the stage; the ratio is to its mean. One image at a time is what the released scripts of FaceQAN and SER-FIQ do: the
whole network on ten noisy copies with gradients of all weights, five times, and on a hundred copies under dropout.

ONNX: the same network as a torch module and as an ONNX file, in turn, on one thread: embed, where onnxruntime runs the file,
and FaceQAN, where torch runs the network converted from it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from fiqa_ray.config import Settings, default_batch_size, make_settings
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.datasets import schemas
from fiqa_ray.engine.ray import RayMapper, ray_session
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.job import Job
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.packed_faces import pack_face
from fiqa_ray.stages import stage_steps
from fiqa_ray.stages.infer_parts import ModelCall
from fiqa_ray.synthetic.dataset import HELDOUT_PART, aligned_faces

N_UNLIKE = 256
PART_FACES = 512
SMALL, SPLIT = "arcface_torch_mobilefacenet", "arcface_r18"
ROWS: list[tuple[str, str, int]] = [  # what, FR model, faces
    ("embed", "", 4096),
    ("sddfiqa_mobilefacenet", "", 4096),
    ("magface_r18", "", 1024),
    ("crfiqa_s", "", 512),
    ("serfiq", SPLIT, 512),
    ("faceqan", "", 64),
]


def make_faces() -> np.ndarray:
    """Synthetic faces (n, 112, 112, 3) uint8."""
    return np.concatenate([aligned_faces((7, HELDOUT_PART, k, 4)) for k in range(N_UNLIKE // 8)])


def job_settings(root: Path, what: str, recognizer: str, n_workers: int, device: str) -> Settings:
    """Return a job that embeds or scores by one method."""
    own_network = what not in ("embed", "serfiq", "faceqan")
    method: dict[str, Any] = {"name": "embedding_norm" if what == "embed" else what}
    return make_settings(
        {
            "name": "inference",
            "run_uri": str(root / what),
            "source": {"kind": "folder", "uri": "made up"},
            "recognizer": {"name": recognizer, "weights": "random:0"},
            "methods": [method | ({"weights": "random:0"} if own_network else {})],
            "compute": {"n_workers": n_workers, "device": device},
        }
    )


def write_faces(job: Job, encoded: list[bytes], n: int) -> None:
    """Write the packed faces of the job: `n` of them, the given ones over and over."""
    dataset = job.faces("train")
    dataset.write_plan({"stage": "pack", "n_parts": -(-n // PART_FACES), "n_rows": n})
    for i, first in enumerate(range(0, n, PART_FACES)):
        rows = np.arange(first, min(first + PART_FACES, n))
        columns = {
            "image_row": rows,
            "identity_row": (rows // 100).astype(np.int32),
            "image_id": [f"{r:07d}" for r in rows],
            "identity": [f"{r // 100:05d}" for r in rows],
            "face": [encoded[r % len(encoded)] for r in rows],
            "status": ["ok"] * len(rows),
            "error": [None] * len(rows),
        }
        table = pa.table({name: columns[name] for name in schemas.FACES.names}, schema=schemas.FACES)
        dataset.write_part(i, {".parquet": table}, n_rows=len(rows), stats={"status": {"ok": len(rows)}})
    dataset.commit(-(-n // PART_FACES))


def stage_rate(job: Job, what: str) -> float:
    """Images per second of the workers together."""
    n_workers = job.settings.compute.n_workers or 1
    mapper = RayMapper(job.settings.compute)
    for steps in stage_steps("embed" if what == "embed" else "score", job):
        (manifest,) = run_steps(steps, mapper)
    seconds = np.zeros(n_workers)
    for part in sorted(manifest.parts, key=lambda p: -p.duration_s):
        seconds[seconds.argmin()] += part.duration_s
    return manifest.n_rows / float(seconds.sum() / n_workers)


def _bare_worker(call: ModelCall, faces: torch.Tensor, n: int, size: int, ready: Barrier, seconds: Any) -> None:
    torch.set_num_threads(1)
    with one_thread():
        model = call.load()
        batches = [faces[(torch.arange(size) + at) % len(faces)] for at in range(0, min(n, 16 * size), size)]
        ready.wait()
        started = time.perf_counter()
        for b, at in enumerate(range(0, n, size)):
            model(batches[b % len(batches)], np.arange(at, at + size))
        seconds.put(time.perf_counter() - started)


def bare_rate(call: ModelCall, faces: torch.Tensor, n: int, n_workers: int, size: int) -> float:
    """Images per second of a loop over batches in memory, in as many processes as the stage has workers."""
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(n_workers), context.Queue()
    each = -(-n // n_workers // size) * size
    arguments = (call, faces, each, size, ready, seconds)
    workers = [context.Process(target=_bare_worker, args=arguments) for _ in range(n_workers)]
    for worker in workers:
        worker.start()
    slowest = max(seconds.get() for _ in workers)
    for worker in workers:
        worker.join()
    return each * n_workers / slowest


def faceqan_alone(network: torch.nn.Module, x: torch.Tensor, noise: torch.Tensor) -> float:
    """FaceQAN of one face (1, 3, 112, 112) in [0, 1] as the released script runs it; noise (10, 3, 112, 112) in [-1, 1]."""
    points = (x + 0.001 * noise).clamp(-1, 1)
    clean = network((x - 0.5) / 0.5)
    found = []
    for _ in range(5):
        points = points.detach().requires_grad_()
        cosine = functional.cosine_similarity(network((points - 0.5) / 0.5), clean)
        found.append(cosine.detach())
        network.zero_grad()
        (1 - cosine).mean().backward(retain_graph=True)
        assert points.grad is not None
        points = (points + 0.001 * points.grad.sign()).clamp(-1, 1)
    s = torch.cat(found)
    with torch.no_grad():
        pair = network((torch.cat([x, x.flip(-1)]) - 0.5) / 0.5)
    symmetry = functional.cosine_similarity(pair[:1], pair[1:])
    return float(((1 + s.mean()) / 2 * (1 - s.std(correction=0)).clamp(0, 1) * symmetry) ** 5)


def serfiq_alone(recognizer: Recognizer, x: torch.Tensor) -> float:
    """SER-FIQ of one face as the released script runs it: the network on 100 copies, dropout before the last layer."""
    network = recognizer.split("serfiq")
    with torch.inference_mode():
        features = network.trunk((x.expand(100, -1, -1, -1) - 0.5) / 0.5)
        embeddings = functional.normalize(network.tail(functional.dropout(features, 0.5)))
        raw = 2 * torch.sigmoid(-functional.pdist(embeddings).mean())
        return float(torch.sigmoid(130 * (raw - 0.88)))


def single_image_ratios(faces: torch.Tensor, share: float, device: str) -> dict[str, dict[str, Any]]:
    """Seconds per image of both methods, ours in a batch and the released way one by one, on all of torch's threads."""
    found: dict[str, dict[str, Any]] = {}
    for method, name, n in (("faceqan", SMALL, 16), ("serfiq", SPLIT, 4)):
        n = max(2, round(n * share))
        recognizer = load_recognizer(name, "random:0", device)
        ours = load_scorer(method, recognizer=recognizer, device=device)
        alone = load_recognizer(name, "random:0", device)
        alone.backbone.requires_grad_(True)
        x = faces[:n].to(device).float() / 255
        ours(faces[:1], np.arange(1))
        started = time.perf_counter()
        ours(faces[:n], np.arange(n))
        ours_s = time.perf_counter() - started
        started = time.perf_counter()
        for face in x:
            if method == "faceqan":
                faceqan_alone(alone.backbone, face[None], 2 * torch.rand(10, *face.shape, device=device) - 1)
            else:
                serfiq_alone(alone, face[None])
        alone_s = time.perf_counter() - started
        found[method] = {
            "recognizer": name,
            "ours_s_per_image": round(ours_s / n, 5),
            "alone_s_per_image": round(alone_s / n, 5),
            "ratio": round(alone_s / ours_s, 1),
        }
    return found


def onnx_ratios(faces: torch.Tensor, share: float, device: str) -> dict[str, dict[str, Any]]:
    """Seconds per image of a network as a torch module and as an ONNX file, three rounds in turn; the ratio of medians."""
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")
        for what, name, n in (("embed", SMALL, 256), ("embed", SPLIT, 64), ("faceqan", SMALL, 4)):
            n = max(2, round(n * share))
            by_torch = load_recognizer(name, "random:0", device)
            path = f"{folder}/{name}.onnx"
            torch.onnx.export(
                by_torch.backbone.cpu(),
                (torch.zeros(1, 3, 112, 112),),
                path,
                dynamo=False,
                input_names=["data"],
                output_names=["embedding"],
                dynamic_axes={"data": {0: "batch"}, "embedding": {0: "batch"}},
            )
            recognizers = {"torch": by_torch.to(device), "onnx": load_recognizer(path, None, device)}
            scorers = {k: load_scorer(what, r, device=device) for k, r in recognizers.items() if what != "embed"}
            seconds: dict[str, list[float]] = {"torch": [], "onnx": []}
            for _ in range(4):  # the first round warms up
                for kind, recognizer in recognizers.items():
                    started = time.perf_counter()
                    if what == "embed":
                        with torch.inference_mode():
                            for batch in faces[:n].split(8):
                                recognizer(batch.to(device)).cpu()
                    else:
                        scorers[kind](faces[:n], np.arange(n))
                    seconds[kind].append((time.perf_counter() - started) / n)
            torch_s, onnx_s = (float(np.median(seconds[kind][1:])) for kind in ("torch", "onnx"))
            row = {
                "torch_s_per_image": round(torch_s, 5),
                "onnx_s_per_image": round(onnx_s, 5),
                "ratio": round(torch_s / onnx_s, 2),
            }
            measured[f"{what} {name}"] = row
            print(json.dumps({"onnx": f"{what} {name}", **row}), flush=True)
    return measured


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result as JSON, if a file is named."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="share of the usual number of faces")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--recognizer", default=SMALL, help="for embed and faceqan")
    parser.add_argument("--only-onnx", action="store_true", help="only the comparison of torch and ONNX")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    n_workers = torch.cuda.device_count() if a.device == "cuda" else os.cpu_count() or 1
    pixels = make_faces()
    faces = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    if a.only_onnx:
        write_result(a.json, {"device": a.device, "torch_against_onnx": onnx_ratios(faces, a.share, a.device)})
        return
    encoded = [pack_face(face) for face in pixels]
    size = default_batch_size(a.device)
    stage: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as root:
        for what, name, n in ROWS:
            settings = job_settings(Path(root), what, name or a.recognizer, n_workers, a.device)
            job = Job(settings)
            n = max(n_workers * size, round(n * a.share) // (n_workers * size) * n_workers * size)
            write_faces(job, encoded, n)
            call = ModelCall(settings.recognizer, None, None, {}, 0, a.device)
            if what != "embed":
                call = replace(call, scorer=what, weights=settings.methods[0].weights)
            before = bare_rate(call, faces, n, n_workers, size)
            with ray_session(settings.compute):
                through = stage_rate(job, what)
            after = bare_rate(call, faces, n, n_workers, size)
            bare = (before + after) / 2
            stage[what] = {
                "n_images": n,
                "stage_images_per_s": round(through, 1),
                "bare_images_per_s": [round(before, 1), round(after, 1)],
                "ratio": round(through / bare, 3),
            }
            print(json.dumps({"what": what, **stage[what]}), flush=True)
    alone = single_image_ratios(faces, a.share, a.device)
    print(json.dumps({"one image at a time": alone}), flush=True)
    result = {
        "device": a.device,
        "n_workers": n_workers,
        "stage_against_bare_loop": stage,
        "one_image_at_a_time": alone,
        "torch_against_onnx": onnx_ratios(faces, a.share, a.device),
    }
    write_result(a.json, result)


if __name__ == "__main__":
    main()
