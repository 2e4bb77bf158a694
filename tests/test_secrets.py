"""Secrets in URIs are used to read and appear nowhere else: not in the run, its log, its report, scores, plan or errors."""

import csv
import hashlib
import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import smoke
from fiqa_ray.cli import main
from fiqa_ray.config import make_settings
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.public_uri import public_text, public_uri
from fiqa_ray.sources.private_uris import private_faces, public_faces
from fiqa_ray.storage import list_hash, storage_errors
from onnx_files import f32, graph, node

SECRETS = ("SECRET1one", "SECRET2two")


class _Signed(SimpleHTTPRequestHandler):
    """Serves a folder to those who know a signature."""

    def _allowed(self):
        return parse_qs(urlsplit(self.path).query).get("X-Amz-Signature", [""])[0] in SECRETS

    def do_GET(self):
        super().do_GET() if self._allowed() else self.send_error(403)

    def do_HEAD(self):
        super().do_HEAD() if self._allowed() else self.send_error(403)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder of faces and the address of a server that asks for a signature."""
    faces = smoke.make_faces(tmp_path / "faces", n_identities=6, per_identity=6)
    nodes = [
        node("Conv", "x", "w", out="a", strides=[16, 16]),
        node("GlobalAveragePool", "a", out="g"),
        node("Flatten", "g"),
    ]
    (faces / "tiny.onnx").write_bytes(graph(nodes, {"w": f32(32, 3, 16, 16)}).SerializeToString())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Signed, directory=str(faces)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield faces, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _write_tables(faces, host, secret):
    """train.csv and bench.csv with one presigned address per image."""
    for name in ("train", "bench"):
        with open(faces / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uri", "identity", "image_id"])
            for path in sorted((faces / name).rglob("*.jpg")):
                key = path.relative_to(faces / name).as_posix()
                writer.writerow([f"{host}/{name}/{key}?X-Amz-Signature={secret}&v=1", key.split("/")[0], key])


def _job(tmp_path, host, secret, **changes):
    def sign(name):
        return f"{host}/{name}?v=1&X-Amz-Signature={secret}"

    return smoke.write_job(
        tmp_path / "job.yaml",
        host,
        str(tmp_path / "run"),
        source={"kind": "table", "uri": sign("train.csv")},
        recognizer={"name": sign("tiny.onnx"), "options": {"mean": 127.5, "scale": 127.5}},
        methods=[{"name": "embedding_norm"}, {"name": "mine", "scores": sign("scores.csv")}],
        benchmarks=[
            {
                "name": "bench",
                "source": {"kind": "table", "uri": sign("bench.csv")},
                "pairs": {"kind": "lfw", "uri": sign("pairs.txt")},
                "degradations": sign("degradations.csv"),
                "scores": {"mine": {"uri": sign("degradations.csv"), "score_column": "quality"}},
            }
        ],
        **changes,
    )


def _run(capfd, *arguments):
    """Return the exit code and all that a command prints."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    printed = capfd.readouterr()
    return stop.value.code or 0, printed.out + printed.err


def _content(folder):
    """All bytes of a folder, names and the values of its tables, which are compressed, included."""
    text = io.StringIO()
    for path in sorted(folder.rglob("*")):
        print(path, file=text)
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            print(table.select([c for c in table.column_names if c != "face"]).to_pylist(), file=text)
        if path.is_file():
            print(path.read_bytes().decode("latin-1"), file=text)
    return text.getvalue()


def _clean(text):
    return not any(secret in text or "X-Amz" in text for secret in SECRETS)


def _check(code, printed, wanted=(0,)):
    assert code in wanted, printed
    assert _clean(printed), printed


