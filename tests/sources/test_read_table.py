"""Tables as people have them; right values by hand."""

import io
import itertools
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.read_table import TEXT, read_table
from fiqa_ray.sources.scores import read_scores
from fiqa_ray.sources.table import list_table

ROWS = [("a/1.png", 0.25), ("NA", -1.0), ("null", 3.0), ("007", 1e300), ("True", 0.0), ('q"uo,te', 2.0)]
TYPES = {"name": TEXT, "value": pa.float64()}


def text_of(separator, newline, *, quoted, padded, more):
    """A CSV written by hand: every separator, newline and habit of quoting."""
    space = " " if padded else ""

    def cell(value):
        value = str(value)
        return (
            f'"{value.replace(chr(34), chr(34) * 2)}"' if quoted or any(c in value for c in f'{separator}"') else value
        )

    header = ["other", "name", "other", "value"] if more else ["name", "value"]
    lines = [header, *([1, n, 2, v] if more else [n, v] for n, v in ROWS)]
    return newline.join((separator + space).join(cell(c) for c in line) for line in lines) + newline


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_habit_of_writing_a_csv(tmp_path, bom):
    file = tmp_path / "x.csv"
    for separator, newline, quoted, padded, more in itertools.product(
        ",;\t", ("\n", "\r\n"), (False, True), (False, True), (False, True)
    ):
        if padded and (quoted or separator == "\t"):
            continue  # a space before a quote belongs to the value
        rows = [r for r in ROWS if not (padded and '"' in r[0])]
        text = bom + text_of(separator, newline, quoted=quoted, padded=padded, more=more)
        if padded:
            text = newline.join(line for line in text.split(newline) if "uo,te" not in line)
        file.write_bytes(text.encode())
        table = read_table(str(file), TYPES, list(TYPES), "x")
        assert list(zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True)) == rows, text


def test_parquet_is_told_by_its_first_bytes(tmp_path):
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    for kind, number in itertools.product(kinds, [pa.float16(), pa.float32(), pa.int8()]):
        column = pa.array(["a", "b"], pa.string()).cast(kind)
        pq.write_table(
            pa.table({"name": column, "value": pa.array([1, 2], number), "z": [[1], [2]]}), tmp_path / "x.PARQUET"
        )
        assert read_table(str(tmp_path / "x.PARQUET"), TYPES, list(TYPES), "x").to_pydict() == {
            "name": ["a", "b"],
            "value": [1.0, 2.0],
        }


def parquet(columns, names=None):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names=names) if names else pa.table(columns), sink)
    return sink.getvalue()


