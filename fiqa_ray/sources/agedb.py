"""AgeDB's own pair lists: the MATLAB files of its protocol, such as `04_FINAL_protocol_30_years.mat`.

The variable `splits` holds one struct per fold. Its first field is a cell of two rows and one column per pair, each cell a
struct whose first field is the name of an image without ending; its second field is 1 for a mated pair, else -1.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from scipy.io import loadmat

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.protocols import VerificationPairs, is_plain_name
from fiqa_ray.storage import read_bytes


def read_agedb_pairs(uri: str, *, extension: str = ".jpg") -> VerificationPairs:
    """Read a MATLAB list of AgeDB. Image ids are the names of the list with `extension`; folds are its splits.

    Raises:
        FiqaRayError: The file is no MATLAB file of version 5 to 7, or it holds no such splits.
    """
    try:
        splits = loadmat(io.BytesIO(read_bytes(uri)), variable_names=["splits"])["splits"]
        folds = [_fold(split) for split in splits.ravel()]
    except FiqaRayError:
        raise
    except NotImplementedError as exc:
        raise FiqaRayError(f"{uri}: a MATLAB file of version 7.3; save it with -v7") from exc
    except Exception as exc:  # the reader and an unknown structure raise many kinds of error
        raise FiqaRayError(
            f"{uri}: not AgeDB's list of pairs ({type(exc).__name__}: {str(exc)[:100]}); a MATLAB file with the variable "
            "'splits' was expected, such as 04_FINAL_protocol_30_years.mat"
        ) from exc
    names = np.concatenate([fold[0] for fold in folds], axis=1)
    label = np.concatenate([fold[1] for fold in folds])
    odd = [name for name in names.ravel() if not is_plain_name(name)]
    if odd:
        raise FiqaRayError(f"{uri}: {odd[0]!r} is not a plain name")
    if not np.isin(label, (1, -1)).all():
        raise FiqaRayError(f"{uri}: a pair has the label {label[~np.isin(label, (1, -1))][0]}; 1 or -1 was expected")
    fold_row = np.repeat(np.arange(len(folds)), [fold[0].shape[1] for fold in folds])
    image_id = np.array([[name + extension for name in row] for row in names], dtype=object)
    return VerificationPairs(image_id[0], image_id[1], label == 1, fold_row)


def _fold(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the names `(2, L)` and labels `(L,)` of one split."""
    record = split.ravel()[0]
    cells, label = record[0], np.asarray(record[1]).ravel().astype(np.int64)
    if cells.ndim != 2 or cells.shape != (2, len(label)):
        raise ValueError(f"a split has {cells.shape} images and {len(label)} labels")
    names = [[str(cell.ravel()[0][0].ravel()[0]) for cell in row] for row in cells]
    return np.array(names, dtype=object), label
