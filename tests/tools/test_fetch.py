from __future__ import annotations

import hashlib
from dataclasses import replace

import fsspec
import pytest

from fiqa_ray.cli import main
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models import method_table, recognizer_table
from fiqa_ray.tools.fetch import fetch_file, file_of

CONTENT = b"the released file"


@pytest.fixture
def released(monkeypatch):
    """The row of the tiny eDifFIQA, whose file lies at an address of this test."""
    with fsspec.open("memory://zoo/tiny.onnx", "wb") as file:
        file.write(CONTENT)
    row = method_table.METHODS["ediffiqa_t_onnx"]
    network = replace(row.network, fetch_uri="memory://zoo/tiny.onnx", sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(method_table.METHODS, "ediffiqa_t_onnx", replace(row, network=network))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["models", *arguments])
    return int(caught.value.code or 0)


def test_a_file_is_fetched_after_the_users_word(released, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("n\n"))
    assert run("fetch", "ediffiqa_t_onnx") == 1
    shown = capsys.readouterr().out
    assert "licence: code CC BY 4.0; weights: CC BY 4.0" in shown
    assert "Fetch it under this licence?" in shown
    assert list(tmp_path.iterdir()) == []
    assert run("fetch", "ediffiqa_t_onnx", "--accept-licence") == 0
    assert (tmp_path / "tiny.onnx").read_bytes() == CONTENT
    assert "use it: --model ediffiqa_t_onnx --weights tiny.onnx" in capsys.readouterr().out


def test_another_file_is_not_written(released, tmp_path):
    file = replace(file_of("ediffiqa_t_onnx"), sha256="0" * 64)
    with pytest.raises(
        FiqaRayError, match=r"tiny\.onnx: has the SHA-256 .*, and the released file has 000.*not written"
    ):
        fetch_file(file, str(tmp_path / "f.onnx"))
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("faceqan", "works on any FR model and has no file of its own"),
        ("arcface_r100", "where a program cannot fetch it; get it by hand from deepinsight/insightface"),
        ("cvlface_ir5", r"no FR model or FIQA method \(did you mean 'cvlface_ir50'\?\)"),
    ],
)
def test_what_cannot_be_fetched_is_named(name, message):
    with pytest.raises(UsageError, match=message):
        file_of(name)


def test_files_that_can_be_fetched_lie_at_a_named_place():
    rows = [*recognizer_table.RECOGNIZERS.values(), *(m.network for m in method_table.METHODS.values() if m.network)]
    uris = [row.fetch_uri for row in rows if row.fetch_uri]
    assert len(uris) >= 6
    assert all(uri.startswith(("hf://", "https://")) for uri in uris)
