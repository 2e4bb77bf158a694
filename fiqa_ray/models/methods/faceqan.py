"""FaceQAN (`LSIbabnikz/FaceQAN src/`): how much the embedding moves under a small adversarial attack.

That is multiplied by the similarity of the face to its mirror image:

    q = [ (1 + mean S) / 2 * clip(1 - sd S, 0, 1) * cos(e(x), e(mirror x)) ]^p,

where S holds the cosines of e(x) to the embeddings of k noisy copies at each of l attack steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Embed = Callable[[Tensor], Tensor]


def faceqan_noise(seed: int, image_row: int, n_samples: int) -> np.ndarray:
    """Return the starting noise of one image, ``(n_samples, 3, 112, 112)`` float32, uniform in [-1, 1).

    A pure function of its arguments: the same on every machine, in every batch.
    """
    key = np.array([seed, image_row], dtype=np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key)).random((n_samples, 3, 112, 112), dtype=np.float32)
    return 2 * draws - 1


def faceqan_similarities(
    embed: Embed, x: Tensor, noise: Tensor, *, epsilon: float, n_iterations: int
) -> tuple[Tensor, Tensor]:
    """Attack every image and record how similar its copies stay.

    Args:
        embed: maps ``(n, 3, h, w)`` in [0, 1] to ``(n, dim)``, differentiable, each image by itself.
        x: ``(b, 3, h, w)`` float in [0, 1].
        noise: ``(b, k, 3, h, w)`` in [-1, 1], multiplied by ``epsilon`` here.
        epsilon: attack step on the scale [0, 1].
        n_iterations: l; the state after the last recorded step is never embedded, so l - 1 gradients suffice.

    Returns:
        Cosines to the clean embedding, ``(b, l, k)``, and cosine of face and mirror image, ``(b,)``.
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
    """Combine ``(b, l, k)`` cosines and ``(b,)`` symmetry to ``(b,)`` float64 scores (population deviation)."""
    s = similarities.double().flatten(1)
    stability = (1 + s.mean(dim=1)) / 2 * (1 - s.std(dim=1, correction=0)).clamp(0, 1)
    return (stability * symmetry.double()) ** exponent


def faceqan_scores(
    embed: Embed, x: Tensor, noise: Tensor, *, epsilon: float, n_iterations: int, exponent: int
) -> Tensor:
    """Return FaceQAN's scores, ``(b,)`` float64; arguments as in ``faceqan_similarities``."""
    found = faceqan_similarities(embed, x, noise, epsilon=epsilon, n_iterations=n_iterations)
    return faceqan_formula(*found, exponent)
