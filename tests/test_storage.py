import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from fiqa_ray import documents, storage
from fiqa_ray.datasets import parquet, sums
from fiqa_ray.datasets.dataset import Dataset, add_stats
from fiqa_ray.engine import lock
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.storage import join, list_files, patience, put_if_absent, read_bytes, write_atomic


def dataset(root):
    return Dataset(join(root, "things", "v=0123456789abcdef"), "things")


def table(n, first=0):
    return pa.table({"image_row": np.arange(first, first + n), "value": np.arange(n) / 3})


def test_parts_manifest_and_reading(root):
    patience.take_retries()  # of tests before, which no part has counted
    d = dataset(root)
    assert d.manifest() is None
    assert d.finished_parts() == {}
    d.write_plan({"n_parts": 2})
    assert d.write_plan({"n_parts": 99})["n_parts"] == 2  # the first plan counts
    d.write_part(1, {".parquet": table(3, 4), "extra.bin": b"abc"}, n_rows=3, stats={"status": {"ok": 2, "bad": 1}})
    with pytest.raises(IncompleteError, match=r"1 of 2 parts are missing .*part-00000"):
        d.commit(2)
    d.write_part(0, {".parquet": table(4)}, n_rows=4, stats={"status": {"ok": 4}})
    manifest = d.commit(2)
    assert manifest.first_rows == [0, 4, 7]
    assert manifest.stats == {"status": {"ok": 6, "bad": 1}}
    assert d.read_all()["image_row"].to_pylist() == list(range(7))
    assert d.read_rows(manifest.parts[0], 1, 3, ["image_row"])["image_row"].to_pylist() == [1, 2]
    assert read_bytes(d.at("extra.bin")) == b"abc"
    assert list_files(root).keys() >= {
        "things/v=0123456789abcdef/extra.bin",
        "things/v=0123456789abcdef/_manifest.json",
    }


def test_row_groups_of_a_large_part(tmp_path):
    d = dataset(str(tmp_path))
    part = d.write_part(0, {".parquet": table(1000)}, n_rows=1000, row_group_rows=64)
    for first, last in ((0, 1000), (63, 65), (64, 128), (999, 1000), (500, 500)):
        assert d.read_rows(part, first, last, ["image_row"])["image_row"].to_pylist() == list(range(first, last))


def test_only_one_creates(root):
    uri = join(root, "once.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: put_if_absent(uri, f"{i}".encode()), range(16)))
    assert sum(won) == 1
    assert read_bytes(uri) == f"{won.index(True)}".encode()


def test_only_one_creates_on_a_slow_server(slow_bucket):
    """The lock of a run rests on this. moto by itself lets all eight win; S3 and Ceph let one."""
    test_only_one_creates(slow_bucket)


def test_a_cut_upload_leaves_nothing(root, monkeypatch):
    """The writer dies in the middle: the name shows either all bytes or none."""
    uri = join(root, "part.bin")
    data = os.urandom(1 << 20)
    fs, _ = storage.filesystem(uri)

    def dies(*args, **kwargs):
        raise OSError(errno.EIO, "connection lost")

    with monkeypatch.context() as m:
        if storage.is_local(fs):
            m.setattr(os, "replace", dies)
        else:
            m.setattr(fs, "pipe_file", dies)
        with pytest.raises(FiqaRayError, match=r"part\.bin.*connection lost"):
            write_atomic(uri, data)
    assert list_files(root) == {}
    write_atomic(uri, data)
    assert read_bytes(uri) == data


def test_stats_add_up_in_any_order():
    parts = [{"a": 1, "b": {"x": 2}}, {"b": {"y": 3, "x": 1}}, {"a": 5}]
    assert add_stats(parts) == add_stats(parts[::-1]) == {"a": 6, "b": {"x": 3, "y": 3}}


def test_equal_tables_give_equal_bytes():
    assert parquet.table_bytes(table(100)) == parquet.table_bytes(
        pa.concat_tables([table(60), table(40, 60)])
        .replace_schema_metadata({"x": "y"})
        .set_column(1, "value", table(100)["value"])
    )


# --- errors in words ---


def test_each_try_again_is_counted_and_waits(monkeypatch):
    calls, pauses = [], []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)

    def call():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionResetError("gone")
        return "here"

    before = patience.n_retries()
    assert patience.patiently(call, SimpleNamespace(protocol=("s3", "s3a")), "bucket/x") == "here"
    assert (len(calls), patience.n_retries() - before, len(pauses)) == (3, 2, 2)


