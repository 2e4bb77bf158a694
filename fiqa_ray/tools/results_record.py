"""Where the datasets of a run's last settings lie: a note in the run, written by each run and read by `open_run`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from fiqa_ray.config import EDIFF
from fiqa_ray.core.candidates import HELDOUT
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.documents import read_document, write_document
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.storage import fingerprint, join

RESULTS = "_results.json"
"""Note of a run's datasets, from which `open_run` finds them."""


def record_results(job: Job) -> None:
    """Write where the job's datasets lie; those that cannot be named, such as for a missing score file, are left out."""
    s = job.settings
    sets, benchmarks = list(job.face_sets), s.benchmarks
    scored = [(f, m) for f in sets for m in s.methods if job.has_scores(f, m)]
    wanted: list[tuple[dict[str, Any], Callable[[], Dataset]]] = [
        *(({"set": f}, partial(job.faces, f)) for f in sets),
        *(({"set": f}, partial(job.embeddings, f)) for f in sets),
        *(({"set": f, "method": m.label}, partial(job.prior_scores, f, m)) for f, m in scored),
        *(
            ({"set": b.name, "method": job.scorer_name(t)}, partial(job.regressor_scores, b.name, t))
            for b in benchmarks
            for t in job.label_sets()
        ),
        *(
            ({"method": m.label, "theta": t}, partial(job.optimized_labels, m, t))
            for m in (s.methods if job.with_training else ())
            for t in s.optimize.thetas
        ),
        *(
            ({"method": m.label}, partial(job.ediff, "ediff_labels", m))
            for m in (s.methods if job.with_training and EDIFF in s.optimize.mode else ())
        ),
        *(
            ({"method": m.label}, partial(job.theta_choice, m))
            for m in (s.methods if job.with_training and HELDOUT in s.optimize.thetas else ())
        ),
        *([({}, job.results)] if benchmarks else []),
        *(({"set": b.name}, partial(job.evaluation, b)) for b in benchmarks),
        *(
            ({"set": b.name, "recognizer": r.label}, partial(job.comparisons, b, r))
            for b in benchmarks
            for r in job.judges
        ),
        *(({"method": job.scorer_name(t)}, partial(job.regressor, t)) for t in job.label_sets()),
        *([({}, job.pairs)] if job.with_training and s.needs_pairs else []),
        ({}, job.report),
    ]
    record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "name": s.name, "datasets": []}
    record |= {"settings": fingerprint(s.identity()), "pair": s.pair.model_dump(mode="json"), "seed": s.seed}
    for keys, find in wanted:
        with suppress(FiqaRayError):
            dataset = find()
            place = dataset.uri.removeprefix(s.run_uri.rstrip("/") + "/")
            record["datasets"].append({"dataset": dataset.name, **keys, "place": place})
    try:
        stored = read_results_record(s.run_uri)
    except FiqaRayError:  # damaged: it follows from the settings, and is written again
        stored = None
    if stored is not None and not job.with_training:  # labels and regressors of the run stay
        named = [{k: v for k, v in e.items() if k != "place"} for e in record["datasets"]]
        others = [e for e in stored.get("datasets", []) if {k: v for k, v in e.items() if k != "place"} not in named]
        record["datasets"] += others
    if stored != record:
        write_document(join(s.run_uri, RESULTS), record, RESULTS)


def read_results_record(run_uri: str) -> dict[str, Any] | None:
    """Return what a run notes of its datasets, or None; raise `FiqaRayError` if the file is damaged."""
    return read_document(join(run_uri, RESULTS), "remove this file and run the job again: it is written again", RESULTS)
