"""A proxy that makes faults, before the tests' S3 server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import smoke
from fiqa_ray.storage import patience


class FaultyStore:
    """A bucket behind the proxy; `set(...)` asks for faults, `counts()` tells what was made."""

    def __init__(self, uri, url, path):
        self.uri, self.url, self._path, self.counts_path = uri, url, path, f"{path}.counts"

    def set(self, **faults):
        self._path.write_text(json.dumps(faults))

    def counts(self):
        return json.loads(Path(self.counts_path).read_text())


@pytest.fixture
def faulty(s3_server, bucket, tmp_path, monkeypatch):
    """A bucket behind a proxy that makes faults; nothing is wrong at first."""
    import s3fs

    port, path = smoke.free_port(), tmp_path / "faults.json"
    url = f"http://127.0.0.1:{port}"
    store = FaultyStore(bucket, url, path)
    store.set()
    program = Path(__file__).parent / "proxy.py"
    proxy = subprocess.Popen([sys.executable, program, str(port), s3_server.rsplit(":", 1)[1], str(path), "7"])
    try:
        smoke.await_server(url, proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setattr(patience, "FIRST_ANSWER_S", 600.0)
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    finally:
        proxy.kill()
        proxy.wait()
        s3fs.S3FileSystem.clear_instance_cache()
