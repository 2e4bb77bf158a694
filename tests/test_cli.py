"""The `fiqa-ray` command: what it prints, what it writes, how it ends."""

import copy
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import smoke
from fiqa_ray._version import __version__
from fiqa_ray.config import load_settings
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.documents import document_bytes
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.models.formats import export
from fiqa_ray.models.quality import METHODS, load_scorer
from fiqa_ray.models.recognition import RECOGNIZERS
from fiqa_ray.sources.command_line import list_images
from fiqa_ray.sources.scores import scores_by_id
from fiqa_ray.stages import STAGES
from fiqa_ray.storage import filesystem
from fiqa_ray.tools.plan import RAY_START_S
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.tools.score import score_images


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """30 training faces of 6 people, a benchmark of 36."""
    return smoke.make_faces(tmp_path_factory.mktemp("faces") / "faces", n_identities=6, per_identity=5)


def write_job(folder, faces, **changes):
    small = {
        "methods": [{"name": "embedding_norm"}],
        "pair": {"n_clusters": 3, "n_repeats": 2},
        "train": {"n_epochs": 2},
        "evaluate": {"fmr": 0.1, "draws": 0},
        "compute": {"engine": "local", "rows_per_part": 10, "train_workers": 0},
    }
    return smoke.write_job(folder / "job.yaml", faces, str(folder / "run"), **{**small, **changes})


@pytest.fixture(scope="module")
def done(faces, tmp_path_factory):
    """The YAML of a finished job."""
    path = write_job(tmp_path_factory.mktemp("done"), faces)
    run_job(load_settings(path))
    return path


@pytest.fixture(scope="module")
def convolutional(faces, tmp_path_factory):
    """A job with a released network's architecture, up to its regressors' scores of the benchmark."""
    recognizer = {"name": "curricularface_mobilefacenet", "weights": "random:1"}
    path = write_job(tmp_path_factory.mktemp("conv"), faces, recognizer=recognizer)
    job = run_job(load_settings(path, ["compute.rows_per_part=100"]), [s for s in STAGES if s != "report"])
    return job, job.settings.methods[0]


def run_uri(job_yaml):
    return load_settings(job_yaml).run_uri


