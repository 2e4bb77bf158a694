"""The README and the documentation hold what they say: their commands, code and settings run on small data.

Every page is one script: its blocks run from top to bottom in a folder with the files of the fixture `workshop`. A block
with a title is a file. A command that needs a cluster, a network or a bucket is not run, but its options are checked.
"""

import contextlib
import glob
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import s3fs
import typer
import yaml

import fiqa_ray
import smoke
from fiqa_ray.cli import app, main
from fiqa_ray.config import Settings, load_settings
from onnx_files import small_recognizer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?[^\n]*\n(.*?)^\1```', re.M | re.S)
ELSEWHERE = (
    "ray",
    "pip",
    "make",
    "git",
    "kubectl",
    "docker",
    "sbatch",
    "export",
    "cd",
    "python",
    "bash",
    "curl",
    "srun",
)
"""Commands of other tools, which the tests do not run."""
QUICK = ["compute.engine=local", "evaluate.draws=20"]
"""What tests add to the job of a page: no Ray starts, and benchmarks are drawn fewer times."""
OUT_OF_REACH = re.compile(r"s3://|--address|compute\.address|yunet\.onnx|\.pth|cuda|runs/demo")


def blocks(page, *languages):
    """Yield `(language, title, text)` of the page's fenced blocks."""
    for indent, language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield language, title, "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def commands(text):
    """Return the commands of a block of shell as lists of words; comments are left out."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the files that pages take for given."""
    folder = smoke.make_faces(tmp_path_factory.mktemp("workshop"), n_identities=6, per_identity=6)
    (folder / "train").rename(folder / "faces")
    (folder / "recognizer.onnx").write_bytes(small_recognizer())
    rng = np.random.default_rng(0)
    np.save(folder / "embeddings.npy", rng.normal(size=(60, 16)).astype(np.float32))
    np.save(folder / "people.npy", np.repeat(np.arange(6), 10))
    np.save(folder / "scores.npy", rng.normal(size=60))
    mated = rng.random(200) < 0.5
    qualities = {"quality_a": rng.random(200), "quality_b": rng.random(200)}
    np.savez(folder / "pairs.npz", similarity=rng.normal(size=200) + 2 * mated, mated=mated, **qualities)
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_readme_is_a_front_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.slow  # half a minute for all pages
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_runs_from_top_to_bottom(page, workshop, tmp_path, monkeypatch):
    if not list(blocks(page, "bash", "python", "yaml")):
        pytest.skip("no code")
    folder = shutil.copytree(workshop, tmp_path / "page")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for language, title, text in blocks(page, "bash", "python", "yaml", "csv"):
        if title:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            Path(title).write_text(text, encoding="utf-8")
        if language == "yaml":
            check_yaml(text)
        elif language == "python" and not title:
            exec(compile(text, str(page), "exec"), {"__name__": "__main__"})
        elif language == "bash" and not title:
            for words in commands(text):
                run_command(words)
    for name in [n for n, m in sys.modules.items() if str(folder) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_page_on_minio_runs_to_its_end(workshop, tmp_path, monkeypatch, s3_server):
    """Its buckets, job and commands, on the S3 server of the tests."""
    page = ROOT / "docs" / "how-to" / "minio.md"
    folder = shutil.copytree(workshop, tmp_path / "page")
    monkeypatch.chdir(folder)
    s3fs.S3FileSystem.clear_instance_cache()
    n_commands = 0
    for language, title, text in blocks(page, "py", "yaml", ""):
        if language == "py":
            exec(compile(text, str(page), "exec"), {})
        elif title:
            Path(title).write_text(text, encoding="utf-8")
        for words in commands(text) if language == "" else ():
            if words[0] == "fiqa-ray":
                n_commands += 1
                local = QUICK if words[1] in ("run", "plan") else []
                with pytest.raises(SystemExit) as end:
                    main([*words[1:], *local])
                assert end.value.code == 0, words
    assert n_commands == 6
    assert len(Path("labels.csv").read_text().splitlines()) == 1 + 36
    assert "<html" in Path("page.html").read_text()
    assert s3fs.S3FileSystem().exists("faces/scores.csv")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_out_of_reach_have_these_options(page):
    for _, _, text in blocks(page, ""):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("fiqa-ray "):
                check_options(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_keys_that_a_page_names_exist(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    sections = {n: f.annotation for n, f in Settings.model_fields.items() if hasattr(f.annotation, "model_fields")}
    for section, key in re.findall(rf"`({'|'.join(sections)})\.(\w+)", text):
        is_file = key in ("idx", "onnx", "rec")
        assert is_file or key in sections[section].model_fields, f"{section}.{key}"


