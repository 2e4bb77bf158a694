"""Writes a job for a user's faces: the layout, C, theta and the recogniser's input are found by looking at them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fiqa_ray.config import SourceSettings, make_settings
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import PreparedFace, decode_faces, prepare_face
from fiqa_ray.job import Job
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.safe_yaml import parse_yaml
from fiqa_ray.sources.containers import Fault
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.kinds import SOURCES
from fiqa_ray.sources.leftovers import count_text
from fiqa_ray.sources.paths import absolute, kind_of, names_below
from fiqa_ray.stages.pack import list_faces
from fiqa_ray.tools.doctor import check_recognizer
from fiqa_ray.tools.input_checks import SCALINGS, Finding
from fiqa_ray.tools.plan import needs_no_ray
from fiqa_ray.tools.separation import difference, separations
from fiqa_ray.tools.trial_faces import TrialFaces

N_PEOPLE, N_IMAGES_EACH = 32, 4
"""People whose faces are looked at, as many as `doctor` begins with, and images of each."""
_STANDARD_ERRORS = 3.0
MOST_CLUSTERS = 20
"""The paper's C."""
_SMALL_SET = 1000
"""Images below which a set is told that its labels vary with the seed."""
_LOCAL_LINE = (
    "compute: {engine: local}         # less work than Ray takes to start; leave this line out for more images\n"
)