def test_score_draws_a_contact_sheet_by_decile_and_a_histogram(cli, faces, tmp_path):
    model = ["--model", "embedding_norm", "--recognizer", "smoke:tiny"]
    code, out, _ = cli(
        "score", faces / "train", *model, "-o", tmp_path / "s.csv", "--sheet", tmp_path / "sheet.jpg", "--histogram"
    )
    assert code == 0
    assert str(tmp_path / "s_histogram.png") in out
    assert cv2.imread(str(tmp_path / "s_histogram.png")).std() > 10
    rows = pacsv.read_csv(tmp_path / "s.csv").to_pandas().sort_values("score", kind="stable")
    sheet = cv2.imread(str(tmp_path / "sheet.jpg"))
    assert sheet.shape[0] == 4 + 10 * 116  # ten deciles of 30 images, three faces in each
    for i in (0, 14, 29):  # worst, middle, best
        top, left = 4 + 116 * (i // 3), 150 + 116 * (i % 3)
        face = cv2.imread(rows["uri"].iloc[i])
        assert np.abs(sheet[top : top + 112, left : left + 112].astype(float) - face).mean() < 12, i  # twice JPEG
    code, _, err = cli("score", faces / "train", *model, "--sheet", tmp_path / "sheet.png")
    assert code == 2
    assert "must end in .jpg" in err


@pytest.mark.slow
def test_run_prints_where_the_report_lies(cli, done, tmp_path, faces):
    code, out, _ = cli("run", done)
    assert code == 0
    *answer, line, labels = out.splitlines()
    assert answer[0].startswith("Do optimized labels help?")
    assert labels == f"labels: fiqa-ray labels {load_settings(done).run_uri} -o labels.csv"
    page = Path(line.removeprefix("report: "))
    assert page.name == "report.html"
    assert "<html" in page.read_text()
    path = write_job(tmp_path, faces)
    assert cli("run", path, "--stages", "pack, embed")[:2] == (0, "")
    assert {r["stage"] for r in json.loads(cli("status", tmp_path / "run", "--json")[1])["datasets"]} == {
        "pack",
        "embed",
    }


def test_a_trial_has_few_faces_and_a_folder_of_its_own(cli, faces, tmp_path):
    path = write_job(tmp_path, faces)
    assert cli("run", path, "--limit=2", "--stages=pack")[0] == 0
    assert not (tmp_path / "run").exists()
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    sets = {r["dataset"].split("/")[1]: r for r in json.loads(cli("status", folder, "--json")[1])["datasets"]}
    assert (sets["set=train"]["n_rows"], sets["set=bench"]["n_rows"]) == (10, 36)


def test_plan(cli, faces, tmp_path):
    """Nothing is written; rows are those that a run then has; what is done needs no more work."""
    path = write_job(tmp_path, faces)
    code, out, _ = cli("plan", path, "--json")
    assert code == 0
    assert not (tmp_path / "run").exists()
    rows = json.loads(out)
    assert {r["state"] for r in rows} == {"to do"}
    assert [r["stage"] for r in rows if r["what"] == "train"] == ["pack", "embed"]
    planned = {(r["stage"], r["what"]): r for r in rows}
    assert {s for s, _ in planned} == set(STAGES) - {"fuse", "report"}  # on the engine local no Ray starts
    start = json.loads(cli("plan", path, "--json", "compute.engine=ray")[1])[0]
    assert (start["what"], start["time_s"]) == ("Ray on this machine", RAY_START_S)
    assert planned["pack", "train"]["n_rows"] == planned["pair", "mated pairs"]["n_rows"] == 30
    assert planned["pack", "bench"]["n_rows"] == planned["evaluate", "bench"]["n_rows"] == 36
    assert planned["embed", "train"]["written_bytes"] == 30 * 32 * 4
    assert planned["rank", "ranks"]["n_rows"] == 30 * 2 * 2
    assert planned["rank", "quality index"]["n_rows"] == 30
    assert (planned["pack", "train"]["n_shards"], planned["pack", "bench"]["n_shards"]) == (3, 4)
    assert all(r["n_rows"] > 0 and r["n_shards"] >= 1 and 0 < r["memory_bytes"] < 1e9 for r in rows)
    assert all(0 <= r["work_s"] < 60 for r in rows)

    assert cli("run", path, "--stages=pack,embed,score,pair,rank")[0] == 0
    half = json.loads(cli("plan", path, "--json")[1])
    assert {r["stage"] for r in half if r["state"] == "finished"} == {"pack", "embed", "score", "pair", "rank"}
    assert {r["stage"] for r in half if r["state"] == "to do"} == {"optimize", "train", "evaluate"}
    assert next(r["n_rows"] for r in half if r["stage"] == "rank") == sum(
        Job(load_settings(path)).similarity_ranks().require().stats["n_pairs"].values()
    )


def test_plan_of_a_finished_job(cli, done, monkeypatch):
    monkeypatch.setattr("fiqa_ray.cli.job.console", Console(width=160))
    code, out, _ = cli("plan", done, "--json")
    assert code == 0
    assert {(r["state"], r["work_s"]) for r in json.loads(out)} == {("finished", 0.0)}
    code, out, _ = cli("plan", done, "--machine", "m6i.4xlarge", "--machines", "2")
    assert code == 0
    assert "2 x m6i.4xlarge: 0.00 h, 0.00 at 0.768 per machine and hour" in out
    assert "on 32 worker(s)" in out
    assert "embedding_norm, regressor on optimized labels" in out
    assert "together 0.0 s of work" in out


def test_status(cli, done, tmp_path, monkeypatch):
    monkeypatch.setattr("fiqa_ray.cli.job.console", Console(width=160))
    code, out, _ = cli("status", run_uri(done), "--json")
    assert code == 0
    records = json.loads(out)["datasets"]
    assert [r["stage"] for r in records] == sorted((r["stage"] for r in records), key=list(STAGES).index)
    assert {r["stage"] for r in records} == set(STAGES) - {"fuse"}  # this job fuses nothing
    for r in records:
        assert r["finished"]
        assert not r["failed"]
        assert (r["n_parts_done"], r["n_rows_done"]) == (r["n_parts"], r["n_rows"])
        assert r["n_bytes"] > 0
    code, out, _ = cli("status", run_uri(done))
    assert code == 0
    assert "no run is at work" in out
    table = [line for line in out.splitlines() if "│" in line]
    assert len(table) == len({r["stage"] for r in records})  # a line per stage
    n_train = [r["n_rows"] for r in records if r["stage"] == "train"]
    assert re.search(rf"train +│ all {len(n_train)} +│ all \d+ +│ all {sum(n_train)} images", out)
    code, out, _ = cli("status", run_uri(done), "--datasets")
    assert "30/30 images" in out
    assert len([line for line in out.splitlines() if "│" in line]) == len(records)

    part = Path(shutil.copytree(run_uri(done), tmp_path / "run"))
    (folder,) = (part / "pairs").rglob("v=*")
    for name in ("_manifest.json", "_part-00002.json"):
        (folder / name).unlink()
    with RunLock(str(part)):
        code, out, _ = cli("status", part)
    assert code == 3
    assert re.search(r"pair +│ 0 of 1 +│ 2 of 3 +│ 20 of 30 images", out)
    assert "a run is at work" in out
    (record,) = (r for r in json.loads(cli("status", part, "--json")[1])["datasets"] if not r["finished"])
    assert (record["stage"], record["n_parts_done"], record["n_rows_done"]) == ("pair", 2, 20)

    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "missing"):
        code, out, err = cli("status", place)
        assert (code, out) == (1, "")
        assert f"{place} holds no run" in err