FAULTS = {
    "name twice": (b"uri,identity,identity\na,b,b\n", ["the column 'identity' stands 2 times"]),
    "uri thrice": (b"uri,uri,identity,uri\na,a,b,a\n", ["the column 'uri' stands 3 times"]),
    "name twice in Parquet": (
        parquet([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["uri", "identity", "identity"]),
        ["the column 'identity' stands 2 times"],
    ),
    "list": (parquet({"uri": [["a"]], "identity": ["b"]}), ["'uri'", "list<"]),
    "struct": (parquet({"uri": ["a"], "identity": [{"x": 1}]}), ["'identity'", "struct<"]),
    "dictionary of lists": (parquet({"uri": ["a"], "identity": [[["x"]]]}), ["'identity'", "list<"]),
    "UTF-16": ("uri,identity\na,b\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    "UTF-16 big end first": (b"\xfe\xff" + "uri,identity\na,b\n".encode("utf-16-be"), ["UTF-16"]),
    "UTF-16 without mark": ("uri,identity\na,b\n".encode("utf-16-le"), ["zero bytes"]),
    "Latin-1": ("uri,identité\n".encode("latin-1"), ["not UTF-8", "byte"]),
    "pickle": (pickle.dumps({"a": 1}), ["pickle"]),
    "gzip": (b"\x1f\x8b\x08\0\0", ["gzip", "unpack"]),
    "workbook": (b"PK\x03\x04\x14\0", ["workbook", "CSV"]),
    "web page": (b"<HTML><body>403</body>", ["web page"]),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["git lfs pull"]),
    "empty": (b"", ["Empty CSV file"]),
    "header only": (b"uri,identity\n", ["no rows"]),
    "other header": (b"file,person\na,b\n", ["no column uri, identity", "file, person"]),
    "ragged": (b"uri,identity\na,b\na,b,c\n", ["Expected 2 columns, got 3"]),
    "cut Parquet": (parquet({"uri": ["a"], "identity": ["b"]})[:-20], ["cannot be read as a table"]),
    "Windows paths": (b"uri,identity\na\\1.png,a\n", ["Windows paths", "a\\\\1.png"]),
    "drive": (b"uri,identity\nC:\\faces\\1.png,a\n", ["Windows paths"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_error_with_the_file(tmp_path, name):
    content, words = FAULTS[name]
    file = tmp_path / "faces.csv"
    file.write_bytes(content)
    with pytest.raises(FiqaRayError) as info:
        list_table(str(file))
    for word in (str(file), *words):
        assert word in str(info.value)


def test_damage_ends_in_a_table_or_in_one_error(tmp_path):
    """300 seeded damages of CSV and Parquet files: bytes changed, cut out, put in, and the end cut off."""
    rng = np.random.default_rng(0)
    rows = "".join(f"a/{i}.png,{i // 5}\n" for i in range(30))
    names = [f"a/{i}.png" for i in range(30)]
    files = [
        ("t.csv", f"uri,identity\n{rows}".encode(), list_table),
        ("s.csv", f"image_id,score\n{rows}".encode(), read_scores),
        ("s.txt", rows.replace(",", " ").encode(), read_scores),
        ("t.parquet", parquet({"uri": names, "identity": names}), list_table),
        ("s.parquet", parquet({"image_id": names, "score": [1.0] * 30}), read_scores),
    ]
    n_read, messages = 0, []
    for k in range(300):
        name, whole, read = files[k % len(files)]
        data = bytearray(whole)
        at, n = int(rng.integers(len(data))), int(rng.integers(1, 9))
        junk = [rng.bytes(n), b'"', b",", b"\n", b"\0", b"\xff"][int(rng.integers(6))]
        data[at : at + n] = [b"", junk, bytes([data[at] ^ 1]), data[at : at + n] + junk, junk][k % 4 if k % 7 else 4]
        (tmp_path / name).write_bytes(data[:at] if k % 11 == 0 else data)
        try:
            n_read += len(read(str(tmp_path / name))) > 0
        except FiqaRayError as exc:
            messages.append((name, str(exc)))
    assert all(name in message for name, message in messages)
    assert 30 < n_read < 270


def test_a_backslash_in_a_real_name_is_a_name(tmp_path):
    (tmp_path / "a\\1.png").write_bytes(b"x")
    (tmp_path / "faces.csv").write_text("uri,identity\na\\1.png,a\n")
    assert list_table(str(tmp_path / "faces.csv"))["image_id"].to_pylist() == ["a\\1.png"]


def test_names_stay_as_they_are_written(tmp_path):
    names = ["NA", "null", "007", "1e5", "True", "nan", "-"]
    (tmp_path / "faces.csv").write_text("uri,identity\n" + "".join(f"{i}.png,{n}\n" for i, n in enumerate(names)))
    assert sorted(list_table(str(tmp_path / "faces.csv"))["identity"].to_pylist()) == sorted(names)


SCORES = {  # what a tool writes -> image_id and score, by hand
    "ofiq.csv": (
        "Filename;UnifiedQualityScore;UnifiedQualityScore.scalar;time_in_ms\na/1.png;25.5;80;101\nb 2.png;-1;0;7\n",
        {"a/1.png": 25.5, "b 2.png": -1.0},
    ),
    "crfiqa.txt": ("/data/a/1.png 0.25\n/data/b c/2.png -1e-3\n", {"/data/a/1.png": 0.25, "/data/b c/2.png": -1e-3}),
    "plain.csv": ("image_id,score\na,1\nb,2\n", {"a": 1.0, "b": 2.0}),
    "semicolon.csv": ("image_id;score\na;1\n", {"a": 1.0}),
    "spaces.csv": ("image_id, score\na, 1\nb, -2.5\n", {"a": 1.0, "b": -2.5}),
}


def test_a_list_of_millions_of_equal_rows_is_refused_unread(tmp_path, monkeypatch):
    equal = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int8)), ["a/1.png"])
    pq.write_table(pa.table({"uri": equal, "identity": equal}), tmp_path / "bomb.parquet", compression="zstd")
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(FiqaRayError, match=r"bomb\.parquet: 2,000,000 rows in [\d,]+ bytes, so hardly any two"):
        list_table(str(tmp_path / "bomb.parquet"))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([1.0, 20.0], ["1", "20"]), ([0.5, 1.0], None), ([float("nan"), 1.0], None), ([7, 8], ["7", "8"])],
)
def test_people_named_by_numbers(tmp_path, values, wanted):
    """As pandas writes whole numbers beside gaps; NaN is nobody's name."""
    pq.write_table(pa.table({"uri": ["a.png", "b.png"], "identity": values}), tmp_path / "x.parquet")
    if wanted:
        assert list_table(str(tmp_path / "x.parquet"))["identity"].to_pylist() == wanted
    else:
        with pytest.raises(FiqaRayError, match="the column 'identity' is of type double; it must hold one text a row"):
            list_table(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_other_tools(tmp_path, name):
    text, wanted = SCORES[name]
    (tmp_path / name).write_text(text)
    table = read_scores(str(tmp_path / name))
    assert dict(zip(table["image_id"].to_pylist(), table["score"].to_pylist(), strict=True)) == wanted


def test_scores_of_named_columns(tmp_path):
    (tmp_path / "x.tsv").write_text("file|q|score\na|1|9\nb|2|9\n")
    table = read_scores(str(tmp_path / "x.tsv"), "file", "q", "|")
    assert table.to_pydict() == {"image_id": ["a", "b"], "score": [1.0, 2.0]}
    pq.write_table(pa.table({"file": ["a"], "q": [0.5]}), tmp_path / "x.parquet")
    assert read_scores(str(tmp_path / "x.parquet"), "file", "q").to_pydict() == {"image_id": ["a"], "score": [0.5]}
    with pytest.raises(FiqaRayError, match="no column 'quality'"):
        read_scores(str(tmp_path / "x.tsv"), "file", "quality", "|")


@pytest.mark.parametrize(
    "value",
    [
        "tensor(0.5)",
        "[0.5]",
        "true",
        '"0,5"',
        '"1,234.5"',
        "1 234",
        "50%",
        "None",
        "nan",
        "inf",
        "-1e39",
        "1e400",
        "",
        "good",
    ],
)
def test_scores_that_are_no_numbers_are_refused(tmp_path, value):
    (tmp_path / "x.csv").write_text(f"image_id,score\na,1\nb,{value}\n")
    with pytest.raises(FiqaRayError, match=r"x\.csv"):
        read_scores(str(tmp_path / "x.csv"))
