"""A machine that is to be taken away: Ray drains it, and training saves its state before and goes on elsewhere."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

import smoke

sys.path.insert(0, str(Path(__file__).parent))

from kills import STAGES, Trial, digest, environment, nodes

pytestmark = pytest.mark.skipif("FIQA_RAY_CHAOS" not in os.environ, reason="minutes: run by make chaos")
DEADLINE_S = 20
N_EPOCHS = 70
"""More steps than are done until the deadline: all of them would be lost if nothing was saved."""
SLOW = '''
"""A recogniser that takes its time in training and notes on which node. States are saved for drained nodes alone."""
import os, time
import ray
from smoke import Tiny
from fiqa_ray.training import leaving, loop

class Slow(Tiny):
    def forward(self, x):
        if self.training:
            loop.SAVE_EVERY_S, leaving.ASK_EVERY_S = 1e9, 1.0
            time.sleep(float(os.environ["PAUSE_S"]))
            with open(os.environ["STEPS"], "a") as steps:
                print(ray.get_runtime_context().get_node_id() if ray.is_initialized() else "alone", file=steps)
        return super().forward(x)

def slow(weights=None):
    return Slow()
'''


def test_training_saves_before_its_machine_goes_and_continues_elsewhere(tmp_path):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=6, benchmark=False)
    (tmp_path / "slow.py").write_text(SLOW)
    alone, moved = (Trial(0, name, False, 0, 0.0, tmp_path / name, faces) for name in ("alone", "moved"))
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        env = environment(ray_folder)
        env["PYTHONPATH"] += f":{tmp_path}"
        run(alone, {**env, "PAUSE_S": "0", "STEPS": str(tmp_path / "alone.steps")})
        env |= {"PAUSE_S": "0.5", "STEPS": str(tmp_path / "moved.steps")}
        with nodes(env, 2) as (address, _):
            work = start(moved, env, "compute.engine=ray", f"compute.address={address}", "compute.train_workers=1")
            while len(steps(moved)) < 5:
                assert work.poll() is None, log(moved)
                time.sleep(0.1)
            leaving = steps(moved)[0]
            drain(env, address, leaving)
            assert work.wait(900) == 0, log(moved)
    by_node = Counter(steps(moved))
    n_again = sum(by_node.values()) - len(steps(alone))
    print(f"{by_node[leaving]} steps on the machine that was drained, {n_again} of them made again on another")
    assert len(by_node) == 2
    assert 5 + DEADLINE_S // 2 < by_node[leaving] < N_EPOCHS
    assert n_again <= 8
    assert digest(moved, None) == digest(alone, None)


def start(trial, env, *overrides):
    """Start a run that trains the whole network."""
    trial.folder.mkdir()
    job = smoke.write_job(
        trial.folder / "job.yaml", trial.faces, trial.run_uri, benchmarks=[], recognizer={"name": "slow:slow"},
        methods=[{"name": "embedding_norm"}], train={"mode": "finetune", "n_epochs": N_EPOCHS, "batch_size": 16},
        compute={"engine": "local", "train_workers": 0},
    )  # fmt: skip
    command = [sys.executable, "-m", "fiqa_ray", "run", job, *overrides, "--stages", STAGES]
    with open(trial.folder / "log", "wb") as out:
        return subprocess.Popen(command, env=env, cwd=trial.folder, stdout=out, stderr=subprocess.STDOUT)


def run(trial, env):
    """Do a run in one process."""
    assert start(trial, env).wait(900) == 0, log(trial)


def drain(env, address, node):
    """Tell Ray that a machine will be taken away, as its launcher does when a cloud announces it."""
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node,
         "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
         "--deadline-remaining-seconds", str(DEADLINE_S)],
        env=env, check=True, timeout=300,
    )  # fmt: skip


def steps(trial):
    """Return the node of each step of training."""
    path = trial.folder.parent / f"{trial.victim}.steps"
    return path.read_text().split() if path.exists() else []


def log(trial):
    """Return the end of a run's log."""
    return (trial.folder / "log").read_text()[-3000:]
