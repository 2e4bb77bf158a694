"""How a recogniser wants its faces: colour order, scaling, crop, mirror images, compared on faces of known people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fiqa_ray.engine.progress import StepProgress
from fiqa_ray.models.methods.forward import UNIT_TOLERANCE
from fiqa_ray.models.networks.ediffiqa import EDifFIQA
from fiqa_ray.models.networks.iresnet import CRFIQA, SplitNetwork
from fiqa_ray.models.networks.vit import ViTFIQA
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.reference import ModelRef
from fiqa_ray.tools.separation import difference, separations

SCALINGS = {  # (mean, scale) of pixels in 0..255, as released networks want them
    "(v - 127.5) / 127.5": (127.5, 127.5),
    "v / 255": (0.0, 255.0),
    "v, 0..255": (0.0, 1.0),
    "v - 127.5": (127.5, 1.0),
}
ORDERS = ("RGB", "BGR", "RBG", "GRB", "GBR", "BRG")
"""All orders of the channels; a published configuration of AdaFace feeds BRG."""
SHIFTS = {
    f"{n} px {side}": (n * x, n * y)
    for n in (4, 8)
    for side, (x, y) in {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.items()
}
BATCH = 16
STANDARD_ERRORS, _LEAST_GAIN, _OPEN_ERRORS = 3.0, 0.02, 1.0
SAME_D = 0.005
"""An alternative that is ahead by a smaller share of d' is as good: it would change nothing that matters."""
SMALLEST_D = 1.0
"""Below this d', a model hardly tells the people apart."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: name of the check.
        state: `ok`, `fault`, or `open` if the faces do not suffice to tell.
        message: what was found.
    """

    check: str
    state: Literal["ok", "fault", "open"]
    message: str


def input_findings(
    recognizer: Recognizer, faces: torch.Tensor, person: NDArray[np.int64], base: NDArray[np.float64]
) -> list[Finding]:
    """Compare colour order, scaling and crop with their alternatives.

    Args:
        recognizer: the network.
        faces: `(I, 3, 112, 112) float32` in [0, 1].
        person: `(I,)` number of each face's person.
        base: separations of the faces as they are, from `separations`.
    """
    p = recognizer.preprocessing
    n_inputs = len(ORDERS) - 1 + sum(s != (p.mean, p.scale) for s in SCALINGS.values()) + len(SHIFTS)
    with StepProgress("doctor: inputs", n_inputs * len(faces), "faces") as progress:

        def separate(x: torch.Tensor) -> NDArray[np.float64]:
            values = separations(embed(recognizer, x), person)
            progress.advance(len(x))
            return values

        return _compare_inputs(recognizer, faces, base, separate)


def _compare_inputs(
    recognizer: Recognizer,
    faces: torch.Tensor,
    base: NDArray[np.float64],
    separate: Callable[[torch.Tensor], NDArray[np.float64]],
) -> list[Finding]:
    colour, mean, scale = (getattr(recognizer.preprocessing, name) for name in ("colour", "mean", "scale"))
    source, is_own_code = recognizer.scaling_source, ModelRef.parse(recognizer.name).kind == "function"
    step = 1 if colour == "RGB" else -1  # the network's preprocessing turns the order of its input if it is BGR
    orders = {
        f"{order} instead": separate(faces[:, ["RGB".index(letter) for letter in order[::step]]])
        for order in ORDERS
        if order != colour
    }
    scalings = {
        (f"{formula} in its place" if is_own_code else f"{formula} (mean={m:g}, scale={s:g})"): separate(
            (((255 * faces - m) / s) * scale + mean) / 255
        )
        for formula, (m, s) in SCALINGS.items()
        if (m, s) != (mean, scale)
    }
    crops = {f"moved {shift}": separate(_shifted(faces, *offset)) for shift, offset in SHIFTS.items()}
    return [
        _compare(
            "colour order",
            f"the network gets {colour}",
            base,
            orders,
            f"set colour={'BGR' if colour == 'RGB' else 'RGB'} if it is that order, else swap the channels in your own code",
        ),
        _compare(
            "scaling",
            f"your code gets v / {scale:g}"
            if is_own_code
            else f"pixels go in as (v - {mean:g}) / {scale:g}{f' ({source})' if source else ''}",
            base,
            scalings,
            "your code scales its input wrongly, or not at all. If it has no scaling, add this one. If it has one, try "
            "without it: here both were applied, one after the other"
            if is_own_code
            else "set mean and scale to those",
        ),
        _compare(
            "crop",
            "faces without a shift",
            base,
            crops,
            "the faces are not where the network expects them: align them to the template of fiqa_ray.core.align (the "
            "released script of CR-FIQA aligns 8 px too far left by default)",
        ),
    ]


