"""Files of the Hub, from a local server with the Hub's addresses and headers."""

from __future__ import annotations

import hashlib
import importlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import safetensors.torch
import torch

from fiqa_ray.errors import FiqaRayError, StorageError, UsageError
from fiqa_ray.hub import pinned, read_hub_file
from fiqa_ray.models.networks.ir import adaface_ir
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.sources.folder import list_folder
from fiqa_ray.storage import content_hash, exists, list_files, patience, read_bytes

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for a file tree: `/OWNER/REPOSITORY/resolve/REVISION/FILE`."""

    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        owner, repository, _, revision, file = self.path.strip("/").split("/", 4)
        repository = f"{owner}/{repository}"
        known = {name.rpartition("/")[0] for name in self.files}
        data = self.files.get(f"{repository}/{file}")
        if repository == "somebody/gated":
            return self.refuse("GatedRepo", 403)
        if repository not in known:
            return self.refuse("RepoNotFound", 404)
        if revision not in ("main", COMMIT):
            return self.refuse("RevisionNotFound", 404)
        if data is None:
            return self.refuse("EntryNotFound", 404)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)
        return None

    def refuse(self, code: str, status: int) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "requests", [])
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_at_a_named_commit_is_fetched_once(hub, caplog):
    Hub.files["owner/net/model.bin"] = b"weights"
    uri = f"hf://owner/net@{COMMIT}/model.bin"
    assert read_bytes(uri) == b"weights"
    n_requests = len(Hub.requests)
    assert read_hub_file(uri) == b"weights"
    assert len(Hub.requests) == n_requests  # the second time without a network
    assert content_hash(uri) == hashlib.sha256(b"weights").hexdigest()
    assert not caplog.records
    assert read_bytes("hf://owner/net/model.bin") == b"weights"
    assert f"commit {COMMIT} was read; to name it: {uri}" in caplog.text
    assert pinned("hf://owner/net@main/a/b.bin", COMMIT) == f"hf://owner/net@{COMMIT}/a/b.bin"


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("hf://owner/net/other.bin", StorageError, "the repository has no such file"),
        ("hf://owner/none/model.bin", StorageError, "no such repository, or it is private: set HF_TOKEN"),
        ("hf://owner/net@v2/model.bin", StorageError, "the repository has no commit v2"),
        ("hf://somebody/gated/model.bin", StorageError, "its owner asks for a consent"),
        ("hf://owner/net", UsageError, "wanted hf://OWNER/REPOSITORY/FILE"),
    ],
)
def test_what_is_not_there_is_named(hub, uri, error, message):
    Hub.files["owner/net/model.bin"] = b"weights"
    with pytest.raises(error, match=message) as caught:
        read_bytes(uri)
    assert str(caught.value).startswith(uri)


def test_without_a_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it waits between its tries
    Hub.files["owner/net/model.bin"] = b"weights"
    hub.shutdown()
    hub.server_close()
    with pytest.raises(StorageError, match=r"model\.bin: (the Hub cannot be reached|cannot be fetched)") as caught:
        read_bytes("hf://owner/net/model.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_cvlfaces_file_loads_as_its_row_and_not_as_adafaces(hub):
    network = adaface_ir(18)
    state = {f"model.net.{key}": value.contiguous() for key, value in network.state_dict().items()}
    Hub.files["minchul/cvlface_adaface_ir18_webface4m/model.safetensors"] = safetensors.torch.save(state)
    uri = f"hf://minchul/cvlface_adaface_ir18_webface4m@{COMMIT}/model.safetensors"
    recognizer = load_recognizer("cvlface_ir18", uri)
    assert torch.equal(recognizer.backbone.output_layer[3].weight, network.output_layer[3].weight)
    assert recognizer.preprocessing.colour == "RGB"
    with pytest.raises(FiqaRayError, match=r"a file of CVLface .*whose pixels are RGB.*Choose cvlface_ir18"):
        load_recognizer("adaface_ir18", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://x",
        "hf://datasets/",
        "hf://datasets/owner",
        "hf://spaces/owner",
        "hf://a b/c",
        "hf:///owner/net",
        "hf://owner//net",
        "hf://owner/-net/f.pt",
        f"hf://owner/{'n' * 97}",
        "zip://a.jpg::hf://owner",
        "hf://owner/net.",
    ],
)
def test_what_is_no_address_is_refused_without_a_request(hub, uri):
    for read in (list_files, read_bytes, list_folder):
        with pytest.raises(UsageError, match="is no address"):
            read(uri)
    assert Hub.requests == []


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(patience, "FIRST_ANSWER_S", 0.0)
    monkeypatch.setattr(patience, "_answered", set())
    huggingface_hub.HfFileSystem.clear_instance_cache()
    for uri in ("hf://datasets/owner/faces", "hf://owner/faces/below", "hf://spaces/owner/faces/a.csv"):
        for read in (list_files, exists, list_folder):
            with pytest.raises(FiqaRayError, match=rf"{uri}: cannot be reached .*check the network"):
                read(uri)
    huggingface_hub.HfFileSystem.clear_instance_cache()
