"""A cluster that starts machines on demand: a head without processors, and two groups of machines that come and go.

Ray's own `AutoscalingCluster` cannot be used: it ends all Rays of the machine, and needs a file that Ray's wheel lacks. This
is the same autoscaler with the same provider of machines, which are processes here. Run by `make chaos`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import smoke
from fiqa_ray.storage import list_files, read_bytes

pytestmark = pytest.mark.skipif("FIQA_RAY_CHAOS" not in os.environ, reason="minutes: run by make chaos")
ROOT = Path(__file__).parents[2]
IDLE_S = 15
STALL_S = 300.0
"""A run that finishes no part for so long stalls."""
STORE = 80_000_000
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
GROUPS = ("model", "other")
WATCH = """
import json, sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
while True:
    groups = sorted(n["Labels"]["kind"] for n in ray.nodes() if n["Alive"] and "kind" in n["Labels"])
    print(json.dumps([time.time(), groups]), flush=True)
    time.sleep(0.5)
"""


def head_id():
    """Return the name that Ray's fake machines give their head."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID  # imports all of Ray

    return FAKE_HEAD_NODE_ID


def autoscaling(address):
    """Return the settings of Ray's autoscaler: two groups of at most two machines of one processor each."""
    group = {
        "resources": {"CPU": 1, "object_store_memory": STORE},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
             "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
             "rsync_filter")  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": 4,
        "idle_timeout_minutes": IDLE_S / 60,
        "upscaling_speed": 100.0,
        "provider": {
            "type": "external", "module": PROVIDER, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": head_id(),
            "gcs_address": address,
        },
        "available_node_types": {"ray.head.default": head, **{name: {**group, "labels": {"kind": name}} for name in GROUPS}},
        "head_node_type": "ray.head.default",
        "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }  # fmt: skip


@contextmanager
def cluster(folder, env):
    """Start the head; yield its address, and end all processes of the cluster."""
    port = smoke.free_port()
    address = f"127.0.0.1:{port}"
    (folder / "autoscaling.json").write_text(json.dumps(autoscaling(address)))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0", f"--port={port}",
        f"--object-store-memory={STORE}", "--include-dashboard=false", "--disable-usage-stats",
        f"--autoscaling-config={folder}/autoscaling.json", f"--ray-client-server-port={smoke.free_port()}",
        f"--dashboard-agent-listen-port={smoke.free_port()}", "--node-ip-address=127.0.0.1",
    ]  # fmt: skip
    head_env = {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head_id(), "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id(),
    }  # fmt: skip
    with open(folder / "head.log", "wb") as log:
        head = subprocess.Popen(command, env={**env, **head_env}, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield address
    finally:
        head.terminate()
        head.wait(60)
        for process in processes_of(env["RAY_TMPDIR"]):
            process.kill()


def processes_of(ray_folder):
    """Return the processes of a cluster, which its folder tells from others."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == ray_folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def labels_of(run_uri):
    """Return the files of the labels, by dataset and name."""
    names = [n for n in list_files(run_uri) if n.startswith("optimized_labels") and n.endswith(".parquet")]
    return {(n.split("/v=")[0], n.rsplit("/", 1)[1]): read_bytes(f"{run_uri}/{n}") for n in names}


def test_groups_come_and_go_and_nothing_stalls(tmp_path):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=6, benchmark=False)
    compute = {"engine": "ray", "rows_per_part": 6, "train_workers": 1, "n_workers": 2, "device": "cpu"}
    labels = {"model_labels": {"kind": "model"}, "other_labels": {"kind": "other"}}
    methods = {"methods": [{"name": "embedding_norm"}], "benchmarks": []}
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        env |= {"RAY_TMPDIR": ray_folder, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/helpers"}
        with cluster(tmp_path, env) as address:
            watch_out = tmp_path / "groups"
            job = smoke.write_job(
                tmp_path / "job.yaml", faces, str(tmp_path / "run"), **methods,
                compute={**compute, **labels, "address": address},
            )  # fmt: skip
            wait_for_head(address)
            with open(watch_out, "wb") as out, open(tmp_path / "log", "wb") as log:
                watch = subprocess.Popen([sys.executable, "-c", WATCH, address], env=env, stdout=out)
                program = [sys.executable, "-m", "fiqa_ray", "run", job]
                run = subprocess.Popen(program, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
            assert wait(run, tmp_path / "run") == 0, (tmp_path / "log").read_text()[-3000:]
            ended_s = time.time()
            while groups(watch_out)[-1][1] and time.time() < ended_s + 180:
                time.sleep(1.0)
            watch.kill()
    seen = groups(watch_out)
    assert seen[0][1] == []
    assert {name for _, names in seen for name in names} == set(GROUPS)
    assert max(len(names) for _, names in seen) <= 4
    assert seen[-1][1] == [], "idle machines did not go"
    print([(round(at - seen[0][0]), names) for i, (at, names) in enumerate(seen) if not i or names != seen[i - 1][1]])
    alone = smoke.write_job(
        tmp_path / "alone.yaml", faces, str(tmp_path / "alone"), **methods,
        compute={"engine": "local", "rows_per_part": 6, "train_workers": 0},
    )  # fmt: skip
    program = [sys.executable, "-m", "fiqa_ray", "run", alone, "--stages", "pack,embed,score,pair,rank,optimize"]
    subprocess.run(program, env=env, check=True, capture_output=True, timeout=600)
    assert labels_of(str(tmp_path / "run")) == labels_of(str(tmp_path / "alone"))


def wait_for_head(address):
    """Wait until the head answers."""
    import socket

    host, port = address.split(":")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the head did not start")


def groups(path):
    """Return the groups of the machines that lived, look by look, with the time."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("[")] or [[0.0, ["?"]]]


def wait(run, folder):
    """Return the exit code of a run; fail if it finishes no part for `STALL_S`."""
    n, since = 0, time.monotonic()
    while run.poll() is None:
        if (now := len(list(folder.rglob("_part-*.json")))) != n:
            n, since = now, time.monotonic()
        if time.monotonic() - since > STALL_S:
            run.kill()
            pytest.fail(f"the run stalled after {n} parts")
        time.sleep(0.5)
    return run.returncode
