"""Pipes, sockets and devices in the place of files: read, they would hold a command for ever."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import smoke
from containers import png
from fiqa_ray import storage
from fiqa_ray.datasets.schemas import SOURCE_FACES
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.command_line import list_images
from fiqa_ray.sources.files import read_files
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.storage import list_files, read_bytes, write_atomic


@pytest.fixture
def pipe(tmp_path):
    """Returns the path of a pipe that nobody writes to."""

    def make(name):
        os.mkfifo(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("what", ["pipe", "socket", "device", "link"])
def test_a_folder_counts_them_and_goes_on(tmp_path, pipe, what):
    person = tmp_path / "faces" / "p"
    person.mkdir(parents=True)
    (person / "1.png").write_bytes(png(np.zeros((112, 112, 3), np.uint8)))
    odd = person / "2.png"
    if what == "pipe":
        os.mkfifo(odd)
    elif what == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(odd))
    else:
        odd.symlink_to("/dev/zero" if what == "device" else pipe("elsewhere"))
    left_out: Counter[str] = Counter()
    faces = list_folder(str(tmp_path / "faces"), left_out=left_out)
    assert faces["image_id"].to_pylist() == ["p/1.png"]
    assert faces.schema.equals(SOURCE_FACES)
    assert left_out == {"pipe, socket or device": 1}
    for location in (str(tmp_path / "faces"), f"{person}/*.png"):
        left_out = Counter()
        assert [Path(image.uri).name for image in list_images([location], left_out)] == ["1.png"]
        assert left_out == {"pipe, socket or device": 1}
    assert list_files(str(tmp_path / "faces")) == {"p/1.png": (person / "1.png").stat().st_size}


def test_a_link_to_itself_is_a_missing_image(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.png").symlink_to("1.png")
    (tmp_path / "p" / "2.png").symlink_to("nowhere.png")
    (tmp_path / "q").symlink_to("q")
    faces = list_folder(str(tmp_path), identity_level=None)
    assert faces["image_id"].to_pylist() == ["p/1.png", "p/2.png"]
    assert [content.status for _, content in read_files(faces)] == ["missing", "missing"]


JOBS = {  # what the job names -> settings; PIPE is the pipe
    "table": {"source": {"kind": "table", "uri": "PIPE.csv"}},
    "parquet table": {"source": {"kind": "table", "uri": "PIPE.parquet"}},
    "tar": {"source": {"kind": "webdataset", "uri": "PIPE.tar"}},
    "images in parquet": {"source": {"kind": "parquet_images", "uri": "PIPE.parquet"}},
    "archive": {"source": {"kind": "folder", "uri": "zip://faces::PIPE.zip"}},
    "landmarks": {"source": {"kind": "folder", "uri": "FACES/train", "landmarks_uri": "PIPE.csv"}},
    "checkpoint": {"recognizer": {"name": "arcface_r18", "weights": "PIPE.pt"}},
    "onnx": {"recognizer": {"name": "PIPE.onnx"}},
    "scores": {"methods": [{"name": "mine", "scores": "PIPE.csv"}]},
    "pairs": {
        "benchmarks": [
            {
                "name": "b",
                "source": {"kind": "folder", "uri": "FACES/bench"},
                "pairs": {"kind": "lfw", "uri": "PIPE.txt"},
            }
        ]
    },
}


def named(settings, pipe, faces):
    """The settings with the paths of a pipe and of the faces in."""
    text = json.dumps(settings)
    for name in re.findall(r"PIPE\.\w+", text):
        text = text.replace(name, str(pipe(name)))
    return json.loads(text.replace("FACES", str(faces)))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return smoke.make_faces(tmp_path_factory.mktemp("faces") / "faces", n_identities=3, per_identity=2)


@pytest.mark.parametrize("what", JOBS)
def test_a_job_that_names_one_ends_with_one_error(cli, tmp_path, pipe, faces, what):
    changes = {"methods": [{"name": "embedding_norm"}], "benchmarks": [], **named(JOBS[what], pipe, faces)}
    path = smoke.write_job(tmp_path / "job.yaml", faces, str(tmp_path / "run"), **changes)
    code, _, message = cli("run", path)
    assert code in (1, 2), message
    assert "PIPE" in message
    assert "is a named pipe, not a file; write its content to a file" in message


@pytest.mark.parametrize(
    "command",
    [
        ["run", "PIPE.yaml"],
        ["plan", "PIPE.yaml"],
        ["score", "PIPE.jpg", "--model", "embedding_norm", "--recognizer", "smoke:tiny", "-o", "scores.csv"],
        ["doctor", "PIPE.onnx"],
    ],
    ids=lambda c: c[0],
)
def test_a_command_that_names_one_ends_with_one_error(cli, tmp_path, pipe, command):
    words = [str(pipe(word)) if word.startswith("PIPE") else word for word in command]
    code, out, message = cli(*words)
    assert code in (1, 2), message
    assert "is a named pipe, not a file" in out + message


def test_no_device_is_read():
    for name in ("/dev/zero", "/dev/random", "file:///dev/zero"):
        with pytest.raises(FiqaRayError, match=r"/dev/\w+: is a device, not a file"):
            read_bytes(name)


def test_output_goes_into_a_device_or_pipe_and_leaves_it_there(tmp_path, pipe):
    """`-o /dev/stdout` and `-o >(gzip)`; a new file must not take their place."""
    before = os.stat("/dev/null")
    write_atomic("/dev/null", b"content")
    after = os.stat("/dev/null")
    assert (before.st_ino, before.st_rdev) == (after.st_ino, after.st_rdev)
    program = "from fiqa_ray.storage import write_atomic; write_atomic('/dev/stdout', b'content')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"content"
    path = pipe("out")
    with pytest.raises(FiqaRayError, match="out: nobody reads this pipe"):
        write_atomic(str(path), b"content")  # nobody reads it
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    for _ in range(1000):
        try:
            write_atomic(str(path), b"content")
            break
        except FiqaRayError:
            reader.join(0.01)
    reader.join()
    assert got == [b"content"]
    assert path.is_fifo()
    assert not storage.exists(f"{path}.tmp")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://", "names no bucket; wanted s3://BUCKET/FOLDER"),
        ("a\0b", "a path cannot hold a zero byte"),
        ("zip://a::BAD.zip", "the archive is damaged or of another kind"),
        ("zip://a::zip://b::BAD.zip", "the archive is damaged or of another kind"),
    ],
)
def test_addresses_that_nothing_can_lie_at(tmp_path, uri, words):
    (tmp_path / "BAD.zip").write_bytes(b"PK\3\4" + b"x" * 99)
    for read in (list_folder, list_files, read_bytes):
        with pytest.raises(FiqaRayError, match=words):
            read(uri.replace("BAD", f"{tmp_path}/BAD"))
