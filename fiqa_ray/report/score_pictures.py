"""Pictures of scores: a contact sheet by decile of quality, and a histogram."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_BINS = 40
_SIDE, _GAP, _LABEL_WIDTH = 112, 4, 150
_GREY, _BLACK = (235, 235, 235), (20, 20, 20)


def contact_sheet(rows: Sequence[tuple[str, str, Sequence[NDArray[np.uint8]]]]) -> bytes:
    """Return a JPEG with one row of faces per decile.

    Args:
        rows: from the first row to the last: two lines of text, and faces `(112, 112, 3) uint8` RGB.
    """
    n_columns = max(len(faces) for _, _, faces in rows)
    height, width = len(rows) * (_SIDE + _GAP) + _GAP, _LABEL_WIDTH + n_columns * (_SIDE + _GAP) + _GAP
    sheet = np.full((height, width, 3), _GREY, np.uint8)
    for i, (title, below, faces) in enumerate(rows):
        top = _GAP + i * (_SIDE + _GAP)
        for line, text in enumerate((title, below)):
            at = (8, top + _SIDE // 2 + 22 * line)
            cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BLACK, 1, cv2.LINE_AA)
        for k, face in enumerate(faces):
            left = _LABEL_WIDTH + k * (_SIDE + _GAP)
            sheet[top : top + _SIDE, left : left + _SIDE] = face
    return cv2.imencode(".jpg", sheet[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def histogram_png(scores: NDArray[np.float64], name: str) -> bytes:
    """Return a PNG of the histogram of scores `(I,)`, with the borders of the deciles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.hist(scores, bins=int(np.clip(np.sqrt(len(scores)), 5, MOST_BINS)), color="#4477aa")
    for border in np.quantile(scores, np.arange(1, 10) / 10):
        axes.axvline(border, color="0.6", linewidth=0.6)
    axes.set(xlabel=f"score by {name}; larger is better, grey lines part the deciles", ylabel="images")
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