def test_report(cli, done, tmp_path):
    page = tmp_path / "new" / "page.html"
    code, out, _ = cli("report", done, "-o", page)
    assert (code, out) == (0, f"report: {page}\n")
    job = Job(load_settings(done))
    assert page.read_text() == Path(job.report().at("report.html")).read_text()
    assert cli("report", done)[1] == f"report: {job.report().at('report.html')}\n"


# --- score ---


def job_scores(job, method, theta):
    return job.regressor_scores("bench", LabelSet(method, theta)).read_all()["score"].to_pylist()


def test_scores_are_the_jobs_scores(cli, convolutional, faces, tmp_path):
    """Of a trained regressor on the same faces, in other batches and beside a bad one."""
    job, method = convolutional
    folder = Path(shutil.copytree(faces / "bench", tmp_path / "bench"))
    (folder / "Name_1" / "A_bad_one.jpg").write_bytes(b"no image")
    for theta in (None, 0.05):
        output = tmp_path / f"{theta}.parquet"
        code, out, _ = cli("score", folder, "--model", job.regressor(LabelSet(method, theta)).uri, "-o", output)
        assert (code, out) == (0, f"36 scored, 1 not (unreadable 1); written to {output}\n")
        rows = pq.read_table(output).to_pylist()
        assert [r["uri"] for r in rows] == sorted(str(p) for p in folder.rglob("*.jpg"))
        good = [r for r in rows if r["status"] == "ok"]
        assert [r["score"] for r in good] == pytest.approx(job_scores(job, method, theta), rel=1e-5)
        assert len({r["score"] for r in good}) > 30
        (bad,) = (r for r in rows if r["status"] != "ok")
        assert bad["uri"].endswith("A_bad_one.jpg")
        assert (bad["score"], bad["status"]) == (None, "unreadable")
        assert bad["error"]


@pytest.mark.slow
def test_score_takes_files_folders_and_globs(cli, convolutional, faces, tmp_path, monkeypatch):
    job, method = convolutional
    model = job.regressor(LabelSet(method)).uri
    monkeypatch.chdir(faces / "bench")
    output = tmp_path / "scores.csv"
    places = ["Name_3/Name_3_0002.jpg", "Name_1", "*/*_0004.jpg", "Name_1"]
    assert cli("score", *places, "--model", model, "--output", output)[0] == 0
    found = pacsv.read_csv(output).to_pydict()
    names = [uri.removeprefix(str(faces / "bench") + "/") for uri in found["uri"]]
    expected = ["Name_3/Name_3_0002.jpg", *(f"Name_1/Name_1_000{i}.jpg" for i in range(1, 7))]
    expected += [f"Name_{k}/Name_{k}_0004.jpg" for k in (0, 2, 3, 4, 5)]
    assert names == expected
    by_name = dict(
        zip(sorted(str(p.relative_to(".")) for p in Path().rglob("*.jpg")), job_scores(job, method, None), strict=True)
    )
    assert found["score"] == [by_name[n] for n in names]
    # below each place that was given, and of a pattern below its literal folder
    assert found["image_id"] == ["Name_3_0002.jpg", *(f"Name_1_000{i}.jpg" for i in range(1, 7)), *expected[7:]]

    # the table goes into a job as it is
    output = tmp_path / "all.csv"
    assert cli("score", ".", "--model", model, "-o", output)[0] == 0
    score = scores_by_id(pa.array(sorted(by_name)), str(output))
    assert score.tolist() == [by_name[n] for n in sorted(by_name)]

    output = tmp_path / "scores.json"
    assert cli("score", places[0], "--model", model, "-o", output)[0] == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["score"] for r in rows] == found["score"][:1]
    assert rows[0].keys() == {"image_id", "uri", "score", "percentile", "quality", "status", "error"}


