"""One Ray and one S3 server per test run; the environment comes before any import of ray."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import hypothesis
import pytest

# machines are shared: one slow call means nothing
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")

_RAY_DIR = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's socket paths must be short
os.environ.update(
    RAY_TMPDIR=_RAY_DIR,
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_BACKEND_LOG_LEVEL="fatal",
    # a busy machine is not a dead one: worker processes, nodes and groups of Ray Train may take minutes
    RAY_worker_register_timeout_seconds="600",
    RAY_health_check_failure_threshold="100",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="600",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    PYTHONPATH=os.path.join(os.path.dirname(__file__), "helpers"),  # Ray's workers import the tests' own models
)
for name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(name, None)


COVERED = ("core", "models", "training")
"""Folders of tests during which the coverage of core and models is measured: to trace the others is slow and adds little."""


BAD_INPUT = (
    *(
        "test_bad_input.py",
        "test_damage.py",
        "test_images.py",
        "test_config.py",
        "test_packed_faces.py",
        "test_secrets.py",
    ),
    *("models/formats", "models/test_detector.py", "models/test_regressor.py", "sources", "stages/test_given.py"),
    *(
        "stages/test_infer_parts_decoding.py",
        "stages/test_pack_sources.py",
        "tools/test_inputs.py",
        "tools/test_verify.py",
    ),
)
"""Files and folders of tests that read what is wrong or damaged."""
BAD_INPUT_CPU_S, BAD_INPUT_S, BAD_INPUT_BYTES = 60, 300, 2 << 30
"""What a test of bad input may take: seconds of CPU; of the clock, on a shared machine; memory beyond that held before."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what starts Ray or an S3 server, by its fixtures: `make check` leaves those tests out. Long files come first."""
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker("ray")
        if reads_bad_input(item) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(BAD_INPUT_S))
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if {"s3_server", "bucket"} & set(item.fixturenames) or parameters.get("root") == "s3":
            item.add_marker("s3")
        if item.path.relative_to(Path(__file__).parent).parts[0] not in COVERED:
            item.add_marker("no_cover")
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (not starts_ray(item.path), -n_slow[item.path]))


def reads_bad_input(item):
    """Return whether a test must keep to the limits for bad input."""
    return item.path.relative_to(Path(__file__).parent).as_posix().startswith(BAD_INPUT)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give whole files to processes in the order above; all files with Ray go to one process.

    They share one cluster there, and no two clusters start at once: on two cores each would take ten times as long.
    """
    from xdist.scheduler import LoadFileScheduling

    class RayTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::", 1)[0]
            return "ray" if starts_ray(config.rootpath / file) else file

    config.option.loadscopereorder = False
    return RayTogether(config, log) if config.option.dist == "loadfile" else None


@cache
def starts_ray(path):
    """Return whether a file of tests starts Ray."""
    text = path.read_text(encoding="utf-8")
    return "ray_cluster" in text or "pytest.mark.ray" in text


@pytest.fixture(scope="session", autouse=True)
def shipped_part_images():
    """Cut small data into many parts of pairs too. The constants are no settings: no user gains by other values."""
    from fiqa_ray.datasets import pairs

    with pytest.MonkeyPatch.context() as patch:
        shipped = {name: getattr(pairs, name) for name in ("MIN_PART_IMAGES", "USUAL_PART_IMAGES")}
        for name in shipped:
            patch.setattr(pairs, name, 1)
        yield shipped


@contextmanager
def running_s3_server(*arguments):
    """Run tests/helpers/s3_server.py in a process of its own, so that Ray's workers and subprocesses reach it."""
    import smoke  # here, because it imports torch, which xdist's own process does without

    port = smoke.free_port()
    url = f"http://127.0.0.1:{port}"
    program = os.path.join(os.path.dirname(__file__), "helpers", "s3_server.py")
    server = subprocess.Popen(
        [sys.executable, program, str(port), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        smoke.await_server(url, server)
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture(autouse=True)
def bounded(request):
    """Bound tests of bad input and the processes that they start: the system refuses them memory, and CPU is counted."""
    status = Path("/proc/self/status")
    if not reads_bad_input(request.node) or not status.exists():
        yield
        return
    import resource

    (used_kb,) = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData:")]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used_kb * 1024 + BAD_INPUT_BYTES, hard))
    before = sum(os.times()[:4])
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert sum(os.times()[:4]) - before < BAD_INPUT_CPU_S


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server for all tests; sets AWS_ENDPOINT_URL."""
    with running_s3_server() as url:
        os.environ["AWS_ENDPOINT_URL"] = url
        yield url
        del os.environ["AWS_ENDPOINT_URL"]


@pytest.fixture
def slow_bucket(s3_server, monkeypatch):
    """The URI of a bucket whose server pauses between looking for an object and writing it."""
    import s3fs

    with running_s3_server("0.1") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(endpoint_url=url).mkdir("slow-bucket")
        yield "s3://slow-bucket"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(s3_server):
    """An empty bucket's URI."""
    import s3fs

    name = f"test-{uuid.uuid4().hex[:10]}"
    s3fs.S3FileSystem(endpoint_url=s3_server, use_listings_cache=False).mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_cluster(s3_server):
    """A local Ray with four logical CPUs; workers see the S3 server."""
    import ray

    options = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 300 * 2**20}
    for trial in range(5):  # Ray gives its own processes 30 s to start, which a busy machine may exceed
        try:
            ray.init(address="local", log_to_driver=False, logging_level="ERROR", **options)
            break
        except Exception:
            ray.shutdown()
            if trial == 4:
                raise
    yield ray
    ray.shutdown()


@pytest.fixture
def cli(capsys):
    """Runs a command in this process and returns exit code, output and messages."""
    from fiqa_ray.cli import main

    def call(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return end.value.code, out, err

    return call


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    """A fresh place on each kind of storage."""
    if request.param == "local":
        return str(tmp_path / "root")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return request.getfixturevalue("bucket") + "/root"


def pytest_sessionfinish():
    shutil.rmtree(_RAY_DIR, ignore_errors=True)