def run_command(words):
    """Run one line of a page, or check its options where it is out of reach."""
    if ">" in words[:-1]:
        with open(words[-1], "w") as file, contextlib.redirect_stdout(file):
            run_command(words[:-2])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words[1:]) <= set(targets), words
    elif words[0] == "python" and words[1].endswith(".py") and (Path(words[1]).exists()):
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[0] != "fiqa-ray":
        assert words[0] in ELSEWHERE or "=" in words[0], words
    elif OUT_OF_REACH.search(" ".join(words)):
        check_options(words)
    else:
        local = QUICK if words[1] == "run" else QUICK[1:] if words[1] == "evaluate" else []
        expanded = [match for word in words[1:] for match in (sorted(glob.glob(word)) if "*" in word else [word])]
        with pytest.raises(SystemExit) as end:
            main([*expanded, *local])
        expected = (0, 3) if words[1] == "status" else (0, 1) if words[1] == "doctor" else (0,)
        assert end.value.code in expected, words


def check_options(words):
    """Parse a command without running it; unknown commands and options raise."""
    words = words[: words.index(">")] if ">" in words else words
    command = typer.main.get_command(app)
    context = command.make_context("fiqa-ray", [words[1], "--help"], resilient_parsing=True)
    inner = command.get_command(context, words[1])
    assert inner is not None, words
    inner.make_context(words[1], words[2:], parent=context)


def check_yaml(text):
    """Check a whole job, or a part of one, against the settings; other documents need only be YAML."""
    values = next(iter(yaml.safe_load_all(text)))
    if not isinstance(values, dict) or not set(values) <= set(Settings.model_fields):
        assert "apiVersion" in values or "on" in values, text
        return
    whole = {
        "name": "x", "run_uri": "runs/x", "source": {"kind": "folder", "uri": "faces"},
        "recognizer": {"name": "arcface_r18"}, "methods": [{"name": "faceqan"}, {"name": "embedding_norm"}],
    }  # fmt: skip
    if values.get("source", {}).get("kind") == "embeddings":
        del whole["recognizer"]
    Path("checked.yaml").write_text(yaml.safe_dump(whole | values))
    load_settings("checked.yaml")


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w-]+", d)[0] for d in wanted} - {"fiqa-ray"}
    table = (ROOT / "docs" / "explanation" / "dependencies.md").read_text()
    listed = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^\| ([^|]+) \|", table, re.M))))
    assert names <= listed, names - listed


def test_generated_pages_are_those_of_the_code():
    """They are in the repository, so that they can be read there; nothing but this test keeps them current."""
    pages = runpy.run_path(str(ROOT / "docs" / "generators" / "write_pages.py"))["pages"]()
    stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python docs/generators/write_pages.py"


def test_every_setting_option_and_function_is_on_its_page():
    settings, commands, columns, python, records = (
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        for name in ("reference/settings", "reference/cli", "reference/columns", "reference/python", "recorded")
    )
    for section in (Settings.model_json_schema(), *Settings.model_json_schema()["$defs"].values()):
        for key, value in section["properties"].items():
            assert re.search(rf"^\| `{key}` \| .+ \| {re.escape(value['description'])} \|$", settings, re.M), key
    for name, command in typer.main.get_command(app).commands.items():
        section = commands.split(f"## `fiqa-ray {name}`")[1].split("\n## ")[0]
        assert all(option in section for p in command.params if p.param_type_name == "option" for option in p.opts), (
            name
        )
    for name in ("label", "prior_score", "embedding", "auc", "discard_fraction"):
        assert re.search(rf"^\| `{name}` \| \S+ \| .+ \|$", columns, re.M), name
    for name in fiqa_ray.__all__:
        assert name.startswith("_") or f"`fiqa_ray.{name}`" in python, name
    assert "\n    theta: Thetas=PAPER_THETA,\n" in python
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f"`{json.loads(path.read_text())['command']}`" in records