def test_scores_are_the_same_wherever_the_images_lie(cli, convolutional, faces, tmp_path, bucket):
    """On disk, in memory and in a bucket; loose, or in a plain tar beside other files; a bad one has its row."""
    job, method = convolutional
    model = job.regressor(LabelSet(method)).uri
    bench = Path(shutil.copytree(faces / "bench", tmp_path / "bench"))
    (bench / "Name_9").mkdir()
    (bench / "Name_9" / "cut.jpg").write_bytes((bench / "Name_1" / "Name_1_0001.jpg").read_bytes()[:700])
    (bench / "notes.txt").write_text("no image")
    names = sorted(str(p.relative_to(bench)) for p in bench.rglob("*.jpg"))
    with tarfile.open(tmp_path / "faces.tar", "w") as tar:
        tar.add(bench, "bench")
    shown = {}
    for root in ("memory://score", bucket):
        fs, path = filesystem(root)
        fs.put(str(bench), f"{path}/bench", recursive=True)
        fs.put(str(tmp_path / "faces.tar"), f"{path}/faces.tar")
        shown |= {f"{root}/bench": "", f"{root}/bench/*/*.jpg": "", f"{root}/faces.tar": "tar://bench/"}
    shown |= {str(bench): "", str(tmp_path / "*.tar"): "tar://bench/"}
    expected = dict(zip(names[:-1], job_scores(job, method, None), strict=True)) | {names[-1]: None}
    for place, start in shown.items():
        assert cli("score", place, "--model", model, "-o", tmp_path / "s.parquet")[:2] == (
            0, f"36 scored, 1 not (truncated 1); written to {tmp_path / 's.parquet'}\n",
        )  # fmt: skip
        rows = {r["uri"]: r for r in pq.read_table(tmp_path / "s.parquet").to_pylist()}
        found = {next(n for n in names if n in uri): row for uri, row in rows.items()}
        assert {n: found[n]["score"] for n in names} == expected, place
        assert found[names[-1]]["status"] == "truncated"
        assert found[names[-1]]["percentile"] is None
        assert all(uri.startswith(start) for uri in rows)
        if start:  # any fsspec program finds the member again
            with fsspec.open(next(iter(rows))) as member:
                assert member.read() == (bench / names[0]).read_bytes()


@pytest.mark.slow
def test_percentiles_by_hand(cli, convolutional, faces, tmp_path):
    """With the 36 scores themselves as the regressor's distribution, the i-th of them in order is at i / 35."""
    job, method = convolutional
    model = Path(shutil.copytree(job.regressor(LabelSet(method)).uri, tmp_path / "regressor"))
    card = json.loads((model / "card.json").read_text())
    scores = sorted(job_scores(job, method, None))
    assert len(set(scores)) == 36
    card["validation_scores"] = {"n_images": 36, "quantiles": scores}
    (model / "card.json").write_bytes(document_bytes(card))
    assert cli("score", faces / "bench", "--model", model, "-o", tmp_path / "s.parquet")[0] == 0
    for row in pq.read_table(tmp_path / "s.parquet").to_pylist():
        assert row["percentile"] == pytest.approx(100 * scores.index(row["score"]) / 35)
        assert row["quality"] == int(100 * scores.index(row["score"]) / 35 + 0.5)  # no half occurs
    del card["validation_scores"]  # as in older cards
    (model / "card.json").write_bytes(document_bytes(card))
    assert cli("score", faces / "bench", "--model", model, "-o", tmp_path / "s.parquet")[0] == 0
    assert pq.read_table(tmp_path / "s.parquet")["percentile"].null_count == 36


def test_scores_do_not_depend_on_threads(convolutional, faces):
    job, method = convolutional
    scorer = load_scorer(job.regressor(LabelSet(method)).uri)
    images = list_images([str(faces / "bench" / "*" / "*_000[12].jpg")])
    one = score_images(images, scorer, batch_size=4)
    assert one == score_images(images, scorer, batch_size=4, n_threads=3)


