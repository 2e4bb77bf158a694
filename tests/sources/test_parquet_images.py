import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import put, put_parquet
from fiqa_ray.datasets.schemas import SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources import parquet_images
from fiqa_ray.sources.containers import Fault
from fiqa_ray.sources.parquet_images import list_parquet_images, read_parquet_images

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def listed(uri, **options):
    """image_id -> (identity, content)."""
    table = list_parquet_images(uri, **options)
    assert table.schema == SOURCE_RECORDS
    found = dict(read_parquet_images(table))
    assert sorted(found) == list(range(len(table)))
    return {r["image_id"]: (r["identity"], found[i]) for i, r in enumerate(table.to_pylist())}


def fault(uri, **options):
    with pytest.raises(FiqaRayError) as info:
        list_parquet_images(str(uri), **options)
    assert str(uri) in str(info.value)
    return str(info.value)


def images(values, paths=None):
    return pa.array(
        [{"bytes": v, "path": p} for v, p in zip(values, paths or [None] * len(values), strict=True)], STRUCT
    )


def test_struct_column_with_class_names_in_shuffled_rows(root):
    """As Hugging Face's datasets writes them, in files below folders; the paths are not unique, so rows name images."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["Ann", "Bo", "Cy"]}}
    expected = {}
    for part in range(2):
        label = np.random.default_rng(part).integers(0, 3, 50)
        content = [b"%d-%d" % (part, i) for i in range(50)]
        columns = {"image": images(content, [f"{i}.jpg" for i in range(50)]), "label": label.astype("int64")}
        put_parquet(f"{root}/data/train-{part}.parquet", columns, features, row_group_size=8)
        expected |= {f"data/train-{part}/{i:08d}": (["Ann", "Bo", "Cy"][label[i]], content[i]) for i in range(50)}
    assert listed(root) == expected
    assert listed(f"{root}/data/*.parquet") == {k.removeprefix("data/"): v for k, v in expected.items()}


def test_binary_column_text_identities_and_bad_rows(tmp_path):
    columns = {"jpg": [b"1", None, b"3", b""], "label": ["x", "y", "x", "x"], "celeb": [5, 5, 4, 4], "more": [1.0] * 4}
    uri = put_parquet(f"{tmp_path}/a.parquet", columns)
    missing = Fault("missing", "the row has no image bytes")
    assert list(listed(uri).values()) == [("x", b"1"), ("x", b"3"), ("x", b""), ("y", missing)]
    assert list(listed(uri, identity_key="celeb")) == [f"a/{i:08d}" for i in (2, 3, 0, 1)]
    outside = {"image": images([None, b"2"], ["a.jpg", "b.jpg"]), "label": [0, 0]}
    assert listed(put_parquet(f"{tmp_path}/b.parquet", outside)) == {"a.jpg": ("0", missing), "b.jpg": ("0", b"2")}


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"image": [b"1"]}, {}, "no column identity or label (found: image); source.identity_key"),
        ({"image": [b"1"], "label": [1]}, {"identity_key": "who"}, "no column who"),
        ({"label": [1]}, {}, "no column of image bytes"),
        ({"a": [b"1"], "b": [b"1"], "label": [1]}, {}, "several columns of image bytes (a, b)"),
        ({"image": [b"1", b"2"], "label": [1, None]}, {}, "no identity: None (data row 2)"),
        ({"image": [b"1"], "label": [0.5]}, {}, "of type double; it must hold text or whole numbers"),
        ({"image": [b"1", b"2"], "label": [1, 1], "image_id": ["a", "a"]}, {}, "'a' occurs more than once"),
        ({"image": [b"1"], "label": [1], "x1": [3.0]}, {}, "landmarks need all of"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, {}, "without rows"),
    ],
)
def test_faulty_tables_are_named(tmp_path, columns, options, words):
    assert words in fault(put_parquet(f"{tmp_path}/a.parquet", columns), **options)


@pytest.mark.parametrize("name", ["image", "label", "image_id", "x1"])
def test_a_column_that_stands_twice_is_named(tmp_path, name):
    columns = {
        "image": [b"1"],
        "label": [1],
        "image_id": ["a"],
        "other": [0],
        **{f"{a}{i}": [3.0] for a in "xy" for i in range(1, 6)},
    }
    table = pa.table(columns)
    pq.write_table(table.append_column(name, table[name]), tmp_path / "a.parquet")
    assert f"the column '{name}' stands 2 times; keep one of them" in fault(f"{tmp_path}/a.parquet")
    pq.write_table(table.append_column("other", table["other"]), tmp_path / "a.parquet")
    assert listed(f"{tmp_path}/a.parquet") == {"a": ("1", b"1")}  # one that nobody wants may


def test_labels_beyond_the_class_names(tmp_path):
    columns = {"image": [b"1", b"2"], "label": [0, -1]}
    uri = put_parquet(f"{tmp_path}/a.parquet", columns, {"label": {"_type": "ClassLabel", "names": ["Ann"]}})
    assert "none of the 1 names in the file's metadata: -1 (data row 2)" in fault(uri)
    uri = put_parquet(f"{tmp_path}/a.parquet", columns, {"label": "[" * 100})
    assert [identity for identity, _ in listed(uri).values()] == ["-1", "0"]


def test_damaged_files(tmp_path):
    """A row group that cannot be read costs its own rows only."""
    assert "not a Parquet file" in fault(put(f"{tmp_path}/no.parquet", b"PAR1 and nothing else"))
    assert "no Parquet files" in fault(f"{tmp_path}/*.parq")
    rng = np.random.default_rng(0)
    content = [rng.bytes(500) for _ in range(30)]
    uri = put_parquet(
        f"{tmp_path}/a.parquet", {"image": images(content), "label": [0] * 30}, row_group_size=10, compression="snappy"
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = data.index(content[15][:100])
    data[at - 600 : at + 3000] = b"\xff" * 3600
    put(uri, bytes(data))
    found = [content for _, content in listed(uri).values()]
    assert found[:10] + found[20:] == content[:10] + content[20:]
    assert {c.status for c in found[10:20] if isinstance(c, Fault)} == {"bad_record"}


def test_bombs_are_refused(tmp_path, monkeypatch):
    sink = io.BytesIO()
    table = pa.table({"image": [bytes(1 << 21)] * 3, "label": [1] * 3})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    uri = put(f"{tmp_path}/a.parquet", sink.getvalue())
    assert len(sink.getvalue()) < 10_000
    monkeypatch.setattr(parquet_images, "MAX_GROWN_BYTES", 1 << 22)
    assert "which no images do" in fault(uri)
    monkeypatch.undo()
    monkeypatch.setattr(parquet_images, "MAX_ENTRY_BYTES", 1 << 20)
    assert {c.status for _, c in listed(uri).values()} == {"too_large"}


def test_a_row_group_is_read_once_and_only_where_wanted(tmp_path, monkeypatch):
    content = [b"%d" % i for i in range(100)]
    uri = put_parquet(
        f"{tmp_path}/a.parquet", {"image": content, "label": [i % 7 for i in range(100)]}, row_group_size=10
    )
    read = []
    original = parquet_images._read_group

    def spy(file, group, column, wanted):
        read.append((group, len(wanted)))
        return original(file, group, column, wanted)

    monkeypatch.setattr(parquet_images, "_read_group", spy)
    table = list_parquet_images(uri)
    rows = table.filter(pa.compute.field("offset") < 35)
    assert len(dict(read_parquet_images(rows))) == 35
    assert read == [(0, 10), (1, 10), (2, 10), (3, 5)]


def test_many_rows_without_images_are_refused(tmp_path):
    """26 kB of file that would be 1 GB of identities."""
    n = 1_000_000
    columns = {
        "image": pa.nulls(n, pa.binary()),
        "identity": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), ["x" * 200]),
    }
    uri = f"{tmp_path}/a.parquet"
    pq.write_table(pa.table(columns), uri)
    assert "rows and" in fault(uri)
    assert "files without images are not read" in fault(uri)
