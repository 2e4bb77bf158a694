"""Scores of training seeds as a column of lists."""

import numpy as np
import pyarrow as pa
import pytest

from fiqa_ray.datasets.columns import seed_score_column, seed_scores


@pytest.mark.parametrize("rows", [[0, 2, 3], [1], [0, 1, 2, 3, 4], []])
def test_seed_scores_come_back_with_nan_where_there_are_none(rows):
    values = np.arange(3 * len(rows), dtype=np.float32).reshape(len(rows), 3)
    table = pa.table({"seed_scores": seed_score_column(values, np.array(rows, np.int64), 5)})
    assert [i for i, v in enumerate(table["seed_scores"].to_pylist()) if v is not None] == rows
    halves = pa.concat_tables([table.slice(0, 2), table.slice(2)])  # as of two parts
    for stored in (table, halves):
        scores = seed_scores(stored)
        assert scores.shape == (5, 3 if rows else 1)
        assert scores[rows].tolist() == values.tolist() if rows else np.isnan(scores).all()
        assert np.isnan(scores[[i for i in range(5) if i not in rows]]).all()
