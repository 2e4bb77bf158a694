"""Unit costs of this machine: the stages' own functions on small made-up samples, on one core, in a few seconds."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
import torch

from fiqa_ray.core.align import FACE_SIZE, TEMPLATE
from fiqa_ray.core.kernels.threads import one_thread
from fiqa_ray.core.labels import quality_index, reassign_scores, sum_owned_ranks
from fiqa_ray.core.pairs import Pairs, mated_pairs, redraw_mates, round_similarity
from fiqa_ray.core.ranking import KeyCounter, RankTable, merge_range, similarity_key
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.parquet import plain_bytes
from fiqa_ray.engine.cost import Scale, Units
from fiqa_ray.engine.memory import reuse_memory
from fiqa_ray.images import prepare_face
from fiqa_ray.stages.rank import GROUP_PAIRS

_SAMPLE_IMAGES = 2048
_SAMPLE_KEYS = 1 << 21
_SAMPLE_SCORES = 1 << 20
_FILE_PAIRS = 1 << 20
_N_WRITES = 4
_PHOTO_SIDE = 250  # pixels, LFW's; a photograph of VGGFace2 is 137 x 180 at the median


@lru_cache(maxsize=8)
def measure_units(scale: Scale) -> Units:
    """Measure this machine on a sample of the given shape: one core, two or three seconds."""
    reuse_memory()
    rng = np.random.default_rng(0)
    size = max(2, round(scale.mean_images * scale.size_spread))
    n_identities = max(1, _SAMPLE_IMAGES // size)
    n = n_identities * size
    centres = rng.standard_normal((n_identities, scale.dim), np.float32)
    x = np.repeat(centres, size, axis=0) + 0.7 * rng.standard_normal((n, scale.dim), np.float32)
    similarity = round_similarity(0.45 + 0.15 * rng.standard_normal(_SAMPLE_KEYS))
    image = np.sort(rng.integers(0, n, _SAMPLE_KEYS)).astype(np.int32)
    mate = ((image // size) * size + rng.integers(0, size, _SAMPLE_KEYS)).astype(np.int32)
    n_opened = np.bincount(image, minlength=n)
    bounds, rows = np.arange(n_identities + 1) * size, np.arange(n_identities)
    prior = rng.standard_normal(_SAMPLE_SCORES)

    def make() -> list[Pairs]:
        return mated_pairs(x, bounds, rows, n_clusters=scale.n_clusters, n_repeats=scale.n_repeats)

    with one_thread():
        first = make()[0]  # the first calls load libraries and compiled code
        pair_s = _seconds(make, 2)
        repeats = range(scale.n_repeats)
        redraw_mates(first.cluster, bounds, rows, repeats, seed=0)
        draw_s = _seconds(lambda: redraw_mates(first.cluster, bounds, rows, repeats, seed=0), 2)
        key = similarity_key(similarity)
        counter = KeyCounter()
        counter.add(similarity)
        counter.histogram()
        count_s = _seconds(lambda: counter.add(similarity), 4)
        ranks = RankTable.of(counter.histogram())
        sort_s = _seconds(lambda: np.sort(key), 2) * math.log2(GROUP_PAIRS) / math.log2(len(key))
        runs = np.concatenate([np.sort(k) for k in np.array_split(key, 4)])
        merge_s = _seconds(lambda: merge_range(runs), 2)
        indices = {str(i): rng.permutation(n) for i in range(3)}
        sum_owned_ranks({"0": indices["0"]}, n_opened, mate, similarity, ranks)
        one_s = _seconds(lambda: sum_owned_ranks({"0": indices["0"]}, n_opened, mate, similarity, ranks), 2)
        three_s = _seconds(lambda: sum_owned_ranks(indices, n_opened, mate, similarity, ranks), 2)
        method_s = max(0.0, three_s - one_s) / 2
        index_s = _seconds(lambda: quality_index(prior), 1)
        index = quality_index(prior)
        label_s = _seconds(lambda: reassign_scores(prior, index, index + prior), 1)
        read_s, write_s, row_s = _measure_storage(similarity)
        pack_s, head_s = _measure_packing(rng), _measure_head(x)
    keys, scores = float(_SAMPLE_KEYS), float(_SAMPLE_SCORES)
    return Units(
        pack_image=pack_s,
        pair_image=pair_s / n,
        count_pair=count_s / keys,
        sort_pair=sort_s / keys,
        merge_pair=merge_s / keys,
        sum_pair=draw_s / max(len(first.mate) * scale.n_repeats, 1) + max(0.0, one_s - method_s) / keys,
        sum_pair_method=method_s / keys,
        index_image=index_s / scores + row_s,
        label_image=label_s / scores + 4 * row_s,
        head_image=head_s,
        read_byte=read_s,
        write_byte=write_s,
    )


def _seconds(call: Callable[[], object], n_calls: int) -> float:
    started = time.perf_counter()
    for _ in range(n_calls):
        call()
    return (time.perf_counter() - started) / n_calls


def _measure_packing(rng: np.random.Generator) -> float:
    """Return seconds per photograph that is decoded, aligned and encoded."""
    photo = cv2.GaussianBlur(rng.integers(0, 256, (_PHOTO_SIDE, _PHOTO_SIDE, 3), np.uint8), (0, 0), 3)
    encoded = cv2.imencode(".jpg", photo)[1].tobytes()
    landmarks = TEMPLATE * (_PHOTO_SIDE / FACE_SIZE)
    prepare_face(encoded, landmarks)
    return _seconds(lambda: prepare_face(encoded, landmarks), 8)


def _measure_head(embeddings: np.ndarray) -> float:
    """Return seconds per image that one step of a linear head's training takes."""
    n, dim = embeddings.shape
    label, head = torch.rand(n, 2), torch.nn.Linear(dim, 2)
    optimizer = torch.optim.Adam(head.parameters())

    def step() -> None:
        x = torch.from_numpy(np.stack(list(embeddings)))  # a batch is drawn image by image
        optimizer.zero_grad()
        (head(x) - label).abs().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()
    return _seconds(step, 4) / n


def _measure_storage(similarity: np.ndarray) -> tuple[float, float, float]:
    """Return seconds per byte read and written as pairs are, and per row and column as labels are, on the local disk."""
    # in files of the size that a part's have
    cuts = range(0, len(similarity), _FILE_PAIRS)
    pairs = [pa.table({"similarity": similarity[c : c + _FILE_PAIRS]}, schema=schemas.PAIRS) for c in cuts] * _N_WRITES
    rows = pa.table({"score": np.random.default_rng(0).random(_SAMPLE_SCORES)})
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(f"{folder}/v=0", "pairs")
        started = time.perf_counter()
        parts = [dataset.write_part(i, {".parquet": plain_bytes(p)}, n_rows=len(p)) for i, p in enumerate(pairs)]
        write_s = time.perf_counter() - started
        read_s = _seconds(lambda: [dataset.read(part) for part in parts], 2)
        started = time.perf_counter()
        dataset.write_part(len(parts), {".parquet": rows}, n_rows=len(rows))
        row_s = time.perf_counter() - started
    n_bytes = _N_WRITES * similarity.nbytes
    return read_s / n_bytes, write_s / n_bytes, row_s / len(rows)