@pytest.mark.slow
def test_a_run_with_presigned_urls_tells_no_secret(tmp_path, served, capfd):
    faces, host = served
    run = tmp_path / "run"
    _write_tables(faces, host, SECRETS[0])
    job = _job(tmp_path, host, SECRETS[0])
    code, printed = _run(capfd, "plan", job, "--json")
    _check(code, printed)
    code, printed = _run(capfd, "run", job, "--stages", "pack")
    _check(code, printed)
    packed = _content(run / "faces")
    assert f"{host}/train/p00/000.jpg" in packed  # the list is there, without the signature

    # signed anew, with half of the parts lost: the run continues, with the same bytes
    parts = sorted(run.glob("faces/set=train/*/part-*"))
    before = {path: path.read_bytes() for path in parts if path.suffix == ".parquet"}
    assert len(before) > 1
    for path in parts[::2]:
        path.unlink()
    for path in run.glob("faces/set=train/*/_manifest.json"):
        path.unlink()
    _write_tables(faces, host, SECRETS[1])
    job = _job(tmp_path, host, SECRETS[1])
    code, printed = _run(capfd, "run", job)
    _check(code, printed)
    assert {path: path.read_bytes() for path in before} == before
    for arguments in (("status", run), ("status", run, "--json"), ("rejects", run), ("report", job)):
        code, printed = _run(capfd, *arguments)
        _check(code, printed)
    content = _content(run)
    assert _clean(content)
    assert len(list(run.glob("faces/set=train/v=*"))) == 1  # the signature is in no fingerprint


def test_a_list_is_read_again_only_if_it_is_the_same():
    def faces(*uris):
        return pa.table({"uri": uris, "image_id": ["a", "b"], "identity": ["p", "p"]})

    first, signed_again = (
        faces("https://h/a?sig=1", "https://h/b?sig=2"),
        faces("https://h/a?sig=3", "https://h/b?sig=4"),
    )
    stored, has_secrets = public_faces(first)
    assert has_secrets
    assert stored["uri"].to_pylist() == ["https://h/a", "https://h/b"]
    assert private_faces(stored, signed_again, "source") is signed_again
    with pytest.raises(FiqaRayError, match="source: its images are not those that the run began with"):
        private_faces(stored, faces("https://h/a?sig=1", "https://h/c?sig=2"), "source")
    plain = faces("s3://b/a", "/data/a@b?.jpg")
    assert public_faces(plain) == (plain, False)


def test_scores_of_presigned_images_tell_no_secret(tmp_path, served, capfd, monkeypatch):
    _, host = served
    monkeypatch.chdir(tmp_path)
    url = f"{host}/train/p00/000.jpg?X-Amz-Signature={SECRETS[0]}&v=1"
    missing = url.replace("000.jpg", "999.jpg")
    code, printed = _run(
        capfd,
        "score",
        url,
        missing,
        "--model",
        "embedding_norm",
        "--recognizer",
        "smoke:tiny",
        "--allow-import",
        "-o",
        "s.csv",
    )
    _check(code, printed)
    written = (tmp_path / "s.csv").read_text()
    assert _clean(written)
    rows = list(csv.DictReader(io.StringIO(written)))
    assert [row["uri"] for row in rows] == [f"{host}/train/p00/000.jpg", f"{host}/train/p00/999.jpg"]
    assert [row["status"] for row in rows] == ["ok", "missing"]


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"kind": "table", "uri": "{host}/none.csv?X-Amz-Signature=SECRET1one"}},
        {"source": {"kind": "table", "uri": "{host}/train.csv?X-Amz-Signature=SECRET1one_has_expired"}},
        {"source": {"kind": "webdataset", "uri": "{host}/{0..2}.tar?X-Amz-Signature=SECRET1one"}},
        {"source": {"kind": "parquet_images", "uri": "{host}/a.parquet?X-Amz-Signature=SECRET1one"}},
        {"source": {"kind": "bin", "uri": "{host}/scores.csv?X-Amz-Signature=SECRET1one"}},
        {"source": {"kind": "table", "uri": "{host}/train.csv?X-Amz-Signature=SECRET1one&unknown=2", "limit": "x"}},
        {"source": {"kind": "folder", "uri": "s3://AKIAIOSFODNN7EXAMPLE:SECRET1one/x@no-such-bucket/a"}},
        {"source": {"kind": "folder", "uri": "https://me:SECRET1one@127.0.0.1:9/a"}},
        {"recognizer": {"name": "{host}/r.onnx?X-Amz-Signature=SECRET1one"}},
        {"recognizer": {"name": "arcface_r50", "weights": "{host}/scores.csv?X-Amz-Signature=SECRET1one"}},
        {"methods": [{"name": "mine", "scores": "{host}/none.csv?X-Amz-Signature=SECRET1one"}]},
    ],
)
def test_errors_tell_no_secret(tmp_path, served, capfd, change):
    faces, host = served
    (faces / "train.csv").write_text("uri,identity\n")
    change = json.loads(json.dumps(change).replace("{host}", host))
    job = smoke.write_job(tmp_path / "job.yaml", faces, str(tmp_path / "run"), **change)
    code, printed = _run(capfd, "run", job)
    _check(code, printed, (1, 2, 3))
    assert printed.startswith("error") or "\nerror" in printed
    assert "Traceback" not in printed
    assert _clean(_content(tmp_path / "run"))


