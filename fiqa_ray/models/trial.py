"""Runs a library on a user's file in a process of its own first: damaged files make some libraries hang or break down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from fiqa_ray.errors import FiqaRayError


def run_trial(script: str, arguments: tuple[int, ...], data: bytes, limit_s: float, name: str, advice: str) -> Any:
    """Run a script on a file's bytes and return what it prints as JSON.

    Args:
        script: the script, which reads the bytes from stdin. It may limit its own memory and CPU time.
        arguments: of the script.
        data: the file's bytes.
        limit_s: seconds that it may take on a busy machine.
        name: what to call file and library in messages, such as "yunet.onnx: OpenCV".
        advice: what to do then.

    Raises:
        FiqaRayError: the script hangs, uses up its CPU time, is killed or breaks down.
    """
    command = [sys.executable, script, *map(str, arguments)]
    try:
        trial = subprocess.run(command, input=data, capture_output=True, timeout=limit_s, check=False)
        return json.loads(trial.stdout)
    except subprocess.TimeoutExpired as error:
        raise FiqaRayError(f"{name} does not end on it within {limit_s} s; {advice}") from error
    except ValueError as error:
        if trial.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            fault = "does not end on it within its CPU time, or is killed for its memory"
        else:
            fault = f"breaks down on it (exit code {trial.returncode})"
        raise FiqaRayError(f"{name} {fault}; {advice}") from error
