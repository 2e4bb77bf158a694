"""pack: read what people have, align it once to 112x112, write identity-contiguous shards of faces (Ray Data).

The source is listed once; the sorted list is kept beside the shards, so a resumed run neither lists nor plans again.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.config import SourceSettings
from fiqa_ray.core.landmark_order import LandmarkOrder
from fiqa_ray.datasets import schemas
from fiqa_ray.datasets.dataset import Dataset, Manifest, Part
from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.datasets.source_list import SOURCE_LIST, read_list
from fiqa_ray.datasets.sums import file_sums
from fiqa_ray.engine.cost import FACE_BYTES, FACE_MEMORY, Cost, Workload
from fiqa_ray.engine.progress import note
from fiqa_ray.engine.step import Step, Worker
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.images import PreparedFace, jittered_face, prepare_face
from fiqa_ray.job import Job
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.public_uri import public_text
from fiqa_ray.sources.account import Account
from fiqa_ray.sources.containers import Fault
from fiqa_ray.sources.keys import alike_names
from fiqa_ray.sources.kinds import SOURCES
from fiqa_ray.sources.landmarks import LandmarkFit, arrange_landmarks
from fiqa_ray.sources.private_uris import private_faces, public_faces
from fiqa_ray.storage import exists, storage_errors, write_atomic

_ALIGNMENTS = {"landmarks": "by given landmarks", "as_is": "taken as they are"}


@dataclass(frozen=True)
class PackShard:
    """Rows of the source list that make one part; all images of its identities."""

    index: int
    first_row: int
    first_identity: int
    faces: pa.Table


def pack_steps(job: Job) -> Iterator[list[Step]]:
    """Yield one step per face set, the training faces and each benchmark, in one group."""
    steps = []
    for face_set, source in job.face_sets.items():
        dataset = job.faces(face_set)
        listing = _listed(dataset, face_set, source, job.settings.compute.rows_per_part)
        faces, bounds, account = listing.faces, listing.bounds, listing.account
        rows = identity_rows(faces["identity"])
        shards = [
            PackShard(i, first, int(rows[first]), faces.slice(first, end - first))
            for i, (first, end) in enumerate(itertools.pairwise(bounds))
        ]
        step = Step(
            stage="pack",
            dataset=dataset,
            shards=shards,
            make_worker=partial(make_worker, dataset, source, account.landmarks),
            check=partial(check_faces, face_set, source),
            n_rows=len(faces),
            runs_in="pool",
            unit="images",
            plan={
                "bounds": bounds,
                "n_identities": account.n_people,
                "account": account.to_json(),
                "has_secrets": listing.has_secrets,
                "source_list": listing.sums,
            },
        )
        steps.append(step)
    yield steps


def estimate(job: Job, workload: Workload) -> Iterator[Cost]:
    """Yield the cost of each face set; a photograph is taken to be as long in bytes as the stored face."""
    for face_set in job.face_sets:
        n = workload.n_images[face_set]
        yield Cost(
            "pack",
            face_set,
            n,
            workload.n_parts(face_set),
            work_s=n * workload.units.pack_image,
            memory_bytes=workload.part_rows * FACE_MEMORY,
            read_bytes=n * FACE_BYTES,
            written_bytes=n * FACE_BYTES,
            datasets=(job.faces(face_set),),
        )


@dataclass(frozen=True)
class Listing:
    """A face set as listed.

    Attributes:
        faces: Its images, with whole URIs.
        bounds: Row bounds of its parts.
        account: What became of the source's files.
        sums: Sizes and sums of the stored list.
        has_secrets: Whether URIs hold secrets, which are not stored.
    """

    faces: pa.Table
    bounds: list[int]
    account: Account
    sums: dict[str, Any]
    has_secrets: bool


def _listed(dataset: Dataset, face_set: str, source: SourceSettings, rows_per_part: int) -> Listing:
    """Return the list of a face set: that of an earlier run, or a new one.

    The stored list has no secrets; where the source's URIs do, it is listed again to read it.
    """
    uri, plan = dataset.at(SOURCE_LIST), dataset.plan()
    if plan is not None and exists(uri):
        account, faces = Account.from_json(plan["account"]), read_list(dataset)
        if plan["has_secrets"]:
            faces = private_faces(faces, list_faces(face_set, source)[0], f"{_source_name(face_set)}: {source.uri}")
        else:
            check_account(face_set, source, account)
        return Listing(faces, plan["bounds"], account, plan["source_list"], plan["has_secrets"])
    faces, account = list_faces(face_set, source)
    public, has_secrets = public_faces(faces)
    data = table_bytes(public)
    sums = file_sums(SOURCE_LIST, data)
    if plan is not None and plan["source_list"] != sums:
        raise FiqaRayError(
            f"{_source_name(face_set)}: {source.uri} does not list the same images as when {dataset.uri} was begun, and the "
            f"list of that time, {SOURCE_LIST}, is lost; choose another run_uri"
        )
    write_atomic(uri, data)
    bounds = plan["bounds"] if plan is not None else _bounds(dataset, face_set, faces, rows_per_part)
    return Listing(faces, bounds, account, sums, has_secrets)


def _bounds(dataset: Dataset, face_set: str, faces: pa.Table, rows_per_part: int) -> list[int]:
    """Return the row bounds of the parts; where the plan was lost, those of the parts that are there.

    A benchmark whose folders name nobody is cut anywhere: its identities are all "", which is no person.
    """
    manifest = dataset.manifest()
    if manifest is not None and manifest.n_rows == len(faces):
        return manifest.first_rows
    is_flat = face_set != "train" and pc.all(pc.equal(faces["identity"], "")).as_py()
    bounds = part_bounds(np.arange(len(faces)) if is_flat else identity_rows(faces["identity"]), rows_per_part)
    for i, part in dataset.finished_parts().items():
        if i + 1 >= len(bounds) or bounds[i + 1] - bounds[i] != part.n_rows:
            raise FiqaRayError(
                f"{dataset.uri}: its plan is lost and its parts do not fit the source and rows_per_part of now; remove this "
                "folder and run again"
            )
    return bounds


def listed_faces(dataset: Dataset) -> pa.Table:
    """Return the `image_id` and the `identity` of a listed face set's images, in their order."""
    return read_list(dataset, ["image_id", "identity"])


