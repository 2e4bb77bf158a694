"""FaceQAN (`LSIbabnikz/FaceQAN src/`): how much a small adversarial attack moves the embedding.

    q = [ (1 + mean S) / 2 * clip(1 - sd S, 0, 1) * cos(e(x), e(mirror x)) ]^p,

where S holds the cosines of e(x) to the embeddings of k noisy copies at each of l attack steps. An image needs
2 + k * l forward passes (face, mirror image, and each copy at each step) and k * (l - 1) backward passes: 52 and 40 at
the released k = 10 and l = 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fiqa_ray.models.options import check_number, check_whole
from fiqa_ray.models.recognizer import FACE_SHAPE, CleanPass, Recognizer
from fiqa_ray.models.scorer import ScoreFaces

Embed = Callable[[Tensor], Tensor]


def build_faceqan(
    recognizer: Recognizer,
    seed: int,
    *,
    epsilon: float = 0.001,
    n_iterations: int = 5,
    n_samples: int = 10,
    exponent: int = 5,
    images_per_pass: int | None = None,
) -> ScoreFaces:
    """Build FaceQAN on a recogniser.

    Passes always have the same size, `images_per_pass * n_samples` copies, so that a score does not depend on the other
    images of the batch. The clean face is embedded together with its mirror image and not in the batch's shared pass: the
    attack follows the sign of a gradient, so the last bits of that pass, which depend on the batch size, would change the
    score.

    Memory: 0.15 GB per copy with IResNet-100 (measured on a CPU).

    Args:
        recognizer: must be differentiable; an ONNX network is converted to torch.
        seed: seed of the noise.
        epsilon: attack step on the scale [0, 1] of the image.
        n_iterations: attack steps, l.
        n_samples: noisy copies, k.
        exponent: p.
        images_per_pass: images attacked together; default: 1 on a CPU, 8 on a GPU.

    Raises:
        UsageError: an option is out of range, or the recogniser has no gradients.
    """
    network = recognizer.with_gradients("faceqan")
    check_whole("faceqan", 1, n_iterations=n_iterations, n_samples=n_samples, exponent=exponent)
    if images_per_pass is not None:
        check_whole("faceqan", 1, images_per_pass=images_per_pass)
    check_number("faceqan", "epsilon", epsilon, math.ulp(0.0), 1, "between 0 and 1 (the image's scale)")
    check_whole("faceqan", 0, seed=seed)
    score = partial(faceqan_scores, network.embed_unit, epsilon=epsilon, n_iterations=n_iterations, exponent=exponent)

    def score_faces(clean: CleanPass, image_row: NDArray[np.int64]) -> NDArray[np.float64]:
        faces = clean.faces
        scores = np.full(len(faces), np.nan)
        images = np.flatnonzero(image_row >= 0)
        n_together = images_per_pass or (8 if faces.is_cuda else 1)
        for at in range(0, len(images), n_together):
            batch = images[at : at + n_together]
            padded = np.concatenate([batch, np.repeat(batch[:1], n_together - len(batch))])
            noise = np.stack([faceqan_noise(seed, int(image_row[i]), n_samples) for i in padded])
            # A caller's inference mode would forbid gradients.
            with torch.inference_mode(False), torch.enable_grad():
                x = faces[torch.from_numpy(padded).to(faces.device)].to(torch.float32) / 255
                batch_scores = score(x, torch.from_numpy(noise).to(faces.device))
            scores[batch] = batch_scores.cpu().numpy()[: len(batch)]
        return scores

    return score_faces


def faceqan_noise(seed: int, image_row: int, n_samples: int) -> NDArray[np.float32]:
    """Return the initial noise of one image, `(n_samples, 3, 112, 112) float32`, uniform in [-1, 1).

    It depends on the arguments alone, so it is the same on every machine and in every batch.
    """
    key = np.array([seed, image_row], dtype=np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key)).random((n_samples, *FACE_SHAPE), dtype=np.float32)
    return 2 * draws - 1


def faceqan_similarities(
    embed: Embed, x: Tensor, noise: Tensor, *, epsilon: float, n_iterations: int
) -> tuple[Tensor, Tensor]:
    """Attack every image and record how similar its copies stay.

    Args:
        embed: maps `(N, 3, h, w)` in [0, 1] to `(N, D)`, differentiable, each image by itself.
        x: `(N, 3, h, w)` float in [0, 1].
        noise: `(N, k, 3, h, w)` in [-1, 1]; this function multiplies it by `epsilon`.
        epsilon: attack step on the scale [0, 1].
        n_iterations: l; the copies are not embedded after the last recorded step, so l - 1 gradients suffice.

    Returns:
        Cosines to the clean embedding, `(N, l, k)`, and cosine of face and mirror image, `(N,)`.
    """
    b, k = noise.shape[:2]
    with torch.no_grad():
        clean, mirrored = embed(torch.cat([x, x.flip(-1)])).chunk(2)
        symmetry = functional.cosine_similarity(clean, mirrored, dim=1, eps=1e-8)
        target = clean.repeat_interleave(k, dim=0)
        # The released code clamps to [-1, 1], not to the images' own [0, 1].
        points = (x[:, None] + epsilon * noise).clamp(-1, 1).flatten(0, 1)
    recorded = []
    for step in range(n_iterations):
        attack = step + 1 < n_iterations
        with torch.set_grad_enabled(attack):
            points.requires_grad_(attack)
            cosine = functional.cosine_similarity(embed(points), target, dim=1, eps=1e-8).view(b, k)
        recorded.append(cosine.detach())
        if attack:
            # The loss of each image is its own mean; summed over images, each still gets only its own gradient.
            (gradient,) = torch.autograd.grad((1 - cosine).mean(dim=1).sum(), points)
            points = (points.detach() + epsilon * gradient.sign()).clamp(-1, 1)
    return torch.stack(recorded, dim=1), symmetry


def faceqan_formula(similarities: Tensor, symmetry: Tensor, exponent: int) -> Tensor:
    """Combine `(N, l, k)` cosines and `(N,)` symmetry to `(N,) float64` scores (population standard deviation)."""
    s = similarities.double().flatten(1)
    stability = (1 + s.mean(dim=1)) / 2 * (1 - s.std(dim=1, correction=0)).clamp(0, 1)
    return (stability * symmetry.double()) ** exponent


def faceqan_scores(
    embed: Embed, x: Tensor, noise: Tensor, *, epsilon: float, n_iterations: int, exponent: int
) -> Tensor:
    """Return FaceQAN's scores, `(N,) float64`; arguments as in `faceqan_similarities` and `faceqan_formula`."""
    similarities, symmetry = faceqan_similarities(embed, x, noise, epsilon=epsilon, n_iterations=n_iterations)
    return faceqan_formula(similarities, symmetry, exponent)
