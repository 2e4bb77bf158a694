"""Is a model fed and read as it was made to be? Checks of recognisers, FIQA methods and regressors on known people.

Wrong colour order, scaling or crop cost little accuracy and are hence rarely noticed, but they change every score. Here
each is held against its alternatives: the way a model is fed must tell people apart better than swapped channels, another
scaling, or crops moved by 8 px do. How well it tells them apart is d', the distance between the mean cosines of mated and
of non-mated pairs in units of their spread. A difference counts from three standard errors (jackknife over people) and two
per cent on; where the faces do not suffice to tell, the finding says so and is neither good nor bad.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from scipy.stats import spearmanr

from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.core.kernels.gram import unit_vectors
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.images import decode_faces, prepare_face
from fiqa_ray.models.networks.iresnet import CRFIQA, SplitNetwork
from fiqa_ray.models.recognition import NetworkRow
from fiqa_ray.models.recognizer import Recognizer, finite_rows
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.sources.files import read_face_bytes
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.storage import storage_errors
from fiqa_ray.synthetic.damage import DEGRADATION_KINDS, Degradation, degrade
from fiqa_ray.synthetic.dataset import HELDOUT_PART, aligned_faces

SCALINGS = {  # (mean, scale) of pixels in 0..255, as released networks want them
    "(v - 127.5) / 127.5": (127.5, 127.5),
    "v / 255": (0.0, 255.0),
    "v as it is, 0..255": (0.0, 1.0),
    "v - 127.5": (127.5, 1.0),
}
SHIFTS = {"left": (-8, 0), "right": (8, 0), "up": (0, -8), "down": (0, 8)}
N_IMAGES_EACH = 4
_BATCH = 16
_SEED = 20_000  # of synthetic people that no other part of the project draws
_STANDARD_ERRORS, _LEAST_GAIN = 3.0, 0.02
_SMALLEST_D = 1.0


@dataclass(frozen=True)
class Finding:
    """One check's outcome, in words. ``state``: "ok", "fault", or "open" where the faces do not suffice to tell."""

    check: str
    state: Literal["ok", "fault", "open"]
    words: str


@dataclass(frozen=True)
class TrialFaces:
    """Aligned RGB faces of known people: ``faces`` and their ``damaged`` copies, (n, 3, 112, 112) uint8; ``person`` (n,)."""

    faces: torch.Tensor
    damaged: torch.Tensor
    person: np.ndarray
    source: str


def load_trial_faces(images: str | None = None, n_people: int = 32) -> TrialFaces:
    """Faces to try a model on: of the first people below a folder, or synthetic ones.

    ``images``: a folder (any fsspec URL) with one folder of aligned 112x112 crops per person. Four images of each person
    are taken; people with one usable image are left out. Errors: `FiqaRayError` where fewer than three people remain.
    """
    if images is None:
        people = [aligned_faces((_SEED, HELDOUT_PART, k, N_IMAGES_EACH))[::2] for k in range(n_people)]
        source = "synthetic faces"
    else:
        people = list(_people_of(images, n_people))
        source = images
        if len(people) < 3:
            raise FiqaRayError(
                f"{images}: {len(people)} people with two or more 112x112 crops; at least three are needed, each in a "
                "folder of their own. Align the images first: fiqa-ray run JOB.yaml --stages pack"
            )
    faces = np.concatenate(people)
    return TrialFaces(
        faces=_channels_first(faces),
        damaged=_channels_first(np.stack([_damage(face, i) for i, face in enumerate(faces)])),
        person=np.repeat(np.arange(len(people)), [len(p) for p in people]),
        source=source,
    )


def _people_of(images: str, n_people: int) -> Iterator[np.ndarray]:
    listed = list_folder(images)
    identity = np.array(listed["identity"].to_pylist(), dtype=object)
    uris = listed["uri"].to_pylist()
    for name in dict.fromkeys(identity):
        if n_people == 0:
            return
        own = [uris[i] for i in np.flatnonzero(identity == name)[:N_IMAGES_EACH]]
        with storage_errors(own[0]):
            prepared = [prepare_face(content, None) for content in read_face_bytes(own)]
        faces, ok = decode_faces([p.face for p in prepared if p.status == "ok"])
        if ok.sum() >= 2:
            n_people -= 1
            yield faces[ok].transpose(0, 2, 3, 1)


