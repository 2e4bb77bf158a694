"""Rows of results: what is written comes back, undefined numbers as null, curves level by level."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from fiqa_ray.datasets.results import (
    AucRow,
    CorrelationRow,
    EdcLine,
    edc_lines,
    edc_table,
    rows_of,
    schema_of,
    table_of,
)
from fiqa_ray.errors import FiqaRayError

NAN = float("nan")
KEY = ("a", "r100", "a", "optimized", 0.03, 7, "LFW", "r50", "paper", 1e-3)
AREA = AucRow(*KEY, 8e-4, 0.02, 0.95, True, 0.012, NAN, NAN, 0.63, 0.0118, 0.01, 3000, 2999)


def test_a_class_of_rows_is_its_schema():
    expected = pa.schema([("benchmark", pa.string()), ("scorer", pa.string()), ("kind", pa.string())])
    expected = expected.append(pa.field("spearman", pa.float64())).append(pa.field("n", pa.int64()))
    assert schema_of(CorrelationRow) == expected


def test_undefined_numbers_are_null_in_the_table():
    table = table_of(AucRow, [AREA])
    assert table.to_pylist()[0] == {**vars(AREA), "auc_low": None, "auc_high": None}
    (row,) = rows_of(AucRow, table)
    assert repr(row) == repr(AREA)  # NaN is not equal to itself
    assert rows_of(AucRow, table_of(AucRow, [])) == []
    untrained = replace(AREA, theta=NAN, seed=None)  # a whole number that there is none of stays None
    assert table_of(AucRow, [untrained]).select(["theta", "seed"]).to_pylist() == [{"theta": None, "seed": None}]
    assert repr(rows_of(AucRow, table_of(AucRow, [untrained]))) == repr([untrained])


def test_further_columns_are_ignored_and_missing_ones_named():
    table = pa.table(
        {"benchmark": ["LFW"], "scorer": ["a"], "kind": ["all"], "spearman": [-0.5], "n": [7], "more": [1]}
    )
    assert rows_of(CorrelationRow, table) == [CorrelationRow("LFW", "a", "all", -0.5, 7)]
    with pytest.raises(FiqaRayError, match=r"\(correlations\): the table lacks kind, n"):
        rows_of(CorrelationRow, table.drop_columns(["kind", "n"]))


def test_curves_come_from_a_long_table():
    table = pa.table(
        {
            "scorer": ["b", "a", "b", "a", "b"],
            "quality_model": [""] * 5,
            "method": ["m"] * 5,
            "variant": ["baseline"] * 5,
            "theta": pa.nulls(5, pa.float64()),
            "seed": pa.nulls(5, pa.int64()),
            "benchmark": ["LFW"] * 5,
            "recognizer": ["r100"] * 5,
            "convention": ["paper"] * 5,
            "fmr": [1e-3] * 5,
            "discard_fraction": [0.1, 0.0, 0.0, 0.05, 0.05],
            "fnmr": [None, 0.4, 0.3, 0.2, 0.1],
            "threshold": [None, 1.0, 1.0, 1.0, 1.0],
            "n_mated": [0, 10, 12, 9, 11],
            "n_nonmated": [9, 10, 11, 9, 10],
            "n_false_nonmatches": [0, 4, 4, 2, 1],
            "n_allowed": [1] * 5,
            "n_false_matches": [1] * 5,
        }
    )
    b, a = edc_lines(table)
    assert (b.scorer, a.scorer) == ("b", "a")
    np.testing.assert_array_equal(b.discard_fraction, [0, 0.05, 0.1])
    np.testing.assert_array_equal(b.fnmr, [0.3, 0.1, np.nan])
    np.testing.assert_array_equal(b.n_mated, [12, 11, 0])
    np.testing.assert_array_equal(a.fnmr, [0.4, 0.2])
    assert np.isnan(a.theta)
    assert a.seed is None
    with pytest.raises(FiqaRayError, match="lacks fnmr"):
        edc_lines(table.drop_columns(["fnmr"]))
    assert edc_table([b, a]).sort_by([("scorer", "ascending"), ("discard_fraction", "ascending")]) == table.sort_by(
        [("scorer", "ascending"), ("discard_fraction", "ascending")]
    ).cast(schema_of(EdcLine))
    assert edc_table([]).schema == schema_of(EdcLine)
