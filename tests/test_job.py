"""The whole job: same labels for any number of workers and shards, on any storage, after any interruption."""

import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import smoke
from fiqa_ray import content_ids
from fiqa_ray.cli import main
from fiqa_ray.config import RecognizerSettings
from fiqa_ray.content_ids import model_id
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.ray import RayMapper
from fiqa_ray.engine.step import Step, stateless_worker
from fiqa_ray.job import Job
from fiqa_ray.stages import STAGES, stage_steps
from fiqa_ray.storage import list_files, read_bytes
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.tools.status import run_status
from onnx_files import graph, node


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return smoke.make_faces(tmp_path_factory.mktemp("faces") / "faces")


def label_bytes(settings):
    job = Job(settings)
    return [
        read_bytes(job.optimized_labels(m, t).at("part-00000.parquet"))
        for m in settings.methods
        for t in settings.optimize.theta
    ]


@pytest.fixture(scope="module")
def expected(faces, tmp_path_factory):
    """Labels of the job in one process and one shard."""
    tmp = tmp_path_factory.mktemp("expected")
    settings = smoke.settings(tmp, faces, str(tmp / "run"), "compute.rows_per_part=1000000")
    run_job(settings)
    return label_bytes(settings)


def watch_datasets(monkeypatch) -> dict[str, set[str]]:
    """Collect, by stage, the names of the datasets whose documents a job reads or writes while it runs in this process."""
    names, stage = {}, ""
    read, write_part = Dataset._read, Dataset.write_part

    def steps_of(name, job):
        nonlocal stage
        stage = name
        yield from stage_steps(name, job)

    def watched(method):
        def call(self, *args, **options):
            names.setdefault(stage, set()).add(self.name)
            return method(self, *args, **options)

        return call

    monkeypatch.setattr("fiqa_ray.tools.run_job.stage_steps", steps_of)
    monkeypatch.setattr(Dataset, "_read", watched(read))
    monkeypatch.setattr(Dataset, "write_part", watched(write_part))
    return names


def test_the_whole_job_and_its_page(faces, tmp_path, monkeypatch):
    settings = smoke.settings(tmp_path, faces, str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        used = watch_datasets(patch)
        job = run_job(settings)
    beside_pairs = {
        name: {"faces", "embeddings"} if "pairs" in stage.reads else set() for name, stage in STAGES.items()
    }
    undeclared = {n: used.get(n, set()) - {*s.reads, *s.writes} - beside_pairs[n] for n, s in STAGES.items()}
    assert not any(undeclared.values()), undeclared
    assert used["report"] >= {"quality_scores", "evaluation", "report"}
    page = read_bytes(job.report().at("report.html")).decode()
    (part,) = job.evaluation(settings.benchmarks[0]).require().parts
    auc = job.evaluation(settings.benchmarks[0]).read(part, suffix=".auc.parquet").to_pylist()
    scorers = {r["scorer"] for r in auc}
    assert scorers >= {"faceqan", "random", "embedding_norm, regressor on optimized labels"}
    for scorer in scorers:
        assert scorer in page
    sanity, *_ = job.evaluation(settings.benchmarks[0]).read(part, suffix=".verification.parquet").to_pylist()
    assert sanity["tar_at_fmr"] > 0.9  # patterns are easily told apart
    n_before = len(list_files(settings.run_uri))
    run_job(settings)  # nothing is left to do: only a lock is added
    names = list_files(settings.run_uri)
    assert len([n for n in names if not n.startswith("_lock")]) == n_before - len(
        [n for n in names if n.startswith("_lock/000001")]
    )
    assert all(r["finished"] for r in run_status(settings.run_uri))


@pytest.mark.slow
def test_labels_do_not_depend_on_workers_shards_or_engine(faces, tmp_path, ray_cluster, expected):
    """One worker, many parts; two workers, other parts and the counting engine are in the bucket below."""
    settings = smoke.settings(
        tmp_path, faces, str(tmp_path / "run"), "compute.engine=ray", "compute.n_workers=1", "compute.rows_per_part=7",
        "rank.engine=sort", methods=[{"name": "embedding_norm"}],
    )  # fmt: skip
    run_job(settings, ["pack", "embed", "score", "pair", "rank", "optimize"])
    assert label_bytes(settings) == expected[1:]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "at_once"), [(0.3, 3), (0.4, 2), (7, 1)])
def test_a_machine_gets_no_more_tasks_than_its_memory_holds(tmp_path, ray_cluster, share, at_once):
    """Also a task that asks for more than there is runs."""
    memory = int(share * ray_cluster.nodes()[0]["Resources"]["memory"])
    (tmp_path / "running").mkdir()

    def make_part(shard):
        """Waits until as many run as may, and a second more for one too many; those left over do not wait."""
        running, others_done = tmp_path / "running", tmp_path / "done"
        (running / str(shard)).touch()
        until = time.time() + 300
        while len(list(running.iterdir())) < at_once and not others_done.exists() and time.time() < until:
            time.sleep(0.05)
        time.sleep(1)
        most = len(list(running.iterdir()))
        others_done.touch()
        (running / str(shard)).unlink()
        return Part(shard, 1, {}, {"most": most})

    step = Step(
        "optimize", Dataset(f"{tmp_path}/v=0", "labels"), range(4), stateless_worker(make_part), 4, memory_bytes=memory
    )
    mapper = RayMapper(smoke.settings(tmp_path, tmp_path, str(tmp_path / "run"), "compute.engine=ray").compute)
    parts = [part for _, part in mapper([(step, shard) for shard in step.shards])]
    assert max(part.stats["most"] for part in parts) == at_once
    assert sorted(part.index for part in parts) == [0, 1, 2, 3]


