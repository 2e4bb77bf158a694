"""Storage that hiccups: what may pass costs time and no more, what does not pass ends at once with its remedy."""

import hashlib
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import numpy as np
import pyarrow as pa
import pytest
from aiohttp.http_exceptions import ContentLengthError
from storage_faults import SINGLE

from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.datasets.source_list import SOURCE_LIST, read_list
from fiqa_ray.datasets.sums import file_sums
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.errors import FiqaRayError, StorageError
from fiqa_ray.storage import faults, join, list_files, patience, put_if_absent, read_bytes, write_atomic


def write_things(uri, n_parts=4):
    """Make a dataset of a few parts, then read it all; returns a digest of its values."""
    dataset = Dataset(join(uri, "things", "v=0123456789abcdef"), "things")
    with RunLock(uri):
        dataset.write_plan({"n_parts": n_parts, "n_rows": 10 * n_parts})
        for i in range(n_parts):
            rows = np.arange(10 * i, 10 * i + 10)
            dataset.write_part(i, {".parquet": pa.table({"image_row": rows, "value": rows / 7})}, n_rows=10)
        dataset.commit(n_parts)
        table = dataset.read_all()
    return hashlib.sha256(table["value"].to_numpy().tobytes()).hexdigest()


EXPECTED = hashlib.sha256((np.arange(40) / 7).tobytes()).hexdigest()


FULL = "FIQA_RAY_CHAOS" in os.environ
"""Set by `make chaos`: all faults, and whole jobs."""
MIXED = {"unavailable": 0.05, "reset": 0.05, "cut_body": 0.1, "lost_answer": 0.1, "doubled": 0.1, "late_s": 0.3}


@pytest.mark.parametrize("wanted", [MIXED, *(SINGLE if FULL else [{"late_s": 0.6}, {"lost_answer": 0.5}])], ids=str)
def test_faults_that_pass_change_no_byte(faulty, wanted):
    faulty.set(**wanted)
    assert write_things(faulty.uri) == EXPECTED
    assert "000001.released" in list_files(join(faulty.uri, "_lock"))


def test_a_list_of_images_that_shows_late_is_awaited(faulty):
    faulty.set(late_s=0.6)
    dataset = Dataset(join(faulty.uri, "faces", "v=0123456789abcdef"), "faces")
    content = table_bytes(pa.table({"image_id": ["a", "b"]}))
    write_atomic(dataset.at(SOURCE_LIST), content)
    dataset.write_plan({"n_parts": 1, "n_rows": 2, "source_list": file_sums("", content)})
    assert read_list(dataset)["image_id"].to_pylist() == ["a", "b"]


def test_a_store_that_is_away_costs_its_time(faulty, caplog, monkeypatch):
    monkeypatch.setattr(patience, "LOG_EVERY_S", 0.2)
    write_atomic(join(faulty.uri, "x"), b"1")
    faulty.set(away=True)
    before, started = patience.n_retries(), time.monotonic()

    def come_back() -> None:
        """End the fault once the layer has tried again, and said so."""
        while patience.n_retries() == before and time.monotonic() - started < 300:
            time.sleep(0.05)
        time.sleep(0.5)
        faulty.set()

    threading.Thread(target=come_back, daemon=True).start()
    with caplog.at_level(logging.WARNING, "fiqa_ray"):
        assert read_bytes(join(faulty.uri, "x")) == b"1"
    assert time.monotonic() - started < 300  # of the 600 s of patience
    assert patience.n_retries() > before
    assert any("storage does not answer" in r.getMessage() and "trying again" in r.getMessage() for r in caplog.records)


def test_patience_ends(faulty, monkeypatch):
    write_atomic(join(faulty.uri, "x"), b"1")
    faulty.set(away=True)
    monkeypatch.setattr(patience, "_patience_s", 0.5)
    with pytest.raises(StorageError, match=r"cannot be reached.*run the same command again") as error:
        read_bytes(join(faulty.uri, "x"))
    assert error.value.may_pass


@pytest.mark.parametrize(
    ("refuse", "says"),
    [
        ({"code": 403, "error": "AccessDenied"}, r"access denied \(AccessDenied\); check the credentials"),
        ({"code": 403, "error": "QuotaExceeded"}, "over quota; free some space and run the same command again"),
        ({"code": 507, "error": "InsufficientStorage"}, "over quota; free some space and run the same command again"),
        ({"code": 404, "error": "NoSuchBucket"}, r"the bucket \S+ does not exist"),
    ],
)
def test_what_does_not_pass_ends_at_once(faulty, refuse, says):
    faulty.set(refuse=refuse)
    before = patience.n_retries()
    with pytest.raises(StorageError, match=says) as error:
        write_atomic(join(faulty.uri, "x"), b"1")
    assert not error.value.may_pass
    assert patience.n_retries() == before


def test_fresh_credentials_are_read_when_the_old_ones_have_expired(faulty, tmp_path, monkeypatch):
    """The token in a credentials file is renewed by another program while a run is at work."""
    uri = join(faulty.uri, "x")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = old\naws_session_token = old\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    write_atomic(uri, b"1")
    faulty.set(refuse={"code": 400, "error": "ExpiredToken", "key": "old"})
    threading.Timer(1.0, lambda: file.write_text(file.read_text().replace("old", "new"))).start()
    assert read_bytes(uri) == b"1"


def test_an_expired_token_of_the_environment_ends_at_once(faulty, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    faulty.set(refuse={"code": 400, "error": "ExpiredToken"})
    with pytest.raises(StorageError, match=r"credentials have expired.*renew them and run the same command again"):
        read_bytes(join(faulty.uri, "x"))


def test_only_one_creates_though_answers_are_lost(faulty):
    faulty.set(lost_answer=0.5)
    uri = join(faulty.uri, "once.json")
    with ThreadPoolExecutor(8) as pool:
        is_mine = list(pool.map(lambda i: put_if_absent(uri, f"{i}".encode()), range(8)))
    assert sum(is_mine) == 1
    assert read_bytes(uri) == f"{is_mine.index(True)}".encode()


def test_a_lock_whose_release_was_lost_does_not_block_its_own_process(faulty):
    lock = RunLock(faulty.uri)
    with lock:
        faulty.set(refuse={"code": 403, "error": "AccessDenied", "method": "PUT"})
    faulty.set()
    with RunLock(faulty.uri), pytest.raises(FiqaRayError, match="another run is at work"):
        RunLock(faulty.uri).__enter__()


def test_which_faults_may_pass():
    class AnswerError(Exception):
        def __init__(self, code, status):
            self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    passing = [
        AnswerError("SlowDown", 503),
        AnswerError("InternalError", 500),
        AnswerError("RequestTimeout", 400),
        AnswerError("502", 502),
    ]
    cut_body = aiohttp.ClientPayloadError("not enough data")
    cut_body.__cause__ = ContentLengthError("not enough data")
    assert cut_body.__cause__.code == 400
    passing += [cut_body, ConnectionResetError(), TimeoutError(), BrokenPipeError(), OSError(16, "busy")]
    final = [
        AnswerError("AccessDenied", 403),
        AnswerError("NoSuchBucket", 404),
        AnswerError("QuotaExceeded", 403),
        AnswerError("x", 507),
    ]
    final += [OSError(28, "full"), FileNotFoundError(), PermissionError(), ValueError("a bug"), IsADirectoryError()]
    assert [faults.may_pass(exc) for exc in passing] == [True] * len(passing)
    assert [faults.may_pass(exc) for exc in final] == [False] * len(final)