def test_score_with_somebodys_own_network(cli, done, faces, tmp_path):
    """Its code is imported only where that is allowed."""
    job = Job(load_settings(done))
    method = job.settings.methods[0]
    argv = [
        "score",
        faces / "bench",
        "--model",
        job.regressor(LabelSet(method, 0.05)).uri,
        "-o",
        tmp_path / "s.parquet",
    ]
    code, _, err = cli(*argv)
    assert code == 1
    assert "'smoke:tiny'" in err
    assert "if you trust it" in err
    assert "--allow-import" in err
    assert not (tmp_path / "s.parquet").exists()
    assert cli(*argv, "--allow-import")[0] == 0
    assert pq.read_table(tmp_path / "s.parquet")["score"].to_pylist() == job_scores(job, method, 0.05)


def test_score_with_a_method(cli, faces, tmp_path):
    """A FIQA method needs its recogniser; the score is the job's for a method without random draws."""
    argv = ["score", faces / "bench" / "Name_0", "-o", tmp_path / "s.parquet", "--model", "embedding_norm"]
    code, _, err = cli(*argv)
    assert code == 2
    assert "embedding_norm works on a recogniser" in err
    assert cli(*argv, "--recognizer", "smoke:tiny")[0] == 0
    table = pq.read_table(tmp_path / "s.parquet")
    assert (table.num_rows, table["percentile"].null_count) == (6, 6)
    # another name of the same network, which wants an option of its own
    marker = f"marker={tmp_path / 'none'}"
    assert cli(*argv, "--recognizer", "smoke:mortal", "--recognizer-option", marker)[0] == 0
    assert pq.read_table(tmp_path / "s.parquet") == table

    faceqan = [*argv[:-1], "faceqan", "--recognizer", "smoke:tiny", "--option", "n_iterations=1"]
    found = []
    for exponent in (1, 2):  # q = [...]^p
        assert cli(*faceqan, "--option", "n_samples=2", "--option", f"exponent={exponent}")[0] == 0
        found.append(pq.read_table(tmp_path / "s.parquet")["score"].to_pylist())
    assert found[1] == pytest.approx([q**2 for q in found[0]], rel=1e-5)
    code, _, err = cli(*faceqan, "--option", "n_sample=2")
    assert code == 2
    assert "did you mean 'n_samples'" in err


def test_options_that_would_have_no_effect_are_refused(cli, convolutional, faces, tmp_path):
    job, method = convolutional
    argv = [
        "score",
        faces / "bench" / "Name_0",
        "--model",
        job.regressor(LabelSet(method)).uri,
        "-o",
        tmp_path / "s.csv",
    ]
    for more, words in (
        (["--recognizer", "smoke:tiny"], ["--recognizer smoke:tiny", "works on none; leave it out"]),
        (["--weights", "w.pt"], ["holds its weights; leave out weights='w.pt'"]),
        (["--option", "epsilon=1"], ["no option 'epsilon'"]),
    ):
        code, _, err = cli(*argv, *more)
        assert code == 2
        for word in words:
            assert word in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_score_with_a_methods_own_network(cli, faces, tmp_path):
    argv = ["score", faces / "bench" / "Name_0", "-o", tmp_path / "s.parquet", "--device", "cpu"]
    assert cli(*argv, "--model", "sddfiqa_mobilefacenet", "--weights", "random:1")[0] == 0
    found = pq.read_table(tmp_path / "s.parquet")
    scorer = load_scorer("sddfiqa_mobilefacenet", weights="random:1")
    wanted = score_images(list_images([str(faces / "bench" / "Name_0")]), scorer, batch_size=16)
    assert found["score"].to_pylist() == wanted["score"].to_pylist()
    on_r18 = ["--recognizer", "arcface_r18", "--recognizer-weights", "random:0"]
    assert cli(*argv, "--model", "pcnet", *on_r18, "--weights", "random:2")[0] == 0
    pcnet = pq.read_table(tmp_path / "s.parquet")["score"].to_pylist()
    assert len(set(pcnet)) == 6
    code, _, err = cli(*argv, "--model", "serfiq", *on_r18, "--option", "n_passes=1")
    assert (code, "serfiq: n_passes=1 must be a whole number of at least 2" in err) == (2, True)


