"""Scores that a user brings: CSV or Parquet with the columns image_id and score, and the files of other tools."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.keys import remedy_of, rows_of_keys
from fiqa_ray.sources.read_table import TEXT, read_head, read_table, refuse_foreign
from fiqa_ray.sources.vector_pickle import read_pickle
from fiqa_ray.storage import public_uri, read_bytes

_COLUMNS = (("image_id", "score"), ("Filename", "UnifiedQualityScore"))
"""Columns of id and score that are known: this package's, and those of OFIQ."""


def read_scores(
    uri: str,
    id_column: str | None = None,
    score_column: str | None = None,
    separator: str | None = None,
    *,
    higher_is_better: bool = True,
) -> pa.Table:
    """Read a file of scores as a table of `image_id` (text) and `score` (float64).

    Read are tables with the columns image_id and score, or as named; OFIQ's CSV (`Filename;UnifiedQualityScore;...`); lines
    `path score` without a header, as CR-FIQA's code writes them; XQLFW's `xqlfw_scores.txt` (`ID Num Score`: image 7 of a
    person is `person/person_0007.jpg`); and pickles of {path: score}, which are read without running their code.

    Args:
        uri: the file.
        id_column: column of the image's name; default: image_id, or Filename.
        score_column: column of the score; default: score, or UnifiedQualityScore.
        separator: of a CSV; default: comma, semicolon or tab, by its header.
        higher_is_better: if false, as for an uncertainty, scores are negated.

    Raises:
        FiqaRayError: the file is no such table, a name stands twice, or a score is not finite.
    """
    table = _checked(uri, _read(uri, id_column, score_column, separator))
    if higher_is_better:
        return table
    return table.set_column(1, "score", pc.negate(table["score"]))


def _read(uri: str, id_column: str | None, score_column: str | None, separator: str | None) -> pa.Table:
    head = read_head(uri)
    is_text = head[:4] != b"PAR1"
    if is_text and id_column is None and score_column is None and separator is None:
        if head[:1] == b"\x80":  # how pickles of protocol 2 and later begin
            return _of_pickle(uri)
        refuse_foreign(uri, head)
        data = read_bytes(uri)
        lines = _xqlfw_lines(uri, data) if _is_xqlfw(head) else _path_and_score(data)
        if lines is not None:
            return lines
    names = _column_names(head if is_text else b"", id_column, score_column)
    table = read_table(
        uri,
        {names[0]: TEXT, names[1]: pa.float64()},
        names,
        f"a score file needs {names[0]} and {names[1]}: give a CSV or Parquet in which column {names[0]!r} holds text and "
        f"column {names[1]!r} numbers; scores: {{uri, id_column, score_column, separator}} names others",
        separator,
    )
    return pa.table({"image_id": table[names[0]], "score": table[names[1]]})


def scores_by_id(
    image_id: pa.Array,
    uri: str,
    id_column: str | None = None,
    score_column: str | None = None,
    separator: str | None = None,
    key_rule: Sequence[str] = (),
    *,
    higher_is_better: bool = True,
    allow_others: bool = False,
) -> NDArray[np.float64]:
    """Return the scores `(I,) float64` of images from a user's file.

    Every image must have exactly one finite score.

    Args:
        image_id: names of the images.
        uri: the file, and what follows: see `read_scores`.
        id_column: see `read_scores`.
        score_column: see `read_scores`.
        separator: see `read_scores`.
        key_rule: rules of `fiqa_ray.sources.keys.KEY_RULES` by which names are compared.
        higher_is_better: see `read_scores`.
        allow_others: whether the file may hold images that are not asked for.

    Raises:
        FiqaRayError: an image has no score, or a score no image; the message shows one name of each side.
    """
    table = read_scores(uri, id_column, score_column, separator, higher_is_better=higher_is_better)
    ids = table["image_id"].combine_chunks()
    rows = rows_of_keys(ids, image_id, key_rule)
    score = np.full(len(image_id), np.nan)
    present = rows >= 0
    if len(np.unique(rows[present])) < int(present.sum()):
        raise FiqaRayError(f"{uri}: with key_rule two of its rows name one image; keep one row of each")
    score[rows[present]] = table["score"].to_numpy()[present]
    missing = np.flatnonzero(np.isnan(score))
    extra = np.flatnonzero(~present)
    if len(missing):
        shown = ids[int(extra[0])].as_py() if len(extra) else ids[0].as_py()
        like = f"; the file's are like {shown!r}{remedy_of(ids, image_id, key_rule, 'scores.key_rule')}"
        raise FiqaRayError(
            f"{uri}: {len(missing):,} image(s) have no score, such as {image_id[int(missing[0])]}"
            f"{like if len(extra) else ''}; add their rows"
        )
    if len(extra) and not allow_others:
        raise FiqaRayError(
            f"{uri}: {len(extra):,} image_id(s) are not in the data set, such as {ids[int(extra[0])]}; remove their rows"
        )
    return score


