"""The stored list of a face set's images, which a resumed run reads instead of listing its source again."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.sums import file_sums
from fiqa_ray.documents import damaged
from fiqa_ray.storage import read_bytes, read_shown

SOURCE_LIST = "_source.parquet"
"""The sorted list of a face set's images, beside its parts; its sums stand in the plan."""


def read_list(dataset: Dataset, columns: list[str] | None = None) -> pa.Table:
    """Return the stored list of a face set, or some of its columns, after a check of its bytes against the plan."""
    plan, uri = dataset.plan(), dataset.at(SOURCE_LIST)
    data = read_shown(uri) or read_bytes(
        uri
    )  # it may have been written a moment ago; the second one tells what is wrong
    sums = file_sums("", data)  # of the whole: nothing is decoded before
    if plan is not None and any(plan["source_list"][key] != sums[key] for key in sums):
        raise damaged(
            uri, "its checksum differs from the plan", "remove this file and run again: the source is listed again"
        )
    return pq.read_table(io.BytesIO(data), columns=columns)