def test_each_server_has_its_own_patience(monkeypatch):
    """Whatever file-system object is asked: one of HTTP serves all hosts, and each thread has one of its own for S3."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    monkeypatch.setattr(patience, "FIRST_ANSWER_S", 0.0)
    monkeypatch.setattr(patience, "_answered", set())
    http = SimpleNamespace(protocol=("http", "https"))

    def tries(fs, name):
        answers = iter([ConnectionResetError("gone"), "here"])

        def call():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        try:
            return patience.patiently(call, fs, name)
        except ConnectionResetError:
            return "given up"

    for known, unknown, fs in (
        ("https://right.example/a.jpg", "https://wrong.example/a.jpg", lambda: http),
        ("bucket/a/b.jpg", "bukcet/a/b.jpg", lambda: SimpleNamespace(protocol=("s3", "s3a"))),
        (
            "zip://a.jpg::s3://other/c.zip",
            "zip://a.jpg::s3://tother/c.zip",
            lambda: SimpleNamespace(protocol="abstract"),
        ),
        ("/a/b.jpg", "c/b.jpg", lambda: SimpleNamespace(protocol="sftp", host="right.example")),
    ):
        assert tries(fs(), known) == "given up"
        assert patience.patiently(lambda: "here", fs(), known) == "here"
        assert tries(fs(), known) == "here"
        assert tries(fs(), unknown) == "given up"


def test_full_disk_is_one_clear_error(tmp_path):
    """A real full disk: /dev/full refuses every write with ENOSPC."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(FiqaRayError, match=r"run/part.*the disk is full.*run the same command again"),
        storage.storage_errors("run/part"),
        open("/dev/full", "wb", buffering=0) as f,
    ):
        f.write(b"x")


