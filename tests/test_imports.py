"""Who may import whom: the ladder of the package, and libraries that have one home."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fiqa_ray"

EVERYWHERE = {"_version", "errors", "public_uri"}
LADDER = {  # room -> the rooms that it may import, beside itself: never one above it
    "core": set(),
    "hub": set(),
    "storage": {"hub"},
    "documents": {"storage"},
    "decoder_output": set(),
    "image_files": {"decoder_output"},
    "packed_faces": {"core"},
    "images": {"core", "image_files", "packed_faces"},
    "safe_yaml": set(),
    "jobs": set(),
    "setting_types": set(),
    "config": {"core", "storage", "safe_yaml", "setting_types"},
    "models": {"core", "storage", "documents"},
    "datasets": {"core", "storage", "documents", "images", "config"},
    "synthetic": {"core", "storage", "images", "models"},
    "sources": {"core", "storage", "config", "datasets"},
    "content_ids": {"storage", "config", "models", "sources"},
    "job": {"core", "storage", "config", "datasets", "models", "sources", "content_ids"},
    "engine": {"core", "storage", "config", "datasets", "job"},
    "training": {
        "core", "storage", "documents", "images", "config", "models", "datasets", "synthetic", "job", "content_ids",
        "engine",
    },
    "report": {"core", "datasets"},
    "stages": {
        "core", "storage", "documents", "images", "config", "models", "datasets", "sources", "job", "content_ids", "engine",
        "training", "report",
    },
    "tools": {
        "core", "hub", "storage", "documents", "images", "safe_yaml", "config", "models", "datasets", "synthetic", "sources",
        "job", "content_ids", "engine", "report", "stages",
    },
    "cli": {
        "storage", "safe_yaml", "config", "models", "synthetic", "sources", "job", "engine", "training", "report", "stages",
        "tools",
    },
    "__main__": {"cli"},
}  # fmt: skip
HOMES = {  # library -> where alone it is imported
    "ray": ("engine/",),
    "matplotlib": ("report/", "core/edc.py"),
    "jinja2": ("report/",),
    "numba": ("core/kernels/",),
    "huggingface_hub": ("hub.py",),
    "timm": ("models/networks/timm_vit.py",),
    "typer": ("cli/",),
}

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import {modules}
"""


@cache
def files():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(path):
    """Names of imported modules, `from package import name` as package.name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{a.name}" for a in node.names]
    return names


@pytest.mark.parametrize("room", LADDER)
def test_a_room_imports_only_what_lies_below(room):
    paths = [p for p in files() if room_of(p) == room]
    assert paths
    for path in paths:
        for name in imports(path):
            if name.startswith("fiqa_ray."):
                used = name.split(".")[1]
                assert used in LADDER[room] | EVERYWHERE | {room}, f"{path.relative_to(PACKAGE)} imports {name}"


def test_the_ladder_has_no_circle_and_covers_every_room():
    height = {}
    for room, below in LADDER.items():
        assert below <= set(height), f"{room} imports a room that stands above it in the ladder"
        height[room] = len(height)
    assert {room_of(p) for p in files()} == set(LADDER) | EVERYWHERE | {"__init__"}


def test_private_names_stay_in_their_file():
    for path in files():
        for name in imports(path):
            private = [part for part in name.split(".")[1:] if part.startswith("_") and part != "_version"]
            is_dunder = name.endswith("__")
            assert not (name.startswith("fiqa_ray.") and private and not is_dunder), f"{path.name} imports {name}"


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library):
    users = [p.relative_to(PACKAGE).as_posix() for p in files() if library in {n.split(".")[0] for n in imports(p)}]
    assert users
    assert all(user.startswith(HOMES[library]) for user in users), users


def test_a_file_has_one_job():
    lines = {p.relative_to(PACKAGE).as_posix(): len(p.read_text().splitlines()) for p in files()}
    long = {name for name, n in lines.items() if n > 450}
    assert long <= {"synthetic/render.py"}, long


def test_core_computes_on_arrays_alone():
    for path in (PACKAGE / "core").rglob("*.py"):
        libraries = {n.split(".")[0] for n in imports(path)}
        assert not libraries & {"pyarrow", "fsspec", "cv2"}, path
        assert "torch" not in libraries or path.name == "accelerator.py", path


def test_stages_meet_through_datasets():
    for path in (PACKAGE / "stages").glob("*.py"):
        others = {n.split(".")[2] for n in imports(path) if n.startswith("fiqa_ray.stages.")}
        assert all(other.startswith(f"{path.stem}_") for other in others), path  # other files of the same stage


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (
            ["ray", "torch", "matplotlib", "cv2", "s3fs"],
            "fiqa_ray.core.labels, fiqa_ray.core.edc, fiqa_ray.core.bootstrap",
        ),
        (
            ["ray", "torch", "numba", "matplotlib"],
            "fiqa_ray.config, fiqa_ray.datasets.schemas, fiqa_ray.storage, fiqa_ray.job, fiqa_ray.cli, "
            "fiqa_ray.tools.status",
        ),
        pytest.param(
            ["ray", "matplotlib"],
            "fiqa_ray.models.quality, fiqa_ray.models.regressor, fiqa_ray.tools.run_job",
            marks=pytest.mark.slow,  # imports torch
        ),
    ],
)
def test_works_without(blocked, modules):
    code = BLOCKED.format(blocked=blocked, modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