def _column_names(head: bytes, id_column: str | None, score_column: str | None) -> tuple[str, str]:
    """Return the columns of id and score: as given, else a known pair that the first line names."""
    line = head.split(b"\n", 1)[0].decode("utf-8", "replace")
    usual_id, usual_score = next((pair for pair in _COLUMNS[1:] if all(name in line for name in pair)), _COLUMNS[0])
    return id_column or usual_id, score_column or usual_score


def _path_and_score(data: bytes) -> pa.Table | None:
    """Return the lines `path score` of a file without header, or None if it is another kind of file."""
    try:
        lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
        rows = [line.rsplit(None, 1) for line in lines]
        if not rows or any(mark in lines[0] for mark in ",;\t") or not np.isfinite(float(rows[0][1])):
            return None
        values = [float(row[1]) for row in rows]
    except (UnicodeDecodeError, ValueError, IndexError):
        return None
    return pa.table({"image_id": pa.array([row[0].strip() for row in rows], TEXT), "score": pa.array(values)})


def _is_xqlfw(head: bytes) -> bool:
    return head.split(b"\n", 1)[0].split() == [b"ID", b"Num", b"Score"]


def _xqlfw_lines(uri: str, data: bytes) -> pa.Table:
    """Return the scores of XQLFW's own file: person, number of the image, score."""
    ids, scores = [], []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines()[1:], start=2):
        fields = line.split()
        if not fields:
            continue
        try:
            person, image, score = fields[0], int(fields[1]), float(fields[2])
        except (IndexError, ValueError):
            raise FiqaRayError(f"{uri}: line {number} is {line[:80]!r}; write person, image number and score") from None
        ids.append(f"{person}/{person}_{image:04d}.jpg")
        scores.append(score)
    return pa.table({"image_id": pa.array(ids, TEXT), "score": pa.array(scores, pa.float64())})


def _of_pickle(uri: str) -> pa.Table:
    """Return the scores of a pickled dictionary."""
    content = read_pickle(uri)
    try:
        if not isinstance(content, dict):
            raise TypeError
        scores = [float(np.asarray(value).reshape(())) for value in content.values()]
    except (TypeError, ValueError):
        raise FiqaRayError(f"{uri}: the pickle holds no dictionary of path and number; write one") from None
    return pa.table(
        {"image_id": pa.array([str(key) for key in content], TEXT), "score": pa.array(scores, pa.float64())}
    )


def _checked(uri: str, table: pa.Table) -> pa.Table:
    ids, score = table["image_id"].combine_chunks(), table["score"].to_numpy()
    if not len(table):
        raise FiqaRayError(f"{uri}: the table has no rows")
    if ids.null_count:
        raise FiqaRayError(f"{uri}: {ids.null_count} row(s) have no image_id; name their images")
    counts = ids.value_counts()
    twice = [str(c["values"]) for c in counts.filter(pc.greater(counts.field("counts"), 1))]
    if twice:
        raise FiqaRayError(f"{uri}: {len(twice)} image_id(s) stand more than once, such as {twice[0]!r}; keep one row")
    bad = np.flatnonzero(~(np.abs(score) <= np.finfo(np.float32).max))
    if len(bad):
        raise FiqaRayError(
            f"{uri}: {len(bad)} score(s) are not finite, such as {score[bad[0]]} of {ids[int(bad[0])]}; "
            "every score must be a number, as float32 holds it"
        )
    n_unlike, n_stored = len(np.unique(score)), len(np.unique(score.astype(np.float32)))
    if n_stored < 0.99 * n_unlike:
        logging.getLogger("fiqa_ray").warning(
            "%s: of %d different scores only %d differ as float32, in which scores are stored; rescale them, such as by a "
            "logarithm", public_uri(uri), n_unlike, n_stored
        )  # fmt: skip
    return table
