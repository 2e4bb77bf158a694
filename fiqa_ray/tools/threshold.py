"""`fiqa-ray threshold`: a quality threshold for operation, from a table of pairs with similarities and qualities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.core.quality_threshold import MatedSample, ThresholdChoice, choose_threshold, halves, mated_sample
from fiqa_ray.core.templates import subjects_of
from fiqa_ray.core.verification import threshold_at_fmr
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.sources.read_table import TEXT, read_table
from fiqa_ray.sources.scores import scores_by_id

_WHAT = "pairs need image_id_a, image_id_b, mated and similarity, and quality_a and quality_b unless --scores is given"
_TRUTH = {"1": True, "0": False, "true": True, "false": False}


@dataclass(frozen=True)
class ThresholdReport:
    """A threshold, and what half of the persons chose and the other half showed.

    Attributes:
        choice: By all persons.
        similarity_threshold: Above it a pair is accepted.
        fmr: Share of the non-mated pairs that it accepts.
        half: By half of the persons.
        held_out_fnmr: FNMR of the other half at that threshold.
        held_out_reject_rate: Share of the other half's images that it refuses.
    """

    choice: ThresholdChoice
    similarity_threshold: float
    fmr: float
    half: ThresholdChoice
    held_out_fnmr: float
    held_out_reject_rate: float

    def to_json(self) -> dict[str, Any]:
        """Return all values; undefined ones are null."""

        def plain(value: Any) -> Any:
            if isinstance(value, ThresholdChoice):
                return {name: plain(v) for name, v in vars(value).items()}
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            return None if isinstance(value, float) and not np.isfinite(value) else value

        return {name: plain(value) for name, value in vars(self).items()}


def find_threshold(
    pairs_uri: str,
    scores_uri: str | None = None,
    *,
    target_fnmr: float | None = None,
    max_reject_rate: float | None = None,
    fmr: float = 1e-3,
    similarity_threshold: float | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> ThresholdReport:
    """Find a quality threshold and check it on persons that did not choose it.

    Args:
        pairs_uri: CSV or Parquet: image_id_a, image_id_b, mated, similarity; without `scores_uri` also quality_a, quality_b.
        scores_uri: scores of the images, in any form that a job reads.
        target_fnmr: FNMR that the pairs left shall not exceed.
        max_reject_rate: or share of the images that may be refused.
        fmr: false match rate at which pairs are accepted.
        similarity_threshold: accept above this instead.
        n_draws: for intervals.
        seed: of draws and halves.

    Raises:
        UsageError: both or none of the two wishes.
        FiqaRayError: a file is faulty, or no threshold meets the target.
    """
    table = _read_pairs(pairs_uri, scores_uri)
    names = pc.unique(pa.chunked_array([*table["image_id_a"].chunks, *table["image_id_b"].chunks]))
    rows = _rows(table["image_id_a"], names), _rows(table["image_id_b"], names)
    mated, similarity = _truth(table, pairs_uri), table["similarity"].to_numpy()
    if not mated.any() or (mated.all() and similarity_threshold is None):
        raise FiqaRayError(
            f"{pairs_uri}: {int(mated.sum())} mated and {int((~mated).sum())} non-mated pairs; both kinds are needed, "
            "or mated ones and --similarity-threshold"
        )
    quality = _image_qualities(table, pairs_uri, scores_uri, names, rows)
    accept = threshold_at_fmr(similarity, mated, fmr) if similarity_threshold is None else similarity_threshold
    known = np.flatnonzero(mated)
    person = np.unique(subjects_of(len(names), rows[0][known], rows[1][known]), return_inverse=True)[1]
    sample = mated_sample(similarity, mated, quality[rows[0]], quality[rows[1]], rows, person, quality, accept)

    def choose(of: MatedSample) -> ThresholdChoice:
        return choose_threshold(
            of, target_fnmr=target_fnmr, max_reject_rate=max_reject_rate, n_draws=n_draws, seed=seed
        )

    choice = choose(sample)
    here, there = (sample.of_persons(half) for half in halves(int(person.max()) + 1, seed))
    try:
        half = choose(here)
    except FiqaRayError as exc:
        raise FiqaRayError(f"{pairs_uri}: half of the persons are too few for a check: {exc}") from exc
    nonmated = similarity[~mated]
    accepted = float((nonmated > accept).mean()) if len(nonmated) else np.nan
    return ThresholdReport(choice, float(accept), accepted, half, *there.rates(half.threshold))


def _rows(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """Return the row of each name, `(L,) int64`."""
    return np.asarray(pc.index_in(column, value_set=names).to_numpy(), np.int64)


def _read_pairs(uri: str, scores_uri: str | None) -> pa.Table:
    number, names = pa.float64(), ("image_id_a", "image_id_b", "mated")
    types = {**dict.fromkeys(names, TEXT), "similarity": number}
    if scores_uri is None:
        types |= {"quality_a": number, "quality_b": number}
    table = read_table(uri, types, tuple(types), _WHAT)
    if table.num_rows == 0:
        raise FiqaRayError(f"{uri}: the table has no pairs")
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        row = pc.index(pc.is_null(table[empty[0]]), True).as_py()
        raise FiqaRayError(f"{uri}, line {row + 2}: {empty[0]} is empty; fill it in or leave the pair out")
    return table


def _truth(table: pa.Table, uri: str) -> np.ndarray:
    """Return the column `mated` as bool."""
    text = pc.utf8_lower(pc.utf8_trim_whitespace(table["mated"]))
    row = pc.index_in(text, value_set=pa.array(list(_TRUTH), TEXT))
    if row.null_count:
        at = pc.index(pc.is_null(row), True).as_py()
        raise FiqaRayError(
            f"{uri}, line {at + 2}: mated is {table['mated'][at].as_py()!r}; 1 or 0, true or false are known"
        )
    return np.array(list(_TRUTH.values()))[np.asarray(row)]


def _image_qualities(
    table: pa.Table, pairs_uri: str, scores_uri: str | None, names: pa.Array, rows: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Return the quality of each image."""
    if scores_uri is not None:
        quality = scores_by_id(names, uri=scores_uri, allow_others=True)
        if not np.isfinite(quality).all():
            at = int(np.argmin(np.isfinite(quality)))
            raise FiqaRayError(
                f"{scores_uri}: no score of {names[at].as_py()}, which {pairs_uri} names; score it first"
            )
        return quality
    quality = np.full(len(names), np.nan)
    for row, column in zip(rows, ("quality_a", "quality_b"), strict=True):
        quality[row] = table[column].to_numpy()
    for row, column in zip(rows, ("quality_a", "quality_b"), strict=True):
        differs = np.flatnonzero(quality[row] != table[column].to_numpy())
        if len(differs):
            raise FiqaRayError(
                f"{pairs_uri}, line {differs[0] + 2}: {names[int(row[differs[0]])].as_py()} has two qualities"
            )
    return quality


def check_wishes(target_fnmr: float | None, max_reject_rate: float | None) -> None:
    """Raise UsageError unless exactly one of the two was given."""
    if (target_fnmr is None) == (max_reject_rate is None):
        raise UsageError(
            "give either --fnmr, the error rate to reach, or --reject, the share of images that may be refused"
        )
