import os
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_ray.datasets.schemas import SOURCE_FACES
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.files import read_face_bytes
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.table import list_table
from fiqa_ray.sources.vggface2 import list_vggface2

HEADER = "NAME_ID," + ",".join(f"P{i}{axis}" for i in range(1, 6) for axis in "XY")


def make_files(root: Path | str, names: list[str]) -> None:
    """Files whose content is their name."""
    fs, path = fsspec.core.url_to_fs(str(root))
    for name in names:
        fs.makedirs(f"{path}/{name}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", name.encode())


def columns(table: pa.Table) -> list[tuple[str, str]]:
    assert table.schema == SOURCE_FACES
    return list(zip(table["identity"].to_pylist(), table["image_id"].to_pylist(), strict=True))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folder_lists_images_of_each_identity_in_order(tmp_path: Path) -> None:
    names = ["b/2.JPG", "b/10.jpeg", "a-b/x.png", "a/deep/er/x.webp", "a/z.bmp", "é/ü [1].jpg"]
    noise = ["a/notes.txt", "a/._z.jpg", ".cache/a.jpg", "__MACOSX/a/z.jpg", "b/Thumbs.db"]
    make_files(tmp_path, names + noise)
    table = list_folder(str(tmp_path))
    assert columns(table) == sorted((name.split("/")[0], name) for name in names)
    assert table["uri"].to_pylist() == [f"{tmp_path}/{image_id}" for image_id in table["image_id"].to_pylist()]
    assert table["landmarks"].null_count == len(names)
    assert [b.decode() for b in read_face_bytes(table["uri"].to_pylist())] == table["image_id"].to_pylist()  # type: ignore[union-attr]
    assert columns(list_folder(str(tmp_path), extensions=[".png"])) == [("a-b", "a-b/x.png")]


def test_folder_on_other_storages_lists_the_same(tmp_path: Path) -> None:
    names = [f"p{i}/{j} [x].jpg" for i in range(3) for j in range(12)]
    make_files(tmp_path / "set", names)
    make_files("memory://bucket/set", names)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            archive.writestr(f"set/{name}", name)
    expected = columns(list_folder(str(tmp_path / "set")))
    for uri in ("memory://bucket/set", f"file://{tmp_path}/set/", f"zip://set::{tmp_path}/set.zip"):
        table = list_folder(uri)
        assert columns(table) == expected, uri
        contents = read_face_bytes(table["uri"].to_pylist())
        assert contents == [image_id.encode() for _, image_id in expected], uri


def test_a_relative_folder_gives_absolute_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, ["set/p/1.jpg"])
    monkeypatch.chdir(tmp_path)
    uris = list_folder("set/")["uri"].to_pylist()
    monkeypatch.chdir("/")
    assert uris == [f"{tmp_path}/set/p/1.jpg"]
    assert read_face_bytes(uris) == [b"set/p/1.jpg"]


def test_identity_level_picks_the_folder(tmp_path: Path) -> None:
    make_files(tmp_path, ["Data/Images/002/frontal/01.jpg", "Data/Images/001/profile/01.jpg"])
    table = list_folder(str(tmp_path), identity_level=2)
    assert table["identity"].to_pylist() == ["001", "002"]
    assert set(list_folder(str(tmp_path), identity_level=None)["identity"].to_pylist()) == {""}
    with pytest.raises(FiqaRayError, match=r"identity_level 5\): 'Data/Images/00"):
        list_folder(str(tmp_path), identity_level=5)
    make_files(tmp_path, ["flat_0001.jpg"])
    with pytest.raises(FiqaRayError, match=r"flat_0001\.jpg"):
        list_folder(str(tmp_path))


def test_linked_folders_are_listed_and_cycles_end(tmp_path: Path) -> None:
    make_files(tmp_path, ["store/p/1.jpg", "set/q/2.jpg"])
    os.symlink(tmp_path / "store" / "p", tmp_path / "set" / "p")
    os.symlink(tmp_path / "set", tmp_path / "set" / "q" / "again")
    assert columns(list_folder(str(tmp_path / "set"))) == [("p", "p/1.jpg"), ("q", "q/2.jpg")]


@pytest.mark.parametrize("uri", ["{tmp}/nowhere", "{tmp}", "memory://no/such/place"])
def test_missing_and_empty_folders_are_named(tmp_path: Path, uri: str) -> None:
    uri = uri.format(tmp=tmp_path)
    with pytest.raises(FiqaRayError, match=r"not found|no images found; looked in it.*jpg") as info:
        list_folder(uri)
    assert uri in str(info.value)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"p")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xff.jpg"), "wb"), pytest.raises(FiqaRayError, match="not UTF-8"):
        list_folder(str(tmp_path))


