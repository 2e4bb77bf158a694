"""What pack, embed and score would leave for the label stages, of 114 images of seven people, and a run of these stages."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa

from fiqa_ray.config import make_settings
from fiqa_ray.datasets import schemas
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.stages import stage_steps

SIZES = [1, 3, 30, 12, 25, 2, 41]
ONE_SHARD = [0, sum(SIZES)]
SHARDS = np.concatenate([[0], np.cumsum(SIZES)]).tolist()


def settings(run_uri, **changes):
    values = {
        "name": "t",
        "run_uri": run_uri,
        "seed": 11,
        "source": {"kind": "folder", "uri": "nowhere"},
        "recognizer": {"name": "none"},
        "methods": [{"name": "one"}, {"name": "two"}],
        "pair": {"n_clusters": 6, "n_repeats": 3},
        "optimize": {"theta": [0.001, 0.2]},
    }
    return make_settings({**values, **changes})


def data(seed=0):
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(len(SIZES)), SIZES)
    embeddings = (rng.normal(size=(len(SIZES), 24))[identity] + rng.normal(size=(len(identity), 24))).astype(np.float32)
    scores = {"one": rng.integers(0, 9, len(identity)).astype(float), "two": rng.normal(size=len(identity))}
    return identity, embeddings, scores


def write_inputs(job, identity, embeddings, scores, bounds, bad=()):
    """What pack, embed and score would leave: parts cut at ``bounds``, the images in ``bad`` without an embedding."""
    n = len(identity)
    status = ["unreadable" if i in bad else "ok" for i in range(n)]
    tables = {
        job.faces("train"): {
            "image_id": [f"{i:04d}" for i in range(n)],
            "identity": [f"n{k}" for k in identity],
            "face": [b""] * n,
        },
        job.embeddings("train"): {"embedding": [None if i in bad else e.tobytes() for i, e in enumerate(embeddings)]},
    }
    for method in job.settings.methods:
        s = scores[method.label]
        tables[job.prior_scores("train", method)] = {"score": [None if i in bad else v for i, v in enumerate(s)]}
    for dataset, columns in tables.items():
        schema = {"faces": schemas.FACES, "embeddings": schemas.embeddings(embeddings.shape[1])}.get(
            dataset.name, schemas.QUALITY_SCORES
        )
        rows = {
            "image_row": np.arange(n),
            "identity_row": identity.astype(np.int32),
            "status": status,
            "error": [None] * n,
        }
        table = pa.table({name: {**rows, **columns}[name] for name in schema.names}, schema=schema)
        for i, (a, b) in enumerate(pairwise(bounds)):
            dataset.write_part(
                i, {".parquet": table.slice(a, b - a)}, n_rows=b - a, stats={"status": dict(Counter(status[a:b]))}
            )
        dataset.write_plan({"stage": "given"})
        dataset.commit(len(bounds) - 1)


def run_stages(job, mapper=local_map, stages=("pair", "rank", "optimize")):
    for stage in stages:
        for steps in stage_steps(stage, job):
            run_steps(steps, mapper)
