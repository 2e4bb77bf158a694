"""Pair lists of one line per pair, as packages of aligned benchmarks have them."""

from __future__ import annotations

import numpy as np

from fiqa_ray.sources.insightface_bin import N_FOLDS
from fiqa_ray.sources.protocols import VerificationPairs, line_fault, list_lines

_LABELS = {"1": True, "0": False, "-1": False}


def read_pair_lines(uri: str) -> VerificationPairs:
    """Read lines `<image> <image> <label>` or `<label> <image> <image>`, in any white space.

    The label is 1 for a mated pair, else 0 or -1. The first line decides where it stands. Folds are consecutive tenths
    of the pairs, as `agedb_30_pair.txt` and the `*_ann.txt` lists are cut.

    Raises:
        FiqaRayError: Names line and text of a fault.
    """
    lines = list_lines(uri)
    first = lines[0][1].split()
    is_last = len(first) == 3 and first[2] in _LABELS
    a: list[str] = []
    b: list[str] = []
    mated: list[bool] = []
    for number, line in lines:
        fields = line.split()
        label = fields[-1 if is_last else 0]
        if len(fields) != 3 or label not in _LABELS:
            raise line_fault(
                uri, number, line, "a line is '<image> <image> <label>', or the label first; it is 1, 0 or -1"
            )
        images = fields[:2] if is_last else fields[1:]
        for image in images:
            if ".." in image.replace("\\", "/").split("/") or image.startswith("/"):
                raise line_fault(uri, number, line, f"{image!r} leads out of the folder of images")
        a.append(images[0])
        b.append(images[1])
        mated.append(_LABELS[label])
    fold = np.repeat(np.arange(N_FOLDS), [len(part) for part in np.array_split(mated, N_FOLDS)])
    return VerificationPairs(np.array(a, object), np.array(b, object), np.array(mated), fold.astype(np.int64))