def test_landmarks_join_by_name_without_ending(tmp_path: Path) -> None:
    make_files(tmp_path / "set", ["p/1.jpg", "p/2.png", "q/1.jpg"])
    points = np.arange(20.0).reshape(2, 10) + 0.25
    rows = [f'"{name}",{",".join(map(str, row))}' for name, row in zip(["q/1", "p/1"], points, strict=True)]
    csv = tmp_path / "marks.csv"
    csv.write_text("\n".join([HEADER, *rows, '"other/9",' + ",".join(["1"] * 10)]) + "\n")
    table = list_folder(str(tmp_path / "set"), landmarks_uri=str(csv))
    assert table["image_id"].to_pylist() == ["p/1.jpg", "p/2.png", "q/1.jpg"]
    assert table["landmarks"].to_pylist() == [points[1].tolist(), None, points[0].tolist()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n", "first line is 'a,b,c'"),
        (HEADER + '\n"p/1",1,2,3\n', "Expected 11 columns, got 4"),
        (HEADER + '\n"p/1",1,2,3,4,5,6,7,8,9,x\n', "invalid value 'x'"),
        (HEADER + "\n" + "p/1,1,2,3,4,5,6,7,8,9,0\n" * 2, "'p/1' occurs more than once"),
        (HEADER + "\nP/0001.jpg,1,2,3,4,5,6,7,8,9,0\n", "NAME_ID is like 'P/0001.jpg', the images are like 'p/1'"),
    ],
)
def test_faulty_landmark_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    make_files(tmp_path, ["p/1.jpg"])
    csv = tmp_path / "marks.csv"
    csv.write_text(text)
    with pytest.raises(FiqaRayError) as info:
        list_folder(str(tmp_path), landmarks_uri=str(csv))
    assert words in str(info.value)
    assert str(csv) in str(info.value)


# --- VGGFace2 ---------------------------------------------------------------------------------------------------------


def vggface2_names() -> dict[str, list[str]]:
    return {
        "train": [f"n{i:06d}/{j:04d}_{k:02d}.jpg" for i in (2, 4, 30) for j in range(1, 4) for k in (1, 2)],
        "test": [f"n{i:06d}/{j:04d}_01.jpg" for i in (1, 9) for j in range(1, 3)],
    }


def make_vggface2(root: str, *, lists: str | None = None, ends: str = "\n", marks: str = "bb_landmark/") -> None:
    files = {}
    for split, names in vggface2_names().items():
        if lists:
            files[lists.format(split=split)] = ends.join(names) + ends
        else:
            files |= {f"{split}/{name}": "" for name in names}
        rows = [
            f'"{name[:-4]}",' + ",".join(str(i + c / 4) for c in range(10)) for i, name in enumerate(names) if i != 1
        ]
        files[f"{marks}loose_landmark_{split}.csv"] = "\n".join([HEADER, *reversed(rows)]) + "\n"
    fs, path = fsspec.core.url_to_fs(root)
    for name, text in files.items():
        fs.makedirs(f"{path}/{name}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", text.encode())


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"lists": "{split}_list.txt"},
        {"lists": "{split}.txt", "ends": "\r\n", "marks": ""},
        {"lists": "meta/{split}_list.txt", "ends": "\n\n"},
        {"lists": "{split}/meta/{split}.txt"},
    ],
)
def test_vggface2_in_each_of_its_layouts(tmp_path: Path, layout: dict[str, str]) -> None:
    for root in (str(tmp_path), f"memory://vgg/{tmp_path.name}"):
        make_vggface2(root, **layout)  # type: ignore[arg-type]
        table = list_vggface2(root)
        expected = sorted(
            (name.split("/")[0], f"{split}/{name}", None if i == 1 else [i + c / 4 for c in range(10)])
            for split, names in vggface2_names().items()
            for i, name in enumerate(names)
        )
        found = list(zip(*(table[c].to_pylist() for c in ("identity", "image_id", "landmarks")), strict=True))
        assert found == expected
        assert table["uri"][0].as_py() == f"{root}/test/n000001/0001_01.jpg"
        assert len(list_vggface2(root, splits=("test",))) == 4


def test_vggface2_lists_may_name_the_part_and_must_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "train_list.txt").write_text("train/n000002/0001_01.jpg\nn000002/0002_01.jpg\n")
    table = list_vggface2(str(tmp_path), splits=("train",))
    assert table["image_id"].to_pylist() == ["train/n000002/0001_01.jpg", "train/n000002/0002_01.jpg"]
    assert table["landmarks"].null_count == 2
    for line in ("../../etc/passwd", "n000002/../../x.jpg", "/etc/passwd.jpg", "0001_01.jpg"):
        (tmp_path / "train_list.txt").write_text(f"n000002/0001_01.jpg\n{line}\n")
        with pytest.raises(FiqaRayError, match=rf"train_list.txt, line 2: '{line}'"):
            list_vggface2(str(tmp_path), splits=("train",))


def test_a_missing_part_of_vggface2_is_named(tmp_path: Path) -> None:
    make_files(tmp_path, ["train/n000002/0001_01.jpg"])
    with pytest.raises(FiqaRayError, match=r"VGGFace2's test part needs .*test_list\.txt.*leave test out"):
        list_vggface2(str(tmp_path))