def _channels_first(faces: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(faces.transpose(0, 3, 1, 2)))


def _damage(face: np.ndarray, index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    kind = DEGRADATION_KINDS[index % len(DEGRADATION_KINDS)]
    return degrade(np.ascontiguousarray(face), TEMPLATE, Degradation(kind, rng.uniform(0.5, 1.0)), rng)


def check_file(network: Recognizer, row: NetworkRow | None) -> Finding:
    """The loaded weights' hash against that of the released file, where one is known; every entry fits, or nothing loads."""
    if network.is_random:
        return Finding("file", "open", "random weights, which mean nothing: there is no file to check")
    words = f"every entry fits; SHA-256 {network.weights_sha256}"
    if row is None or row.sha256 is None:
        return Finding("file", "ok", f"{words} (none is published to compare with)")
    if network.weights_sha256 == row.sha256:
        return Finding("file", "ok", f"{words}, that of the released {row.released_file}")
    other = f"{words} is not that of the released {row.released_file}, {row.sha256}: another training, or saved anew"
    return Finding("file", "open", other)


def check_recognizer(recognizer: Recognizer, trial: TrialFaces) -> list[Finding]:
    """Colour order, scaling, crop, batches and half precision of a recogniser, or of a quality network that contains one."""
    if not _knows_people(recognizer):
        words = "the network gives one number per face and no embedding: how it is fed cannot be told from people"
        return [Finding("people", "open", words)]
    faces = trial.faces.to(torch.float32) / 255
    own = _embed(recognizer, faces)
    bad = int((~finite_rows(own)).sum())
    if bad:
        words = f"{bad} of {len(own)} embeddings are NaN or infinite; the file is damaged or the scaling is far off"
        return [Finding("output", "fault", words)]
    base = _separations(own, trial.person)
    words = f"d' {base[0]:.2f} between mated and non-mated pairs of {len(own)} faces ({trial.source})"
    found = [Finding("people", "ok" if base[0] >= _SMALLEST_D else "open", words)]

    def variant(x: torch.Tensor) -> np.ndarray:
        return _separations(_embed(recognizer, x), trial.person)

    colour = recognizer.preprocessing.colour
    other = "BGR" if colour == "RGB" else "RGB"
    found.append(
        _held_against(
            "colour order",
            f"the network gets {colour}",
            base,
            {f"{other} instead": variant(faces.flip(1))},
            f"set colour={other}, or swap the channels in your own code",
        )
    )
    mean, scale = recognizer.preprocessing.mean, recognizer.preprocessing.scale
    scalings = {
        f"{words} (mean={m:g}, scale={s:g})": variant((((255 * faces - m) / s) * scale + mean) / 255)
        for words, (m, s) in SCALINGS.items()
        if (m, s) != (mean, scale)
    }
    found.append(
        _held_against(
            "scaling",
            f"pixels go in as (v - {mean:g}) / {scale:g}",
            base,
            scalings,
            "set mean and scale to those",
        )
    )
    shifted = {f"moved 8 px {side}": variant(_shifted(faces, *by)) for side, by in SHIFTS.items()}
    found.append(
        _held_against(
            "crop",
            "faces as they are",
            base,
            shifted,
            "the faces lie elsewhere than where the network looks for them: align them to the template of "
            "fiqa_ray.core.align (the released script of CR-FIQA aligns 8 px too far left by default)",
        )
    )
    found.append(_batches(lambda rows: _embed(recognizer, faces[rows], len(rows)), len(faces)))
    return [*found, *_half_precision(recognizer, faces[:_BATCH], own[:_BATCH])]


def check_scorer(scorer: Scorer, trial: TrialFaces) -> list[Finding]:
    """Sign and batches of a FIQA method or regressor; where it works on a recogniser, that one too."""
    found = check_recognizer(scorer.network, trial) if scorer.network is not None else []
    rows = np.arange(len(trial.faces))
    clean, damaged = _score(scorer, trial.faces, rows), _score(scorer, trial.damaged, rows)
    if not (np.isfinite(clean).all() and np.isfinite(damaged).all()):
        n_bad = int((~np.isfinite(np.concatenate([clean, damaged]))).sum())
        return [*found, Finding("output", "fault", f"{n_bad} of {2 * len(clean)} scores are NaN or infinite")]
    if np.ptp(np.concatenate([clean, damaged])) == 0:
        return [*found, Finding("output", "fault", f"every face gets the same score, {clean[0]:g}")]
    found.append(_sign(scorer, trial, clean, damaged))
    first = trial.faces[:_BATCH]
    found.append(_batches(lambda r: scorer(first[r], rows[r])[:, None], len(first), "score"))
    return found


# --- single checks ---


def _held_against(
    check: str, own_words: str, base: np.ndarray, variants: dict[str, np.ndarray], remedy: str
) -> Finding:
    """``base`` and each variant: d' of all people, then with each person left out."""
    worse = []
    name, best = max(variants.items(), key=lambda item: float(item[1][0]))
    gain, error = _difference(best, base)
    if best[0] >= _SMALLEST_D and gain > _STANDARD_ERRORS * error and gain > _LEAST_GAIN * abs(base[0]):
        better = f"{name}: {best[0]:.2f}, which is better (by {gain:.2f} +- {error:.2f})"
        return Finding(check, "fault", f"{own_words}: d' {base[0]:.2f}; {better}: {remedy}")
    if base[0] < _SMALLEST_D:
        return Finding(
            check,
            "open",
            f"{own_words}; the model hardly tells these people apart: mend faults first, or give other --images",
        )
    for other, values in variants.items():
        loss, error = _difference(base, values)
        if loss > _STANDARD_ERRORS * error:
            worse.append(f"{other} {values[0]:.2f}")
    state: Literal["ok", "open"] = "ok" if worse else "open"
    words = (
        f"lower: {', '.join(worse)}"
        if worse
        else "no alternative differs beyond chance: more people (--images, --people) would tell"
    )
    return Finding(check, state, f"{own_words}: d' {base[0]:.2f}; {words}")


def _sign(scorer: Scorer, trial: TrialFaces, clean: np.ndarray, damaged: np.ndarray) -> Finding:
    """Damaged copies must score lower, and the similarity of mated pairs must grow with the lower of their two scores."""
    n_people = int(trial.person.max()) + 1
    drop = np.array([(clean - damaged)[trial.person == k].mean() for k in range(n_people)])
    z = float(drop.mean() / max(drop.std(ddof=1) / np.sqrt(n_people), 1e-12))
    share = float((damaged < clean).mean())
    words = [f"{100 * share:.0f} % of damaged copies score lower than their originals"]
    evidence = [z]
    if scorer.network is not None and _knows_people(scorer.network):
        both = torch.cat([trial.faces, trial.damaged]).to(torch.float32) / 255
        person, score = np.tile(trial.person, 2), np.concatenate([clean, damaged])
        units = unit_vectors(_embed(scorer.network, both))
        i, j = np.triu_indices(len(person), 1)
        mated = person[i] == person[j]
        i, j = i[mated], j[mated]
        similarity, lower = np.einsum("ij,ij->i", units[i], units[j]), np.minimum(score[i], score[j])
        left_out = [person[i] != k for k in range(-1, n_people)]
        rho = np.array([spearmanr(lower[kept], similarity[kept]).statistic for kept in left_out])
        _, error = _difference(rho, np.zeros_like(rho))
        words.append(f"similarity of mated pairs against the lower score: Spearman {rho[0]:+.2f}")
        evidence.append(float(rho[0] / max(error, 1e-12)))
    told = f"{'; '.join(words)} ({trial.source})"
    if min(evidence) < -_STANDARD_ERRORS and max(evidence) < _STANDARD_ERRORS:
        return Finding("sign", "fault", f"{told}: larger scores mean worse images. Negate the score")
    sound = max(evidence) > _STANDARD_ERRORS and min(evidence) > -_STANDARD_ERRORS
    return Finding("sign", "ok" if sound else "open", told)


def _batches(run: Callable[[np.ndarray], np.ndarray], n: int, what: str = "embedding") -> Finding:
    """The same faces alone, by sevens and together."""
    check = "batches" if what == "embedding" else "score's batches"
    n = min(n, _BATCH)
    found = [
        np.concatenate([run(np.arange(at, min(at + size, n))) for at in range(0, n, size)]).astype(np.float64)
        for size in (1, 7, n)
    ]
    spread = float(np.std(found[0], axis=0).mean()) or 1.0
    worst = max(float(np.abs(f - found[0]).max()) for f in found[1:]) / spread
    words = f"a face's {what} differs by up to {worst:.1e} of the spread between batches of 1, 7 and {n}"
    if worst > 1e-2:
        return Finding(check, "fault", f"{words}: it depends on the other faces; is the network in evaluation mode?")
    return Finding(check, "ok", words)


def _half_precision(recognizer: Recognizer, faces: torch.Tensor, own: np.ndarray) -> list[Finding]:
    found = []
    for kind in (torch.float16, torch.bfloat16):
        name = str(kind).removeprefix("torch.")
        try:
            with torch.inference_mode():
                network = copy.deepcopy(recognizer).to(kind)
                half = _features(network, faces.to(_device(recognizer))).float().cpu().numpy()
        except Exception as error:  # whatever a network or a device does not support
            found.append(Finding(name, "open", f"cannot run in {name}: {str(error).splitlines()[0][:120]}"))
            continue
        cosine = np.einsum("ij,ij->i", unit_vectors(own), unit_vectors(half))
        if not np.isfinite(cosine).all():
            found.append(Finding(name, "open", f"embeddings are not finite in {name}: use float32 or bfloat16"))
        else:
            angle = np.degrees(np.arccos(np.clip(cosine.min(), -1, 1)))
            found.append(
                Finding(name, "ok", f"embeddings turn by up to {angle:.2f} degrees (cosine {cosine.min():.5f})")
            )
    return found


# --- numbers ---


def _separations(embeddings: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Return the separation d' of all people, then with each person left out: `(1 + n_people,)`."""
    units = unit_vectors(embeddings)
    i, j = np.triu_indices(len(units), 1)
    cosine = np.einsum("ij,ij->i", units[i], units[j]).astype(np.float64)
    mated = person[i] == person[j]

    def d_prime(kept: np.ndarray) -> float:
        m, n = cosine[kept & mated], cosine[kept & ~mated]
        return float((m.mean() - n.mean()) / max(np.sqrt((m.var() + n.var()) / 2), 1e-12))

    everybody = np.ones(len(i), bool)
    left_out = [(person[i] != k) & (person[j] != k) for k in range(int(person.max()) + 1)]
    return np.array([d_prime(kept) for kept in [everybody, *left_out]])


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return a - b and its standard error: a jackknife over the values from the second on."""
    difference = a - b
    left_out = difference[1:]
    n = len(left_out)
    return float(difference[0]), float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))


def _device(recognizer: Recognizer) -> torch.device:
    return next((p.device for p in recognizer.parameters()), torch.device("cpu"))


def _knows_people(network: Recognizer) -> bool:
    return network.dim > 1 or isinstance(network.backbone, SplitNetwork)


def _features(network: Recognizer, x: torch.Tensor) -> torch.Tensor:
    """What tells people apart: the embedding, or in a quality network what it is made from."""
    if network.dim > 1:
        return network.embed_unit(x)
    backbone = network.backbone
    assert isinstance(backbone, SplitNetwork)
    dtype = next(backbone.parameters()).dtype
    maps = backbone.trunk(network.preprocessing(x.to(dtype)))
    return backbone.embed(maps) if isinstance(backbone, CRFIQA) else maps


def _embed(recognizer: Recognizer, x: torch.Tensor, size: int = _BATCH) -> np.ndarray:
    with torch.inference_mode():
        batches = [_features(recognizer, b.to(_device(recognizer))).float().cpu().numpy() for b in x.split(size)]
    return np.concatenate(batches)


def _score(scorer: Scorer, faces: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    parts = [scorer(faces[at : at + _BATCH], rows[at : at + _BATCH]) for at in range(0, len(faces), _BATCH)]
    return np.concatenate(parts).astype(np.float64)


def _shifted(faces: torch.Tensor, dx: int, dy: int) -> torch.Tensor:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    moved = [
        cv2.warpAffine(f, matrix, (f.shape[1], f.shape[0]), borderMode=cv2.BORDER_REPLICATE)
        for f in faces.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2).contiguous()
