"""A Ray of our own is reached from this machine alone, and a cluster's token is asked for in plain words."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import fiqa_ray.engine.ray
import smoke
from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset
from fiqa_ray.engine.ray import _tasks_at_once, ray_session, ray_when_needed
from fiqa_ray.engine.step import Step
from fiqa_ray.errors import FiqaRayError

LISTENERS = """
import json, psutil
from fiqa_ray.config import ComputeSettings
from fiqa_ray.engine.ray import ray_session
{imported_before}
with ray_session(ComputeSettings(n_workers=1, object_store_bytes=80_000_000)):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    hosts = [c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    print(json.dumps(hosts))
"""
JOIN = """
from fiqa_ray.config import ComputeSettings
from fiqa_ray.engine.ray import ray_session
with ray_session(ComputeSettings(address="{address}")):
    import os, ray
    print("worker's folder:", ray.get(ray.remote(lambda: os.getcwd()).remote()))
"""
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


def _run(code, folder=None, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in _TOKENS}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.ray
@pytest.mark.parametrize("imported_before", ["", "import ray"])
def test_a_local_ray_listens_on_loopback_only(imported_before):
    result = _run(LISTENERS.format(imported_before=imported_before))
    hosts = json.loads(result.stdout.splitlines()[-1])
    assert len(hosts) > 3, result.stderr
    assert {host.removeprefix("::ffff:") for host in hosts} <= {"127.0.0.1", "::1"}


@pytest.mark.ray
def test_a_running_cluster_works_where_the_command_runs_and_its_token_is_asked_for_at_once(tmp_path):
    token, port = "0123456789abcdef" * 2, smoke.free_port()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "RAY_TMPDIR": folder,
            "HOME": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }
        command = ["start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--block"]
        command += [
            "--include-dashboard=false",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--ray-client-server-port={smoke.free_port()}",
        ]
        command += ["--object-store-memory=80000000", "--dashboard-agent-listen-port=0"]
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            join = JOIN.format(address=f"127.0.0.1:{port}")
            for _ in range(60):
                result = _run(join, tmp_path, HOME=folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
                if "worker's folder" in result.stdout or head.poll() is not None:
                    break
                time.sleep(1)
            head_said = head.stdout.read() if head.poll() is not None else ""
            assert f"worker's folder: {tmp_path}\n" in result.stdout, (result.stderr, head_said)
            for wrong in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}):
                result = _run(join, HOME=folder, **wrong)  # Ray alone tries for 20 s, and then says something else
                last = result.stderr.strip().splitlines()[-1]
                assert "wants a token" in last, result.stderr
                assert "RAY_AUTH_MODE=token" in last
                assert "RAY_AUTH_TOKEN_PATH" in last
        finally:
            head.terminate()
            head.wait(timeout=300)


def _fake_ray(monkeypatch, n_failures):
    """Let `ray.init` fail some times, and write to stderr as Ray's C++ parts do."""
    import ray

    calls = []

    def init(**options):
        calls.append(options)
        os.write(2, b"[logging.cc:303: Set ray log level]\n")
        if len(calls) <= n_failures:
            raise Exception("The current node timed out during startup. This could happen\nbecause ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(fiqa_ray.engine.ray, "head_watch", lambda: nullcontext(SimpleNamespace(is_lost=False)))
    monkeypatch.setattr(fiqa_ray.engine.ray, "catch_sigterm", lambda: None)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_workers", "n_cpus", "n_tasks"), [(None, 8, 16), (2, 2, 4), (2, 8, 2), (50, 1, 50), (None, 0, 2)]
)
def test_tasks_wait_at_ray_unless_the_run_has_its_own_number_of_workers(n_workers, n_cpus, n_tasks):
    assert _tasks_at_once(n_workers, n_cpus) == n_tasks


def test_a_ray_that_comes_too_late_is_started_again(monkeypatch, capfd):
    calls = _fake_ray(monkeypatch, 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(ComputeSettings(n_workers=1)):
        assert len(calls) == 3
    assert [line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines()] == 2 * [
        "Ray did not start; trying again"
    ]


def test_a_ray_that_does_not_come_up_is_one_line(monkeypatch, capfd):
    _fake_ray(monkeypatch, 99)
    with pytest.raises(FiqaRayError) as fault, ray_session(ComputeSettings(n_workers=1)):
        pass
    assert "\n" not in str(fault.value)
    assert "3 trials (The current node timed out during startup" in str(fault.value)
    assert "compute.engine=local" in str(fault.value)
    assert "logging.cc" not in capfd.readouterr().err


def test_ray_starts_with_the_first_shard(monkeypatch):
    calls = _fake_ray(monkeypatch, 0)
    step = Step("s", Dataset("memory://none/v=0", "d"), [1], lambda: lambda shard: shard, 1, runs_in="driver")
    with ray_when_needed(ComputeSettings(n_workers=1)) as mapper:
        assert not calls
        assert [outcome for _, outcome in mapper([(step, 1)])] == [1]
        assert [outcome for _, outcome in mapper([(step, 2)])] == [2]
    assert len(calls) == 1