def list_faces(face_set: str, source: SourceSettings) -> tuple[pa.Table, Account]:
    """List the images of a source and say what became of its files.

    Args:
        face_set: `train` or a benchmark's name.
        source: where the faces come from.

    Returns:
        A table of `schemas.SOURCE_FACES` or `SOURCE_RECORDS`, sorted by (identity, image_id), with landmarks in the
        template's order; and its account.

    Raises:
        FiqaRayError: the source cannot be listed, its landmarks have another order, or most training people have one image.
    """
    kind = SOURCES[source.kind]
    options = {name: getattr(source, name) for name in kind.options}
    left_out: Counter[str] = Counter()
    if kind.counts_left_out:
        options["left_out"] = left_out
    try:
        with storage_errors(source.uri):
            faces = kind.list_faces(source.uri, **options)
        if source.limit is not None:
            n = int(np.searchsorted(identity_rows(faces["identity"]), source.limit))
            left_out.update({"beyond source.limit": len(faces) - n} if n < len(faces) else {})
            faces = faces.slice(0, n)
        faces, fit = arrange_landmarks(faces, source.landmark_order)
    except FiqaRayError as exc:
        raise FiqaRayError(f"{_source_name(face_set)}: {exc}") from exc
    account = Account.of(faces, left_out, fit)
    check_account(face_set, source, account)
    if face_set == "train":
        _check_names(faces, source)
    return faces, account


def check_account(face_set: str, source: SourceSettings, account: Account) -> None:
    """Print a face set's account.

    Raises:
        FiqaRayError: most people of the training faces have one image and the settings do not allow it.
    """
    note(f"{_source_name(face_set)}: {account}")
    if face_set == "train" and account.n_people == 1 and account.n_images > 1:
        note(
            "source: all images are of one person. If there are more people, another folder, column or key names them "
            "(`identity_level` chooses the folder; `fiqa-ray init` finds it)"
        )
    if face_set != "train" or 2 * account.n_single <= account.n_people:
        return
    if not source.allow_single_images:
        raise FiqaRayError(
            f"source: {account.n_single:,} of {account.n_people:,} people have one image each, of {account.n_images:,} "
            f"images in {source.uri}; mated pairs, and so optimized labels, need several images of a person. Check which "
            "folder, column or key names the person, or set allow_single_images: true in this source"
        )
    if account.n_single == account.n_people:
        note("source: no two images show the same person, so there are no mated pairs and labels are the prior's")


def _check_names(faces: pa.Table, source: SourceSettings) -> None:
    """Refuse training faces of nobody, whose pairs would count as mated, and name people that may be one.

    Raises:
        FiqaRayError: an image has no identity.
    """
    n_nameless = pc.sum(pc.equal(faces["identity"], "")).as_py() or 0
    if n_nameless and source.kind != "recordio":  # there it is a damaged record, which pack names
        row = pc.index(faces["identity"], "").as_py()
        raise FiqaRayError(
            f"source: {n_nameless:,} of {len(faces):,} images have no identity, such as "
            f"{faces['image_id'][row].as_py()!r}, and would count as one person; name their people or leave them out"
        )
    alike = alike_names(pc.unique(faces["identity"]).to_pylist())
    if alike:
        first, second = alike[0]
        note(
            f"source: {len(alike):,} names of people equal another but for case, spaces or Unicode form, such as {first!r} "
            f"and {second!r}; they count as different people"
        )


def _source_name(face_set: str) -> str:
    return "source" if face_set == "train" else f"source of {face_set}"