@pytest.mark.parametrize(
    ("images", "options", "code", "words"),
    [
        (["nowhere"], [], 1, ["nowhere: not found", "files, folders, globs or tars"]),
        (["*.gif"], [], 1, ["no image (.jpg", "*.gif"]),
        (["Name_0"], ["-o", "scores.txt"], 2, ["'scores.txt' must end in .parquet, .csv or .json"]),
        (["Name_0"], ["--model", "faceqam"], 2, ["'faceqam' is no FIQA method (did you mean 'faceqan'?)"]),
        (["Name_0"], ["--recognizer", "arcface_r55"], 2, ["did you mean 'arcface_r50'?"]),
        (["Name_0"], ["--device", "tpu0"], 1, ["device 'tpu0'", "use cpu"]),
        (["Name_0"], ["--batch-size", "-1"], 2, ["--batch-size"]),
        (["Name_0"], ["--recognizer-option", "mean=0"], 2, ["'mean=0' belongs to a --recognizer"]),
        (["Name_0"], ["--option", "mean"], 2, ["'mean' is not of the form key=value"]),
        (["Name_0"], ["--option", "n_passes"], 2, ["'n_passes' is not of the form key=value"]),
        (["Name_0"], ["--recognizer-weights", "f.pth"], 2, ["f.pth belongs to no FR model: add --recognizer"]),
        ([], [], 2, ["IMAGES"]),
    ],
    ids=[
        "missing",
        "no-match",
        "output",
        "model",
        "recognizer",
        "device",
        "batch",
        "option-of-nothing",
        "option",
        "option",
        "fr-weights",
        "no-images",
    ],
)
def test_score_mistakes(cli, faces, monkeypatch, images, options, code, words):
    monkeypatch.chdir(faces / "bench")
    found, _, err = cli("score", *images, "--model", "embedding_norm", *options)
    assert found == code
    for word in words:
        assert word in err
    assert not list(Path().glob("scores.*"))


# --- export ---


@pytest.mark.slow
def test_an_exported_regressor_scores_as_the_job_did(cli, convolutional, faces, tmp_path):
    job, method = convolutional
    file = tmp_path / "new" / "regressor.onnx"
    regressor = job.regressor(LabelSet(method)).uri
    images = ["--images", faces / "train" / "p00", "--images", faces / "train" / "p01"]
    code, out, _ = cli("export", regressor, "-o", file, *images)
    assert (code, "scores of 10 crops" in out, str(file) in out) == (0, True, True)
    scores = {}
    for model in (regressor, file):
        assert cli("score", faces / "bench", "--model", model, "-o", tmp_path / "s.parquet")[0] == 0
        scores[model] = pq.read_table(tmp_path / "s.parquet").to_pydict()
    of_file, of_folder = scores[file], scores[regressor]
    spread = max(of_folder["score"]) - min(of_folder["score"])
    assert of_file["score"] == pytest.approx(of_folder["score"], abs=1e-4 * spread)
    assert of_file["percentile"] == pytest.approx(of_folder["percentile"], abs=0.1)
    assert len(set(of_file["percentile"])) > 5


@pytest.mark.slow
def test_export_refuses_and_leaves_no_file(cli, convolutional, done, faces, tmp_path, monkeypatch):
    job, method = convolutional
    regressor = job.regressor(LabelSet(method)).uri
    own = Job(load_settings(done)).regressor(LabelSet(job.settings.methods[0], 0.05)).uri
    one = faces / "bench" / "Name_0" / "Name_0_0001.jpg"
    (tmp_path / "no.jpg").write_bytes(b"no image")
    file = tmp_path / "regressor.onnx"

    def refused(exit_code, words, *argv):
        code, _, err = cli("export", *argv)
        assert code == exit_code
        assert words in err
        assert not file.exists()

    refused(2, "must end in .onnx", regressor, "-o", tmp_path / "regressor.pt")
    refused(1, "card.json", tmp_path / "nowhere", "-o", file)
    refused(1, "--allow-import", own, "-o", file)
    refused(1, "no.jpg: not a JPEG", regressor, "-o", file, "--images", tmp_path / "no.jpg")
    refused(1, "score the same", own, "--allow-import", "-o", file, "--images", one)

    exported = export._to_onnx

    def sabotaged(network):
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.model.regressor.weight *= 1.05
        return exported(network)

    with monkeypatch.context() as patch:
        patch.setattr(export, "_to_onnx", sabotaged)
        refused(1, "onnxruntime's scores differ from torch's", own, "--allow-import", "-o", file)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(1, "export needs onnxscript, which is not installed: pip install 'fiqa-ray[export]'", regressor, "-o", file)


