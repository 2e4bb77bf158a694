"""Submits a command to a Ray cluster's job server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from fiqa_ray.errors import FiqaRayError, IncompleteError

FORWARDED = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE")
"""Environment variables that travel with the job; secrets do not: give the cluster's machines a role."""


def submit_job(address: str, command: str, working_dir: str, *, wait: bool, say: Callable[[str], None]) -> None:
    """Submit a job and print its id; with `wait` follow its log.

    Raises:
        FiqaRayError: The job cannot be submitted.
        IncompleteError: The job failed.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=command,
            runtime_env={
                "working_dir": working_dir,
                "excludes": [".venv", ".git", "runs", "*.pt", "*.pth"],
                "env_vars": {k: os.environ[k] for k in FORWARDED if k in os.environ},
            },
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as exc:
        raise FiqaRayError(f"the job server at {address} did not take the job: {exc}") from exc
    say(f"job: {job_id}\n")
    if not wait:
        return
    shown = 0
    while True:
        state = client.get_job_status(job_id)
        log = client.get_job_logs(job_id)
        say(log[shown:])
        shown = len(log)
        if state.is_terminal():
            break
        time.sleep(2.0)
    if state.value != "SUCCEEDED":
        raise IncompleteError(f"job {job_id} ended as {state.value}; see its log above, submit again to continue")
