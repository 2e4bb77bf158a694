"""What exists under its literal name is that; only else a pattern or a chain."""

import http.server
import itertools
import threading
import zipfile

import fsspec
import pytest

from containers import put_parquet, tar_bytes
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.command_line import list_images, read_images
from fiqa_ray.sources.files import read_face_bytes
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.sources.parquet_images import list_parquet_images, read_parquet_images
from fiqa_ray.sources.paths import expand
from fiqa_ray.sources.webdataset import expand_shards, list_webdataset
from fiqa_ray.storage import filesystem, join, split_chain, write_atomic

NAMES = [
    "train [v2]",
    "a{b}",
    "{a,b}",
    "{0..3}",
    "what?",
    "star*",
    "[x]",
    "a::b",
    "zip::c",
    "50%41",
    "#1",
    "tab\tb",
    "a b",
    "[!a]",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_or_file_of_an_odd_name_is_itself(tmp_path, name):
    """Beside a decoy that the name would match as a pattern."""
    for folder in (name, "train v", "ab", "a", "b", "0", "whatx", "starx", "x"):
        (tmp_path / folder).mkdir(exist_ok=True)
        content = b"right" if folder == name else b"wrong"
        (tmp_path / folder / "p").mkdir()
        (tmp_path / folder / "p" / "1.png").write_bytes(content)
        (tmp_path / folder / "x.tar").write_bytes(tar_bytes([("1.png", content), ("1.cls", b"7")]))
        (tmp_path / f"{folder}.tar").write_bytes(tar_bytes([("1.png", content), ("1.cls", b"7")]))
        table = {"image": [{"bytes": content, "path": None}], "label": [1]}
        with open(tmp_path / folder / "x.parquet", "wb") as f:
            put_parquet("memory://odd.parquet", table)
            f.write(fsspec.filesystem("memory").cat("/odd.parquet"))
    where = f"{tmp_path}/{name}"
    assert read_images(list_images([f"{where}/p"])) == [b"right"]
    assert read_images(list_images([f"{where}/p/1.png"])) == [b"right"]
    assert read_images(list_images([f"{where}/p/*.png"])) == [b"right"]
    assert read_images(list_images([f"{where}.tar"])) == [b"right"]
    assert read_images(list_images([f"{where}/x.tar"])) == [b"right"]
    assert list_folder(where)["uri"].to_pylist() == [f"{where}/p/1.png"]
    for shards in (f"{where}/x.tar", f"{where}.tar", f"{where}/*.tar", f"{where}/{{x,x}}.tar"):
        table = list_webdataset(shards)
        assert len(table) == 1
        assert table["uri"][0].as_py() == (f"{where}.tar" if shards == f"{where}.tar" else f"{where}/x.tar")
    for uri in (where, f"{where}/x.parquet", f"{where}/*.parquet", f"{tmp_path}/**/none*"):
        if "none" in uri:
            with pytest.raises(FiqaRayError, match="no Parquet files found"):
                list_parquet_images(uri)
        else:
            assert [c for _, c in read_parquet_images(list_parquet_images(uri))] == [b"right"]
    run = join(where, "run")  # what the package writes lies there too
    write_atomic(f"{run}/part-0.json", b"{}")
    assert (tmp_path / name / "run" / "part-0.json").read_bytes() == b"{}"


def test_patterns_and_braces_still_are_such(tmp_path):
    for i in range(12):
        (tmp_path / f"s-{i:02d}.tar").write_bytes(b"")
    (tmp_path / "_s-03.tar").write_bytes(b"")
    everything = [f"{tmp_path}/s-{i:02d}.tar" for i in range(12)]
    assert expand_shards(f"{tmp_path}/s-*.tar") == everything
    assert expand_shards(f"{tmp_path}/*.tar") == everything
    assert expand_shards(f"{tmp_path}/s-{{00..11}}.tar") == everything
    assert expand_shards(f"{tmp_path}/s-0[3-5].tar") == everything[3:6]
    assert expand_shards(f"{tmp_path}/s-{{0,1}}1.tar") == [everything[1], everything[11]]
    assert expand_shards(f"{tmp_path}/{{s-0,s-1}}?.tar") == everything
    assert list(expand(str(tmp_path), (".tar",))) == everything
    assert expand(f"{tmp_path}/t-*.tar", (".tar",)) == {}


CHAINS = [  # URI, first part, rest
    ("zip://a/1.png::/data/x.zip", "zip://a/1.png", "::/data/x.zip"),
    ("tar://a/1.png::s3://b/x.tar", "tar://a/1.png", "::s3://b/x.tar"),
    ("simplecache::s3://b/x.png", "simplecache", "::s3://b/x.png"),
    ("/data/a::b/1.png", "/data/a::b/1.png", ""),
    ("a::b/1.png", "a::b/1.png", ""),
    ("s3://bucket/a::b/1.png", "s3://bucket/a::b/1.png", ""),
    ("memory://a::b", "memory://a::b", ""),
    ("/data/1.png", "/data/1.png", ""),
    ("zip://::/data/x.zip", "zip://", "::/data/x.zip"),
]


@pytest.mark.parametrize(("uri", "head", "rest"), CHAINS)
def test_a_chain_is_one_only_after_a_protocol_that_chains(uri, head, rest):
    assert split_chain(uri) == (head, rest)


def test_a_store_gets_the_name_as_it_is():
    for folder, file in itertools.product(("a::b", "x"), ("1::2.png", "3.png")):
        fs, path = filesystem(f"s3://bucket/{folder}/{file}")
        assert (fs.protocol[0], path) == ("s3", f"bucket/{folder}/{file}")
        fs, path = filesystem(f"/data/{folder}/{file}")
        assert path == f"/data/{folder}/{file}"


def test_an_image_named_twice_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / name).write_bytes(name.encode())
    (tmp_path / "x.tar").write_bytes(tar_bytes([("1.png", b"1"), ("2.png", b"2")]))
    given = ["set/a.png", "set", f"{tmp_path}/set/b.png", "./set/*.png", "x.tar", f"{tmp_path}/x.tar", "*.tar"]
    assert read_images(list_images(given)) == [b"a.png", b"b.png", b"1", b"2"]


