"""Checks that a recogniser, FIQA method or regressor gets the input it was made for, on faces of known people.

A wrong colour order, scaling or crop costs little accuracy, so it is rarely noticed, but it changes every score. Each
check compares the model's input with its alternatives: the input as configured must tell people apart better than
swapped channels, another scaling, or crops moved by 4 or 8 px. The measure is d', the distance between the mean cosines of
mated and of non-mated pairs in units of their spread. A difference counts if it exceeds three standard errors (jackknife
over people) and two per cent. Where an alternative is ahead by more than one standard error, or where the faces do not
suffice to tell, the finding says so and is "open"; all people given are then looked at before it stays so.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.engine.progress import note
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.devices import find_device
from fiqa_ray.models.formats.onnx_network import OnnxNetwork
from fiqa_ray.models.method_table import METHODS
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.recognizer import Recognizer, finite_rows
from fiqa_ray.models.recognizer_table import RECOGNIZERS, NetworkRow
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.tools.input_checks import (
    BATCH,
    SMALLEST_D,
    STANDARD_ERRORS,
    Finding,
    device_of,
    embed,
    features,
    input_findings,
    knows_people,
    length,
    mirror,
)
from fiqa_ray.tools.named_model import NamedModel
from fiqa_ray.tools.separation import difference, separations
from fiqa_ray.tools.trial_faces import TrialFaces, load_trial_faces

INPUT_CHECKS = ("colour order", "scaling", "crop")
MAX_PEOPLE = 1000
"""People that are looked at where fewer leave a check of the input open."""


def examine(
    model: NamedModel,
    images: str | None = None,
    n_people: int = 32,
    *,
    landmarks: str | None = None,
    landmark_order: str | None = None,
    as_recognizer: bool = False,
) -> list[Finding]:
    """Load a model and check it; a file that does not load is a finding too.

    Args:
        model: the model that the command names.
        images: folder or table of faces, see `load_trial_faces`.
        n_people: people to look at.
        landmarks: landmarks of a folder's images.
        landmark_order: order of the landmarks.
        as_recognizer: whether the model is an FR model; `.onnx` and `module:function` could be either.

    Raises:
        UsageError: the name or an option is wrong.
    """
    if not as_recognizer and model.name in RECOGNIZERS and model.name not in METHODS:
        raise UsageError(f"{model.name} is an FR model: fiqa-ray doctor --recognizer {model.name}")
    find_device(model.device)
    trial = load_trial_faces(images, n_people, landmarks, landmark_order)
    kind = ModelRef.parse(model.name).kind
    loaded: Recognizer | Scorer
    judge: Recognizer | None = None
    try:
        if as_recognizer:
            loaded = load_recognizer(model.name, model.weights, model.device, **model.options)
        else:
            loaded, judge = model.load_both()
    except UsageError as error:
        if not as_recognizer and kind in ("onnx", "function"):
            raise UsageError(f"{error}. If {model.name} is an FR model, name it by --recognizer") from error
        raise
    except FiqaRayError as error:
        hint = ". If it is an FR model, name it by --recognizer" if kind == "onnx" and not as_recognizer else ""
        return [Finding("file", "fault", f"{error}{hint}")]
    first = check_landmarks(trial)
    if isinstance(loaded, Recognizer):
        first.append(check_file(loaded, RECOGNIZERS.get(model.name), model.weights))
    elif loaded.network is not None:
        row = METHODS[model.name].network if model.name in METHODS else None
        first.append(check_file(loaded.network, row, model.recognizer_weights))
    findings = _check(loaded, trial, judge)
    if images is not None and n_people < MAX_PEOPLE and _open_inputs(findings):
        everybody = load_trial_faces(images, MAX_PEOPLE, landmarks, landmark_order)
        if len(everybody.faces) > len(trial.faces):
            n = int(everybody.person.max()) + 1
            note(f"doctor: {', '.join(_open_inputs(findings))} open with {n_people} people; looking at {n}")
            findings = _check(loaded, everybody, judge)
    return [*first, *findings]


def _check(model: Recognizer | Scorer, trial: TrialFaces, judge: Recognizer | None) -> list[Finding]:
    return check_recognizer(model, trial) if isinstance(model, Recognizer) else check_scorer(model, trial, judge)


def _open_inputs(findings: list[Finding]) -> list[str]:
    """Return the checks of the input that are open."""
    return [f.check for f in findings if f.state == "open" and f.check in INPUT_CHECKS]


def check_landmarks(trial: TrialFaces) -> list[Finding]:
    """Say how the landmarks fit the template, if the faces were aligned by landmarks."""
    if trial.landmarks is None:
        return []
    state: Literal["ok", "open"] = "open" if trial.landmarks.is_forced else "ok"
    return [Finding("landmarks", state, str(trial.landmarks))]


def check_file(network: Recognizer, row: NetworkRow | None, weights: str | None = None) -> Finding:
    """Compare the hash of the loaded weights with that of the released file, if one is published.

    Entries need no check: a file of which one entry does not fit is not loaded at all.

    Args:
        network: the loaded network.
        row: its row in the table of networks, if it has one.
        weights: location of its weights; a user's own code loads them itself.
    """
    if network.is_random:
        return Finding("file", "open", "random weights, which mean nothing: there is no file to check")
    if ModelRef.parse(network.name).kind == "onnx":
        return Finding("file", "ok", f"onnxruntime loads it; SHA-256 {network.weights_sha256}")
    if not network.backbone.state_dict():
        own = (
            f"your code got weights={weights}, which only it reads" if weights else "your code holds its weights itself"
        )
        return Finding("file", "ok", f"{own}: there is no file to check")
    message = f"every entry fits; SHA-256 {network.weights_sha256}"
    if row is None or row.sha256 is None:
        return Finding("file", "ok", f"{message} (none is published to compare with)")
    if network.weights_sha256 == row.sha256:
        return Finding("file", "ok", f"{message}, that of the released {row.released_file}")
    difference = f"is not that of the released {row.released_file}, {row.sha256}: trained or saved by somebody else"
    return Finding("file", "open", f"{message} {difference}")


def check_recognizer(recognizer: Recognizer, trial: TrialFaces) -> list[Finding]:
    """Check colour order, scaling, crop, batches and half precision of a recogniser.

    A quality network that contains a recogniser is checked in the same way.
    """
    if not knows_people(recognizer):
        message = (
            "the network gives one number per face and no embedding: people do not show whether its input is right"
        )
        return [Finding("people", "open", message)]
    faces = trial.faces.to(torch.float32) / 255
    embeddings = embed(recognizer, faces)
    n_bad = int((~finite_rows(embeddings)).sum())
    if n_bad:
        message = (
            f"{n_bad} of {len(embeddings)} embeddings are NaN or infinite; the file is damaged or the scaling is wrong"
        )
        return [Finding("output", "fault", message)]
    base = separations(embeddings, trial.person)
    message = f"d' {base[0]:.2f} between mated and non-mated pairs of {len(embeddings)} faces ({trial.source})"
    return [
        Finding("people", "ok" if base[0] >= SMALLEST_D else "open", message),
        *input_findings(recognizer, faces, trial.person, base),
        mirror(recognizer, faces, trial.person, embeddings, base),
        length(embeddings),
        _batches(lambda rows: embed(recognizer, faces[rows], len(rows)), len(faces)),
        *(
            [_gradients(recognizer)]
            if isinstance(recognizer.backbone, OnnxNetwork)
            else _half_precision(recognizer, faces[:BATCH], embeddings[:BATCH])
        ),
    ]


def check_scorer(scorer: Scorer, trial: TrialFaces, judge: Recognizer | None = None) -> list[Finding]:
    """Check the sign and batches of a FIQA method or regressor, and the recogniser that it works on or is judged by.

    Args:
        scorer: the method or regressor.
        trial: faces to try it on.
        judge: a recogniser whose similarities the scores should follow, for a method that works on none.
    """
    judge = scorer.network or judge
    findings = check_recognizer(judge, trial) if judge is not None else []
    rows = np.arange(len(trial.faces))
    clean, damaged = _score(scorer, trial.faces, rows), _score(scorer, trial.damaged, rows)
    if not (np.isfinite(clean).all() and np.isfinite(damaged).all()):
        n_bad = int((~np.isfinite(np.concatenate([clean, damaged]))).sum())
        return [*findings, Finding("output", "fault", f"{n_bad} of {2 * len(clean)} scores are NaN or infinite")]
    if np.ptp(np.concatenate([clean, damaged])) == 0:
        return [*findings, Finding("output", "fault", f"every face gets the same score, {clean[0]:g}")]
    first = trial.faces[:BATCH]
    batches = _batches(lambda r: scorer(first[r], rows[r])[:, None], len(first), "score")
    return [*findings, _sign(judge, trial, clean, damaged), batches]


# --- single checks ---


def _sign(
    judge: Recognizer | None, trial: TrialFaces, clean: NDArray[np.float64], damaged: NDArray[np.float64]
) -> Finding:
    """Check the direction of a score.

    Damaged copies must score lower, and the similarity of mated pairs must grow with the lower of their two scores.
    """
    n_people = int(trial.person.max()) + 1
    drop = np.array([(clean - damaged)[trial.person == k].mean() for k in range(n_people)])
    z = float(drop.mean() / max(drop.std(ddof=1) / np.sqrt(n_people), 1e-12))
    share = float((damaged < clean).mean())
    messages = [f"{100 * share:.0f} % of damaged copies score lower than their originals"]
    evidence = [z]
    if judge is not None and knows_people(judge):
        both = torch.cat([trial.faces, trial.damaged]).to(torch.float32) / 255
        person, score = np.tile(trial.person, 2), np.concatenate([clean, damaged])
        units = unit_vectors(embed(judge, both))
        i, j = np.triu_indices(len(person), 1)
        mated = person[i] == person[j]
        i, j = i[mated], j[mated]
        similarity, lower = np.einsum("ij,ij->i", units[i], units[j]), np.minimum(score[i], score[j])
        left_out = [person[i] != k for k in range(-1, n_people)]
        rho = np.array([spearmanr(lower[mask], similarity[mask]).statistic for mask in left_out])
        _, error = difference(rho, np.zeros_like(rho))
        messages.append(f"similarity of mated pairs against the lower score: Spearman {rho[0]:+.2f}")
        evidence.append(float(rho[0] / max(error, 1e-12)))
    message = f"{'; '.join(messages)} ({trial.source})"
    if min(evidence) < -STANDARD_ERRORS and max(evidence) < STANDARD_ERRORS:
        return Finding("sign", "fault", f"{message}: larger scores mean worse images. Negate the score")
    if max(evidence) > STANDARD_ERRORS and min(evidence) > -STANDARD_ERRORS and share >= 0.5:
        return Finding("sign", "ok", message)
    if share < 0.5:
        return Finding(
            "sign", "open", f"{message}: most score higher, so the sign may be wrong; negate the score if it is"
        )
    more = "more people (--images, --people)" if judge is not None else "more people (--images), or --recognizer,"
    return Finding("sign", "open", f"{message}: {more} would tell")


def _batches(run: Callable[[NDArray[np.int64]], NDArray[Any]], n_images: int, output: str = "embedding") -> Finding:
    """Check that a face's output is the same alone, in batches of seven and with all faces together."""
    check = "batches" if output == "embedding" else "score's batches"
    n = min(n_images, BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as torch's of a standard deviation of one face: the finding tells it
        alone, sevens, together = (
            np.concatenate([run(np.arange(at, min(at + size, n))) for at in range(0, n, size)]).astype(np.float64)
            for size in (1, 7, n)
        )
    spread = float(np.std(alone, axis=0).mean()) or 1.0
    if not all(np.isfinite(values).all() for values in (alone, sevens, together)):
        message = f"a face's {output} is NaN or infinite in batches of 1, 7 or {n}: it depends on the other faces"
        return Finding(check, "fault", f"{message}, such as by their standard deviation, which one face has not")
    worst = max(float(np.abs(values - alone).max()) for values in (sevens, together)) / spread
    message = f"a face's {output} differs by up to {worst:.1e} of the spread between batches of 1, 7 and {n}"
    if worst > 1e-2:
        return Finding(check, "fault", f"{message}: it depends on the other faces; is the network in evaluation mode?")
    return Finding(check, "ok", message)


def _gradients(recognizer: Recognizer) -> Finding:
    """Check that an ONNX network converted to torch, as FaceQAN and training need it, computes the same."""
    try:
        network = recognizer.with_gradients("FaceQAN").backbone
    except FiqaRayError as error:
        return Finding("gradients", "open", f"FaceQAN and finetune cannot use it: {error}")
    message = f"converted to torch it differs from onnxruntime by {network.difference:.1e} of an embedding's length"
    return Finding("gradients", "ok", message)


def _half_precision(recognizer: Recognizer, faces: torch.Tensor, embeddings: NDArray[np.float32]) -> list[Finding]:
    """Measure how far half precision turns embeddings."""
    findings = []
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        try:
            with torch.inference_mode():
                network = copy.deepcopy(recognizer).to(dtype)
                half = features(network, faces.to(device_of(recognizer))).float().cpu().numpy()
        except Exception as error:  # a network or a device may not support the dtype, and may raise anything then
            if ModelRef.parse(recognizer.name).kind == "function":
                continue  # nobody asks a user's own code for half precision
            findings.append(Finding(name, "open", f"cannot run in {name}: {str(error).splitlines()[0][:120]}"))
            continue
        cosine = np.einsum("ij,ij->i", unit_vectors(embeddings), unit_vectors(half))
        if not np.isfinite(cosine).all():
            findings.append(Finding(name, "open", f"embeddings are not finite in {name}: use float32 or bfloat16"))
        else:
            angle = np.degrees(np.arccos(np.clip(cosine.min(), -1, 1)))
            message = f"embeddings turn by up to {angle:.2f} degrees (cosine {cosine.min():.5f})"
            findings.append(Finding(name, "ok", message))
    return findings


# --- numbers ---


def _score(scorer: Scorer, faces: torch.Tensor, rows: NDArray[Any]) -> NDArray[Any]:
    parts = [scorer(faces[at : at + BATCH], rows[at : at + BATCH]) for at in range(0, len(faces), BATCH)]
    return np.concatenate(parts).astype(np.float64)
