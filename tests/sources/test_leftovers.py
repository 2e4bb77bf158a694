"""What is data: one rule for every source and command, and an account of what was left out."""

import os
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

import smoke
from containers import png, put, put_parquet, tar_bytes
from fiqa_ray.cli import main
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.sources.account import Account
from fiqa_ray.sources.command_line import list_images, read_images
from fiqa_ray.sources.files import read_files
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.leftovers import EXTENSIONS, reason_left_out
from fiqa_ray.sources.parquet_images import list_parquet_images
from fiqa_ray.sources.webdataset import list_webdataset
from fiqa_ray.synthetic.dataset import aligned_faces
from fiqa_ray.tools.run_job import run_job

DATA = [
    "a/1.jpg",
    "a/2.JPEG",
    "b/x.y.png",
    "-dash/#1.webp",
    "b b/50%.bmp",
    "a::b/1.png",
    "[x]/{y}.jpg",
    "St. John/1.jpg",
]
LEFT_OUT = {  # name -> reason, by hand
    "a/.ipynb_checkpoints/1-checkpoint.png": "name begins with .",
    "a/.hidden.jpg": "name begins with .",
    ".DS_Store": "name begins with .",
    "a/._1.jpg": "AppleDouble ._*",
    "._a/1.jpg": "AppleDouble ._*",
    "__MACOSX/a/1.jpg": "below __MACOSX",
    "_temporary/0/1.jpg": "name begins with _",
    "a/@eaDir/1.jpg/SYNOFILE_THUMB_M.jpg": "below @eaDir",
    "@eaDir/1.jpg": "below @eaDir",
    "a/Thumbs.db": "Thumbs.db",
    "#recycle/a/1.jpg": "below #recycle",
    "a/1.GIF": "ending .gif",
    "a/notes": "no ending",
    "a/1.jpg.crdownload": "ending .crdownload",
    "a/list.txt": "ending .txt",
}


@pytest.fixture(scope="module")
def picture():
    return png(aligned_faces((5, 0, 0, 1))[0])


def test_the_rule():
    assert {name: reason_left_out(name, EXTENSIONS) for name in DATA} == dict.fromkeys(DATA)
    assert {name: reason_left_out(name, EXTENSIONS) for name in LEFT_OUT} == LEFT_OUT


def test_all_sources_and_commands_take_the_same(tmp_path, picture):
    """A folder by `run` and by `score`, locally and in memory, and the same names in a tar."""
    for root in (str(tmp_path / "set"), "memory://leftovers"):
        for name in (*DATA, *LEFT_OUT):
            path = Path(root) / name
            if root.startswith("memory"):
                fsspec.filesystem("memory").pipe_file(f"/leftovers/{name}", picture)
            else:  # not by an fsspec URL, which would take a::b apart
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture)
    members = [(f"./{name}", picture) for name in (*DATA, *LEFT_OUT)]
    (tmp_path / "set.tar").write_bytes(tar_bytes(members))
    for root in (str(tmp_path / "set"), "memory://leftovers"):
        counts = Counter()
        assert set(list_folder(root, left_out=counts)["image_id"].to_pylist()) == set(DATA)
        assert counts == Counter(LEFT_OUT.values())
        counts = Counter()
        named = {image.uri for image in list_images([root], counts)}
        assert named == {f"{root}/{name}" for name in DATA}
        if not root.startswith("memory"):  # fsspec's store in memory takes a::b apart
            assert read_images(list_images([root])) == [picture] * len(DATA)
            assert [content for _, content in read_files(list_folder(root))] == [picture] * len(DATA)
        assert counts == Counter(LEFT_OUT.values())
    counts = Counter()
    assert {i.uri for i in list_images([str(tmp_path / "set.tar")], counts)} == {
        f"tar://./{name}::{tmp_path}/set.tar" for name in DATA
    }
    assert counts == Counter(LEFT_OUT.values())


def test_links_are_followed_but_nothing_is_read_twice(tmp_path, picture):
    for name in ("set/a/1.png", "set/b/2.png", "elsewhere/3.png"):
        put(str(tmp_path / name), picture)
    os.symlink("..", tmp_path / "set" / "a" / "up")
    os.symlink("../b", tmp_path / "set" / "a" / "other")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "c")
    counts = Counter()
    assert list_folder(str(tmp_path / "set"), left_out=counts)["image_id"].to_pylist() == [
        "a/1.png",
        "b/2.png",
        "c/3.png",
    ]
    assert counts == {"link to a folder of the same set": 2}
    assert len(list_images([str(tmp_path / "set")])) == 3