@dataclass(frozen=True)
class Layout:
    """What was found out about a set of faces.

    Attributes:
        source: the settings that read it.
        faces: its images, as sources list them.
        sizes: `(K,)` images of each person.
        examples: people in the first folders, for the comment.
        left_out: how many files are no images, by reason.
    """

    source: dict[str, Any]
    faces: pa.Table
    sizes: NDArray[np.int64]
    examples: str
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def n_clusters(self) -> int:
        """C: half of the images of a typical person, so that a cluster holds about two, and at most the paper's."""
        several = self.sizes[self.sizes > 1]
        return int(np.clip(np.median(several) // 2, 2, MOST_CLUSTERS)) if len(several) else 2


def init_job(
    uri: str,
    recognizer: str,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    detector: str | None = None,
    run_uri: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[str, list[str]]:
    """Return the YAML of a job for a set of faces, with what was found as comments, and the checks that found a fault.

    Args:
        uri: folder of images, or another source; see `find_source`.
        recognizer: FR model, as `load_recognizer` names it.
        weights: its checkpoint.
        options: its options; scaling and colour order of an ONNX file are found on the faces where they are not given.
        detector: YuNet's .onnx, for faces that are not aligned.
        run_uri: where the job writes; default: `runs/` and the name of the folder.
        say: is told what is done.

    Raises:
        FiqaRayError: nothing there is a set of faces, the faces are not aligned, or the recogniser cannot be loaded.
    """
    layout = find_layout(uri, detector)
    say(f"{uri}: {len(layout.faces):,} images of {len(layout.sizes):,} people, kind {layout.source['kind']}")
    trial = trial_faces(layout, uri)
    say(f"{recognizer}: checked on {len(trial.faces)} faces of {int(trial.person.max()) + 1} people")
    network, input_text = find_input(recognizer, weights, dict(options or {}), trial)
    findings = check_recognizer(network, trial)
    for finding in findings:
        say(
            f"  {finding.state.upper() if finding.state == 'fault' else finding.state:<5} {finding.check}: {finding.message}"
        )
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", PurePosixPath(uri.rstrip("/")).name).lstrip("_.-") or "faces"
    model: dict[str, Any] = {"name": recognizer}
    model |= {"weights": weights} if weights else {}
    model |= {"options": dict(network.options)} if network.options else {}
    text = job_text(layout, model, input_text, findings, name, run_uri or f"runs/{name}")
    job = Job(make_settings(parse_yaml(text, name)))  # what is written can be run
    if needs_no_ray(job, len(layout.faces), len(layout.sizes)):
        text += _LOCAL_LINE
    return text, [finding.check for finding in findings if finding.state == "fault"]


def find_layout(uri: str, detector: str | None = None) -> Layout:
    """Find out how a set of faces is laid out, and list it.

    Raises:
        FiqaRayError: it cannot be read, or no two images show one person.
    """
    source = find_source(uri) | ({"detector": detector} if detector else {})
    faces, account = list_faces("train", SourceSettings(**source, allow_single_images=True))
    names = faces["identity"].combine_chunks().dictionary_encode()
    sizes = np.bincount(names.indices.to_numpy(zero_copy_only=False))
    if (sizes < 2).all():
        raise FiqaRayError(
            f"{uri}: {len(sizes):,} people, each with one image; labels are made from several images of a person. Give the "
            "folder that has one folder per person"
        )
    first = names.dictionary.slice(0, 3).to_pylist()
    return Layout(source, faces, sizes, ", ".join(first) + (", ..." if len(sizes) > 3 else ""), account.left_out)


def find_source(uri: str) -> dict[str, Any]:
    """Return the `source` settings that read a location: its kind and, of a folder, which level names the person.

    Raises:
        FiqaRayError: nothing is there.
    """
    ending = PurePosixPath(uri.split("?")[0]).suffix.lower()
    is_folder = kind_of(uri) == "folder"
    if not is_folder:
        if ending in (".rec", ".bin"):
            return {"kind": {".rec": "recordio", ".bin": "bin"}[ending], "uri": uri}
        if ending == ".tar":
            return {"kind": "webdataset", "uri": uri}
        if ending in (".csv", ".tsv", ".txt"):
            return {"kind": "table", "uri": uri}
        if ending in (".parquet", ".pq"):
            return {"kind": "table" if _names_files(uri) else "parquet_images", "uri": uri}
    names = names_below(absolute(uri))
    endings = Counter(PurePosixPath(name).suffix.lower() for name in names)
    top = {name.split("/")[0] for name in names}
    if "bb_landmark" in top and {"train", "test"} & top:
        return {"kind": "vggface2", "uri": uri, "splits": [s for s in ("train", "test") if s in top]}
    if "train.rec" in top:
        return {"kind": "recordio", "uri": uri}
    images = sum(endings[e] for e in (".jpg", ".jpeg", ".png", ".webp", ".bmp"))
    if not images and endings[".tar"]:
        return {"kind": "webdataset", "uri": uri}
    if not images and endings[".parquet"]:
        return {"kind": "parquet_images", "uri": uri}
    return {"kind": "folder", "uri": uri, "identity_level": find_level(uri)}


def _names_files(uri: str) -> bool:
    """Return whether a Parquet file names images, rather than holding them."""
    import pyarrow.parquet as pq

    from fiqa_ray.storage import filesystem, storage_errors

    with storage_errors(uri):
        fs, path = filesystem(uri)
        return "uri" in pq.read_schema(path, filesystem=fs).names


def find_level(uri: str) -> int:
    """Return which folder below `uri` names the person: the first level with several names and several images in most.

    Raises:
        FiqaRayError: no level has such folders; the message says what is there.
    """
    image_id = list_folder(uri, identity_level=None)["image_id"].to_pylist()
    folders = [name.split("/")[:-1] for name in image_id]
    for level in range(min(len(parts) for parts in folders)):
        counts = Counter(parts[level] for parts in folders)
        n_several = sum(n > 1 for n in counts.values())
        if len(counts) >= 3 and 2 * n_several >= len(counts) and not set(counts) <= {"train", "test", "val"}:
            return level
    raise FiqaRayError(
        f"{uri}: no level of folders names three or more people (images lie like {image_id[0]!r}); give the folder that has "
        "one folder per person, or a CSV with the columns uri and identity"
    )


def trial_faces(layout: Layout, uri: str) -> TrialFaces:
    """Read some faces of some people, evenly over the set.

    Raises:
        FiqaRayError: too few of them are aligned crops.
    """
    ends = np.cumsum(layout.sizes)
    several = np.flatnonzero(layout.sizes > 1)
    chosen = several[np.unique(np.linspace(0, len(several) - 1, N_PEOPLE).astype(int))]
    rows = [r for k in chosen for r in range(ends[k] - layout.sizes[k], ends[k])[:N_IMAGES_EACH]]
    person = np.repeat(np.arange(len(chosen)), np.minimum(layout.sizes[chosen], N_IMAGES_EACH))
    detector = FaceDetector(layout.source["detector"]) if "detector" in layout.source else None
    table = layout.faces.take(pa.array(rows))
    landmarks = table["landmarks"].to_pylist()
    prepared = {
        row: PreparedFace(None, content.status, content.error)
        if isinstance(content, Fault)
        else prepare_face(content, landmarks[row], detector)
        for row, content in SOURCES[layout.source["kind"]].read_images(table)
    }
    good = [row for row in range(len(rows)) if prepared[row].status == "ok"]
    people, number = np.unique(person[good], return_inverse=True)
    if len(people) < 3 or 2 * len(good) < len(rows):
        status = Counter(p.status for p in prepared.values() if p.status != "ok")
        fault = next(p.error for p in prepared.values() if p.status != "ok")
        remedy = "; for raw photographs add --detector yunet.onnx" if "no_landmarks" in status else ""
        raise FiqaRayError(
            f"{uri}: of {len(rows)} images that were read, {len(rows) - len(good)} cannot be used ({count_text(status)}), "
            f"such as: {fault}{remedy}"
        )
    faces = torch.from_numpy(decode_faces([prepared[row].face for row in good])[0])
    return TrialFaces(faces, faces, number.astype(np.int64), uri)


def find_input(name: str, weights: str | None, options: dict[str, Any], trial: TrialFaces) -> tuple[Recognizer, str]:
    """Load a recogniser; of an ONNX file that does not show how pixels go in, try what is usual.

    Returns:
        The recogniser with the scaling and colour order that tell these people apart best, and how they were found.
    """
    try:
        network = load_recognizer(name, weights, **options)
    except UsageError:
        if ModelRef.parse(name).kind != "onnx" or {"mean", "scale"} & set(options):
            raise
    else:
        return network, network.scaling_source or ("as you gave it" if options else "")
    tried: list[tuple[NDArray[np.float64], Recognizer]] = []
    for mean, scale in SCALINGS.values():
        for colour in ("RGB", "BGR"):
            given = {"mean": mean, "scale": scale, "colour": colour}
            network = load_recognizer(name, weights, **(given | options))
            embeddings = torch.cat([network(batch) for batch in trial.faces.split(16)]).numpy()
            if np.isfinite(embeddings).all():
                tried.append((separations(embeddings, trial.person), network))
    if not tried:
        raise FiqaRayError(f"{name}: no usual scaling of pixels gives finite embeddings; give mean and scale")
    best = tried[0]  # the most usual input, unless another is better beyond chance
    for other in tried[1:]:
        gain, error = difference(other[0], best[0])
        if gain > _STANDARD_ERRORS * error:
            best = other
    separation, network = best
    others = max((float(d[0]) for d, n in tried if n is not network), default=float("nan"))
    why = f"found on these faces, since the file does not say: d' {separation[0]:.2f}, others at most {others:.2f}"
    return network, why


def job_text(
    layout: Layout,
    recognizer: Mapping[str, Any],
    input_text: str,
    findings: list[Finding],
    name: str,
    run_uri: str,
) -> str:
    """Return the YAML with its comments."""
    sizes = layout.sizes
    several = sizes[sizes > 1]
    several_text = f"{len(several):,} people with two or more images, {int(np.median(several))} at the median"
    left_out = f"; {count_text(Counter(layout.left_out))} left out" if layout.left_out else ""
    doctor = [f"#   {f.state.upper() if f.state == 'fault' else f.state}: {f.check}: {f.message}" for f in findings]
    small = ""
    if sizes.sum() < _SMALL_SET:
        small = f"\n# The set is small ({sizes.sum():,} images): compare several seeds before you trust a label."
    lines = [
        f"# {len(layout.faces):,} images of {len(sizes):,} people ({layout.examples}), written by `fiqa-ray init`.",
        "#   fiqa-ray plan THIS.yaml      # time, memory and bytes before anything runs",
        "#   fiqa-ray run THIS.yaml",
        f"#   fiqa-ray labels {run_uri} -o labels.csv{small}",
        f"name: {json.dumps(name)}",
        f"run_uri: {json.dumps(run_uri)}  # everything that the job writes; s3://... works too",
        f"# {several_text}; {int((sizes == 1).sum()):,} with one, whose images keep their place{left_out}.",
        f"source: {_flow(layout.source)}",
        *([f"# Input of the recogniser: {input_text}."] if input_text else []),
        "# What the checks of `fiqa-ray doctor` say of it on some of these faces; where one is open, doctor looks at more:",
        *doctor,
        f"recognizer: {_flow(recognizer)}",
        "methods:",
        "  - name: embedding_norm         # the length of the embedding; costs nothing",
        "# - name: faceqan                # strong, at 52 forward and 40 backward passes per image",
        "# - {name: my.py:score}          # a function of faces of your own, see docs/how-to/method.md",
        "# - {name: mine, scores: q.csv}  # scores that you have: image_id,score",
        f"pair: {{n_clusters: {layout.n_clusters}}}             # C: half of the images of a typical person, at most 20",
        "optimize: {theta: heldout}       # the best on held-out people; 0 where labels gain nothing: docs/how-to/theta.md",
        "benchmarks: []                   # add pairs of other people to learn which score is best: docs/how-to/source.md",
    ]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """Return a value as one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)
