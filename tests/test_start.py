"""What a newcomer meets first: the demo, a job written for his own faces, the shipped jobs, and the wheel."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
import yaml

import smoke
from fiqa_ray.cli import app
from fiqa_ray.config import load_settings
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.synthetic import recognizer as demo_parts
from fiqa_ray.synthetic.dataset import write_synthetic_faces
from fiqa_ray.synthetic.recognizer import train_recognizer
from fiqa_ray.tools import plan
from fiqa_ray.tools.init_job import find_layout, find_source, init_job
from onnx_files import small_recognizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """36 faces of 6 people below faces/, and recognizer.onnx, which wants pixels as (v - 127.5) / 127.5."""
    root = smoke.make_faces(tmp_path_factory.mktemp("start") / "all", n_identities=6, per_identity=6)
    (root / "recognizer.onnx").write_bytes(small_recognizer())
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_init_writes_a_job_that_runs(cli, faces, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(
        "init", faces / "train", "--recognizer", faces / "recognizer.onnx", "--run-uri", tmp_path / "run"
    )
    assert code == 0, err
    assert "36 images of 6 people" in out
    settings = yaml.safe_load(out)
    assert settings["source"] == {"kind": "folder", "uri": str(faces / "train"), "identity_level": 0}
    assert settings["pair"] == {"n_clusters": 3}  # half of six images
    assert {"mean", "scale"} <= set(settings["recognizer"]["options"])  # the file does not show them
    assert "#   ok: batches: " in out
    assert settings["compute"] == {"engine": "local"}
    (tmp_path / "job.yaml").write_text(out)
    code, _, err = cli("run", "job.yaml", "--stages", "pack,embed,score")
    assert code == 0, err


def test_init_leaves_ray_on_where_plan_does_not_advise_against_it(cli, faces, monkeypatch):
    monkeypatch.setattr(plan, "RAY_START_S", 0.0)
    code, out, err = cli("init", faces / "train", "--recognizer", faces / "recognizer.onnx")
    assert code == 0, err
    assert "compute" not in yaml.safe_load(out)


def test_the_end_of_a_run_repeats_that_pixels_are_scaled_against_the_file(cli, faces, tmp_path):
    model = onnx.load_model_from_string(small_recognizer())
    (old,) = (i.name for i in model.graph.input)
    model.graph.input[0].name = "input.1"  # as InsightFace's files, which want (v - 127.5) / 127.5
    for node in model.graph.node:
        node.input[:] = ["input.1" if name == old else name for name in node.input]
    path = tmp_path / "r.onnx"
    onnx.save_model(model, str(path))
    for scale, n_warnings in ((255.0, 1), (127.5, 0)):
        changes = {
            "recognizer": {"name": str(path), "options": {"mean": 127.5, "scale": scale}},
            "methods": [{"name": "embedding_norm"}],
            "benchmarks": [],
        }
        job = smoke.write_job(tmp_path / "job.yaml", faces, str(tmp_path / f"run{scale}"), **changes)
        code, out, err = cli("run", job)
        assert code == 0, err
        assert out.count("scale=255 as you say, but the file wants mean=127.5 and scale=127.5") == n_warnings


@pytest.mark.parametrize(
    ("kind", "level"),
    [("folder", 0), ("folder", 1), ("vggface2", None), ("table", None), ("parquet_images", None), ("webdataset", None)],
)
def test_layouts_are_told_apart(faces, tmp_path, kind, level):
    import io
    import tarfile

    import pyarrow as pa
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    files = sorted((faces / "train").rglob("*.jpg"))
    people = [f.parent.name for f in files]
    place = tmp_path
    if kind == "folder" and level == 1:
        (tmp_path / "train").symlink_to(faces / "train")
        (tmp_path / "test").mkdir()
    elif kind == "folder":
        place = faces / "train"
    elif kind == "vggface2":
        (tmp_path / "train").symlink_to(faces / "train")
        (tmp_path / "bb_landmark").mkdir()
        columns = ",".join(f"P{n}{axis}" for n in range(1, 6) for axis in "XY")
        (tmp_path / "bb_landmark" / "loose_landmark_train.csv").write_text(
            f'NAME_ID,{columns}\n"p00/000",{",".join(map(str, TEMPLATE.ravel()))}\n'
        )
    elif kind == "table":
        place = tmp_path / "list.csv"
        pacsv.write_csv(pa.table({"uri": list(map(str, files)), "identity": people}), str(place))
    elif kind == "parquet_images":
        pq.write_table(pa.table({"image": [f.read_bytes() for f in files], "identity": people}), tmp_path / "a.parquet")
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for i, (file, person) in enumerate(zip(files, people, strict=True)):
                for ending, data in (("jpg", file.read_bytes()), ("cls", person.encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    source = find_source(str(place))
    assert source["kind"] == kind
    assert source.get("identity_level") == level
    assert find_layout(str(place)).sizes.tolist() == [6] * 6


def test_what_is_no_set_of_people_is_refused_with_a_remedy(faces, tmp_path):
    with pytest.raises(
        FiqaRayError, match=r"no level of folders names .* like 'Name_0_0001.jpg'.*one folder per person"
    ):
        find_source(str(faces / "bench" / "Name_0"))
    import cv2

    for person in "abc":
        for i in range(2):
            (tmp_path / person).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / person / f"{i}.jpg"), np.full((200, 150, 3), 40 * i, np.uint8))
    with pytest.raises(FiqaRayError, match=r"of 6 images that were read, 6 cannot be used .*--detector yunet.onnx"):
        init_job(str(tmp_path), str(faces / "recognizer.onnx"))


def test_c_follows_the_images_of_a_person(tmp_path):
    from fiqa_ray.tools.init_job import Layout

    def n_clusters(*sizes):
        return Layout({}, None, np.array(sizes), "").n_clusters

    assert n_clusters(6, 6, 1, 1) == 3
    assert n_clusters(2, 2, 3) == 2
    assert n_clusters(300, 363, 400) == 20


@pytest.mark.slow  # trains a recogniser on few faces, then runs the whole job
def test_the_demo_runs_and_goes_on(cli, tmp_path, monkeypatch):
    def make_small(root):
        write_synthetic_faces(
            root / "faces", n_identities=6, images_per_identity=6, n_heldout_identities=8,
            heldout_images_per_identity=4, n_folds=2, pairs_per_fold=20, n_workers=1,
        )  # fmt: skip
        train_recognizer(root / "recognizer.pt", n_identities=6, views_per_identity=2, n_epochs=1, n_threads=1)
        return root / "faces", root / "recognizer.pt"

    monkeypatch.setattr(demo_parts, "make_demo", make_small)
    folder = tmp_path / "a demo, with: a name"
    changes = ["compute.engine=local", "methods=[{name: embedding_norm}]", "evaluate.draws=50", "evaluate.fmr=0.1"]
    code, out, err = cli("demo", folder, *changes)
    assert code == 0, err
    page = Path(re.search(r"^report: (.*)$", out, re.M)[1])
    assert page.is_relative_to(folder)
    assert "<html" in page.read_text()
    settings = load_settings(str(folder / "demo.yaml"))
    assert settings.methods[0].label == "contrast"
    monkeypatch.setattr(demo_parts, "make_demo", lambda root: None)
    assert cli("demo", folder, *changes)[1] == out


def test_a_demo_where_no_folder_can_be_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "demo"):
        code, _, text = cli("demo", place)
        assert code in (1, 2)
        assert f"error: {place}: " in text
        assert "choose another path" in text


def test_the_shipped_jobs_are_listed_and_printed(cli, tmp_path):
    code, out, _ = cli("jobs")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == {
        p.stem for p in (ROOT / "fiqa_ray" / "jobs").glob("*.yaml")
    }
    assert cli("jobs", "vggface2")[1] == (ROOT / "fiqa_ray" / "jobs" / "vggface2.yaml").read_text()
    code, _, err = cli("jobs", "vgface2", "-o", tmp_path / "x.yaml")
    assert code == 2
    assert "did you mean 'vggface2'?" in err


def test_every_argument_and_option_is_explained():
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.slow
def test_the_synthetic_module_prints_help_and_draws_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fiqa_ray.synthetic", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "FOLDER" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wheel_holds_what_it_needs(tmp_path):
    tree = tmp_path / "tree"  # a build leaves files beside the sources
    shutil.copytree(ROOT / "fiqa_ray", tree / "fiqa_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [archive.read(n).decode() for n in names if n.endswith(".dist-info/METADATA")]
    package = {p.relative_to(tree).as_posix() for p in (tree / "fiqa_ray").rglob("*") if p.is_file()}
    assert {n for n in names if ".dist-info/" not in n} == package
    assert any(n.endswith("licenses/LICENSE") for n in names)
    for line in ("License-Expression: MIT", "Project-URL: Paper, https://", "Classifier: Typing :: Typed"):
        assert line in metadata, line
