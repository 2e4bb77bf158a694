"""Submits a job to a Ray cluster's job server, follows its log, and ends with its exit code.

The package travels with the job, so that the cluster needs no fiqa_ray. The settings travel as a file: they may hold keys
and signed addresses, which a command line would show to all. Submitting the same job again follows it while it runs, and
continues it when it has ended.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiqa_ray
from fiqa_ray.engine.progress import JSON_LOG
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.public_uri import public_uri
from fiqa_ray.storage import fingerprint

FORWARDED = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE")
"""Environment variables that travel with the job; secrets do not: give the cluster's machines a role."""
RECONNECT_S = 120.0
"""Seconds for which a job server that does not answer is tried again, as while it restarts."""
_MODULE = "fiqa_ray_job"
_MAIN = '''"""Runs the job that lies beside this file."""

from pathlib import Path

import fiqa_ray

try:
    from fiqa_ray.cli import main
except ModuleNotFoundError as exc:
    raise SystemExit(
        f"error: the cluster's Python lacks the package {exc.name}; install what fiqa_ray needs there, or submit with "
        "--with-dependencies"
    ) from None

print(f"fiqa_ray {fiqa_ray.__version__} from {Path(fiqa_ray.__file__).parent}", flush=True)
main(["run", str(Path(__file__).parent / "job.yaml")])
'''


@dataclass(frozen=True)
class Submission:
    """What is submitted.

    Attributes:
        settings_yaml: The settings, with all changes of the command line.
        run_uri: Where the run lies; gives the job its id.
        working_dir: Folder that travels along: the user's own modules.
        with_dependencies: Whether the cluster installs the packages that fiqa_ray needs.
    """

    settings_yaml: str
    run_uri: str
    working_dir: str
    with_dependencies: bool = False

    @property
    def job_id(self) -> str:
        """The same for the same run and settings."""
        return f"fiqa-{fingerprint([self.run_uri, self.settings_yaml])}"


def submit_job(address: str, submission: Submission, *, wait: bool, say: Callable[[str], None]) -> int:
    """Submit a job unless it runs already, and print its id; with `wait` follow its log to its end.

    Returns:
        The exit code of the job; 0 without `wait`.

    Raises:
        FiqaRayError: The job cannot be submitted.
        IncompleteError: The job server was lost, or the job was stopped.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        job_id, is_new = _submit_once(client := JobSubmissionClient(address), submission)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as exc:
        raise FiqaRayError(_refusal(address, exc)) from exc
    say(f"job: {job_id}\n" if is_new else f"job: {job_id} (at work already)\n")
    return _follow(client, address, job_id, say) if wait else 0


def _submit_once(client: Any, submission: Submission) -> tuple[str, bool]:
    """Submit a job unless it runs already; return its id, and whether it was submitted.

    A job server that has just started may cut connections. Trying again is safe: the id tells whether the job arrived.
    """
    until = time.monotonic() + RECONNECT_S
    while True:
        try:
            job_id, is_new = _free_id(client, submission.job_id)
            if is_new:
                _submit(client, job_id, submission)
            return job_id, is_new
        except OSError as exc:
            if not _is_connection_lost(exc) or time.monotonic() > until:
                raise
        time.sleep(2.0)


def _is_connection_lost(exc: OSError) -> bool:
    """Return whether a connection broke: by Python's own exception, or that of requests, which Ray uses."""
    return "ConnectionError" in {kind.__name__ for kind in type(exc).__mro__}


def _free_id(client: Any, job_id: str) -> tuple[str, bool]:
    """Return the id of this job's attempt that runs, or the first free id, and whether it is free."""
    attempts = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    n = 1
    while (name := job_id if n == 1 else f"{job_id}-{n}") in attempts:
        if not attempts[name].is_terminal():
            return name, False
        n += 1
    return name, True


def _submit(client: Any, job_id: str, submission: Submission) -> None:
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / _MODULE
        module.mkdir()
        (module / "__init__.py").write_text("")
        (module / "__main__.py").write_text(_MAIN)
        (module / "job.yaml").write_text(submission.settings_yaml)
        package = str(Path(fiqa_ray.__file__).parent)
        environment: dict[str, Any] = {
            "working_dir": submission.working_dir,
            "excludes": [".venv", ".git", "runs", "*.pt", "*.pth", "__pycache__"],
            "py_modules": [package, str(module)],
            "env_vars": {JSON_LOG: "1"} | {k: os.environ[k] for k in FORWARDED if k in os.environ},
        }
        if submission.with_dependencies:
            environment["pip"] = {"packages": dependencies(), "pip_check": False}
        client.submit_job(
            submission_id=job_id,
            entrypoint=f"python -m {_MODULE}",
            runtime_env=environment,
            metadata={"run_uri": public_uri(submission.run_uri)},
        )


def dependencies() -> list[str]:
    """Return the packages that fiqa_ray needs beside Ray, as requirements."""
    needed = importlib.metadata.requires("fiqa-ray") or []
    return [r for r in needed if "extra ==" not in r and not r.startswith("ray[")]


def _follow(client: Any, address: str, job_id: str, say: Callable[[str], None]) -> int:
    """Print the log of a job until it ends; return its exit code."""
    n_shown, lost_since = 0, None
    while True:
        try:
            n_shown = asyncio.run(_tail(client, job_id, n_shown, say))
            info = client.get_job_info(job_id)
            lost_since = None
        except Exception as exc:  # requests', aiohttp's and Ray's own, while the job server is away
            now = time.monotonic()
            lost_since = lost_since or now
            if now - lost_since > RECONNECT_S:
                raise IncompleteError(
                    f"the job server at {address} does not answer any more ({type(exc).__name__}); job {job_id} may go on: "
                    "submit the same command again to follow it, or to continue the run"
                ) from exc
            time.sleep(2.0)
            continue
        if info.status.is_terminal():
            break
        time.sleep(1.0)
    if info.status.value == "STOPPED":
        raise IncompleteError(f"job {job_id} was stopped; submit the same command again to continue")
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:
        raise FiqaRayError(f"job {job_id} failed before it began: {' '.join(str(info.message).split())[:500]}")
    return int(info.driver_exit_code)


async def _tail(client: Any, job_id: str, n_shown: int, say: Callable[[str], None]) -> int:
    """Print what is new in a log until the job ends or the connection does; return the characters shown so far."""
    n_seen = 0
    async for text in client.tail_job_logs(job_id):
        n_seen += len(text)
        if n_seen > n_shown:
            say(text[-(n_seen - n_shown) :])
            n_shown = n_seen
    return n_shown


def _refusal(address: str, exc: BaseException) -> str:
    """Return why the job server did not take a job, and the remedy."""
    text = " ".join(str(exc).split())
    if "401" in text or "403" in text or "nauthori" in text or "uthentication" in text:
        return (
            f"the job server at {address} wants a token, and this machine has none or another; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, to those of the cluster's head, whose file is ~/.ray/auth_token"
        )
    return f"the job server at {address} did not take the job: {text[:500]}"