def test_only_folders_of_data_must_be_readable(tmp_path, picture, monkeypatch):
    for name in ("a/1.png", "lost+found/x", "secret/1.png"):
        put(str(tmp_path / "set" / name), picture)
    closed = {"lost+found"}
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) in closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    counts = Counter()
    assert len(list_folder(str(tmp_path / "set"), left_out=counts)) == 2
    assert counts == {"below lost+found": 1}
    closed.add("secret")
    with pytest.raises(FiqaRayError, match="access denied"):
        list_folder(str(tmp_path / "set"))


def test_parquet_and_tars_beside_leftovers(tmp_path, picture):
    columns = {"image": [{"bytes": picture, "path": None}] * 4, "label": [0, 0, 1, 1]}
    for name in ("part-0.parquet", "_temporary/0/part-0.parquet", ".ipynb_checkpoints/part-0.parquet"):
        put_parquet(f"{tmp_path}/set/{name}", columns)
    for uri in ("set", "set/**/*.parquet", "set/part-0.parquet"):
        counts = Counter()
        assert len(list_parquet_images(f"{tmp_path}/{uri}", left_out=counts)) == 4
        assert counts == ({"name begins with _": 1, "name begins with .": 1} if uri == "set" else counts)
    assert len(list_parquet_images(f"{tmp_path}/set/_temporary/0/part-0.parquet")) == 4  # named by the user
    sample = [
        ("a.png", picture),
        ("a.cls", b"1"),
        ("._a.png", b"\0\5\x16\7"),
        ("._a.cls", b"\0\5\x16\7"),
        (".DS_Store", b"x"),
    ]
    put(f"{tmp_path}/tars/x.tar", tar_bytes(sample))
    put(f"{tmp_path}/tars/._x.tar", b"\0\5\x16\7")
    for uri in ("tars/*.tar", "tars"):
        counts = Counter()
        assert list_webdataset(f"{tmp_path}/{uri}", left_out=counts)["image_id"].to_pylist() == ["a.png"]
        assert counts["AppleDouble ._*"] in (2, 3)
        assert counts["name begins with ."] == 1


def test_a_run_says_what_it_saw(tmp_path, picture, capsys):
    for name in (
        "a/1.png",
        "a/2.png",
        "b/1.png",
        "b/2.png",
        "c/1.png",
        "a/x.gif",
        "a/y.gif",
        "b/@eaDir/1.png",
        "notes.txt",
    ):
        put(str(tmp_path / "set" / name), picture)
    settings = smoke.settings(
        tmp_path,
        tmp_path,
        str(tmp_path / "run"),
        benchmarks=[],
        source={"kind": "folder", "uri": str(tmp_path / "set")},
    )
    run_job(settings, ["pack"])
    wanted = (
        "source: 9 seen, 5 images taken, 4 left out (ending .gif 2, below @eaDir 1, ending .txt 1); 3 people, 1 of them "
        "with one image, which can have no pair"
    )
    assert wanted in capsys.readouterr().err
    run_job(settings, ["pack"])  # also when the list is there already
    assert wanted in capsys.readouterr().err
    account = Job(settings).faces("train").plan()["account"]
    assert (account["n_images"], account["n_people"], account["n_single"]) == (5, 3, 1)


@pytest.mark.parametrize(
    ("identities", "text"),
    [(["", "", ""], "people not named"), (["a", "a", "a"], "1 person"), (["a", "a", "b"], "2 people, 1 of them")],
)
def test_a_flat_set_has_no_people(identities, text):
    assert f"left out; {text}" in str(Account.of(pa.table({"identity": identities}), Counter()))


def test_people_of_one_image_each_stop_a_run_unless_allowed(tmp_path, picture, capsys):
    for k in range(5):
        put(str(tmp_path / "set" / f"p{k}" / "1.png"), picture)
    put(str(tmp_path / "set" / "p0" / "2.png"), picture)
    source = {"kind": "folder", "uri": str(tmp_path / "set")}
    settings = smoke.settings(tmp_path, tmp_path, str(tmp_path / "run"), benchmarks=[], source=source)
    with pytest.raises(FiqaRayError, match=r"4 of 5 people have one image each, of 6 images in .*allow_single_images"):
        run_job(settings, ["pack"])
    allowed = smoke.settings(
        tmp_path, tmp_path, str(tmp_path / "run"), benchmarks=[], source={**source, "allow_single_images": True}
    )
    run_job(allowed, ["pack"])
    assert "no mated pairs" not in capsys.readouterr().err
    put(str(tmp_path / "set" / "p1" / "2.png"), picture)
    put(str(tmp_path / "set" / "p2" / "2.png"), picture)  # now 2 of 5: no longer most
    run_job(settings.model_copy(update={"run_uri": str(tmp_path / "other")}), ["pack"])