def test_bucket_errors_are_in_words(s3_server, bucket, monkeypatch):
    said = "s3://no-such-bucket-here/x/y: the bucket no-such-bucket-here does not exist; create it or correct the name"
    with pytest.raises(FiqaRayError, match=f"^{re.escape(said)}$"):
        write_atomic("s3://no-such-bucket-here/x/y", b"1")
    with pytest.raises(FiqaRayError, match="bucket no-such-bucket-here does not exist"):
        read_bytes("s3://no-such-bucket-here/x/y")
    with pytest.raises(FiqaRayError, match=r"missing\.json: not found"):
        read_bytes(f"{bucket}/missing.json")
    import s3fs

    for endpoint, why in (
        (s3_server.removeprefix("http://"), "Invalid endpoint: .*AWS_ENDPOINT_URL must begin with http://"),
        (s3_server.replace("http://", "https://"), "the store speaks http, not https"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        with patience.one_try(), pytest.raises(FiqaRayError, match=why):
            read_bytes("s3://b/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(patience, "FIRST_ANSWER_S", 0.1)
    monkeypatch.setattr(patience, "_answered", set())
    with pytest.raises(FiqaRayError, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        read_bytes(f"{bucket}/x")
    s3fs.S3FileSystem.clear_instance_cache()


def test_denied_credentials_are_in_words(root, monkeypatch):
    fs, _ = storage.filesystem(root)

    def denied(*args, **kwargs):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fs, "cat_file", denied)
    with pytest.raises(FiqaRayError, match=r"access denied.*check the credentials"):
        read_bytes(join(root, "x"))


# --- the lock ---


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("SlowDown", "the store asks for fewer requests; run the same command again, or with fewer workers"),
        ("RequestTimeTooSkewed", "the clock of this machine is wrong, .*; set the clock"),
        ("InvalidObjectState", "the object is archived; restore it"),
        ("InternalError", "the store itself failed; run the same command again"),
    ],
)
def test_each_answer_of_a_store_has_its_own_remedy(code, words):
    answer = ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject")
    with (
        pytest.raises(FiqaRayError, match=rf"^s3://faces/few: {words}.* \({code}\)$"),
        storage.storage_errors("s3://faces/few"),
    ):
        raise translate_boto_error(answer)


def test_second_run_is_refused_and_a_released_lock_is_free(root):
    with RunLock(root), pytest.raises(FiqaRayError, match=r"another run is at work in .*wait for it, stop it"):
        RunLock(root).__enter__()
    with RunLock(root):
        assert any(n.endswith(".json") for n in list_files(join(root, "_lock")))


def test_a_slow_answer_that_a_file_is_not_there_is_asked_again(monkeypatch):
    """To say so, s3fs asks twice; the file may show while its second question is tried again."""
    monkeypatch.setattr(patience, "SHOWN_S", 0.05)
    answers = iter([FileNotFoundError(), b"here"])

    def slowly():
        time.sleep(0.1)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patience.shown(slowly, patience.PatientFileSystem(None)) == b"here"
    answers = iter([FileNotFoundError(), FileNotFoundError(), b"late"])
    with pytest.raises(FileNotFoundError):
        patience.shown(slowly, patience.PatientFileSystem(None))


def test_a_lock_folder_that_fills_while_it_is_listed_holds_no_stray_file(bucket, monkeypatch):
    """s3fs asks what a folder is if it finds no file in it, and another run may have written one by then."""
    write_atomic(join(bucket, "_lock", "000001.json"), b"{}")
    lists, n_calls = s3fs.S3FileSystem._lsdir, []

    async def late(self, *args, **kwargs):
        n_calls.append(1)
        files = await lists(self, *args, **kwargs)
        return [] if len(n_calls) == 1 else files

    monkeypatch.setattr(s3fs.S3FileSystem, "_lsdir", late)
    assert lock.newest_lock(join(bucket, "_lock")) == (0, False)
    assert lock.newest_lock(join(bucket, "_lock")) == (1, False)


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import time; from fiqa_ray.engine.lock import RunLock; "
        f"RunLock({str(tmp_path)!r}).__enter__(); print('in', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(FiqaRayError, match=f"process {holder.pid}"):
        RunLock(str(tmp_path)).__enter__()
    holder.kill()
    holder.wait()
    with RunLock(str(tmp_path)):
        assert len([n for n in list_files(str(tmp_path / "_lock")) if n.endswith(".json")]) == 2


def test_lock_of_a_vanished_machine_goes_stale(root, monkeypatch):
    monkeypatch.setattr(RunLock, "stale_s", 0.5)
    write_atomic(join(root, "_lock", "000001.json"), json.dumps({"host": "gone", "pid": 1, "start": "1"}).encode())
    write_atomic(join(root, "_lock", "000001.beat"), b'{"beat": 7}')
    with RunLock(root):
        assert "000002.json" in list_files(join(root, "_lock"))


@pytest.mark.parametrize("content", ["{", "[]", "7", '{"pid": "x"}', "{}", "[" * 20000])
def test_a_damaged_lock_is_named_and_its_remedy_works(tmp_path, content):
    lock = tmp_path / "_lock" / "000001.json"
    lock.parent.mkdir()
    lock.write_text(content)
    with pytest.raises(FiqaRayError, match=rf"{lock} is damaged.*remove this file and run again"):
        RunLock(str(tmp_path)).__enter__()
    lock.unlink()
    with RunLock(str(tmp_path)):
        pass


def test_lock_of_a_living_machine_holds(tmp_path, monkeypatch):
    """While this process waits for a beat, the other one writes it."""
    uri = join(str(tmp_path), "_lock", "000001")
    write_atomic(f"{uri}.json", json.dumps({"host": "elsewhere", "pid": 1, "start": "1"}).encode())
    write_atomic(f"{uri}.beat", b'{"beat": 0}')
    waits = []

    def beat(seconds):
        waits.append(seconds)
        write_atomic(f"{uri}.beat", b'{"beat": 1}')

    monkeypatch.setattr(lock.time, "sleep", beat)
    with pytest.raises(FiqaRayError, match="on elsewhere"):
        RunLock(str(tmp_path)).__enter__()
    assert waits == [lock.STALE_S]


def test_a_part_made_again_with_other_bytes_is_an_error(root):
    """What was made from the lost part would no longer fit: nothing is written."""
    d = dataset(root)
    d.write_plan({"n_parts": 1})
    d.write_part(0, {".parquet": table(4)}, n_rows=4)
    d.commit(1)
    d.write_part(0, {".parquet": table(4)}, n_rows=4)  # the same bytes mend a lost file
    before = read_bytes(d.at("part-00000.parquet"))
    with pytest.raises(
        FiqaRayError, match=r"part-00000 was lost and made again, but with other bytes.*remove this folder"
    ):
        d.write_part(0, {".parquet": table(4, 1)}, n_rows=4)
    assert read_bytes(d.at("part-00000.parquet")) == before


@pytest.mark.parametrize("how", ["encoded", "plain", "little of it"])
def test_damage_anywhere_is_found(root, monkeypatch, how):
    """One bit of the file, wherever; of a large local file the pages of the wanted column."""
    d = dataset(root)
    if how == "plain":
        numbers = np.random.default_rng(0).random(3000, np.float32)
        schema = pa.schema([pa.field("value", pa.float32(), nullable=False)])
        content = parquet.plain_bytes(pa.table([numbers], schema=schema))
        assert (
            d.read(d.write_part(0, {".parquet": content}, n_rows=3000))["value"].to_numpy().tolist() == numbers.tolist()
        )
    else:
        content = parquet.table_bytes(table(3000))
    columns = None
    whole = bytes(content)
    places = np.linspace(0, len(whole) - 1, 40).astype(int).tolist()
    if how != "encoded":  # as if large: each column and the footer have sums of their own
        monkeypatch.setattr(sums, "SMALL_BYTES", 0)
        places += range(len(whole) - 400, len(whole), 9)
    if how == "little of it":
        chunk = pq.read_metadata(pa.BufferReader(content)).row_group(0).column(1)
        columns = ["value"]
        first = chunk.dictionary_page_offset or chunk.data_page_offset  # the page's header is covered too
        places = list(range(first, first + 60))
        places += np.linspace(first, first + chunk.total_compressed_size - 1, 20).astype(int).tolist()
        places += range(len(whole) - 400, len(whole), 9)
        monkeypatch.setattr(sums, "_is_most", lambda *_: False)
    part = d.write_part(0, {".parquet": content}, n_rows=3000)
    assert d.read(part, columns).num_rows == 3000
    for place in places:
        write_atomic(d.at("part-00000.parquet"), whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(FiqaRayError, match=r"part-00000\.parquet is damaged.*remove this file and run again"):
            d.read(part, columns)
    write_atomic(d.at("part-00000.parquet"), whole[: len(whole) // 2])
    with pytest.raises(FiqaRayError, match="is damaged"):
        d.read(part, columns)


@pytest.mark.parametrize("how", ["rows", "range"])
def test_damage_in_row_groups_is_found(root, monkeypatch, how):
    """One bit anywhere in a large part of which a few row groups are read: an error with the name, or the same rows."""
    monkeypatch.setattr(sums, "SMALL_BYTES", 0)
    d = dataset(root)
    key = np.sort(np.random.default_rng(1).integers(0, 5000, 1000).astype(np.int32))
    content = parquet.table_bytes(pa.table({"key": key, "value": np.arange(1000) / 3}), row_group_rows=64)
    part = d.write_part(0, {".parquet": content}, n_rows=1000)

    def read():
        if how == "rows":
            return d.read_rows(part, 130, 200, ["key"])["key"].to_numpy()
        rows = d.read_range(part, 1000, 1100, ".parquet")["key"].to_numpy()
        return rows[(rows >= 1000) & (rows < 1100)]

    expected = key[130:200] if how == "rows" else key[(key >= 1000) & (key < 1100)]
    assert read().tolist() == expected.tolist()
    whole, errors = bytes(content), []
    for place in range(3, len(whole), 211 if root.startswith("s3:") else 11):
        write_atomic(d.at("part-00000.parquet"), whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert read().tolist() == expected.tolist()
        except FiqaRayError as exc:
            errors.append(str(exc))
    assert len(errors) > 10
    assert all(re.search(r"part-00000\.parquet is damaged: .*remove this file and run again", e) for e in errors)
    write_atomic(d.at("part-00000.parquet"), whole[:-1])
    with pytest.raises(FiqaRayError, match=r"part-00000\.parquet is damaged"):
        read()


def test_documents_refuse_what_does_not_fit(root):
    """Other digits, another document over it, cut, nested, no sum: one error with file and remedy each."""
    uri = join(root, "a.json")
    documents.write_document(uri, {"n": 120, "mean": 0.5}, "v=1/a.json")
    whole = read_bytes(uri)
    assert documents.read_document(uri, "mend it", "v=1/a.json") == {"n": 120, "mean": 0.5}
    for content in (
        whole.replace(b"120", b"121"),
        whole.replace(b"0.5", b"NaN"),
        whole.replace(b'"mean"', b'"maen"'),
        whole.replace(b'"mean"', b'"\\ud800"'),
        whole.replace(b"document_sha256", b"document_sha255"),
        documents.document_bytes({"n": 120, "mean": 0.5}, "v=2/a.json"),
        whole[:30],
        b"",
        b"[]",
        b"\xff",
        b"[" * 20000,
        b"{" + b'"n": ' + b"1" * 10000 + b"}",
    ):
        write_atomic(uri, content)
        with pytest.raises(FiqaRayError, match=r"a\.json is damaged: .*; mend it$"):
            documents.read_document(uri, "mend it", "v=1/a.json")


def test_the_sum_of_a_document_is_that_of_its_compact_json():
    """Whatever the length of a list, as one call of json says."""
    for values in (
        {},
        {"b": 1, "a": "ü"},
        {"parts": []},
        {"parts": [{"x": i} for i in range(2500)], "z": {"b": [1], "a": None}},
    ):
        text = json.dumps(["place", values], sort_keys=True, separators=(",", ":"))
        expected = hashlib.sha256(text.encode()).hexdigest()
        assert json.loads(documents.document_bytes(values, "place"))["document_sha256"] == expected
