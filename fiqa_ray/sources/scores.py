"""A user's own scores: CSV or Parquet with the columns image_id and score."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import read_bytes


def scores_by_id(scores_uri: str, image_id: pa.Array) -> np.ndarray:
    """Scores (n_images,) float64 of the given ids from a CSV or Parquet with columns image_id and score.

    Every image must have exactly one finite score; ids that no image has are an error too. Raises `FiqaRayError`.
    """
    data = io.BytesIO(read_bytes(scores_uri))
    try:
        if scores_uri.endswith((".parquet", ".pq")):
            found = pq.read_table(data)
        else:
            options = pacsv.ConvertOptions(column_types={"image_id": pa.string()})
            found = pacsv.read_csv(data, convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as exc:
        raise FiqaRayError(
            f"{scores_uri} cannot be read as a table of scores: {str(exc).splitlines()[0]!a:.200}; "
            "give a CSV or Parquet with the columns image_id and score"
        ) from exc
    for column in ("image_id", "score"):
        if column not in found.column_names:
            raise FiqaRayError(
                f"{scores_uri} has no column {column!r} (it has {', '.join(found.column_names)}); "
                "a score file needs image_id and score"
            )
    try:
        ids = found["image_id"].cast(pa.string()).combine_chunks()
        score = found["score"].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise FiqaRayError(f"{scores_uri}: column 'image_id' must hold text and column 'score' numbers: {exc}") from exc
    counts = ids.value_counts()
    twice = [str(c["values"]) for c in counts.filter(pc.greater(counts.field("counts"), 1))]
    if twice:
        raise FiqaRayError(
            f"{scores_uri}: {len(twice)} image_id(s) stand more than once, such as {twice[0]!r}; keep one row"
        )
    bad = np.flatnonzero(~np.isfinite(score))
    if len(bad):
        raise FiqaRayError(
            f"{scores_uri}: {len(bad)} score(s) are not finite, such as {score[bad[0]]} of {ids[int(bad[0])]}; "
            "every score must be a number"
        )
    at = pc.index_in(image_id, value_set=ids)
    if at.null_count:
        missing = image_id.filter(at.is_null())
        raise FiqaRayError(f"{scores_uri}: {len(missing)} image(s) have no score, such as {missing[0]}; add their rows")
    if len(ids) != len(image_id):
        extra = ids.filter(pc.invert(pc.is_in(ids, value_set=image_id)))
        raise FiqaRayError(
            f"{scores_uri}: {len(extra)} image_id(s) are not in the data set, such as {extra[0]}; remove their rows"
        )
    return score[at.to_numpy()]
