"""Kills a part of a run at a random moment, runs it again, and compares every byte of labels and regressors.

python tests/chaos/kills.py FOLDER [--seed 1] [--trials 20] [--only driver,node]

Each trial draws a victim (driver, sigterm, worker, node, head, trainer, store), a place (disk or bucket) and a number of
finished parts after which it strikes. A driver works in one process, or with a Ray of its own, by turns. A trial whose run
was over before the strike is no kill: it is made again, and strikes earlier. A line of JSON per trial; exit code 1 if any
trial failed or struck nothing. It ends processes by their ids, and only those that the trial started.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "helpers"))

import smoke  # noqa: E402

VICTIMS = ("driver", "sigterm", "worker", "node", "head", "trainer", "store")
STAGES = "pack,embed,score,pair,rank,optimize,train"
HANG_S = 300.0
"""A run that finishes no part for so long hangs. Counted in looks a second apart: a stopped machine is no hang."""
LEAVE_S = 60.0
"""A process that is there so long after the last run has ended is left behind."""
N_AIMS = 4
"""Times that a trial is made until it strikes."""
KEPT = (".parquet", ".pt", "card.json")


@dataclass
class Trial:
    """One kill."""

    number: int
    victim: str
    is_s3: bool
    after: int
    delay_s: float
    folder: Path
    faces: Path
    has_own_ray: bool = False
    aim: int = 1

    @property
    def on_cluster(self) -> bool:
        """Whether the run works on a cluster of two nodes."""
        return self.victim in ("worker", "node", "head", "trainer")

    @property
    def run_uri(self) -> str:
        """Where the run lies."""
        return f"s3://chaos/run{self.number}-{self.aim}" if self.is_s3 else str(self.run_folder / "run")

    @property
    def run_folder(self) -> Path:
        """The folder of job, log and, on disk, run."""
        return self.folder / str(self.aim)


def environment(ray_folder: str) -> dict[str, str]:
    """Return the environment of all processes of a trial; the folder tells them from others."""
    names = {
        "RAY_TMPDIR": ray_folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_worker_niceness": "0",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "helpers")]),
    }
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN")}
    return {**kept, **names}


def write_job(trial_folder: Path, faces: Path, run_uri: str) -> str:
    """Write a job of some hundred small parts; return its path."""
    compute = {
        "engine": "local",
        "rows_per_part": 6,
        "train_workers": 0,
        "n_workers": 2,
        "object_store_bytes": 80_000_000,
    }
    train = {"mode": "head", "n_epochs": 2}
    return smoke.write_job(
        trial_folder / "job.yaml", faces, run_uri, benchmarks=[], compute=compute, train=train,
        methods=[{"name": "embedding_norm"}, {"name": "faceqan", "options": {"n_samples": 1, "n_iterations": 1}}],
    )  # fmt: skip


def start(job: str, env: dict[str, str], log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Start a run."""
    command = [sys.executable, "-m", "fiqa_ray", "run", job, *overrides, "--stages", STAGES]
    with open(log, "ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent)


class Store:
    """The tests' S3 server behind a proxy; it is away while the proxy answers nothing, since it keeps objects in memory."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.faults, ports = folder / "faults.json", (smoke.free_port(), smoke.free_port())
        self.faults.write_text("{}")
        server, proxy = HERE.parent / "helpers" / "s3_server.py", HERE / "proxy.py"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.processes = [
            subprocess.Popen([sys.executable, str(server), str(ports[0])], env=env, **quiet),
            subprocess.Popen(
                [sys.executable, str(proxy), str(ports[1]), str(ports[0]), str(self.faults), "1"], env=env, **quiet
            ),
        ]
        self.url = f"http://127.0.0.1:{ports[1]}"
        env["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"] = self.url
        os.environ.update({k: v for k, v in env.items() if k.startswith("AWS")})
        time.sleep(4)
        self.fs.mkdir("chaos")

    @property
    def fs(self):
        """A client without a cache."""
        import s3fs

        return s3fs.S3FileSystem(endpoint_url=self.url, use_listings_cache=False, skip_instance_cache=True)

    def away(self, seconds: float) -> None:
        """Answer nothing for some seconds."""
        self.faults.write_text('{"away": true}')
        time.sleep(seconds)
        self.faults.write_text("{}")

    def close(self) -> None:
        """End both processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def files(trial: Trial, store: Store | None) -> dict[str, int | str]:
    """Return each file of a run with its time of writing."""
    if store is not None and trial.is_s3:
        root = trial.run_uri.removeprefix("s3://")
        infos = {k: v for k, v in store.fs.find(root, detail=True).items() if v["type"] == "file"}
        return {k.removeprefix(root): str(v["LastModified"]) for k, v in infos.items() if "LastModified" in v}
    root = Path(trial.run_uri)
    return {p.relative_to(root).as_posix(): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def records(trial: Trial, store: Store | None) -> dict[str, int | str]:
    """Return the records of finished parts with their times."""
    return {name: t for name, t in files(trial, store).items() if re.search(r"_part-\d+\.json$", name)}


def digest(trial: Trial, store: Store | None) -> dict[str, str]:
    """Return the SHA-256 of each file of labels and regressors."""
    found = {}
    for name in files(trial, store):
        if name.lstrip("/").startswith(("optimized_labels", "regressor")) and name.endswith(KEPT):
            if trial.is_s3 and store is not None:
                content = store.fs.cat_file(trial.run_uri.removeprefix("s3://") + name)
            else:
                content = Path(trial.run_uri, name).read_bytes()
            found[name.lstrip("/")] = hashlib.sha256(content).hexdigest()
    return found


def processes_of(ray_folder: str, title: str = "") -> list[psutil.Process]:
    """Return the processes of a trial; with a title those of Ray's workers that show it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        try:
            is_ours = process.environ().get("RAY_TMPDIR") == ray_folder and process.pid != os.getpid()
        except psutil.Error:
            continue
        if is_ours and re.search(title, line):
            found.append(process)
    return found


@contextmanager
def nodes(env: dict[str, str], n: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a cluster; yield its address and the process that obeys on stdin."""
    command = [sys.executable, str(HERE / "nodes.py"), str(n)]
    cluster = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    while not (line := cluster.stdout.readline()).startswith("ADDRESS"):
        assert line, "the cluster did not start"
    yield line.split()[1], cluster
    try:
        cluster.stdin.write("quit\n")
        cluster.stdin.flush()
        cluster.wait(30)
    except (OSError, subprocess.TimeoutExpired):
        cluster.kill()


def wait(process: subprocess.Popen[bytes], trial: Trial, store: Store | None) -> int | str:
    """Return the exit code of a run, or "hang"."""
    n, n_looks = 0, 0
    while n_looks < HANG_S:
        if process.poll() is not None:
            return process.returncode
        n_looks += 1
        if (now := len(records(trial, store))) != n:
            n, n_looks = now, 0
        time.sleep(1.0)
    process.kill()
    process.wait()
    return "hang"


def strike(
    trial: Trial,
    run: subprocess.Popen[bytes],
    env: dict[str, str],
    cluster: subprocess.Popen[str] | None,
    store: Store | None,
) -> bool:
    """Kill the victim; return whether it was there, in a run still at work."""
    if run.poll() is not None:
        return False
    if trial.victim in ("driver", "sigterm"):
        run.send_signal(signal.SIGKILL if trial.victim == "driver" else signal.SIGTERM)
        return True
    if trial.victim == "store":
        assert store is not None
        store.away(8.0)
        return run.poll() is None
    if trial.victim in ("node", "head"):
        assert cluster is not None
        assert cluster.stdin is not None
        cluster.stdin.write("node 0\n" if trial.victim == "node" else "head\n")
        cluster.stdin.flush()
        return True
    title = (
        r"^ray::.*(TrainWorker)" if trial.victim == "trainer" else r"^ray::(?!IDLE).*(run_shard|MapWorker|_ShardActor)"
    )
    until = time.monotonic() + 900  # training comes last
    while run.poll() is None and time.monotonic() < until:
        for process in processes_of(env["RAY_TMPDIR"], title)[:1]:
            with suppress(psutil.NoSuchProcess):  # it has ended since: look again
                process.kill()
                return True
        time.sleep(0.05)
    return False


def run_trial(trial: Trial, reference: dict[str, str], store: Store | None, env: dict[str, str]) -> dict[str, object]:
    """Run, kill, run again, and compare."""
    trial.run_folder.mkdir(parents=True)
    job, log = write_job(trial.run_folder, trial.faces, trial.run_uri), trial.run_folder / "log"
    with ExitStack() as stack:
        overrides, cluster = ["compute.engine=ray"] if trial.has_own_ray else [], None
        if trial.on_cluster:
            address, cluster = stack.enter_context(nodes(env, 2))
            n_trainers = int(trial.victim == "trainer")
            overrides = ["compute.engine=ray", f"compute.address={address}", f"compute.train_workers={n_trainers}"]
        first = start(job, env, log, *overrides)
        while first.poll() is None and len(records(trial, store)) < trial.after:
            time.sleep(0.2)
        time.sleep(trial.delay_s)
        is_struck = strike(trial, first, env, cluster, store)
        before, code = records(trial, store), wait(first, trial, store)
        after_first = records(trial, store)
    again = wait(start(job, env, log), trial, store)
    final = records(trial, store)
    n_twice = sum(final.get(name) != t for name, t in after_first.items())
    left = left_after(LEAVE_S, env, store)
    temporary = [name for name in files(trial, store) if name.endswith(".tmp")]
    is_same = digest(trial, store) == reference
    is_good = is_struck and is_same and again == 0 and code != "hang" and not temporary and n_twice <= 2 and not left
    names = [" ".join(p.info["cmdline"] or [])[:80] for p in left]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return {
        "trial": trial.number, "victim": trial.victim, "place": "s3" if trial.is_s3 else "disk",
        "own_ray": trial.has_own_ray, "aim": trial.aim, "struck": is_struck,
        "after": trial.after, "parts_before": len(before), "exit": code, "again": again, "parts_twice": n_twice,
        "same_bytes": is_same, "left_processes": names, "left_files": temporary, "good": is_good,
    }  # fmt: skip


def left_after(seconds: float, env: dict[str, str], store: Store | None) -> list[psutil.Process]:
    """Return the processes of a trial that have not ended by themselves after so many seconds; the store's are none."""
    until, stores = time.monotonic() + seconds, {p.pid for p in store.processes} if store else set()
    while True:
        left = [p for p in processes_of(env["RAY_TMPDIR"]) if p.pid not in stores]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.5)


def undisturbed(folder: Path, faces: Path, env: dict[str, str]) -> dict[str, str]:
    """Return the digest of a run that nothing disturbs."""
    trial = Trial(0, "none", False, 0, 0.0, folder / "reference", faces)
    trial.run_folder.mkdir(parents=True)
    process = start(write_job(trial.run_folder, faces, trial.run_uri), env, trial.run_folder / "log")
    assert wait(process, trial, None) == 0, (trial.run_folder / "log").read_text()[-2000:]
    return digest(trial, None)


def main() -> None:
    """Run trials and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--only", default=",".join(VICTIMS), help="victims, comma-separated")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    faces = smoke.make_faces(arguments.folder / "faces", n_identities=6, per_identity=6, benchmark=False)
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        env = environment(ray_folder)
        reference = undisturbed(arguments.folder, faces, env)
        store = Store(arguments.folder, env)
        n_bad = 0
        try:
            for number in range(1, arguments.trials + 1):
                victim = draw.choice(arguments.only.split(","))
                is_s3, after, delay_s = draw.random() < 0.4, draw.randrange(1, 30), draw.uniform(0, 1)
                folder = arguments.folder / f"{number:03d}"
                has_own_ray = victim in ("driver", "sigterm") and number % 2 == 0
                trial = Trial(number, victim, is_s3 or victim == "store", after, delay_s, folder, faces, has_own_ray)
                for _ in range(N_AIMS):
                    result = run_trial(trial, reference, store, env)
                    print(json.dumps(result), flush=True)
                    if result["struck"]:
                        break
                    trial = replace(trial, aim=trial.aim + 1, after=trial.after // 2, delay_s=0.0)
                n_bad += not result["good"]
        finally:
            store.close()
    print(f"{arguments.trials - n_bad} of {arguments.trials} trials ended with the undisturbed bytes")
    sys.exit(1 if n_bad else 0)


if __name__ == "__main__":
    main()