def identity_rows(identity: pa.ChunkedArray) -> np.ndarray:
    """Return dense identity numbers `(I,) int64` of a sorted identity column."""
    codes = identity.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    changed = np.flatnonzero(np.diff(codes)) + 1
    return np.searchsorted(changed, np.arange(len(codes)), side="right")


def part_bounds(identity_row: np.ndarray, rows_per_part: int) -> list[int]:
    """Return the row bounds of parts of about `rows_per_part` rows; an identity never crosses one."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(identity_row)) + 1, [len(identity_row)]])
    bounds = [0]
    for start, end in itertools.pairwise(starts):
        if end - bounds[-1] > rows_per_part and start > bounds[-1]:
            bounds.append(int(start))
    return [*bounds, len(identity_row)] if len(identity_row) else [0]


def check_faces(face_set: str, source: SourceSettings, faces: Manifest) -> None:
    """Say of how many images libjpeg complained, and refuse a set whose faces were aligned in several ways.

    Aligners place eyes and mouth differently, so scores and similarities of their crops do not compare.

    Raises:
        FiqaRayError: names the ways and how many faces each has, unless the source allows them.
    """
    if n := faces.stats.get("complaints", 0):
        note(
            f"{_source_name(face_set)}: libjpeg complains of {n:,} image(s), which are used nevertheless; `fiqa-ray "
            "rejects` names them"
        )
    counts = faces.stats.get("alignment", {})
    if len(counts) > 1 and not source.allow_mixed_crops:
        shown = ", ".join(f"{_ALIGNMENTS.get(k, k)} {n}" for k, n in counts.items())
        raise FiqaRayError(
            f"pack: the faces of {face_set} were aligned in several ways ({shown}) and do not compare; give landmarks for "
            "all of them or none and choose another run_uri, or set allow_mixed_crops: true in this source and run again"
        )


def make_worker(dataset: Dataset, source: SourceSettings, fit: LandmarkFit | None) -> Worker:
    """Return the worker of a source; load the detector if there is one."""
    detector = FaceDetector(source.detector) if source.detector is not None else None
    prepare = partial(
        prepare_face,
        detector=detector,
        fractions=fit is not None and LandmarkOrder.parse(fit.order).fractions,
        check_order=fit is not None and not fit.is_forced,
        allow_missing_end=source.allow_missing_end,
        apply_exif=source.exif == "apply",
        resize_crops=source.resize_crops,
    )
    return partial(run_shard, dataset, source, detector, prepare)


def run_shard(
    dataset: Dataset,
    source: SourceSettings,
    detector: FaceDetector | None,
    prepare: Callable[..., PreparedFace],
    shard: PackShard,
) -> Part:
    """Read, decode and align the shard's images; every image keeps a row. Memory: the part's encoded faces."""
    started, kind = time.monotonic(), source.kind
    landmarks = shard.faces["landmarks"].to_pylist()
    face_of_row: dict[int, PreparedFace] = {}
    if not SOURCES[kind].has_images:
        face_of_row = dict.fromkeys(range(len(shard.faces)), PreparedFace(None, "ok", None))
    for row, content in SOURCES[kind].read_images(shard.faces) if SOURCES[kind].has_images else ():
        if isinstance(content, Fault):
            face_of_row[row] = PreparedFace(None, content.status, content.error)
        else:
            face_of_row[row] = prepare(content, landmarks[row])
    prepared = [face_of_row[row] for row in range(len(shard.faces))]
    if source.jitter:
        names = shard.faces["image_id"].to_pylist()
        prepared = [jittered_face(face, name) for face, name in zip(prepared, names, strict=True)]
    n = len(prepared)
    table = pa.table(
        {
            "image_row": np.arange(shard.first_row, shard.first_row + n),
            "identity_row": (shard.first_identity + identity_rows(shard.faces["identity"])).astype(np.int32),
            "image_id": shard.faces["image_id"],
            "identity": shard.faces["identity"],
            "face": [p.face for p in prepared],
            "status": [p.status for p in prepared],
            "error": [public_text(p.error or p.complaint or "") or None for p in prepared],
        },
        schema=schemas.FACES,
    )
    if n == 0:
        raise FiqaRayError(f"{dataset.uri}: shard {shard.index} is empty")
    if detector is not None:
        name = f"detector {detector.sha256}"
        prepared = [replace(p, alignment=name) if p.alignment == "detector" else p for p in prepared]
    stats: dict[str, Any] = {
        "status": dict(Counter(p.status for p in prepared)),
        "alignment": dict(Counter(p.alignment for p in prepared if p.alignment)),
    }
    if n_complaints := sum(p.complaint is not None for p in prepared):
        stats["complaints"] = n_complaints
    return dataset.write_part(
        shard.index,
        {".parquet": table},
        n_rows=n,
        stats=stats,
        duration_s=time.monotonic() - started,
        row_group_rows=4096,
        compression={"face": "NONE"} | {c: "zstd" for c in schemas.FACES.names if c != "face"},
    )
