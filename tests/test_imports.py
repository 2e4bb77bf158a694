"""Who may import whom: numerics and models without Ray, plots only in the report."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fiqa_ray"

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import {modules}
"""


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (["ray", "matplotlib", "cv2", "s3fs"], "fiqa_ray.core.labels, fiqa_ray.core.edc, fiqa_ray.core.bootstrap"),
        (
            ["ray", "torch", "matplotlib"],
            "fiqa_ray.config, fiqa_ray.datasets.schemas, fiqa_ray.storage, fiqa_ray.job, fiqa_ray.cli",
        ),
        (
            ["ray", "matplotlib"],
            "fiqa_ray.models.quality, fiqa_ray.models.regressor, fiqa_ray.tools.score, fiqa_ray.tools.run_job",
        ),
    ],
)
def test_works_without(blocked, modules):
    code = BLOCKED.format(blocked=blocked, modules=modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_rules():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        place = path.relative_to(PACKAGE)
        found = set(imports(path))
        tops = {name.split(".")[0] for name in found}
        inside = {name for name in found if name.startswith("fiqa_ray.")}
        if place.parts[0] not in ("engine",):
            assert "ray" not in tops, place
        if place.parts[0] != "report":
            assert not tops & {"matplotlib", "jinja2"}, place
        if place.parts[0] == "core":
            assert not any(not name.startswith(("fiqa_ray.core", "fiqa_ray.errors")) for name in inside), place
            assert not tops & {"pyarrow", "fsspec", "cv2"}, place
        if place.parts[0] == "stages" and place.name != "__init__.py":
            assert not any(name.startswith("fiqa_ray.stages.") for name in inside), (
                place
            )  # stages meet through datasets
            assert "fiqa_ray.tools.run_job" not in inside, place