# --- tables -----------------------------------------------------------------------------------------------------------

XY = ",".join(f"{axis}{i}" for i in range(1, 6) for axis in "xy")


def test_csv_with_relative_and_absolute_uris_and_landmarks(tmp_path: Path) -> None:
    table_uri = tmp_path / "faces.csv"
    table_uri.write_text(
        f"identity,age,uri,{XY}\n"
        "007,40,img/b.jpg,1,2,3,4,5,6,7,8,9,10.5\n"
        "NA,41,s3://bucket/a.jpg" + "," * 10 + "\n"
        "007,42,/data/a b.jpg" + "," * 10 + "\n"
    )
    table = list_table(str(table_uri))
    assert columns(table) == [("007", "/data/a b.jpg"), ("007", "img/b.jpg"), ("NA", "s3://bucket/a.jpg")]
    assert table["uri"].to_pylist() == ["/data/a b.jpg", f"{tmp_path}/img/b.jpg", "s3://bucket/a.jpg"]
    assert table["landmarks"].to_pylist() == [None, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10.5], None]


def test_parquet_with_image_ids_and_landmark_lists(tmp_path: Path) -> None:
    points = [float(i) for i in range(10)]
    source = pa.table(
        {"uri": ["b", "a"], "identity": [2, 1], "image_id": ["x", "y"], "landmarks": [None, points], "other": [0, 0]}
    )
    fs = fsspec.filesystem("memory")
    fs.makedirs("/tables", exist_ok=True)
    for name in (f"{tmp_path}/faces.parquet", "memory://tables/faces.parquet"):
        with fsspec.open(name, "wb") as f:
            pq.write_table(source, f)
        table = list_table(name)
        assert columns(table) == [("1", "y"), ("2", "x")]
        assert table["landmarks"].to_pylist() == [points, None]
        assert table["uri"].to_pylist() == [f"{name.rpartition('/')[0]}/{u}" for u in ("a", "b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,identity\na.jpg,1\n", "no column 'uri' (found: path, identity)"),
        ("uri,person\na.jpg,1\n", "no column 'identity'"),
        ("uri,identity\n", "no rows"),
        ("uri,identity\na.jpg,1\n,2\n", "empty uri: '' (data row 2)"),
        ("uri,identity\na.jpg,1\na.jpg,2\n", "image_id 'a.jpg' occurs more than once"),
        ("uri,identity,image_id\na.jpg,1,x\nb.jpg,2,x\n", "image_id 'x' occurs more than once"),
        ("uri,identity\nx/../../a.jpg,1\n", "leaves the table's folder: 'x/../../a.jpg' (data row 1)"),
        ("uri,identity,x1,y1\na.jpg,1,2,3\n", "missing: x2, y2"),
        (f"uri,identity,{XY}\na.jpg,1,1,2,3,4,5,6,7,8,9,\n", "incomplete landmarks: 'a.jpg' (data row 1)"),
        (f"uri,identity,{XY}\na.jpg,1,1,2,3,4,5,6,7,8,9,left\n", "invalid value 'left'"),
        ("uri,identity,landmarks\na.jpg,1,1 2 3\n", "must hold lists of ten numbers"),
        ("uri,identity\na.jpg,1,5\n", "Expected 2 columns, got 3"),
        ("", "Empty CSV file"),
    ],
)
def test_faulty_tables_are_named(tmp_path: Path, text: str, words: str) -> None:
    uri = tmp_path / "faces.csv"
    uri.write_text(text)
    with pytest.raises(FiqaRayError) as info:
        list_table(str(uri))
    assert words in str(info.value)
    assert str(uri) in str(info.value)


def test_a_table_that_is_missing_or_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(FiqaRayError, match=r"faces\.csv: not found"):
        list_table(str(tmp_path / "faces.csv"))
    (tmp_path / "faces.parquet").write_text("uri,identity\n")
    with pytest.raises(FiqaRayError, match="not a Parquet file"):
        list_table(str(tmp_path / "faces.parquet"))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_missing_files_are_none_and_storages_mix(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jpg", "c.jpg"])
    make_files("memory://mixed", ["b.jpg"])
    uris = [
        f"{tmp_path}/a.jpg",
        "memory://mixed/no.jpg",
        f"{tmp_path}/no.jpg",
        "memory://mixed/b.jpg",
        f"{tmp_path}/c.jpg",
    ]
    expected = [b"a.jpg", None, None, b"b.jpg", b"c.jpg"]
    assert read_face_bytes(uris) == expected
    assert read_face_bytes(uris, n_threads=1) == expected
    assert read_face_bytes([]) == []


def test_other_faults_than_a_missing_file_are_raised(tmp_path: Path) -> None:
    make_files(tmp_path, ["a.jpg", "b.jpg/c.jpg"])
    with pytest.raises(FiqaRayError, match=r"b\.jpg"):
        read_face_bytes([f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"])
