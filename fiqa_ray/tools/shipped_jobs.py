"""The jobs that the package ships, and the demo, which is one of them with everything that it needs."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from fiqa_ray.errors import UsageError
from fiqa_ray.models.options import near_name
from fiqa_ray.storage import storage_errors

_JOBS = files("fiqa_ray").joinpath("jobs")
_DEMO_FOLDER = "runs/demo"
"""The folder that the shipped demo names."""


def job_names() -> list[str]:
    """Return the names of the shipped jobs."""
    return sorted(f.name.removesuffix(".yaml") for f in _JOBS.iterdir() if f.name.endswith(".yaml"))


def job_text(name: str) -> str:
    """Return a shipped job as YAML.

    Raises:
        UsageError: there is no job of this name.
    """
    names = job_names()
    if name not in names:
        raise UsageError(f"there is no job {name!r}{near_name(name, names)}; choose from {', '.join(names)}")
    return _JOBS.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def job_summary(name: str) -> str:
    """Return the first line of a shipped job's header."""
    return job_text(name).splitlines()[0].removeprefix("# ")


def write_demo(folder: Path) -> Path:
    """Make the demo's faces and recogniser, and write its job and its method beside them.

    What is there already is used as it is.

    Args:
        folder: where everything goes.

    Returns:
        The job's YAML.

    Raises:
        UsageError: the folder holds something else.
        FiqaRayError: it is a file or cannot be written.
    """
    from fiqa_ray.synthetic.recognizer import make_demo  # torch, which `fiqa-ray jobs` does without

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, not a folder; choose another path")
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    make_demo(folder)
    text = job_text("demo").replace(_DEMO_FOLDER, json.dumps(folder.as_posix())[1:-1])
    for name, content in (
        ("contrast.py", _JOBS.joinpath("contrast.py").read_text(encoding="utf-8")),
        ("demo.yaml", text),
    ):
        path = folder / name
        if not path.exists():
            path.write_text(content, encoding="utf-8")
    return folder / "demo.yaml"