# --- the rest ---


def test_models_version_help(cli, monkeypatch):
    monkeypatch.setattr("fiqa_ray.cli.tables.console", Console(width=120))
    code, out, _ = cli("models")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 120
    words = out.split()
    for name in (*RECOGNIZERS, *METHODS):
        assert name in words
    for line in ("crfiqa_s", "6.31 GMAC", "52 F + 40 B", "about 20 to 32", "CC BY-NC"):
        assert line in out
    assert cli("--version")[:2] == (0, f"{__version__}\n")
    code, out, _ = cli("--help")
    assert code == 0
    for command in ("run", "plan", "status", "score", "export", "report", "submit", "models"):
        assert command in out
        assert cli(command, "--help")[0] == 0
    assert cli()[0] == 2


def test_submit_without_a_cluster(cli, done, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    code, _, err = cli("submit", done)
    assert code == 2
    assert "--address http://HEAD:8265" in err
    assert "RAY_API_SERVER_ADDRESS" in err
    code, _, err = cli("submit", done, "optimize.theta=2", "--address", "http://127.0.0.1:9")
    assert code == 2
    assert "optimize.theta" in err  # a mistake shows before anything is sent
    code, _, err = cli("submit", done, "--address", "http://127.0.0.1:9")
    assert code == 1
    assert "the job server at http://127.0.0.1:9 did not take the job" in err


@pytest.mark.slow
def test_doctor_names_a_truncated_checkpoint(cli, tmp_path):
    whole = RECOGNIZERS["curricularface_mobilefacenet"].build()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) * 2 // 3])
    code, out, err = cli(
        "doctor", "--recognizer", "curricularface_mobilefacenet", "--recognizer-weights", tmp_path / "cut.pth"
    )
    assert (code, err) == (1, "")
    assert "FAULT" in out
    assert "1 (file) wrong, 0 open" in out
    assert "not a readable torch checkpoint" in " ".join(out.split())


@pytest.mark.slow
def test_doctor_looks_at_recognisers_methods_and_regressors(cli, convolutional, faces, tmp_path):
    job, method = convolutional
    images = ["--images", faces / "bench", "--people", "6", "--json"]
    code, out, _ = cli("doctor", "--recognizer", "smoke:tiny", *images)
    found = {f["check"]: f["state"] for f in json.loads(out)}
    assert list(found) == [
        "file",
        "people",
        "colour order",
        "scaling",
        "crop",
        "mirror",
        "length",
        "batches",
        "float16",
        "bfloat16",
    ]
    assert code == ("fault" in found.values())
    code, out, _ = cli("doctor", "embedding_norm", "--recognizer", "smoke:tiny", *images)
    assert [f["check"] for f in json.loads(out)][-2:] == ["sign", "score's batches"]
    code, out, _ = cli("doctor", job.regressor(LabelSet(method)).uri, *images)
    found = {f["check"]: f for f in json.loads(out)}
    assert {"people", "colour order", "scaling", "crop", "batches"} <= set(found)
    code, _, err = cli("doctor", "faceqam", *images)
    assert code == 2
    assert "did you mean 'faceqan'" in err


def test_train_pcnet_then_score(cli, faces, tmp_path):
    path = write_job(tmp_path, faces, recognizer={"name": "smoke:split"}, methods=[{"name": "embedding_norm"}])
    code, out, _ = cli("train-pcnet", path, tmp_path / "head.pt", "--steps", "3")
    assert code == 0
    assert "head.pt: loss on held-out people" in out
    argv = [
        "score",
        faces / "bench" / "Name_0",
        "--model",
        "pcnet",
        "--recognizer",
        "smoke:split",
        "-o",
        tmp_path / "s.csv",
    ]
    assert cli(*argv, "--weights", tmp_path / "head.pt")[0] == 0
    assert len(pacsv.read_csv(tmp_path / "s.csv")) == 6
    code, _, err = cli(*argv)
    assert code == 2
    assert "pcnet: weights are missing" in err


