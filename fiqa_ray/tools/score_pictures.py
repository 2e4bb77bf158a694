"""The contact sheet of `fiqa-ray score --sheet`: which faces have which scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.images import decode_faces, prepare_face
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.report.score_pictures import contact_sheet
from fiqa_ray.sources.command_line import ImageFile, read_images

N_DECILES, N_EACH = 10, 10
"""Rows of a sheet, and faces of each at most."""


def sheet_of_scores(images: Sequence[ImageFile], table: pa.Table, detector: FaceDetector | None = None) -> bytes:
    """Return a JPEG of faces by decile, the worst first; each row shows its decile evenly, in rising order.

    Args:
        images: the images that were scored.
        table: their scores, one row of `fiqa_ray.tools.score.SCORES` per image, at least one of them with a score.
        detector: as for the scoring.
    """
    score = table["score"].to_numpy(zero_copy_only=False)
    good = np.flatnonzero(np.isfinite(score))
    ranked = good[np.argsort(score[good], kind="stable")]
    deciles = [d for d in np.array_split(ranked, min(N_DECILES, len(ranked))) if len(d)]
    rows = []
    for i, decile in enumerate(deciles):
        chosen = decile[np.unique(np.linspace(0, len(decile) - 1, min(N_EACH, len(decile))).astype(int))]
        low, high = 100 * i // len(deciles), 100 * (i + 1) // len(deciles)
        values = f"{score[decile[0]]:.3g} to {score[decile[-1]]:.3g}"
        rows.append((f"{low} to {high} %", values, _faces([images[row] for row in chosen], detector)))
    return contact_sheet(rows)


def _faces(images: Sequence[ImageFile], detector: FaceDetector | None) -> list[NDArray[np.uint8]]:
    """Return the aligned faces `(112, 112, 3) uint8` of images that have one."""
    prepared = [prepare_face(content, None, detector) for content in read_images(images)]
    return list(decode_faces([face.face for face in prepared])[0].transpose(0, 2, 3, 1))