PUBLIC = {
    "s3://AKIAIOSFODNN7EXAMPLE:ab/c+d==@bucket/k?versionId=3": "s3://bucket/k",
    "s3://KEY:SECRET@bucket/k": "s3://bucket/k",
    "https://u:p@h/a.jpg?X-Amz-Signature=abc&b=c": "https://h/a.jpg",
    "https://h/x?abcdef": "https://h/x",
    "https://h/c.blob?sv=1&sig=a%2Fb%3D": "https://h/c.blob",
    "zip://a.jpg::https://u:p@h/c.zip?sig=1": "zip://a.jpg::https://h/c.zip",
    "https://h/my faces/a.jpg?token=1": "https://h/my faces/a.jpg",
    "https://h/p{0..3}.tar?sig=z": "https://h/p{0..3}.tar",
    # what is no secret stays
    "s3://b/part-??.tar": "s3://b/part-??.tar",
    "s3://b/a@b/c": "s3://b/a@b/c",
    "abfs://container@account.dfs.core.windows.net/a": "abfs://container@account.dfs.core.windows.net/a",
    "github://org:repository@main/a.csv": "github://org:repository@main/a.csv",
    "hf://datasets/owner/faces@main/a.parquet": "hf://datasets/owner/faces@main/a.parquet",
    "/data/a?x=1.jpg": "/data/a?x=1.jpg",
    "faces/a@b.jpg": "faces/a@b.jpg",
}


@pytest.mark.parametrize(("uri", "wanted"), PUBLIC.items())
def test_public_uri(uri, wanted):
    assert public_uri(uri) == wanted
    assert public_text(f"cannot read {uri}: not found (url='{uri}'), {uri}.") == (
        f"cannot read {wanted}: not found (url='{wanted}'), {wanted}."
    )
    with pytest.raises(FiqaRayError) as caught, storage_errors(uri):
        raise FileNotFoundError(uri)
    assert str(caught.value) == f"{wanted}: not found; check the path"


def test_the_value_in_memory_stays_and_fingerprints_do_not_depend_on_it(tmp_path):
    def settings(user, query):
        return make_settings(
            {
                "name": "a",
                "run_uri": str(tmp_path),
                "source": {"kind": "folder", "uri": f"s3://{user}bucket/a"},
                "recognizer": {"name": "smoke:tiny", "options": {"table": f"https://h/t.csv{query}"}},
                "methods": [{"name": "embedding_norm"}],
            }
        )

    signed, plain = settings("KEY:SECRET1one@", "?sig=SECRET2two"), settings("", "")
    assert signed.source.uri == "s3://KEY:SECRET1one@bucket/a"
    assert signed.identity() == plain.identity()
    assert _clean(json.dumps(signed.model_dump(mode="json")))
    assert Job(signed).embeddings("train").uri == Job(plain).embeddings("train").uri


def test_a_list_that_was_signed_again_has_the_same_hash(tmp_path):
    def hash_of(name, *rows):
        path = tmp_path / name
        path.write_text("uri,identity,image_id\n" + "\n".join(rows) + "\n")
        return list_hash(str(path))

    first = hash_of("a.csv", "https://h/a.jpg?sig=1&e=2,p,a", "s3://K:S@b/b.jpg,p,b")
    assert hash_of("b.csv", "https://h/a.jpg?sig=9&e=8,p,a", "s3://K:T@b/b.jpg,p,b") == first
    assert hash_of("c.csv", "https://h/c.jpg?sig=1&e=2,p,a", "s3://K:S@b/b.jpg,p,b") != first  # another file
    assert hash_of("d.csv", "https://h/a.jpg?sig=1&e=2,q,a", "s3://K:S@b/b.jpg,p,b") != first  # another person
    plain = ("a.jpg?x=1,p,a", "b.jpg,p,b")
    assert hash_of("e.csv", *plain) == hashlib.sha256((tmp_path / "e.csv").read_bytes()).hexdigest()