def test_score_takes_photos_as_the_user_says(cli, faces, tmp_path):
    """EXIF ignored, crops of another size resized, JPEGs without an end mark read: each if its option is given."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    crop = cv2.imread(str(sorted((faces / "bench" / "Name_0").iterdir())[0]))
    jpeg = cv2.imencode(".jpg", crop)[1].tobytes()
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"  # orientation 3: upside down
    exif = jpeg[:2] + b"\xff\xe1" + (len(turned) + 2).to_bytes(2, "big") + turned + jpeg[2:]
    large = cv2.imencode(".png", cv2.resize(crop, (224, 224), interpolation=cv2.INTER_NEAREST))[1].tobytes()
    upside_down = cv2.imencode(".png", cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1)[::-1, ::-1])[1].tobytes()
    contents = {
        "exif.jpg": exif,
        "large.png": large,
        "plain.jpg": jpeg,
        "short.jpg": jpeg[:-2],
        "turned.png": upside_down,
    }
    for name, content in contents.items():
        (pictures / name).write_bytes(content)
    (pictures / "crop.png").write_bytes(cv2.imencode(".png", crop)[1].tobytes())
    argv = ["score", pictures, "--model", "embedding_norm", "--recognizer", "smoke:tiny", "-o", tmp_path / "s.csv"]

    def scores(*options):
        assert cli(*argv, *options)[0] == 0
        return {row["uri"].rpartition("/")[2]: row for row in pacsv.read_csv(tmp_path / "s.csv").to_pylist()}

    before, after = scores(), scores("--ignore-exif", "--resize-crops", "--allow-missing-end")
    assert before["exif.jpg"]["score"] == before["turned.png"]["score"] != before["plain.jpg"]["score"]
    assert after["exif.jpg"]["score"] == before["plain.jpg"]["score"]
    assert (before["large.png"]["status"], before["short.jpg"]["status"]) == ("no_landmarks", "truncated")
    assert after["large.png"]["score"] == before["crop.png"]["score"]
    assert after["short.jpg"]["score"] == before["plain.jpg"]["score"]
    assert cli(*argv, "--resize-crops", "--detector", "yunet.onnx")[0] == 2


def test_score_raw_images_with_a_detector(cli, faces, tmp_path, monkeypatch):
    """A raw picture whose face is found scores as the crop that its landmarks give; where none is found says so."""
    crop = cv2.imread(str(sorted((faces / "bench" / "Name_0").iterdir())[0]))
    raw = cv2.copyMakeBorder(crop, 30, 50, 40, 20, cv2.BORDER_REPLICATE)
    for name, image in (("crop", crop), ("raw", raw), ("flat", np.full_like(raw, 90))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), image)

    class Detector:
        def __init__(self, uri):
            assert uri == "yunet.onnx"

        def __call__(self, image):
            return TEMPLATE + np.array([40, 30]) if image.std() > 0 else None

    monkeypatch.setattr("fiqa_ray.models.detector.FaceDetector", Detector)
    argv = ["--model", "embedding_norm", "--recognizer", "smoke:tiny", "-o", tmp_path / "s.csv"]
    found = {}
    for name, more in (("crop", []), ("raw", ["--detector", "yunet.onnx"]), ("flat", ["--detector", "yunet.onnx"])):
        assert cli("score", tmp_path / name, *argv, *more)[0] == (name == "flat")  # 1: nothing could be scored
        (found[name],) = pacsv.read_csv(tmp_path / "s.csv").to_pylist()
    assert found["raw"]["score"] == pytest.approx(found["crop"]["score"], rel=1e-6)
    assert found["flat"]["status"] == "no_face"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--recognizer", "smoke:tiny", "--images", "EMPTY"], 1, "no images found"),
        (["--recognizer", "smoke:tiny", "--device", "cuda"], 1, "device 'cuda'"),
        (["--recognizer", "smoke:tiny", "--option", "x=1"], 2, "belong to a MODEL"),
        (["smoke:tiny", "--people", "3"], 1, "smoke:tiny: returned scores of shape (12, 32)"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one case needs a machine without CUDA")
def test_doctor_tells_the_users_mistakes_from_the_models(cli, tmp_path, argv, code, words):
    (tmp_path / "empty").mkdir()
    argv = [str(tmp_path / "empty") if a == "EMPTY" else a for a in argv]
    found, out, err = cli("doctor", *argv)
    assert (found, out) == (code, "")
    assert words in err