@pytest.mark.slow
def test_whole_job_in_a_bucket_through_ray(faces, tmp_path, ray_cluster, bucket, expected):
    """Source, run and report over HTTP, with one method; both methods above. Ray Train in a bucket: see `test_train.py`."""
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], use_listings_cache=False)
    fs.put(str(faces), f"{bucket}/faces", recursive=True)
    settings = smoke.settings(
        tmp_path,
        f"{bucket}/faces",
        f"{bucket}/run",
        "compute.engine=ray",
        "compute.n_workers=2",
        methods=[{"name": "faceqan", "options": {"n_samples": 2, "n_iterations": 2}}],
    )
    job = run_job(settings)
    assert label_bytes(settings) == expected[:1]
    assert b"<html" in read_bytes(job.report().at("report.html"))


@pytest.mark.slow
def test_killed_at_random_and_continued(faces, tmp_path, expected):
    """SIGKILL at four random moments; then the rest. No finished part is written twice; the labels are the same bytes."""
    run_uri = tmp_path / "run"
    job = smoke.write_job(tmp_path / "job.yaml", faces, str(run_uri))
    rng = random.Random(5)
    forks = multiprocessing.get_context("forkserver")  # processes that need not import torch first
    forks.set_forkserver_preload(["smoke", "fiqa_ray.tools.run_job", *(f"fiqa_ray.stages.{stage}" for stage in STAGES)])
    written: dict[Path, tuple[int, int]] = {}
    n_killed = 0
    for _ in range(4):
        process = forks.Process(target=main, args=(["run", job],))
        process.start()
        started = time.monotonic()
        n_before = len(list(run_uri.rglob("_part-*.json")))
        while process.is_alive():  # let it make a few more parts, so that the kills spread over the stages
            if (
                len(list(run_uri.rglob("_part-*.json"))) >= n_before + rng.randint(1, 6)
                or time.monotonic() - started > 60
            ):
                break
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
        for record in run_uri.rglob("_part-*.json"):
            stamp = (record.stat().st_ino, record.stat().st_mtime_ns)
            assert written.setdefault(record, stamp) == stamp, f"{record} was made twice"
    assert n_killed >= 2
    process = forks.Process(target=main, args=(["run", job],))
    process.start()
    process.join()
    assert process.exitcode == 0
    for record, stamp in written.items():
        assert (record.stat().st_ino, record.stat().st_mtime_ns) == stamp, f"{record} was made twice"
    assert label_bytes(smoke.settings(tmp_path, faces, str(run_uri))) == expected


def test_own_code_counts_by_content(tmp_path, monkeypatch):
    """Named by path, or as a module of the current folder; elsewhere by name."""
    identities = []
    for statistic in ("mean", "amax"):  # in two folders, because a process reads a file once
        file = tmp_path / statistic / "mine.py"
        file.parent.mkdir()
        file.write_text(f"def f(faces): return faces.{statistic}((1, 2, 3))")
        monkeypatch.chdir(file.parent)
        identities.append([model_id(RecognizerSettings(name=name)) for name in (f"{file}:f", "mine.py:f", "mine:f")])
    assert all(a != b for a, b in zip(*identities, strict=True))
    assert model_id(RecognizerSettings(name="json:loads")) == {"name": "json.loads", "options": {}}


def test_scores_of_onnx_networks_are_named_by_all_their_weights_and_how_they_are_computed(tmp_path, monkeypatch):
    """A changed weight in a second file, or another arithmetic, is another model."""
    model = graph(
        [node("GlobalAveragePool", "x", out="g"), node("Mul", "g", "w")], {"w": np.ones((1, 3, 1, 1), np.float32)}
    )
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    settings = RecognizerSettings(name=str(path))
    whole = model_id(settings)
    assert whole["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(content_ids, "ONNX_VERSION", content_ids.ONNX_VERSION + 1)
    assert model_id(settings) != whole
    identities = []
    for weight in (1.0, 2.0):
        model.graph.initializer[0].CopyFrom(
            onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), weight, np.float32), "w")
        )
        folder = tmp_path / str(weight)
        folder.mkdir()
        onnx.save_model(model, str(folder / "net.onnx"), save_as_external_data=True, location="w", size_threshold=0)
        identities.append(model_id(RecognizerSettings(name=str(folder / "net.onnx"))))
    assert (tmp_path / "1.0" / "net.onnx").read_bytes() == (tmp_path / "2.0" / "net.onnx").read_bytes()
    assert identities[0]["name"] == identities[1]["name"]
    assert identities[0] != identities[1]