def mirror(
    recognizer: Recognizer,
    faces: torch.Tensor,
    person: NDArray[np.int64],
    embeddings: NDArray[Any],
    base: NDArray[np.float64],
) -> Finding:
    """Say whether the sum of the embeddings of a face and of its mirror image tells people apart better. No fault."""
    both = separations(embeddings + embed(recognizer, faces.flip(-1)), person)
    gain, error = difference(both, base)
    message = f"with the mirror image's embedding added, d' {both[0]:.2f} in place of {base[0]:.2f}"
    if gain > STANDARD_ERRORS * error and gain > _LEAST_GAIN * abs(base[0]):
        return Finding("mirror", "ok", f"{message}: better, so set recognizer.flip to sum where you may")
    return Finding("mirror", "ok", f"{message}: no gain beyond chance, so recognizer.flip may stay none")


def length(embeddings: NDArray[Any]) -> Finding:
    """Say whether the network returns raw embeddings, whose length may tell quality, or some of unit length. No fault."""
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    if np.abs(lengths - 1).max() < UNIT_TOLERANCE:
        return Finding("length", "ok", "embeddings have length 1: the method embedding_norm cannot use them")
    return Finding("length", "ok", f"embeddings are raw, of length {lengths.min():.3g} to {lengths.max():.3g}")


def _compare(
    check: str, current: str, base: NDArray[np.float64], variants: dict[str, NDArray[np.float64]], remedy: str
) -> Finding:
    """Compare the current input with its alternatives.

    Args:
        check: name of the check.
        current: the current input, in words.
        base: d' of the current input, from `separations`.
        variants: d' of each alternative, by its name.
        remedy: what to do if an alternative is better.
    """
    name, best = max(variants.items(), key=lambda item: float(item[1][0]))
    gain, error = difference(best, base)
    if best[0] >= SMALLEST_D and gain > STANDARD_ERRORS * error and gain > _LEAST_GAIN * abs(base[0]):
        better = f"{name}: {best[0]:.2f}, which is better (by {gain:.2f} +- {error:.2f})"
        return Finding(check, "fault", f"{current}: d' {base[0]:.2f}; {better}: {remedy}")
    if base[0] < SMALLEST_D:
        advice = "correct other faults first, or give other --images"
        return Finding(check, "open", f"{current}; the model hardly tells these people apart: {advice}")
    if gain > SAME_D * abs(base[0]) and gain > _OPEN_ERRORS * error:
        ahead = f"{name} is ahead with {best[0]:.2f} (by {gain:.2f} +- {error:.2f}), which may be chance"
        advice = "more people (--images, --people) would tell"
        return Finding(check, "open", f"{current}: d' {base[0]:.2f}; {ahead}: {advice}")
    worse = []
    for other, values in variants.items():
        loss, error = difference(base, values)
        if loss > STANDARD_ERRORS * error:
            worse.append(f"{other} {values[0]:.2f}")
    if worse:
        return Finding(check, "ok", f"{current}: d' {base[0]:.2f}; lower: {', '.join(worse)}")
    advice = "no alternative differs beyond chance: more people (--images, --people) would tell"
    return Finding(check, "open", f"{current}: d' {base[0]:.2f}; {advice}")


def device_of(recognizer: Recognizer) -> torch.device:
    """Return where a recogniser's weights lie."""
    return next((t.device for t in recognizer.state_dict().values()), torch.device("cpu"))


def knows_people(network: Recognizer) -> bool:
    """Return whether a network gives embeddings, or contains a recogniser whose features can be had."""
    return network.dim > 1 or isinstance(network.backbone, SplitNetwork | EDifFIQA | ViTFIQA)


def features(network: Recognizer, x: torch.Tensor) -> torch.Tensor:
    """Return what tells people apart: the embedding, or the features from which a quality network computes its score."""
    if network.dim > 1:
        return network.embed_unit(x)
    backbone, x = network.backbone, network.preprocess(x)
    if isinstance(backbone, EDifFIQA):
        return backbone.base_model(x)
    if isinstance(backbone, ViTFIQA):
        return backbone.embedding_and_quality(x)[0]
    assert isinstance(backbone, SplitNetwork)
    maps = backbone.trunk(x)
    return backbone.embed(maps) if isinstance(backbone, CRFIQA) else maps


def embed(recognizer: Recognizer, x: torch.Tensor, size: int = BATCH) -> NDArray[Any]:
    """Return the features of faces `(I, 3, 112, 112)` in [0, 1], computed in batches of `size`."""
    with torch.inference_mode():
        batches = [features(recognizer, b.to(device_of(recognizer))).float().cpu().numpy() for b in x.split(size)]
    return np.concatenate(batches)


def _shifted(faces: torch.Tensor, dx: int, dy: int) -> torch.Tensor:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    shifted = [
        cv2.warpAffine(f, matrix, (f.shape[1], f.shape[0]), borderMode=cv2.BORDER_REPLICATE)
        for f in faces.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack(shifted)).permute(0, 3, 1, 2).contiguous()
