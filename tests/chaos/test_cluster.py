"""A job server that wants a token: submit, follow, stop, submit again, and lose the head. Run by `make chaos`."""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray

import smoke

pytestmark = pytest.mark.skipif("FIQA_RAY_CHAOS" not in os.environ, reason="minutes: run by make chaos")
ROOT = Path(__file__).parents[2]


def bare_python(folder):
    """Make an environment with all packages of this one but fiqa_ray; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = str(folder / "bin" / "python")
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip())
    (own / "shared.pth").write_text(
        f"{Path(ray.__file__).parents[1]}\n"
    )  # .pth files there, as of fiqa_ray, do not count
    for names, code in (("ray, torch", 0), ("fiqa_ray", 1)):
        result = subprocess.run([python, "-c", f"import {names}"], check=False, cwd=folder, capture_output=True)
        assert result.returncode == code, result.stderr
    return python


@contextmanager
def head(folder, port, env, python):
    """A head of two processors with a job server on this port; its GCS is killed at the end."""
    command = [
        python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
        "--object-store-memory=100000000", f"--port={smoke.free_port()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}", f"--dashboard-agent-listen-port={smoke.free_port()}",
        f"--ray-client-server-port={smoke.free_port()}", "--disable-usage-stats",
    ]  # fmt: skip
    with open(folder / "head.log", "ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        smoke.await_server(f"http://127.0.0.1:{port}/api/version", process, 600)
        yield
    finally:
        servers = [p for p in psutil.Process(process.pid).children(recursive=True) if "gcs_server" in p.name()]
        for server in servers:
            server.kill()
        process.terminate()
        process.wait(60)
        assert servers


def test_submit_follow_stop_and_continue(tmp_path):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=6, benchmark=False)
    work = tmp_path / "work"
    work.mkdir()
    (work / "smoke.py").write_text((ROOT / "tests" / "helpers" / "smoke.py").read_text())
    job = smoke.write_job(
        work / "job.yaml", faces, str(tmp_path / "run"), benchmarks=[],
        compute={"engine": "ray", "rows_per_part": 6, "train_workers": 0, "n_workers": 2},
    )  # fmt: skip
    port = smoke.free_port()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        without = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "RAY_ADDRESS", "PYTHONPATH")}
        without |= {"RAY_TMPDIR": ray_folder, "HOME": ray_folder}
        python = bare_python(tmp_path / "bare")
        without["PATH"] = f"{Path(python).parent}:{os.environ['PATH']}"  # jobs start `python`
        env = {**without, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

        def command(*arguments, env=env, program=("-m", "fiqa_ray")):
            result = subprocess.run(
                [sys.executable, *program, *arguments], env={**env, "PYTHONPATH": str(ROOT)}, cwd=work,
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            return result.returncode, result.stdout + result.stderr

        def submit(*arguments, **options):
            return command("submit", job, "--address", f"http://127.0.0.1:{port}", *arguments, **options)

        with head(tmp_path, port, env, python):
            code, text = submit(env={**without, "RAY_AUTH_MODE": "disabled"})
            assert (code, "wants a token" in text) == (1, True), text
            assert submit("optimize.theta=7")[0] == 2
            code, text = submit("source.uri=/nowhere", f"run_uri={tmp_path}/bad", "--wait")
            assert (code, "error: " in text) == (1, True), text
            code, text = submit()
            name = re.search(r"job: (\S+)", text)[1]
            until = time.monotonic() + 200
            while len(list((tmp_path / "run").rglob("_part-*.json"))) < 3 and time.monotonic() < until:
                time.sleep(0.2)
            assert f"{name} (at work already)" in submit()[1]
            stop = ("job", "stop", name, "--address", f"http://127.0.0.1:{port}")
            assert command(*stop, program=("-m", "ray.scripts.scripts"))[0] == 0
            assert (tmp_path / "run" / "_lock" / "000001.released").exists()
            parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("_part-*.json")}
            follower = subprocess.Popen(
                [sys.executable, "-m", "fiqa_ray", "submit", job, "--address", f"http://127.0.0.1:{port}", "--wait"],
                env={**env, "PYTHONPATH": str(ROOT)}, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            while len(list((tmp_path / "run").rglob("_part-*.json"))) < len(parts) + 2:
                time.sleep(0.2)
        with head(tmp_path, port, env, python):  # the head was lost, and a new one knows no jobs
            text, code = follower.communicate(timeout=300)[0], follower.returncode
            assert (code, "Traceback" in text) == (3, False), text
            code, text = submit("--wait")
            assert code == 0, text
            assert re.search(r"fiqa_ray \S+ from .*runtime_resources", text)  # the package came with the job
            assert all(p.stat().st_mtime_ns == at for p, at in parts.items())
            check_other_ends(work, submit, env)
            check_the_command_of_ray(work, command, f"http://127.0.0.1:{port}")


def check_other_ends(work, submit, env):
    """Submit a job whose method fails, which ends with 1, and one whose storage is away, which ends with 3."""
    (work / "broken.py").write_text("def score(faces):\n    raise ValueError('no score')\n")
    code, text = submit("methods=[{name: broken:score}]", f"run_uri={work}/broken", "--wait")
    assert (code, "ValueError: no score" in text, "Traceback" in text) == (1, True, False), text
    nowhere = {**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    code, text = submit("run_uri=s3://away/run", "compute.storage_patience_s=1", "--wait", env=nowhere)
    assert (code, "cannot be reached" in text, "Traceback" in text) == (3, True, False), text


def check_the_command_of_ray(work, command, address):
    """Submit a job by Ray's own command, with the package alone, and one that ends with an error."""
    package = json.dumps({"py_modules": [str(ROOT / "fiqa_ray")]})
    sent = ("job", "submit", "--address", address, "--working-dir", str(work), "--runtime-env-json", package)
    code, text = command(
        *sent, "--", "python", "-m", "fiqa_ray", "run", "job.yaml", program=("-m", "ray.scripts.scripts")
    )
    assert (code, "Traceback" in text) == (0, False), text
    code, text = command(
        *sent, "--", "python", "-m", "fiqa_ray", "run", "job.yaml", "seed=none", program=("-m", "ray.scripts.scripts")
    )
    assert (code, "error: " in text) == (1, True), text  # whatever the run's own code is, Ray's command ends with 1