def test_a_chain_that_is_a_file_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zip::c.png").write_bytes(b"right")
    assert read_images(list_images(["zip::c.png"])) == [b"right"]


def test_a_web_server_is_asked_for_the_file_alone(tmp_path):
    """No listing of an address: the server would send the file for it."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_request(self, *_):
            requests.append((self.command, self.path))

        def log_message(self, *_):
            pass

    (tmp_path / "1.png").write_bytes(b"right")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        images = list_images([f"{root}/1.png"])
        assert expand_shards(f"{root}/s-{{0..2}}.tar") == [f"{root}/s-{i}.tar" for i in range(3)]
        assert requests == []
        assert read_images(images) == [b"right"]
        assert requests == [("GET", "/1.png")]
        assert read_images(list_images([f"{root}/2.png"])) == [None]
        server.shutdown()


def test_a_folder_called_tilde_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("~", "home"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.png").write_bytes(b"")
    assert [image.uri for image in list_images(["~"])] == [f"{tmp_path}/~/~.png"]
    (tmp_path / "~" / "~.png").unlink()
    (tmp_path / "~").rmdir()
    assert [image.uri for image in list_images(["~"])] == [f"{tmp_path}/home/home.png"]


@pytest.mark.parametrize("root", ["zip://", "zip:///"])
def test_the_root_of_an_archive(tmp_path, root):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("p/0.png", b"picture")
    (face,) = list_folder(f"{root}::{tmp_path}/faces.zip")["uri"].to_pylist()
    assert read_face_bytes([face]) == [b"picture"]