def test_training_faces_of_nobody_are_refused_and_names_alike_are_said(tmp_path, picture, capsys):
    names = ["Jos\u00e9", "Jose\u0301", "p 1", "p 1 ", "Q", "q", "r"]
    for row in range(2 * len(names)):
        put(str(tmp_path / "faces" / f"{row}.png"), picture)

    def run(name, people):
        rows = "".join(f"{i}.png,{person}\n" for i, person in enumerate(people))
        put(str(tmp_path / "faces" / f"{name}.csv"), f"uri,identity\n{rows}".encode())
        source = {"kind": "table", "uri": f"{tmp_path}/faces/{name}.csv"}
        run_job(smoke.settings(tmp_path, tmp_path, str(tmp_path / name), benchmarks=[], source=source), ["pack"])
        return capsys.readouterr().err

    with pytest.raises(
        FiqaRayError, match=r"1 of 14 images have no identity, such as '13\.png', and would count as one"
    ):
        run("gap", [*names, *names[:-1], ""])
    text = run("alike", names * 2)
    assert "3 names of people equal another but for case, spaces or Unicode form, such as" in text
    assert "they count as different people" in text
    assert "equal another" not in run("unlike", [str(i % 7) for i in range(14)])
    source = {"kind": "folder", "uri": str(tmp_path / "faces"), "identity_level": None}
    settings = smoke.settings(tmp_path, tmp_path, str(tmp_path / "flat"), benchmarks=[], source=source)
    with pytest.raises(FiqaRayError, match="14 of 14 images have no identity"):
        run_job(settings, ["pack"])


def test_score_of_nothing_ends_with_1(tmp_path, picture, capsys):
    put(str(tmp_path / "good" / "a.png"), picture)
    put(str(tmp_path / "bad" / "a.png"), picture[:50])
    arguments = ["--model", "sddfiqa_mobilefacenet", "--weights", "random:0", "-o", str(tmp_path / "out.csv")]
    for folder, code in (("good", 0), ("bad", 1)):
        with pytest.raises(SystemExit) as stop:
            main(["score", str(tmp_path / folder), *arguments])
        assert stop.value.code == code
        assert (tmp_path / "out.csv").exists()
    assert "0 scored, 1 not (truncated 1)" in capsys.readouterr().out


def test_landmarks_of_a_set_in_another_order(tmp_path, capsys):
    """Fractions, nose first: refused with their name; with it the crops are those of the right points."""
    import cv2
    import numpy as np

    from fiqa_ray.core.align import TEMPLATE

    rng = np.random.default_rng(0)
    table = {"uri": [], "identity": [], "right": [], "given": []}
    for i in range(6):
        picture = cv2.resize(rng.integers(0, 255, (9, 12, 3), np.uint8), (200, 150))
        put(f"{tmp_path}/{i}.png", png(picture))
        points = TEMPLATE + rng.normal(0, 1, (5, 2)) + [30, 20]
        table["uri"].append(f"{i}.png")
        table["identity"].append(str(i // 3))
        table["right"].append(points.ravel().tolist())
        table["given"].append((points[[2, 0, 1, 3, 4]] / [200, 150]).ravel().tolist())

    def packed(name, column, order):
        columns = {"uri": table["uri"], "identity": table["identity"], "landmarks": table[column]}
        put_parquet(f"{tmp_path}/{name}.parquet", columns)
        source = {"kind": "table", "uri": f"{tmp_path}/{name}.parquet", "landmark_order": order}
        settings = smoke.settings(tmp_path, tmp_path, f"{tmp_path}/run-{name}-{order}", benchmarks=[], source=source)
        return Job(run_job(settings, ["pack"]).settings).faces("train").read_all(["face"])["face"].to_pylist()

    right = packed("right", "right", None)
    assert "read as standard, lie" in capsys.readouterr().err
    with pytest.raises(FiqaRayError, match=r"landmark_order: fractions\+nose_first in this source"):
        packed("given", "given", None)
    assert packed("given", "given", "fractions+nose_first") == right
    with pytest.raises(FiqaRayError, match=r"6 of 6 images are bad \(bad_landmarks 6"):
        packed("given", "given", "standard")  # as the user insists; the points coincide then


def test_a_tar_of_leftovers_only_says_so(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes([("._a.jpg", b"x")]))
    with pytest.raises(FiqaRayError, match=r"no image .* left out: AppleDouble \._\* 1"):
        list_images([str(tmp_path / "x.tar")])