LABELS = """
import json, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import ray
from ray.cluster_utils import Cluster
from fiqa_ray.config import ComputeSettings
from fiqa_ray.datasets.dataset import Dataset, Part
from fiqa_ray.engine.ray import RayMapper
from fiqa_ray.engine.step import Step, stateless_worker
import labelled
store = 80 * 2**20
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, object_store_memory=store, include_dashboard=False))
cluster.add_node(num_cpus=1, object_store_memory=store, labels={{"kind": "fast"}})
ray.init(address=cluster.address, log_to_driver=False)
compute = ComputeSettings(n_workers=1, model_labels={{"kind": "fast"}})
for runs_in in ("tasks", "pool"):
    step = Step("embed", Dataset("/x/v=0", "x"), [7, 8], stateless_worker(labelled.where), 2, runs_in, uses_model=True)
    print(runs_in, sorted(part.stats["fast"] for _, part in RayMapper(compute)([(step, s) for s in step.shards])))
ray.shutdown()
cluster.shutdown()
"""
WHERE = """
import ray
from fiqa_ray.datasets.dataset import Part
def where(shard):
    labels = ray.get_runtime_context().get_node_labels()
    return Part(shard, 1, {}, {"fast": int(labels.get("kind") in ("fast", ["fast"]))})
"""


def test_models_run_on_machines_with_the_labels_asked_for(tmp_path):
    (tmp_path / "labelled.py").write_text(WHERE)
    result = subprocess.run(
        [sys.executable, "-c", LABELS.format(folder=str(tmp_path))],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "tasks [1, 1]" in result.stdout, result.stderr[-2000:]
    assert "pool [1, 1]" in result.stdout


DEADLY = """
import os
def score(faces):
    os._exit(9)
"""


def test_a_method_that_kills_its_process_is_named(tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=6, benchmark=False)
    job = smoke.write_job(
        tmp_path / "job.yaml", faces, str(tmp_path / "run"), benchmarks=[], methods=[{"name": "deadly:score"}],
        compute={"engine": "ray", "rows_per_part": 6, "train_workers": 0, "n_workers": 2},
    )  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "fiqa_ray", "run", job, "--stages", "pack,embed,score"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers"}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert result.returncode == 3, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(
        r"score: 1 shard\(s\) of .*quality_scores.* failed, the first, part-0000\d, with LostProcessError", last
    )
    assert "your model or data" in last
